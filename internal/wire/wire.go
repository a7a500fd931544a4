// Package wire holds the lines that are spoken on a DTCP connection before it
// carries a stream (Sections 1 and 2 of protocol.md): reading and writing them
// within limits, the keys they name, and the proof of a nomination. It knows
// bytes only; what a line means for a session is package dtcp's business.
//
// Extended peers, dialer and listener:
//
//	D: key:<listener's key> LF           at once, on every connection
//	   TLS 1.3 between the two           the requester is the client, whoever dialed
//	R: ok:<proof> LF                     the requester nominates, inside TLS
//	S: ok LF                             the responder agrees, and the stream begins
//
// Stock peers (XEP-0046, "The handshake"):
//
//	D: starttls LF                       optional
//	L: ok LF | error LF
//	D: key:<listener's key> LF
//	L: ok:<dialer's key> LF | error LF
//	D: ok LF                             only if the dialer is the requester
package wire

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Limits of what is read (Section 1 of protocol.md).
const (
	MaxLine     = 512 // bytes of a line, the LF included
	MaxCommands = 5   // lines read from one connection
	MaxKey      = 128 // characters of a key
	MaxService  = 64  // characters of the name of a service
)

// Commands.
const (
	Key      = "key"
	OK       = "ok"
	Error    = "error"
	StartTLS = "starttls"

	// Move is reserved for streams that change their path, and answered
	// error:gone until then (Section 2 of protocol.md, 4).
	Move = "move"
	Gone = "gone"

	// Certificate is why an error takes the place of a nomination or of its
	// answer: the certificate is the one announced, and not one to be trusted.
	Certificate = "certificate"
)

// Errors of [Reader.Line], to be told apart with [errors.Is].
var (
	ErrTooLong  = fmt.Errorf("line longer than %d bytes", MaxLine)
	ErrTooMany  = fmt.Errorf("more than %d commands", MaxCommands)
	ErrBadBytes = errors.New("line with bytes outside of printable ASCII")
)

// Line is one command and its argument.
type Line struct {
	Command  string
	Argument string
}

// String returns the line without its LF.
func (l Line) String() string {
	if l.Argument == "" {
		return l.Command
	}
	return l.Command + ":" + l.Argument
}

// Append appends the line and its LF to b.
func (l Line) Append(b []byte) []byte { return append(append(b, l.String()...), '\n') }

// Parse reads a line that has lost its LF. Only printable ASCII may be in it;
// the argument is what follows the first colon.
func Parse(text []byte) (Line, error) {
	for _, c := range text {
		if c < 0x20 || c > 0x7e {
			return Line{}, ErrBadBytes
		}
	}
	command, argument, _ := strings.Cut(string(text), ":")
	return Line{command, argument}, nil
}

// Reader reads the lines of one connection, [MaxCommands] at the most. It takes
// nothing beyond the LF out of the reader below. Deadlines are set on the
// connection by the caller.
type Reader struct {
	r *bufio.Reader
	n int
}

// NewReader reads from r, whose buffer must hold a line.
func NewReader(r *bufio.Reader) *Reader { return &Reader{r: r} }

// Line reads one line. io.EOF means that nothing came at all,
// [io.ErrUnexpectedEOF] that a line broke off.
func (r *Reader) Line() (Line, error) {
	if r.n++; r.n > MaxCommands {
		return Line{}, ErrTooMany
	}
	// One byte at a time: what is wrong with a line is known at its first bad
	// byte, without waiting for an end that a hostile peer never sends.
	text := make([]byte, 0, 64)
	for {
		c, err := r.r.ReadByte()
		switch {
		case err == io.EOF && len(text) > 0:
			return Line{}, io.ErrUnexpectedEOF
		case err != nil:
			return Line{}, err
		case c == '\n':
			return Parse(text)
		case c < 0x20 || c > 0x7e:
			return Line{}, ErrBadBytes
		case len(text) == MaxLine-1:
			return Line{}, ErrTooLong
		}
		text = append(text, c)
	}
}

// NewKey returns a new key: 22 characters of base64url, 128 random bits.
func NewKey() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// ValidKey reports whether s may be the key of a peer: 1 to 128 characters of
// A-Z a-z 0-9 . _ ~ + / = -. A key is sent to hosts that a stranger names, and
// must never carry a line of his choosing.
func ValidKey(s string) bool { return len(s) <= MaxKey && inAlphabet(s) }

// ValidService reports whether s may name a service: 1 to 64 characters of the
// alphabet of keys.
func ValidService(s string) bool { return len(s) <= MaxService && inAlphabet(s) }

func inAlphabet(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("._~+/=-", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}
