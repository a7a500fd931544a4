// Package profile keeps what the command line tool remembers between two runs,
// in one directory: accounts, the certificate of this installation, and the
// fingerprints of known peers.
//
//	accounts.json    the accounts, last login first, with their passwords; 0600
//	certificate.pem  the certificate and its private key; 0600
//	peers.json       known peers and their fingerprints; 0600
//	lock             held by whoever changes one of the others
//
// # Security
//
// Passwords lie in accounts.json as they are: whoever can read the files of
// this user can log in as him anyway. The directory is made with mode 0700. It
// is refused when other users could change it, and a file in it is refused when
// they could read it, for it may have leaked (not checked on Windows, where a
// user's profile is private by its access list). A damaged file is an error and
// never replaced: a new certificate, or an empty list of peers, would silently
// undo the trust that people have placed in it.
//
// # Concurrency
//
// Any number of processes and goroutines may use one directory. Whoever changes
// it holds the lock, reads, and replaces a file as a whole; readers take no lock
// and see the file before or after.
package profile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/rogpeppe/go-internal/lockedfile"
	"github.com/rogpeppe/go-internal/robustio"
)

// Environment is the variable that names the directory, when no flag does.
const Environment = "DTCP_CONFIG"

// Names of the files.
const (
	accountsFile    = "accounts.json"
	certificateFile = "certificate.pem"
	peersFile       = "peers.json"
	lockFile        = "lock"
)

// maxFile bounds, in bytes, what is read of one file: room for some 10,000
// peers.
const maxFile = 8 << 20

// Dir is an open configuration directory. Make it with [Open]; there is nothing
// to close. It may be used by several goroutines at once.
type Dir struct {
	path string
	lock *lockedfile.Mutex
}

// DefaultPath returns $DTCP_CONFIG, else the folder "dtcp" in the user's
// configuration directory ([os.UserConfigDir]).
func DefaultPath() (string, error) {
	if path := os.Getenv(Environment); path != "" {
		return path, nil
	}
	base, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("profile: no place for a configuration directory: %w", err)
	}
	return filepath.Join(base, "dtcp"), nil
}

// Open returns the directory at path, and makes it if it is missing. It is an
// error when other users could write to it.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("profile: making the configuration directory: %w", err)
	}
	return OpenToRead(path)
}

// OpenToRead is [Open] for those who only want to know what is there: a
// directory that is missing is not made, and is empty. To change anything in it
// then fails.
func OpenToRead(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	d := &Dir{path: path, lock: lockedfile.MutexAt(filepath.Join(path, lockFile))}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d, nil
	case err != nil:
		return nil, fmt.Errorf("profile: %w", err)
	case !info.IsDir():
		return nil, fmt.Errorf("profile: %s is not a directory", path)
	}
	if err := checkDir(path, info); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	return d, nil
}

// Path returns the absolute path of the directory.
func (d *Dir) Path() string { return d.path }

// change runs f while no other process changes the directory.
func (d *Dir) change(f func() error) error {
	unlock, err := d.lock.Lock()
	if err != nil {
		return fmt.Errorf("profile: locking the configuration directory: %w", err)
	}
	defer unlock()
	return f()
}

// read returns the content of a file; an absent one is fs.ErrNotExist.
func (d *Dir) read(name string) ([]byte, error) {
	path := filepath.Join(d.path, name)
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	if err := checkFile(path, info); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("profile: %s holds more than %d bytes", path, maxFile)
	}
	b, err := robustio.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	return b, nil
}

// write replaces a file as a whole, so that a reader, a full disk or a power
// cut meets the old content or the new. The caller holds the lock, so the name
// of the temporary file may be a fixed one: what a crash left is overwritten.
func (d *Dir) write(name string, content []byte) (err error) {
	path := filepath.Join(d.path, name)
	temporary := path + ".new"
	defer func() {
		if err != nil {
			os.Remove(temporary)
			err = fmt.Errorf("profile: writing %s: %w", path, err)
		}
	}()
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(content); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := robustio.Rename(temporary, path); err != nil {
		return err
	}
	return syncDir(d.path)
}

// syncDir makes a rename outlive a power cut. Windows has no such call.
func syncDir(path string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// readJSON reads a file into v, which is left alone when there is none. A
// member that this version does not know is an error, because writing the file
// again would lose it.
func (d *Dir) readJSON(name string, v any) error {
	b, err := d.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(b))
	decoder.DisallowUnknownFields()
	err = decoder.Decode(v)
	if err == nil {
		if _, more := decoder.Token(); more != io.EOF {
			err = errors.New("something follows the end")
		}
	}
	if err != nil {
		return d.damaged(name, err)
	}
	return nil
}

func (d *Dir) writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	return d.write(name, append(b, '\n'))
}

// DamagedError says that a file does not hold what this package wrote.
type DamagedError struct {
	Path string
	Err  error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("profile: %s is damaged: %v", e.Path, e.Err)
}

// Unwrap returns what is wrong with the content.
func (e *DamagedError) Unwrap() error { return e.Err }

func (d *Dir) damaged(name string, err error) error {
	return &DamagedError{Path: filepath.Join(d.path, name), Err: err}
}
