package transfer

import (
	"hash"
	"io/fs"
	"os"
	"time"
)

// What the tests in package transfer_test look at inside.

var (
	CheckName   = checkName
	CheckTarget = checkTarget
	Numbered    = numbered
	PartName    = partName
	Fold        = fold
	Clean       = clean
)

const (
	JournalPrefix = journalPrefix
	MaxData       = maxData
	MaxParts      = maxParts
	OfferTime     = offerTime
	MaxReasons    = maxReasons
)

// SetFault makes writes fail.
func (d *Folder) SetFault(f func(name string, n int) error) { d.fault = f }

// SetRoom says how much room there is.
func (d *Folder) SetRoom(f func() int64) { d.room = f }

// SetMask is the umask.
func (d *Folder) SetMask(mask fs.FileMode) { d.umask = mask }

// RefuseModes makes the system refuse modes and times.
func RefuseModes(err error) (restore func()) {
	oldFile, oldIn, oldTimes := chmod, chmodIn, chtimesIn
	chmod = func(*os.File, fs.FileMode) error { return err }
	chmodIn = func(*os.Root, string, fs.FileMode) error { return err }
	chtimesIn = func(*os.Root, string, time.Time, time.Time) error { return err }
	return func() { chmod, chmodIn, chtimesIn = oldFile, oldIn, oldTimes }
}

// CountSyncs counts the folders that are written to the disk.
func CountSyncs() (count *int, restore func()) {
	old := syncDir
	count = new(int)
	syncDir = func(f *os.File) error { *count++; return old(f) }
	return count, func() { syncDir = old }
}

// RawFrame is a whole frame.
func RawFrame(k byte, payload []byte) []byte { return frame(kind(k), payload) }

// RawNumbers is a whole frame of numbers.
func RawNumbers(k byte, n ...uint64) []byte { return numbers(kind(k), n...) }

// RawHello is the first frame.
func RawHello() []byte { return hello() }

// RawEntry is an entry as it is offered.
func RawEntry(typ uint8, parent int32, name, target string, size int64, mtime time.Time) []byte {
	mode := uint16(0o644)
	if typ == typeFolder {
		mode = 0o755
	}
	return appendEntry(nil, &entry{typ: typ, parent: parent, name: name, target: target, size: size, mode: mode, sec: mtime.Unix(), nsec: int32(mtime.Nanosecond())})
}

// UseHash replaces the hash of files that are not small.
func UseHash(f func() hash.Hash) (restore func()) {
	old := newHash
	newHash = f
	return func() { newHash = old }
}
