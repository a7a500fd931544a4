package transfer

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf8"
)

// magic begins the hello of either end, and version ends it (Section 2 of
// transfer.md). A change that an older end would misread takes a new version.
const (
	magic   = "dtcp-file"
	version = 1
)

// A kind says what a frame means (Section 2 of transfer.md). Letters, because
// they can be read in a recording.
type kind byte

const (
	kindHello     kind = 'h' // both: magic, version
	kindHeartbeat kind = 'b' // both: alive, and working or waiting for something outside
	kindAbort     kind = 'a' // both: the transfer is over; code, reason

	kindEntries kind = 'm' // sender: a piece of the offer
	kindOffered kind = 'e' // sender: end of the offer; entries, bytes
	kindPrefix  kind = 'p' // sender: hashes of what was asked for
	kindFile    kind = 'f' // sender: a file begins; entry, offset
	kindData    kind = 'd' // sender: bytes of that file
	kindEnd     kind = 'z' // sender: the file ends; size, hash
	kindGiveUp  kind = 'x' // sender: an entry will not come; entry, keep or discard, reason
	kindSent    kind = 'q' // sender: nothing more will come

	kindAccept   kind = 'y' // receiver: the offer is accepted
	kindRefuse   kind = 'n' // receiver: it is not; code, reason
	kindAsk      kind = 'k' // receiver: hash the first bytes of this file
	kindGo       kind = 'g' // receiver: no more is asked
	kindFrom     kind = 'o' // receiver: send this file from this offset
	kindResult   kind = 'r' // receiver: an entry is stored, was there, or failed
	kindComplete kind = 'c' // receiver: everything is stored that can be; files, bytes
)

// Limits of frames (Section 2 of transfer.md).
const (
	headerSize  = 5         // type, length
	maxData     = 256 << 10 // bytes of a file in one frame
	maxEntries  = 64 << 10  // bytes of entries in one frame
	maxText     = 1024      // bytes of a reason
	maxSmall    = 64        // bytes of a frame of numbers
	maxPrefixes = 2         // lengths asked for of one file
)

// limitOf is the longest payload of a kind; false for a kind there is not.
func limitOf(k kind) (int, bool) {
	switch k {
	case kindHello, kindHeartbeat, kindOffered, kindFile, kindEnd, kindAsk, kindFrom, kindComplete:
		return maxSmall, true
	case kindPrefix:
		return maxSmall + maxPrefixes*hashSize, true
	case kindAbort, kindRefuse, kindGiveUp, kindResult:
		return maxSmall + maxText, true
	case kindEntries:
		return maxEntries, true
	case kindData:
		return maxData, true
	case kindSent, kindAccept, kindGo:
		return 0, true
	}
	return 0, false
}

// hashSize is the length of a SHA-256.
const hashSize = sha256.Size

// newHash is a variable for one test, which moves more bytes than there is time
// to hash.
var newHash = sha256.New

// A code says of what sort an end is (Section 3 of transfer.md).
type code uint64

const (
	codeOther       code = 0 // anything else
	codeProtocol    code = 1 // the peer broke the protocol
	codeLimit       code = 2 // the offer is beyond a limit
	codeFull        code = 3 // no room on the receiver's disk
	codeStopped     code = 4 // somebody stopped it
	codeSuperseded  code = 5 // a newer attempt of the same sender took over
	codeDeclined    code = 6 // a person or a policy said no
	codeUnsupported code = 7 // another version, or something this end cannot take
	codeStalled     code = 8 // no progress
)

// parseHeader reads the five bytes before a payload: what it is, how long.
func parseHeader(b []byte) (kind, int, error) {
	k, n := kind(b[0]), binary.BigEndian.Uint32(b[1:headerSize])
	limit, ok := limitOf(k)
	if !ok {
		return 0, 0, protocolError("a frame of unknown type %#02x", byte(k))
	}
	if uint64(n) > uint64(limit) {
		return 0, 0, protocolError("a frame %q of %d bytes, where %d are allowed", k, n, limit)
	}
	return k, int(n), nil
}

// putHeader writes the five bytes before a payload of n bytes.
func putHeader(b []byte, k kind, n int) {
	b[0] = byte(k)
	binary.BigEndian.PutUint32(b[1:headerSize], uint32(n))
}

// frame is a whole frame with this payload.
func frame(k kind, payload []byte) []byte {
	b := make([]byte, headerSize, headerSize+len(payload))
	putHeader(b, k, len(payload))
	return append(b, payload...)
}

// numbers is a whole frame whose payload is these numbers.
func numbers(k kind, n ...uint64) []byte {
	b := make([]byte, headerSize, headerSize+len(n)*binary.MaxVarintLen64)
	for _, v := range n {
		b = binary.AppendUvarint(b, v)
	}
	putHeader(b, k, len(b)-headerSize)
	return b
}

// reason is a whole frame of numbers and a text, which is cut to its limit.
func reason(k kind, text string, n ...uint64) []byte {
	b := numbers(k, n...)
	b = append(b, clean(text)...)
	putHeader(b, k, len(b)-headerSize)
	return b
}

// hello is the first frame of either end.
func hello() []byte {
	return frame(kindHello, binary.AppendUvarint([]byte(magic), version))
}

// checkHello says whether the peer's first frame is one that this end knows.
func checkHello(k kind, payload []byte) error {
	rest, ok := strings.CutPrefix(string(payload), magic)
	if k != kindHello || !ok {
		return protocolError("it does not speak this file protocol")
	}
	f := fields{b: []byte(rest)}
	v := f.number()
	if f.bad {
		return f.end(k)
	}
	if v != version {
		return &VersionError{Theirs: v}
	}
	return nil
}

// fields takes a payload apart. After the first thing that is missing or
// malformed, bad is set, and everything further is zero.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) number() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[n:]
	return v
}

// size is a number of bytes, which fits an int64.
func (f *fields) size() int64 {
	v := f.number()
	if v > 1<<63-1 {
		f.bad, f.b = true, nil
		return 0
	}
	return int64(v)
}

func (f *fields) signed() int64 {
	v, n := binary.Varint(f.b)
	if n <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[n:]
	return v
}

// bytes takes n bytes.
func (f *fields) bytes(n uint64) []byte {
	if n > uint64(len(f.b)) {
		f.bad, f.b = true, nil
		return nil
	}
	b := f.b[:n]
	f.b = f.b[n:]
	return b
}

// hash takes a SHA-256.
func (f *fields) hash() (h [hashSize]byte) {
	copy(h[:], f.bytes(hashSize))
	return h
}

// text takes what is left, as words for a person.
func (f *fields) text() string {
	s := clean(string(f.b))
	f.b = nil
	return s
}

// end is an error unless everything was there and nothing is left.
func (f *fields) end(k kind) error {
	if f.bad || len(f.b) != 0 {
		return protocolError("a malformed frame %q", k)
	}
	return nil
}

func (k kind) String() string { return string(rune(k)) }

// clean makes words of the other end fit to be printed: no control characters,
// nothing that turns the direction of writing, valid UTF-8, at most maxText
// bytes.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if !printable(r) {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) > maxText {
		s = s[:maxText]
		for !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
		s = strings.Clone(s) // it is kept, and what it was cut from is not
	}
	return s
}

// printable is false for control characters, for characters that change how
// their neighbours are shown, and for the two separators of lines: all of them
// have been used to make one name look like another.
func printable(r rune) bool {
	switch {
	case unicode.IsControl(r), r == '\u2028', r == '\u2029':
		return false
	case r >= '\u202a' && r <= '\u202e', r >= '\u2066' && r <= '\u2069':
		return false
	}
	return true
}
