// Package stanza holds the units of an XMPP stream as values: [Element] for any
// XML element, and [IQ], [Message] and [Presence] (RFC 6120, 8) with [Error].
//
// Values are plain data: no I/O, no state, nothing to close. They share the
// slices they were built from, so a value that is in use by two goroutines
// must not be changed. The bounds on what is read from a network (depth, number
// of nodes, no comments, no DTDs, no processing instructions) are enforced where
// XML becomes an [Element], in [Build]; the bound on bytes belongs to the reader
// that feeds it.
package stanza

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits of what [Build] accepts. A stanza of ours has depth 4.
const (
	MaxDepth = 32    // elements inside one another, the outermost counted
	MaxNodes = 65536 // elements and runs of text in one outermost element; a large roster has thousands
	MaxAttrs = 64    // attributes of one element
	MaxBytes = 65536 // what this project reads of one stanza; RFC 6120, 13.12 asks for 10,000 at least
)

// ErrForbidden is wrapped by the errors of [Build] for XML that RFC 6120, 11.1
// forbids in a stream (comments, processing instructions, document type
// declarations), and for XML over the limits.
var ErrForbidden = errors.New("not allowed in a stream")

// Element is an XML element, or, when its Name is empty, a run of character
// data among the children of another. The zero Element is "nothing", which
// [Element.IsZero] tells.
type Element struct {
	Name     xml.Name   // Space is the namespace itself, never a prefix
	Attrs    []xml.Attr // without namespace declarations
	Children []Element
	Data     string // character data, when Name is empty
}

// IsZero reports whether e is the zero Element: neither an element nor text.
func (e Element) IsZero() bool { return e.Name.Local == "" && e.Data == "" }

// New makes an element with a namespace, a name and children.
func New(space, local string, children ...Element) Element {
	return Element{Name: xml.Name{Space: space, Local: local}, Children: children}
}

// Text makes a run of character data.
func Text(s string) Element { return Element{Data: s} }

// With returns e with the attribute set, or unchanged when value is empty.
func (e Element) With(name, value string) Element {
	if value == "" {
		return e
	}
	e.Attrs = append(slices.Clip(e.Attrs), xml.Attr{Name: xml.Name{Local: name}, Value: value})
	return e
}

// Attr returns the value of the attribute without a namespace, or "".
func (e Element) Attr(local string) string {
	for _, a := range e.Attrs {
		if a.Name.Space == "" && a.Name.Local == local {
			return a.Value
		}
	}
	return ""
}

// Is reports whether e is an element of this namespace and name.
func (e Element) Is(space, local string) bool {
	return e.Name.Space == space && e.Name.Local == local && local != ""
}

// Child returns the first child element of this namespace and name, or the
// zero Element.
func (e Element) Child(space, local string) Element {
	for _, c := range e.Children {
		if c.Is(space, local) {
			return c
		}
	}
	return Element{}
}

// All returns the child elements of this namespace and name.
func (e Element) All(space, local string) []Element {
	var found []Element
	for _, c := range e.Children {
		if c.Is(space, local) {
			found = append(found, c)
		}
	}
	return found
}

// Elements returns the child elements, without the character data between.
func (e Element) Elements() []Element {
	var found []Element
	for _, c := range e.Children {
		if c.Name.Local != "" {
			found = append(found, c)
		}
	}
	return found
}

// Text returns the character data directly in e, joined.
func (e Element) Text() string {
	var b strings.Builder
	for _, c := range e.Children {
		if c.Name.Local == "" {
			b.WriteString(c.Data)
		}
	}
	return b.String()
}

// String returns e as XML.
func (e Element) String() string { return string(e.Append(nil, "")) }

// Append appends e as XML to b. parent is the default namespace in force where
// it will stand; e declares its own only when that differs.
func (e Element) Append(b []byte, parent string) []byte {
	if e.Name.Local == "" {
		return escape(b, e.Data)
	}
	b = append(b, '<')
	b = append(b, e.Name.Local...)
	if e.Name.Space != parent {
		b = append(b, " xmlns='"...)
		b = append(escape(b, e.Name.Space), '\'')
	}
	for i, a := range e.Attrs {
		b = append(b, ' ')
		switch a.Name.Space {
		case "":
		case "xml", xmlNamespace:
			b = append(b, "xml:"...)
		default: // a prefix of this element's own
			prefix := fmt.Sprintf("n%d", i)
			b = append(append(append(b, "xmlns:"...), prefix...), "='"...)
			b = append(escape(b, a.Name.Space), "' "...)
			b = append(append(b, prefix...), ':')
		}
		b = append(append(b, a.Name.Local...), "='"...)
		b = append(escape(b, a.Value), '\'')
	}
	if len(e.Children) == 0 {
		return append(b, "/>"...)
	}
	b = append(b, '>')
	for _, c := range e.Children {
		b = c.Append(b, e.Name.Space)
	}
	b = append(b, "</"...)
	b = append(b, e.Name.Local...)
	return append(b, '>')
}

