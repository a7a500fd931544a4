package transfer

import (
	"encoding/hex"
	"fmt"
	"io/fs"
	"time"
)

// Limits bound what is sent, and what is accepted. A zero field has the value
// of [DefaultLimits].
type Limits struct {
	Entries  int // files, folders and links of one transfer
	Depth    int // folders inside each other, the file included; at most 255
	Manifest int // bytes of the offer: names, and about 16 bytes an entry
}

// DefaultLimits keep either end below 64 MiB of memory. What is beyond them
// travels as one file, or through a pipe: tar on one side, tar on the other.
var DefaultLimits = Limits{Entries: 250_000, Depth: 64, Manifest: 16 << 20}

// maxName is the longest name of an entry, and maxTarget the longest target of
// a link, in bytes: what most systems allow.
const (
	maxName   = 255
	maxTarget = 4095
)

// maxPath is the longest path of an entry, with those of its folders, and
// maxPaths that of all together, in bytes (Section 4 of transfer.md).
const (
	maxPath  = 4096
	maxPaths = 64 << 20
)

func (l Limits) filled() Limits {
	if l.Entries == 0 {
		l.Entries = DefaultLimits.Entries
	}
	if l.Depth == 0 {
		l.Depth = DefaultLimits.Depth
	}
	l.Depth = min(l.Depth, 255)
	if l.Manifest == 0 {
		l.Manifest = DefaultLimits.Manifest
	}
	return l
}

// check is an error if this many entries, bytes of offer, or a depth are too
// much.
func (l Limits) check(entries, manifest, depth int) error {
	switch {
	case entries > l.Entries:
		return &LimitError{What: fmt.Sprintf("more than %d files, folders and links: send them as one archive", l.Entries)}
	case manifest > l.Manifest:
		return &LimitError{What: fmt.Sprintf("more than %d bytes of names: send them as one archive", l.Manifest)}
	case depth > l.Depth:
		return &LimitError{What: fmt.Sprintf("more than %d folders inside each other: send them as one archive", l.Depth)}
	}
	return nil
}

// Offer is what a sender wants to send. From, Refused, Present and Room are
// known to the receiver only. Its names hold no control characters
// and no slashes.
type Offer struct {
	From    string   // [Receiver.From]
	Files   int      // files and streams
	Folders int      // at any depth
	Links   int      // symbolic links
	Bytes   int64    // of all files; without those of streams
	Streams int      // files of unknown length: they may be endless
	Names   []string // what lies at the top, at most 100 of it
	More    int      // further names at the top
	Refused int      // entries that will not be stored whatever is answered: their names are unfit
	Present int64    // bytes that seem to be there already
	Room    int64    // free bytes where it would be stored; -1 if unknown
}

// Progress is how far a transfer has come.
type Progress struct {
	Bytes   int64 // moved, resumed and passed over
	Resumed int64 // the part of Bytes that did not have to be sent again
	Total   int64 // of the offer; -1 if it holds a stream of unknown length
	Files   int   // done
}

// Status is what became of one entry.
type Status int

const (
	// Pending is the state of an entry of which nothing is known yet.
	Pending Status = iota
	// Stored is an entry that arrived and lies under its name.
	Stored
	// Present is a file that was already there whole, by size and hash.
	Present
	// Failed is an entry that did not arrive; [File.Err] says why.
	Failed
	// Omitted is something that is never sent: a fifo, a socket, a device.
	// [File.Err] says which.
	Omitted
)

// String is the word for it.
func (s Status) String() string {
	return [...]string{"pending", "stored", "present", "failed", "omitted"}[s]
}

// File is what became of one entry. Its names hold no control characters.
type File struct {
	Name    string      // as offered, with slashes
	Saved   string      // receiver: where it lies in the folder, with slashes
	Type    fs.FileMode // 0, fs.ModeDir, fs.ModeSymlink, or fs.ModeNamedPipe for a stream
	Size    int64       // bytes; of a stream, those that came
	Resumed int64       // bytes of it that were there before
	Status  Status
	SHA256  string // hex; empty for folders, links, and files that failed
	Err     error
}

// Result is what became of a transfer. After an error it says what had been
// reached by then.
type Result struct {
	Files   int    // files that are stored now, those that were there before included
	Present int    // files that were there before
	Bytes   int64  // bytes of Files
	Resumed int64  // bytes of Bytes that were not sent in this attempt, because they were there
	Failed  []File // in the order of the offer
	Omitted []File // sender: what is never sent
	SHA256  string // if one file was offered and it is stored: its hash, in hex
	Elapsed time.Duration
	Tries   int // sender: attempts made
}

func hexOf(h [hashSize]byte) string { return hex.EncodeToString(h[:]) }
