package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

func TestDescribe(t *testing.T) {
	for _, test := range []struct {
		offer transfer.Offer
		want  string
		names string
	}{
		{transfer.Offer{Files: 1, Bytes: 5, Names: []string{"a"}}, "1 file, 5 B", "a"},
		{transfer.Offer{Files: 3, Folders: 1, Links: 2, Bytes: 2e6, Names: []string{"a", "b"}}, "3 files, 1 folder, 2 links, 2.00 MB", "a, b"},
		{transfer.Offer{Folders: 2, Names: []string{"a"}}, "2 folders, 0 B", "a"},
		{transfer.Offer{Files: 1, Streams: 1, Names: []string{"stdin"}}, "1 file of unknown length", "stdin"},
		{transfer.Offer{Files: 3, Streams: 1, Bytes: 9, Names: strings.Split("abcdefghij", ""), More: 5}, "3 files, 9 B and 1 of unknown length", "a, b, c, d, e, f, g, h and 7 more"},
	} {
		if got := describe(&test.offer); got != test.want {
			t.Errorf("%+v: %q, want %q", test.offer, got, test.want)
		}
		if got := listed(&test.offer); got != test.names {
			t.Errorf("%+v: names %q, want %q", test.offer, got, test.names)
		}
	}
}

// What is asked names all that there is to know, also when there is much of it.
func TestQuestion(t *testing.T) {
	got := question(romeo, &transfer.Offer{Files: 2, Bytes: 3e9, Names: []string{"a", "b"}, Room: 5e9, Present: 1e9, Refused: 1}, "/here", "192.0.2.9:5280")
	want := []string{
		"romeo@example.org/orchard wants to send 2 files, 3.00 GB: a, b",
		"romeo@example.org is no contact, and so comes through our relay 192.0.2.9:5280 alone, which tells no address of this machine",
		"to be stored in /here, where 5.00 GB are free; 1.00 GB of it seem to be here already",
		"1 name cannot be stored here, whatever you say",
		"accept? [y/N] ",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for answer, want := range map[string]bool{"y\n": true, "YES\r\n": true, " y ": true, "": false, "\n": false, "n\n": false, "yy\n": false} {
		if isYes(answer) != want {
			t.Errorf("%q means yes: %v", answer, !want)
		}
	}
}

// A folder of very many files does not fill the terminal.
func TestManyFilesFewLines(t *testing.T) {
	var stderr bytes.Buffer
	l := &ledger{out: newOutput(&bytes.Buffer{}, &stderr), peer: "here"}
	var failed []transfer.File
	for i := range 1000 {
		l.file(transfer.File{Name: fmt.Sprint(i), Status: transfer.Present})
		failed = append(failed, transfer.File{Name: fmt.Sprint(i), Status: transfer.Failed, Err: errors.New("no")})
	}
	l.failed(failed)
	if got, want := strings.Count(stderr.String(), "\n"), maxNotes+1+maxFailed+1; got != want {
		t.Errorf("%d lines, want %d", got, want)
	}
	for _, want := range []string{"0 is here already", "further ones are not listed", "failed: 99: no", "and 900 more failed"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("nothing says %q", want)
		}
	}
}
