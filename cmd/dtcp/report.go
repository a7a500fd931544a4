package main

import (
	"fmt"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// How much is told of single files: a folder may hold very many.
const (
	maxNotes  = 10  // of what is no failure
	maxFailed = 100 // of what is
	maxNames  = 8   // in a description
)

// ledger tells of the files of one transfer as it becomes known what happened
// to them. The zero value with out works.
type ledger struct {
	out  *output
	peer string // where a file that need not be sent is: "there" or "here"

	mu      sync.Mutex
	notes   int
	renamed map[string]bool // folders at the top that were told
}

// file takes what became of a file. Those that failed are listed at the end.
func (l *ledger) file(f transfer.File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case f.Status == transfer.Present:
		l.note("%s is %s already, byte for byte: passed over", f.Name, l.peer)
	case f.Status == transfer.Omitted:
		l.note("%s is left out: %v", f.Name, f.Err)
	case f.Status != transfer.Stored || f.Saved == "" || f.Saved == f.Name:
	case path.Base(f.Saved) != path.Base(f.Name):
		l.note("%s is stored as %s: the name was taken", f.Name, f.Saved)
	default:
		from, _, _ := strings.Cut(f.Name, "/")
		to, _, _ := strings.Cut(f.Saved, "/")
		if from != to && !l.renamed[from] && l.notes < maxNotes {
			l.note("the folder %s is stored as %s: the name was taken", from, to)
			if l.renamed == nil {
				l.renamed = map[string]bool{}
			}
			l.renamed[from] = true
		}
	}
}

// note says it, unless too much was said. l.mu is held.
func (l *ledger) note(format string, args ...any) {
	l.notes++
	switch {
	case l.notes <= maxNotes:
		l.out.say(format, args...)
	case l.notes == maxNotes+1:
		l.out.say("and so on: further ones are not listed")
	}
}

// failed lists what did not arrive.
func (l *ledger) failed(files []transfer.File) {
	for i, f := range files {
		if i == maxFailed {
			l.out.say("and %d more failed", len(files)-i)
			break
		}
		l.out.event(failedEvent{Event: "failed", Name: f.Name, Message: f.Err.Error()})
		l.out.say("failed: %s: %v", f.Name, f.Err)
	}
}

// stored says that a transfer ended well. did is "sent" or "received", to or from
// a peer, since when the receiver had accepted.
func (o *output) stored(did string, r *transfer.Result, toOrFrom string, took time.Duration) {
	text := fmt.Sprintf("%s %s (%s) %s in %.1f s", did, count(r.Files, "file"), size(r.Bytes), toOrFrom, took.Seconds())
	if fresh := r.Bytes - r.Resumed; took >= time.Second && fresh > 0 {
		text += fmt.Sprintf(", %s/s", size(int64(float64(fresh)/took.Seconds())))
	}
	if r.Present > 0 {
		text += fmt.Sprintf("; %d of them %s there already", r.Present, wasOrWere(r.Present))
	}
	if r.Resumed > 0 {
		text += fmt.Sprintf("; %s did not have to be sent again", size(r.Resumed))
	}
	o.say("%s", text)
	o.done(r, took)
}

func wasOrWere(n int) string {
	if n == 1 {
		return "was"
	}
	return "were"
}

// done is for programs that a transfer ended well.
func (o *output) done(r *transfer.Result, took time.Duration) {
	o.event(doneEvent{
		Event: "done", Bytes: r.Bytes, Resumed: r.Resumed,
		Seconds: seconds(took), SHA256: r.SHA256,
	})
}

// describe says in a few words what an offer holds, without its names.
func describe(o *transfer.Offer) string {
	var parts []string
	if o.Files > 0 || o.Folders+o.Links == 0 {
		parts = append(parts, count(o.Files, "file"))
	}
	if o.Folders > 0 {
		parts = append(parts, count(o.Folders, "folder"))
	}
	if o.Links > 0 {
		parts = append(parts, count(o.Links, "link"))
	}
	text := strings.Join(parts, ", ")
	switch {
	case o.Streams == 0:
		return text + ", " + size(o.Bytes)
	case o.Streams == o.Files:
		return text + " of unknown length"
	}
	return fmt.Sprintf("%s, %s and %d of unknown length", text, size(o.Bytes), o.Streams)
}

// listed is the names of an offer, as many as fit.
func listed(o *transfer.Offer) string {
	shown := o.Names[:min(len(o.Names), maxNames)]
	text := strings.Join(shown, ", ")
	if more := len(o.Names) - len(shown) + o.More; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// offered is the number of bytes for programs, which is not known of a pipe.
func offered(o *transfer.Offer) int64 {
	if o.Streams > 0 {
		return -1
	}
	return o.Bytes
}

// count words a number of things.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
