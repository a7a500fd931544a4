package transfer

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/maphash"
	"io/fs"
	"strings"
	"time"
)

// Types of entries (Section 4 of transfer.md).
const (
	typeFile   = 0
	typeFolder = 1
	typeLink   = 2
	typeStream = 3
)

// An entry is one file, folder, link or stream of an offer. Entries are kept in
// slices of up to Limits.Entries: small, and without pointers but the two
// strings.
type entry struct {
	name   string // one component
	target string // of a link
	size   int64  // of a file; of a stream, what came
	sec    int64  // modification time
	nsec   int32
	parent int32 // its folder, as an index; -1 at the top
	mode   uint16
	typ    uint8
	depth  uint8  // folders around it
	path   uint16 // length of its name with those of its folders: at most maxPath
	status Status
}

func (e *entry) mtime() time.Time { return time.Unix(e.sec, int64(e.nsec)) }

// hasData is true for what comes as bytes.
func (e *entry) hasData() bool { return e.typ == typeFile || e.typ == typeStream }

// pathOf is the name of entry i with those of its folders, by slashes.
func pathOf(entries []entry, i int) string {
	e := &entries[i]
	if e.parent < 0 {
		return e.name
	}
	parts := make([]string, int(e.depth)+1)
	for at := len(parts) - 1; at >= 0; at-- {
		parts[at] = entries[i].name
		i = int(entries[i].parent)
	}
	return strings.Join(parts, "/")
}

// measurePath sets the length of the path of e, which is to follow entries, and
// adds it to sum. Names of folders repeat in every path below them, so that a
// small offer could make much of them.
func measurePath(entries []entry, e *entry, sum *int) error {
	n := len(e.name)
	if e.parent >= 0 {
		n += int(entries[e.parent].path) + 1
	}
	if n > maxPath {
		return &LimitError{What: fmt.Sprintf("a path longer than %d bytes: send it as an archive", maxPath)}
	}
	e.path = uint16(n)
	if *sum += n; *sum > maxPaths {
		return &LimitError{What: fmt.Sprintf("paths of more than %d bytes together: send them as one archive", maxPaths)}
	}
	return nil
}

// fileOf is what a caller is told of entry i.
func fileOf(entries []entry, i int) File {
	e := &entries[i]
	mode := [...]fs.FileMode{0, fs.ModeDir, fs.ModeSymlink, fs.ModeNamedPipe}[e.typ]
	return File{Name: clean(pathOf(entries, i)), Type: mode, Size: e.size, Status: e.status}
}

// appendEntry writes e as Section 4 of transfer.md says.
func appendEntry(b []byte, e *entry) []byte {
	b = append(b, e.typ)
	b = binary.AppendUvarint(b, uint64(e.parent+1))
	b = binary.AppendUvarint(b, uint64(len(e.name)))
	b = append(b, e.name...)
	b = binary.AppendUvarint(b, uint64(e.mode))
	b = binary.AppendVarint(b, e.sec)
	b = binary.AppendUvarint(b, uint64(e.nsec))
	switch e.typ {
	case typeFile:
		b = binary.AppendUvarint(b, uint64(e.size))
	case typeLink:
		b = binary.AppendUvarint(b, uint64(len(e.target)))
		b = append(b, e.target...)
	}
	return b
}

// maxEntry is more than the longest entry takes.
const maxEntry = 64 + maxName + maxTarget

// A manifest is an offer as it comes in, entry by entry.
type manifest struct {
	limits   Limits
	noHidden bool // at the top no name may begin with a dot
	entries  []entry
	refused  map[int]error // entries that will not be stored, by index
	bytes    int64         // of all files
	size     int           // of the frames so far
	paths    int           // lengths of all paths
	hash     hash.Hash     // of the entries as they came
	seed     maphash.Seed
	seen     map[sibling]struct{}
}

