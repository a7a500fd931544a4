// Package xmlstream reads one direction of an XMPP stream (RFC 6120, 4): the
// header, then elements one by one, each bounded in bytes, depth and number of
// nodes, without DTDs, comments, processing instructions or foreign encodings.
// It is used by both ends: package xmpp and internal/rendezvous.
//
// Deadlines belong to the connection below and are set by the caller, who
// alone knows what it is waiting for.
package xmlstream

import (
	"bufio"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// ErrTooLarge is wrapped by the error for an element of more bytes than the
// reader allows.
var ErrTooLarge = errors.New("stanza too large")

// ErrClosed is returned when the other side ended the stream with its closing
// tag, the clean end (RFC 6120, 4.4).
var ErrClosed = errors.New("stream closed by the peer")

// Header is the opening tag of a stream (RFC 6120, 4.7).
type Header struct {
	To, From jid.JID
	ID       string
	Version  string // "1.0", or "" from software older than RFC 3920
	Content  string // the default namespace: stanza.NSClient, …
}

// Append appends the XML declaration and the opening tag to b.
func (h Header) Append(b []byte) []byte {
	e := stanza.New("", "stream:stream").With("to", h.To.String()).With("from", h.From.String()).
		With("id", h.ID).With("version", h.Version).With("xmlns", h.Content).With("xmlns:stream", stanza.NSStream)
	b = append(b, "<?xml version='1.0'?>"...)
	b = e.Append(b, "")
	return append(b[:len(b)-len("/>")], '>')
}

// End is the closing tag of a stream.
const End = "</stream:stream>"

// Reader reads a stream from a buffered reader, of which it takes no byte
// beyond what it returns: after <proceed/> or <success/> the same
// [bufio.Reader] goes on under TLS or a new stream. A Reader is for one
// goroutine; after an error it is of no more use.
type Reader struct {
	src     source
	decoder *xml.Decoder
	content string
	prune   bool
}

// Prune has the reader survive elements that are deeper, or have more nodes or
// attributes, than package stanza allows: it returns their name and addressing
// (to, from, id, type) and passes over the rest. It is for a stream whose
// elements are not the server's own: whoever may send one through it could end
// it otherwise.
func (s *Reader) Prune() { s.prune = true }

// NewReader makes a reader of elements of at most max bytes each. If max is
// zero, [stanza.MaxBytes] is meant.
func NewReader(r *bufio.Reader, max int) *Reader {
	if max == 0 {
		max = stanza.MaxBytes
	}
	s := &Reader{src: source{r: r, max: max}}
	s.decoder = xml.NewDecoder(&s.src)
	// A stream is UTF-8 (RFC 6120, 11.6).
	s.decoder.CharsetReader = func(charset string, _ io.Reader) (io.Reader, error) {
		return nil, fmt.Errorf("encoding %.20q: %w", charset, stanza.ErrForbidden)
	}
	return s
}

// Header reads the opening tag. It comes first and once.
func (s *Reader) Header() (Header, error) {
	s.src.n = 0
	for first := true; ; first = false {
		token, err := s.decoder.Token()
		if err != nil {
			return Header{}, s.explain(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			return s.header(token)
		case xml.ProcInst:
			if token.Target == "xml" && first {
				continue
			}
		case xml.CharData:
			if strings.TrimSpace(string(token)) == "" {
				continue
			}
		}
		return Header{}, fmt.Errorf("xmlstream: %T before the stream header: %w", token, stanza.ErrForbidden)
	}
}

func (s *Reader) header(e xml.StartElement) (h Header, err error) {
	if e.Name.Local != "stream" || e.Name.Space != stanza.NSStream {
		return h, fmt.Errorf("xmlstream: <%.40s xmlns='%.80s'> where a stream header belongs", e.Name.Local, e.Name.Space)
	}
	for _, a := range e.Attr {
		switch a.Name {
		case xml.Name{Local: "to"}:
			err = errors.Join(err, h.To.UnmarshalText([]byte(a.Value)))
		case xml.Name{Local: "from"}:
			err = errors.Join(err, h.From.UnmarshalText([]byte(a.Value)))
		case xml.Name{Local: "id"}:
			h.ID = a.Value
		case xml.Name{Local: "version"}:
			h.Version = a.Value
		case xml.Name{Local: "xmlns"}:
			h.Content = a.Value
		}
	}
	s.content = h.Content
	if err != nil {
		return h, fmt.Errorf("xmlstream: stream header: %w", err)
	}
	return h, nil
}

// Next reads the next element. White space between elements (keepalives,
// RFC 6120, 4.6.1) is passed over, but counts towards the limit, so that the
// caller gets a turn: a stream of nothing else ends in [ErrTooLarge].
func (s *Reader) Next() (stanza.Element, error) {
	s.src.n = 0
	for {
		token, err := s.decoder.Token()
		if err != nil {
			return stanza.Element{}, s.explain(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			nested := &nesting{s.decoder, 1}
			e, err := stanza.Build(nested, token)
			if s.prune && errors.Is(err, stanza.ErrForbidden) && s.src.err == nil {
				e, err = addressing(token), nested.skip()
			}
			if err != nil {
				return stanza.Element{}, s.explain(err)
			}
			return e, nil
		case xml.EndElement:
			return stanza.Element{}, ErrClosed
		case xml.CharData:
			if strings.TrimSpace(string(token)) == "" {
				continue
			}
			return stanza.Element{}, fmt.Errorf("xmlstream: text between stanzas: %w", stanza.ErrForbidden)
		default:
			return stanza.Element{}, fmt.Errorf("xmlstream: %T: %w", token, stanza.ErrForbidden)
		}
	}
}

// nesting counts how many elements are open.
type nesting struct {
	tokens xml.TokenReader
	open   int
}

func (n *nesting) Token() (xml.Token, error) {
	t, err := n.tokens.Token()
	switch t.(type) {
	case xml.StartElement:
		n.open++
	case xml.EndElement:
		n.open--
	}
	return t, err
}

// skip passes over what is open.
func (n *nesting) skip() error {
	for n.open > 0 {
		if t, err := n.Token(); err != nil && t == nil {
			return err
		}
	}
	return nil
}

// addressing returns what of an element says whose it is.
func addressing(start xml.StartElement) stanza.Element {
	e := stanza.Element{Name: start.Name}
	for _, a := range start.Attr {
		if a.Name.Space == "" && slices.Contains([]string{"to", "from", "id", "type"}, a.Name.Local) {
			e = e.With(a.Name.Local, a.Value)
		}
	}
	return e
}

// explain prefers the reason why the bytes ended over the parser's complaint
// about the hole they left.
func (s *Reader) explain(err error) error {
	if s.src.err != nil {
		err = s.src.err
	}
	return fmt.Errorf("xmlstream: %w", err)
}

// source counts the bytes of one element. It is an [io.ByteReader], and so
// [xml.Decoder] does not put a buffer of its own around it.
type source struct {
	r      *bufio.Reader
	n, max int
	err    error
}

func (s *source) ReadByte() (byte, error) {
	if s.n++; s.n > s.max {
		s.err = fmt.Errorf("over %d bytes: %w", s.max, ErrTooLarge)
		return 0, s.err
	}
	c, err := s.r.ReadByte()
	if err != nil && s.err == nil {
		s.err = err
	}
	return c, err
}

func (s *source) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c, err := s.ReadByte()
	if err != nil {
		return 0, err
	}
	p[0] = c
	return 1, nil
}
