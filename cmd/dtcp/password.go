package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// passwordVariable is the variable that holds a password. Commands that listen
// runs do not get it.
const passwordVariable = "DTCP_PASSWORD"

// maxPassword bounds, in bytes, the first line of a password file.
const maxPassword = 4096

// givenPassword returns the password of --password-file, else of the
// environment, else "".
func (t *tool) givenPassword() (string, error) {
	if t.passwordFile == "" {
		return os.Getenv(passwordVariable), nil
	}
	password, exposed, err := readPassword(t.passwordFile)
	if err != nil {
		return "", fmt.Errorf("--password-file: %w", err)
	}
	if exposed {
		t.out.say("warning: other users can read %s: chmod go= it", t.passwordFile)
	}
	return password, nil
}

// readPassword returns the first line of a file. exposed reports that users
// other than its owner can read it.
func readPassword(path string) (password string, exposed bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", false, err
	}
	// A pipe, of a password manager say, is not a place where it lies.
	exposed = info.Mode().IsRegular() && modeTells && info.Mode().Perm()&0o077 != 0
	line, err := bufio.NewReaderSize(io.LimitReader(f, maxPassword+2), maxPassword+2).ReadSlice('\n')
	if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
		return "", exposed, err
	}
	line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
	switch {
	case len(line) == 0:
		return "", exposed, fmt.Errorf("the first line of %s is empty", path)
	case len(line) > maxPassword:
		return "", exposed, fmt.Errorf("the first line of %s is longer than %d bytes", path, maxPassword)
	}
	return string(line), exposed, nil
}

// errNoPassword says that there is no way to get one.
var errNoPassword = errors.New("no password, and no terminal to ask for it")

// askPassword asks on the terminal, which is not stdin: that may be data.
func askPassword(ctx context.Context, account jid.JID) (string, error) {
	in, out, err := openTerminal()
	if err != nil {
		return "", errNoPassword
	}
	defer in.Close()
	defer out.Close()
	fd := int(in.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return "", errNoPassword
	}
	type answer struct {
		line []byte
		err  error
	}
	answers := make(chan answer, 1)
	fmt.Fprintf(out, "Password for %s: ", clean(account.String()))
	// Owned by this call, which waits for it unless ctx ends first: then the
	// process is about to end, and the goroutine with it.
	go func() {
		line, err := term.ReadPassword(fd)
		answers <- answer{line, err}
	}()
	select {
	case a := <-answers:
		fmt.Fprintln(out)
		if a.err != nil {
			return "", fmt.Errorf("reading the password: %w", a.err)
		}
		if len(a.line) == 0 {
			return "", errors.New("the password is empty")
		}
		return string(a.line), nil
	case <-ctx.Done():
		term.Restore(fd, state) // with its echo
		fmt.Fprintln(out)
		return "", context.Cause(ctx)
	}
}

// readLimited reads r to its end, which must come within max bytes.
func readLimited(r io.Reader, max int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("more than %d bytes", max)
	}
	return b, err
}
