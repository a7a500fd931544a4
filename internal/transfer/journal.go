package transfer

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
)

// A note is one line of a journal: this transfer is about to write that.
type note struct {
	// Of a part: where it lies, which file it is a part of, with slashes, below
	// the Folder.
	Part string `json:"part,omitempty"`
	// Of a folder that was made, or of the file of a part: its name in the offer.
	Name string `json:"name,omitempty"`
	// Of a folder: where it lies.
	Dir  string `json:"dir,omitempty"`
	Size int64  `json:"size,omitempty"` // of the whole file; -1 of a stream
	Sec  int64  `json:"sec,omitempty"`  // modification time
	Nsec int32  `json:"nsec,omitempty"`
	Gone bool   `json:"gone,omitempty"` // the part is no more: renamed, removed, or never made
}

// heading is the first line of a journal.
type heading struct {
	Receiving int    `json:"dtcp-receiving"` // version of the format: 1
	From      string `json:"from"`
}

const (
	journalVersion = 1
	maxJournal     = 256 << 20 // bytes of one journal that are read
	maxNote        = 64 << 10  // bytes of one line
)

// A journal is a file in the Folder, ".dtcp-" and 16 digits, that says which
// parts and folders a transfer has begun, and for whom. A part is touched by a
// later attempt only if a journal names it: any other file that is called
// x.part is the user's. A line is written before what it speaks of is made, so
// that after a kill at any point there is no part without its line; a line
// without its part means nothing. The file is locked while its transfer lives
// and removed when nothing is left that it speaks of.
type journal struct {
	root *os.Root
	name string

	mu sync.Mutex
	f  *os.File
}

// openJournal makes a new journal for a sender, and takes over what the
// journals of its transfers that ended say: parts and folders, by the names of
// the offer. The old journals go once their lines stand in the new one.
func openJournal(d *Folder, from string) (*journal, map[string]note, map[string]note, error) {
	var digits [8]byte
	_, _ = rand.Read(digits[:])
	j := &journal{root: d.root, name: journalPrefix + hex.EncodeToString(digits[:])}
	var err error
	if j.f, err = d.root.OpenFile(j.name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, nil, nil, err
	}
	lock(j.f)
	line, _ := json.Marshal(heading{Receiving: journalVersion, From: from})
	if _, err := j.f.Write(append(line, '\n')); err != nil {
		j.discard()
		return nil, nil, nil, err
	}
	parts, dirs := make(map[string]note), make(map[string]note)
	old, err := d.journals()
	if err != nil {
		j.discard()
		return nil, nil, nil, err
	}
	for _, name := range old {
		if name == j.name {
			continue
		}
		if err := j.takeOver(name, from, parts, dirs); err != nil {
			j.discard()
			return nil, nil, nil, err
		}
	}
	return j, parts, dirs, nil
}

// journals lists those of the folder, oldest names first or not: the order
// says nothing, but it is always the same.
func (d *Folder) journals() ([]string, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found []string
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			if strings.HasPrefix(name, journalPrefix) {
				found = append(found, name)
			}
		}
		if errors.Is(err, io.EOF) {
			slices.Sort(found)
			return found, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// takeOver copies the living lines of an old journal, if it is this sender's
// and no transfer has it, and removes it.
func (j *journal) takeOver(name, from string, parts, dirs map[string]note) error {
	info, err := j.root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	f, err := j.root.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if !lock(f) {
		return nil
	}
	notes, ok := readJournal(f, from)
	if !ok {
		return nil
	}
	var buf bytes.Buffer
	for path, n := range notes {
		into := parts
		if n.Dir != "" {
			into = dirs
		}
		info, err := lstatReal(j.root, path)
		if err != nil || info.IsDir() != (n.Dir != "") || n.Dir == "" && !info.Mode().IsRegular() {
			continue
		}
		into[n.Name] = n
		line, _ := json.Marshal(n)
		buf.Write(append(line, '\n'))
	}
	if _, err := j.f.Write(buf.Bytes()); err != nil {
		return err
	}
	return j.root.Remove(name)
}

// readJournal reads a sender's journal: what it says last of each part and
// folder, by where that lies, without those that are gone. A last line that was
// cut ends it.
func readJournal(r io.Reader, from string) (map[string]note, bool) {
	lines := bufio.NewScanner(io.LimitReader(r, maxJournal))
	lines.Buffer(make([]byte, 0, 4096), maxNote)
	var h heading
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &h) != nil || h.Receiving != journalVersion || h.From != from {
		return nil, false
	}
	notes := make(map[string]note)
	for lines.Scan() {
		var n note
		if json.Unmarshal(lines.Bytes(), &n) != nil || (n.Part == "") == (n.Dir == "") || !localPath(n.Part+n.Dir) {
			continue
		}
		if n.Gone {
			delete(notes, n.Part+n.Dir)
		} else {
			notes[n.Part+n.Dir] = n
		}
	}
	return notes, true
}

// localPath is true for what a journal may name: a path of names that an entry
// may have.
func localPath(path string) bool {
	for name := range strings.SplitSeq(path, "/") {
		if checkName(name) != nil {
			return false
		}
	}
	return true
}

// lstatReal looks at a path that leads through no link.
func lstatReal(root *os.Root, path string) (fs.FileInfo, error) {
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	if dir == "" {
		return root.Lstat(name)
	}
	at, err := openReal(root, dir)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	return at.Lstat(name)
}

// write adds lines. It is safe for several goroutines.
func (j *journal) write(notes ...note) error {
	var buf bytes.Buffer
	for _, n := range notes {
		line, _ := json.Marshal(n)
		buf.Write(append(line, '\n'))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	_, err := j.f.Write(buf.Bytes())
	return err
}

// close leaves the journal for the next attempt.
func (j *journal) close() { _ = j.f.Close() }

// discard removes it: nothing is left that it speaks of. Removed first, as
// between the two another transfer could take it over.
func (j *journal) discard() {
	err := j.root.Remove(j.name)
	_ = j.f.Close()
	if err != nil {
		// Windows does not remove open files.
		_ = j.root.Remove(j.name)
	}
}
