package egress

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"net/url"
	"strings"
	"unicode"
)

// Limits of an answer to CONNECT.
const (
	maxAnswer  = 16 << 10 // bytes, interim answers among them
	maxReason  = 100      // characters of the reason that are repeated
	maxInterim = 8
)

// Answer is an HTTP proxy's answer to CONNECT that is not success.
type Answer struct {
	Status  int      // 100 to 599
	Reason  string   // the proxy's words, without control characters; may be empty
	Schemes []string // with 407: the ways to log in that the proxy knows, of which "Basic" is known here
}

func (a *Answer) Error() string {
	text := strings.TrimSpace(fmt.Sprintf("%d %s", a.Status, a.Reason))
	if len(a.Schemes) > 0 {
		text += " (it wants " + strings.Join(a.Schemes, " or ") + ")"
	}
	return text
}

// connect asks the proxy at the other end of rw for a connection to address.
// Nothing behind the proxy's answer is read.
func connect(rw io.ReadWriter, address string, user *url.Userinfo) error {
	if strings.ContainsFunc(address, func(r rune) bool { return unicode.IsControl(r) || r == ' ' }) {
		return errors.New("an address with spaces or control characters")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", address, address)
	if user != nil {
		password, _ := user.Password()
		credentials := base64.StdEncoding.EncodeToString([]byte(user.Username() + ":" + password))
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", credentials)
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(rw, b.String()); err != nil {
		return err
	}
	a, err := readAnswer(rw)
	switch {
	case err != nil:
		return err
	case a.Status/100 != 2:
		return a
	}
	return nil
}

var (
	errLong    = fmt.Errorf("its answer has more than %d bytes", maxAnswer)
	errNotHTTP = errors.New("its answer is not HTTP/1")
	errEnded   = errors.New("it closed the connection without an answer")
)

// readAnswer reads an answer (RFC 9112, 4), without those that are interim, to
// the empty line and no byte further: what follows is the other end's.
func readAnswer(r io.Reader) (*Answer, error) {
	limited := &io.LimitedReader{R: r, N: maxAnswer}
	for range maxInterim {
		head, err := readHead(limited)
		if err != nil {
			return nil, err
		}
		a, err := parseAnswer(head)
		if err != nil || a.Status >= 200 {
			return a, err
		}
	}
	return nil, errNotHTTP
}

// readHead reads up to an empty line. It goes byte by byte, as it cannot know
// where the end will be; there are some hundred, once.
func readHead(r *io.LimitedReader) ([]byte, error) {
	var head []byte
	for one := make([]byte, 1); ; {
		switch _, err := io.ReadFull(r, one); {
		case err == io.EOF && r.N == 0:
			return nil, errLong
		case err == io.EOF:
			return nil, errEnded
		case err != nil:
			return nil, err
		}
		head = append(head, one[0])
		if bytes.HasSuffix(head, []byte("\n\r\n")) || bytes.HasSuffix(head, []byte("\n\n")) {
			return head, nil
		}
		if len(head) == len("HTTP/1") && string(head) != "HTTP/1" {
			return nil, errNotHTTP
		}
	}
}

// parseAnswer reads the status line and what a proxy says of logging in.
func parseAnswer(head []byte) (*Answer, error) {
	lines := textproto.NewReader(bufio.NewReader(bytes.NewReader(head)))
	line, err := lines.ReadLine()
	if err != nil {
		return nil, errNotHTTP
	}
	version, rest, _ := strings.Cut(line, " ")
	code, reason, _ := strings.Cut(rest, " ")
	a := &Answer{Reason: readable(reason)}
	if version != "HTTP/1.0" && version != "HTTP/1.1" || len(code) != 3 || strings.Trim(code, "0123456789") != "" {
		return nil, errNotHTTP
	}
	for _, digit := range code {
		a.Status = 10*a.Status + int(digit-'0')
	}
	if a.Status < 100 || a.Status > 599 {
		return nil, errNotHTTP
	}
	if a.Status == 407 {
		header, _ := lines.ReadMIMEHeader() // as far as it makes sense
		for _, challenge := range header.Values("Proxy-Authenticate") {
			scheme, _, _ := strings.Cut(strings.TrimSpace(challenge), " ")
			if scheme = readable(scheme); scheme != "" && len(a.Schemes) < maxInterim {
				a.Schemes = append(a.Schemes, scheme)
			}
		}
	}
	return a, nil
}

// readable returns what can be shown of a proxy's words.
func readable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > maxReason {
		s = string(runes[:maxReason])
	}
	return strings.TrimSpace(s)
}
