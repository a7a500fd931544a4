package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/rogpeppe/go-internal/lockedfile"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// accountFile is where the accounts of a standalone server lie, in the state
// directory. Commands change it while the daemon runs, under a lock on a file
// beside it, and the daemon looks at it every accountPoll.
const (
	accountFile = "accounts.json"
	accountLock = "accounts.lock"
	accountPoll = 250 * time.Millisecond
	maxAccounts = 16 << 20 // bytes of the file
)

// accounts are what a standalone server lets in, by localpart.
type accounts map[string]rendezvous.Credentials

// readAccounts reads the file of a state directory. None is no error.
func readAccounts(dir string) (accounts, error) {
	path := filepath.Join(dir, accountFile)
	text, err := readUpTo(path, maxAccounts)
	if errors.Is(err, fs.ErrNotExist) {
		return accounts{}, nil
	}
	if err != nil {
		return nil, err
	}
	if exposed(path) {
		return nil, fmt.Errorf("all users can read %s, with which passwords can be guessed: chmod go= it", path)
	}
	a := accounts{}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&a); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return a, nil
}

// changeAccounts has change work on the accounts of a state directory, which is
// made if it is not there, and keeps the outcome.
func changeAccounts(dir string, change func(accounts) error) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	unlock, err := lockedfile.MutexAt(filepath.Join(dir, accountLock)).Lock()
	if err != nil {
		return err
	}
	defer unlock()
	a, err := readAccounts(dir)
	if err != nil {
		return err
	}
	if err := change(a); err != nil {
		return err
	}
	text, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, accountFile), append(text, '\n'))
}

// replaceFile puts a file, readable by its owner alone, in place of another, so
// that there always is a whole one. A file that was there keeps its owner if this
// user can see to it: the daemon must be able to read what root has written.
func replaceFile(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails if it has its new name
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = adopt(f, filepath.Dir(path))
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// localpart returns a name in the form in which the server keeps it.
func localpart(name string) (string, error) {
	j, err := jid.New(name, "localhost", "")
	if err == nil && j.Local() == "" {
		err = errors.New("an account needs a name")
	}
	return j.Local(), err
}

// serve gives a server these accounts, and takes away those of before that are
// not among them.
func (a accounts) serve(s *rendezvous.Server, before accounts) error {
	for name, c := range a {
		if err := s.SetCredentials(name, c); err != nil {
			return err
		}
	}
	for name := range before {
		if _, stays := a[name]; !stays {
			if err := s.RemoveAccount(name); err != nil && !errors.Is(err, rendezvous.ErrNoAccount) {
				return err
			}
		}
	}
	return nil
}

func (f *flags) accountCommand() *cobra.Command {
	account := &cobra.Command{
		Use: "account", Short: "Add, list and remove accounts of a standalone server, which may run", Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			f.began = false
			return errors.New("add, list or remove? see 'dtcpd account --help'")
		},
	}
	var passwordFile string
	add := &cobra.Command{
		Use: "add NAME", Short: "Add an account, or give it a new password", Args: f.oneName,
		RunE: func(_ *cobra.Command, args []string) error { return f.addAccount(args[0], passwordFile) },
	}
	add.Flags().StringVar(&passwordFile, "password-file", "", "`file` whose first line is the password (default: $DTCP_PASSWORD, or the terminal)")
	list := &cobra.Command{
		Use: "list", Short: "Print the names of all accounts", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return f.listAccounts() },
	}
	remove := &cobra.Command{
		Use: "remove NAME", Short: "Remove an account and end its logins", Args: f.oneName,
		RunE: func(_ *cobra.Command, args []string) error { return f.removeAccount(args[0]) },
	}
	account.AddCommand(add, list, remove)
	return account
}

func (f *flags) oneName(c *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return fmt.Errorf("NAME is missing: see '%s --help'", c.CommandPath())
	case len(args) > 1:
		return fmt.Errorf("%q is one argument too many: see '%s --help'", args[1], c.CommandPath())
	}
	return nil
}

// accountsDirectory is where the accounts are: where the daemon of the same
// flags has them, which need not all be given.
func (f *flags) accountsDirectory() (string, error) {
	switch {
	case f.data != "":
		return f.data, nil
	case f.config == "":
		if _, err := os.Stat(defaultFile); err != nil {
			return stateDirectory(), nil
		}
	}
	c, err := f.load()
	if err != nil {
		return "", err
	}
	if c.Standalone == nil {
		return "", &configError{c.file, errors.New("dtcpd is a component there: accounts are the XMPP server's")}
	}
	return c.State, nil
}

func (f *flags) addAccount(name, passwordFile string) error {
	dir, err := f.accountsDirectory()
	if err != nil {
		return err
	}
	if name, err = localpart(name); err != nil {
		return err
	}
	password, err := f.newPassword(name, passwordFile)
	if err != nil {
		return err
	}
	credentials, err := rendezvous.NewCredentials(password, 0)
	if err != nil {
		return err
	}
	known := false
	err = changeAccounts(dir, func(a accounts) error {
		_, known = a[name]
		a[name] = credentials
		return nil
	})
	switch {
	case err != nil:
		return err
	case known:
		f.log.say("%s has a new password", name)
	default:
		f.log.say("added %s", name)
	}
	return nil
}

func (f *flags) listAccounts() error {
	dir, err := f.accountsDirectory()
	if err != nil {
		return err
	}
	a, err := readAccounts(dir)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if _, err := fmt.Println(name); err != nil {
			return err
		}
	}
	return nil
}

func (f *flags) removeAccount(name string) error {
	dir, err := f.accountsDirectory()
	if err != nil {
		return err
	}
	if name, err = localpart(name); err != nil {
		return err
	}
	err = changeAccounts(dir, func(a accounts) error {
		if _, known := a[name]; !known {
			return fmt.Errorf("there is no account %s in %s", name, dir)
		}
		delete(a, name)
		return nil
	})
	if err == nil {
		f.log.say("removed %s", name)
	}
	return err
}

// newPassword returns the password for an account, asked twice if at a
// terminal.
func (f *flags) newPassword(name, file string) (string, error) {
	if file != "" {
		password, err := readSecret(file)
		if err == nil && exposed(file) {
			f.log.say("warning: all users can read %s: chmod go= it", file)
		}
		return password, err
	}
	if password := os.Getenv("DTCP_PASSWORD"); password != "" {
		return password, nil
	}
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return "", errors.New("no password: name a --password-file, set DTCP_PASSWORD, or begin at a terminal")
	}
	var answers [2]string
	for i, question := range []string{"Password for " + name + ": ", "Once more: "} {
		fmt.Fprint(os.Stderr, question)
		line, err := term.ReadPassword(fd)
		fmt.Fprintln(os.Stderr)
		if err != nil {
			return "", err
		}
		answers[i] = string(line)
	}
	if answers[0] != answers[1] {
		return "", errors.New("these are two different passwords")
	}
	return answers[0], nil
}