// sibling is a name as far as equality in one folder goes: the hash of its
// fold, with a seed of this transfer's own. Two names that are not equal meet
// about once in 10^9 transfers of the largest size, and the second one is then
// refused.
type sibling struct {
	parent int32
	fold   uint64
}

func newManifest(limits Limits, noHidden bool) *manifest {
	return &manifest{limits: limits.filled(), noHidden: noHidden, refused: make(map[int]error), hash: sha256.New(), seed: maphash.MakeSeed(), seen: make(map[sibling]struct{})}
}

// add reads the entries of one frame.
func (m *manifest) add(payload []byte) error {
	m.size += len(payload)
	_, _ = m.hash.Write(payload)
	// One string for all names of the frame.
	text := string(payload)
	f := fields{b: payload}
	cut := func() string {
		n := f.number()
		at := len(payload) - len(f.b)
		if f.bytes(n); f.bad {
			return ""
		}
		return text[at : at+int(n)]
	}
	for len(f.b) > 0 {
		e := entry{typ: f.bytes(1)[0], parent: -1}
		parent := f.number()
		e.name = cut()
		mode := f.number()
		e.sec = f.signed()
		nsec := f.number()
		switch e.typ {
		case typeFile:
			e.size = f.size()
		case typeLink:
			e.target = cut()
		case typeFolder, typeStream:
		default:
			return protocolError("an entry of unknown type %d", e.typ)
		}
		if f.bad || nsec > 999_999_999 {
			return protocolError("a malformed entry")
		}
		e.mode, e.nsec = uint16(mode&0o777), int32(nsec)
		if parent > 0 {
			if parent > uint64(len(m.entries)) || m.entries[parent-1].typ != typeFolder {
				return protocolError("an entry in a folder that there is not")
			}
			e.parent = int32(parent - 1)
			e.depth = m.entries[e.parent].depth + 1 // Limits.Depth is below 256
		}
		if err := m.limits.check(len(m.entries)+1, m.size, int(e.depth)+1); err != nil {
			return err
		}
		if err := measurePath(m.entries, &e, &m.paths); err != nil {
			return err
		}
		if e.size > 1<<62-m.bytes {
			return protocolError("files of more than %d bytes", int64(1)<<62)
		}
		m.bytes += e.size
		m.entries = append(m.entries, e)
		m.judge(len(m.entries) - 1)
	}
	return nil
}

// judge refuses entry i if its name, its target or its folder is unfit.
func (m *manifest) judge(i int) {
	e := &m.entries[i]
	err := checkName(e.name)
	if err == nil && e.parent < 0 && m.noHidden && e.name[0] == '.' {
		err = errNameHidden
	}
	if err == nil && e.parent >= 0 {
		err = m.refused[int(e.parent)]
	}
	if err == nil {
		key := sibling{e.parent, maphash.String(m.seed, fold(e.name))}
		if _, taken := m.seen[key]; taken {
			err = errNameTaken
		}
		m.seen[key] = struct{}{}
	}
	if err == nil && e.typ == typeLink {
		err = checkTarget(e.target, int(e.depth))
	}
	if err != nil {
		m.refused[i] = err
	}
}

// offer is what a person is asked about. Room and Present are for others to
// fill in.
func (m *manifest) offer(from string) *Offer {
	o := summary(m.entries, func(i int) bool { return m.refused[i] == nil })
	o.From, o.Refused = from, len(m.refused)
	return o
}

// summary sums the entries up that count.
func summary(entries []entry, counts func(i int) bool) *Offer {
	const names = 100
	o := &Offer{Room: -1}
	for i := range entries {
		e := &entries[i]
		if !counts(i) {
			continue
		}
		switch e.typ {
		case typeFolder:
			o.Folders++
		case typeLink:
			o.Links++
		case typeStream:
			o.Files++
			o.Streams++
		default:
			o.Files++
			o.Bytes += e.size
		}
		if e.parent < 0 {
			if len(o.Names) < names {
				o.Names = append(o.Names, e.name)
			} else {
				o.More++
			}
		}
	}
	return o
}