const (
	xmlNamespace   = "http://www.w3.org/XML/1998/namespace"
	xmlnsNamespace = "http://www.w3.org/2000/xmlns/"
)

// escape appends s as character data that is also fit for an attribute value.
// What XML 1.0 cannot hold becomes U+FFFD, so that no string of a caller can
// break the stream.
func escape(b []byte, s string) []byte {
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '&':
			b = append(b, "&amp;"...)
		case r == '<':
			b = append(b, "&lt;"...)
		case r == '>':
			b = append(b, "&gt;"...)
		case r == '\'':
			b = append(b, "&#39;"...)
		case r == '"':
			b = append(b, "&#34;"...)
		case r == '\t', r == '\n', r == '\r':
			b = fmt.Appendf(b, "&#%d;", r)
		case r < 0x20, r == 0xFFFE, r == 0xFFFF, r == utf8.RuneError && n == 1:
			b = append(b, "\uFFFD"...)
		default:
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	return b
}

// Build reads the rest of the element that start opened, up to its end tag.
// tokens must translate namespaces and check that tags match, as
// [xml.Decoder] does. Errors are those of tokens, or wrap [ErrForbidden].
func Build(tokens xml.TokenReader, start xml.StartElement) (Element, error) {
	b := builder{tokens: tokens}
	return b.element(start, 1)
}

type builder struct {
	tokens xml.TokenReader
	nodes  int
}

func (b *builder) element(start xml.StartElement, depth int) (Element, error) {
	if depth > MaxDepth {
		return Element{}, fmt.Errorf("elements nested deeper than %d: %w", MaxDepth, ErrForbidden)
	}
	if err := b.count(); err != nil {
		return Element{}, err
	}
	if len(start.Attr) > MaxAttrs {
		return Element{}, fmt.Errorf("more than %d attributes: %w", MaxAttrs, ErrForbidden)
	}
	if !writable(start.Name) || start.Name.Space == xmlNamespace {
		return Element{}, fmt.Errorf("element %.40q: %w", start.Name.Local, ErrForbidden)
	}
	e := Element{Name: start.Name}
	for _, a := range start.Attr {
		if a.Name.Space == "xmlns" || (a.Name.Space == "" && a.Name.Local == "xmlns") {
			continue
		}
		// Whoever passes e on would write what a strict parser takes for the
		// end of the stream; encoding/xml is not strict.
		if !writable(a.Name) || slices.ContainsFunc(e.Attrs, func(b xml.Attr) bool { return b.Name == a.Name }) {
			return Element{}, fmt.Errorf("attribute %.40q: %w", a.Name.Local, ErrForbidden)
		}
		e.Attrs = append(e.Attrs, a)
	}
	for {
		token, err := b.tokens.Token()
		if err == io.EOF && token == nil {
			return Element{}, io.ErrUnexpectedEOF
		}
		if err != nil && token == nil {
			return Element{}, err
		}
		switch token := token.(type) {
		case xml.StartElement:
			child, err := b.element(token, depth+1)
			if err != nil {
				return Element{}, err
			}
			e.Children = append(e.Children, child)
		case xml.EndElement:
			return e, nil
		case xml.CharData:
			if len(token) == 0 {
				continue
			}
			if err := b.count(); err != nil {
				return Element{}, err
			}
			e.Children = append(e.Children, Text(string(token)))
		default:
			return Element{}, fmt.Errorf("%T: %w", token, ErrForbidden)
		}
	}
}

// writable reports whether n can be written as a name with a namespace
// (Namespaces in XML 1.0, 3 and 4).
func writable(n xml.Name) bool {
	return !strings.Contains(n.Local, ":") && n.Space != "xml" && n.Space != xmlnsNamespace
}

func (b *builder) count() error {
	if b.nodes++; b.nodes > MaxNodes {
		return fmt.Errorf("more than %d nodes: %w", MaxNodes, ErrForbidden)
	}
	return nil
}

// Parse reads one element from a string that holds nothing else but white
// space around it. It is for values at rest and for tests; a stream is read by
// its own reader, over [Build].
func Parse(s string) (Element, error) {
	if len(s) > MaxBytes {
		return Element{}, fmt.Errorf("element of %d bytes: %w", len(s), ErrForbidden)
	}
	d := xml.NewDecoder(strings.NewReader(s))
	var e Element
	for {
		token, err := d.Token()
		if err == io.EOF && !e.IsZero() {
			return e, nil
		}
		if err != nil {
			return Element{}, err
		}
		switch token := token.(type) {
		case xml.StartElement:
			if !e.IsZero() {
				return Element{}, fmt.Errorf("a second element: %w", ErrForbidden)
			}
			if e, err = Build(d, token); err != nil {
				return Element{}, err
			}
		case xml.CharData:
			if strings.TrimSpace(string(token)) != "" {
				return Element{}, fmt.Errorf("text outside the element: %w", ErrForbidden)
			}
		default:
			return Element{}, fmt.Errorf("%T: %w", token, ErrForbidden)
		}
	}
}
