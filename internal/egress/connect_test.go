package egress

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// FuzzAnswer holds the reader of answers to its limits, whatever a proxy says:
// what follows the answer stays unread, and what is shown is readable.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 Connection established\r\n\r\nwho goes there?"))
	f.Add([]byte("HTTP/1.0 407 Proxy Authentication Required\nProxy-Authenticate: Basic realm=\"a\"\nproxy-authenticate:NTLM\n\n"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 \x1b[2J\u202e\r\n\r\n"))
	f.Add([]byte("SSH-2.0-x\r\n"))
	f.Add([]byte("HTTP/1.1 200"))
	f.Fuzz(func(t *testing.T, input []byte) {
		r := bytes.NewReader(input)
		a, err := readAnswer(r)
		if (a == nil) == (err == nil) {
			t.Fatalf("%+v and %v", a, err)
		}
		read := len(input) - r.Len()
		if read > maxAnswer {
			t.Errorf("%d bytes were read", read)
		}
		if err != nil {
			return
		}
		if a.Status < 200 || a.Status > 599 || len([]rune(a.Reason)) > maxReason {
			t.Errorf("%+v", a)
		}
		if strings.ContainsFunc(a.Error(), func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }) {
			t.Errorf("%q is not readable", a.Error())
		}
		if head := input[:read]; !bytes.HasSuffix(head, []byte("\n\n")) && !bytes.HasSuffix(head, []byte("\n\r\n")) {
			t.Errorf("read up to %q", head[max(0, len(head)-20):])
		}
		// However the network cuts it, it is the same.
		again, err := readAnswer(iotest.OneByteReader(bytes.NewReader(input)))
		if err != nil || again.Error() != a.Error() {
			t.Errorf("byte by byte: %v, %v; in one piece: %v", again, err, a)
		}
	})
}

// A request cannot be made to hold further lines.
func TestConnectAddress(t *testing.T) {
	for _, address := range []string{"a\r\nX: y:1", "a b:1", "a\x00:1"} {
		var sent bytes.Buffer
		err := connect(struct {
			io.Reader
			io.Writer
		}{strings.NewReader("HTTP/1.1 200 OK\r\n\r\n"), &sent}, address, nil)
		if err == nil || sent.Len() > 0 {
			t.Errorf("%q: %v, and %q was sent", address, err, sent.String())
		}
	}
}
