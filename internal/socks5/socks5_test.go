package socks5_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/net/proxy"

	"github.com/dtcp-relay/dtcp/internal/socks5"
)

// addr is the DST.ADDR of TestDstAddr.
const addr = "98b8d688d0f5d895fd41c5e7309a2e9e33ba32ff"

var (
	greeting = []byte{5, 1, 0}
	request  = append(append([]byte{5, 1, 0, 3, 40}, addr...), 0, 0)
	agreed   = append(append([]byte{5, 0, 5, 0, 0, 3, 40}, addr...), 0, 0) // the proxy's half
)

// TestDstAddr is for other implementations. (The hash that XEP-0065 prints in
// its Section 7 belongs to a sid and to addresses that it does not name.)
func TestDstAddr(t *testing.T) {
	for _, c := range []struct{ sid, requester, target, want string }{
		{"vxf9n471bn46", "requester@example.com/foo", "target@example.org/bar", addr},
		{"", "", "", "da39a3ee5e6b4b0d3255bfef95601890afd80709"},
	} {
		if got := socks5.DstAddr(c.sid, c.requester, c.target); got != c.want {
			t.Errorf("%q %q %q: %s, want %s", c.sid, c.requester, c.target, got, c.want)
		}
	}
}

// wire is one end of a connection whose other end has said all it will say.
type wire struct {
	io.Reader
	said bytes.Buffer
	fail error // of writes
}

func (w *wire) Write(b []byte) (int, error) {
	if w.fail != nil {
		return 0, w.fail
	}
	return w.said.Write(b)
}

func join(pieces ...any) []byte {
	var all []byte
	for _, p := range pieces {
		switch p := p.(type) {
		case []byte:
			all = append(all, p...)
		case string:
			all = append(all, p...)
		case int:
			all = append(all, byte(p))
		}
	}
	return all
}

func TestRead(t *testing.T) {
	upper := strings.ToUpper(addr)
	for _, c := range []struct {
		what string
		in   []byte
		err  error
		said []byte // up to and with the answer "succeeded"
		left string // what must not have been read
	}{
		{"as XEP-0065 has it", join(greeting, request), nil, agreed, ""},
		{"with the first bytes of the stream behind it", join(greeting, request, "data"), nil, agreed, "data"},
		{"several methods", join(5, 3, 2, 1, 0, request), nil, agreed, ""},
		{"255 methods", join(5, 255, bytes.Repeat([]byte{2}, 254), 0, request), nil, agreed, ""},
		{"another port, which is repeated", join(greeting, 5, 1, 0, 3, 40, addr, 4, 56), nil, join(5, 0, 5, 0, 0, 3, 40, addr, 4, 56), ""},
		{"upper case, which is repeated", join(greeting, 5, 1, 0, 3, 40, upper, 0, 0), nil, join(5, 0, 5, 0, 0, 3, 40, upper, 0, 0), ""},

		{"version 4", join(4, 1, 0), socks5.ErrVersion, nil, "\x00"},
		{"no methods", join(5, 0, request), socks5.ErrMethod, join(5, 0xFF), string(request)},
		{"a password wanted", join(5, 1, 2, request), socks5.ErrMethod, join(5, 0xFF), string(request)},
		{"a request of version 4", join(greeting, 4, request[1:], "data"), socks5.ErrVersion, join(5, 0), string(request[5:]) + "data"},
		{"BIND", join(greeting, 5, 2, request[2:]), socks5.ErrCommand, join(5, 0, 5, 7, 0, request[3:]), ""},
		{"UDP ASSOCIATE", join(greeting, 5, 3, request[2:]), socks5.ErrCommand, join(5, 0, 5, 7, 0, request[3:]), ""},
		{"IPv4", join(greeting, 5, 1, 0, 1, 192, 0, 2, 1, 0, 80, "data"), socks5.ErrAddress, join(5, 0, 5, 8, 0, 1, 192, 0, 2, 1, 0, 80), "data"},
		{"IPv6", join(greeting, 5, 1, 0, 4, make([]byte, 15), 1, 0, 80, "data"), socks5.ErrAddress, join(5, 0, 5, 8, 0, 4, make([]byte, 15), 1, 0, 80), "data"},
		{"type 2", join(greeting, 5, 1, 0, 2, 0, "data"), socks5.ErrAddress, join(5, 0, 5, 8, 0, 1, 0, 0, 0, 0, 0, 0), "data"},
		{"a host", join(greeting, 5, 1, 0, 3, 11, "example.org", 0, 80, "data"), socks5.ErrAddress, join(5, 0, 5, 2, 0, 3, 11, "example.org", 0, 80), "data"},
		{"no host", join(greeting, 5, 1, 0, 3, 0, 0, 80, "data"), socks5.ErrAddress, join(5, 0, 5, 2, 0, 3, 0, 0, 80), "data"},
		{"39 digits", join(greeting, 5, 1, 0, 3, 39, addr[1:], 0, 0), socks5.ErrAddress, join(5, 0, 5, 2, 0, 3, 39, addr[1:], 0, 0), ""},
		{"41 digits", join(greeting, 5, 1, 0, 3, 41, addr, "a", 0, 0), socks5.ErrAddress, join(5, 0, 5, 2, 0, 3, 41, addr, "a", 0, 0), ""},
		{"40 that are not all digits", join(greeting, 5, 1, 0, 3, 40, addr[1:], "g", 0, 0), socks5.ErrAddress, join(5, 0, 5, 2, 0, 3, 40, addr[1:], "g", 0, 0), ""},
		{"255 letters", join(greeting, 5, 1, 0, 3, 255, strings.Repeat("a", 255), 0, 0), socks5.ErrAddress, join(5, 0, 5, 2, 0, 3, 255, strings.Repeat("a", 255), 0, 0), ""},
	} {
		for _, pieces := range []struct {
			name string
			of   func(io.Reader) io.Reader
		}{{"whole", func(r io.Reader) io.Reader { return r }}, {"byte by byte", iotest.OneByteReader}} {
			in := bytes.NewReader(c.in)
			w := &wire{Reader: pieces.of(in)}
			r, err := socks5.Read(w)
			if err == nil {
				_, err = w.Write(r.Answer(socks5.Succeeded))
				if r.Addr != addr {
					t.Errorf("%s, %s: address %q, want %q", c.what, pieces.name, r.Addr, addr)
				}
			}
			left, _ := io.ReadAll(in)
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) || !bytes.Equal(w.said.Bytes(), c.said) || string(left) != c.left {
				t.Errorf("%s, %s:\ngot  %v, said %x, left %q\nwant %v, said %x, left %q",
					c.what, pieces.name, err, w.said.Bytes(), left, c.err, c.said, c.left)
			}
		}
	}
}

// TestReadBreaksOff: whatever is missing at the end is an error.
func TestReadBreaksOff(t *testing.T) {
	whole := join(greeting, request)
	for n := range whole {
		r, err := socks5.Read(&wire{Reader: bytes.NewReader(whole[:n])})
		if err != io.EOF && err != io.ErrUnexpectedEOF {
			t.Errorf("%d of %d bytes: %+v, %v", n, len(whole), r, err)
		}
	}
	if _, err := socks5.Read(&wire{Reader: bytes.NewReader(whole), fail: net.ErrClosed}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("cannot answer: %v, want the error of the connection", err)
	}
}

// writes counts the writes, for each is a segment.
type writes struct {
	io.Reader
	each [][]byte
}

func (w *writes) Write(b []byte) (int, error) {
	w.each = append(w.each, bytes.Clone(b))
	return len(b), nil
}

func TestConnect(t *testing.T) {
	for _, c := range []struct {
		what   string
		in     []byte
		err    error
		writes int
		left   string
	}{
		{"as XEP-0065 has it", join(agreed, "data"), nil, 2, "data"},
		{"bound to an IPv4 address", join(5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0, "data"), nil, 2, "data"},
		{"bound to an IPv6 address", join(5, 0, 5, 0, 0, 4, make([]byte, 18), "data"), nil, 2, "data"},
		{"bound to a name of no letters", join(5, 0, 5, 0, 0, 3, 0, 0, 0, "data"), nil, 2, "data"},
		{"bound to a long name", join(5, 0, 5, 0, 0, 3, 255, make([]byte, 257), "data"), nil, 2, "data"},
		{"bound to nothing known", join(5, 0, 5, 0, 0, 9, 0), socks5.ErrAddress, 2, ""},
		{"a password wanted", join(5, 2), socks5.ErrMethod, 1, ""},
		{"no method", join(5, 0xFF), socks5.ErrMethod, 1, ""},
		{"version 4", join(4, 0), socks5.ErrVersion, 1, ""},
		{"then version 4", join(5, 0, 4, 0), socks5.ErrVersion, 2, ""},
		{"refused, and no more said", join(5, 0, 5, 2), &socks5.ReplyError{}, 2, ""},
		{"nothing", nil, io.EOF, 1, ""},
		{"breaks off", agreed[:len(agreed)-1], io.ErrUnexpectedEOF, 2, ""},
		{"breaks off between", agreed[:2], io.EOF, 2, ""},
	} {
		in := bytes.NewReader(c.in)
		w := &writes{Reader: iotest.OneByteReader(in)}
		err := socks5.Connect(w, addr)
		var reply *socks5.ReplyError
		if _, ok := c.err.(*socks5.ReplyError); ok {
			if !errors.As(err, &reply) || reply.Reply != socks5.NotAllowed {
				t.Errorf("%s: %v, want the proxy's reply", c.what, err)
			}
		} else if !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.what, err, c.err)
		}
		left, _ := io.ReadAll(in)
		if err == nil && string(left) != c.left {
			t.Errorf("%s: left %q, want %q", c.what, left, c.left)
		}
		if want := [][]byte{greeting, request}[:c.writes]; fmt.Sprint(w.each) != fmt.Sprint(want) {
			t.Errorf("%s: writes %x, want %x", c.what, w.each, want)
		}
	}
	if err := socks5.Connect(&writes{}, "example.org"); !errors.Is(err, socks5.ErrAddress) {
		t.Errorf("to a host: %v, want %v", err, socks5.ErrAddress)
	}
}

// TestBothHalves lets the two meet, and our proxy the client of x/net, which
// cannot ask for port 0.
func TestBothHalves(t *testing.T) {
	for _, c := range []struct {
		what    string
		connect func(net.Conn) (net.Conn, error)
	}{
		{"ours", func(c net.Conn) (net.Conn, error) { return c, socks5.Connect(c, addr) }},
		{"x/net/proxy", func(c net.Conn) (net.Conn, error) {
			d, err := proxy.SOCKS5("tcp", "proxy.example.org:1080", nil, dialed{c})
			if err != nil {
				return nil, err
			}
			return d.Dial("tcp", addr+":1")
		}},
	} {
		client, server := net.Pipe()
		done := make(chan error, 1)
		// Owned by this test, ends with the pipe, awaited by done.
		go func() {
			defer server.Close()
			r, err := socks5.Read(server)
			if err == nil && r.Addr != addr {
				err = fmt.Errorf("asked for %q", r.Addr)
			}
			if err == nil {
				_, err = server.Write(r.Answer(socks5.Succeeded))
			}
			if err == nil {
				_, err = io.WriteString(server, "data")
			}
			done <- err
		}()
		stream, err := c.connect(client)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			stream = client
		}
		got, _ := io.ReadAll(stream)
		client.Close()
		if err := <-done; err != nil || string(got) != "data" {
			t.Errorf("%s: read %q, and the proxy says %v; want %q", c.what, got, err, "data")
		}
	}
}

// dialed is a dialer that has dialed already.
type dialed struct{ c net.Conn }

func (d dialed) Dial(_, _ string) (net.Conn, error) { return d.c, nil }

func TestWords(t *testing.T) {
	for _, c := range []struct {
		reply socks5.Reply
		want  string
	}{
		{socks5.Succeeded, "succeeded"},
		{socks5.AddressNotSupported, "address type not supported"},
		{9, "reply 9"},
	} {
		if got := c.reply.String(); got != c.want {
			t.Errorf("reply %d: %q, want %q", c.reply, got, c.want)
		}
	}
	const want = "socks5: the proxy refused: not allowed"
	if got := (&socks5.ReplyError{Reply: socks5.NotAllowed}).Error(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzRead: whatever comes, no more is read than the handshake, the pieces make
// no difference, and what is accepted is an address.
func FuzzRead(f *testing.F) {
	f.Add(join(greeting, request, "data"))
	f.Add(join(5, 2, 0, 2, 5, 3, 0, 3, 40, addr, 0, 0))
	f.Add(join(greeting, 5, 1, 0, 1, 192, 0, 2, 1, 0, 80))
	f.Add(join(greeting, 5, 1, 0, 4, make([]byte, 18)))
	f.Add(join(4, 1, 0, 80, 192, 0, 2, 1, 0))
	f.Fuzz(func(t *testing.T, in []byte) {
		type outcome struct {
			addr, err, said string
			left            int
		}
		var outcomes []outcome
		for _, pieces := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.HalfReader} {
			r := bytes.NewReader(in)
			w := &wire{Reader: pieces(r)}
			q, err := socks5.Read(w)
			if err == nil {
				_, err = w.Write(q.Answer(socks5.Succeeded))
			}
			outcomes = append(outcomes, outcome{q.Addr, fmt.Sprint(err), w.said.String(), r.Len()})
			if err == nil && (len(q.Addr) != socks5.AddrLen || strings.Trim(q.Addr, "0123456789abcdef") != "") {
				t.Errorf("%x: accepted the address %q", in, q.Addr)
			}
			if read := len(in) - r.Len(); read > 2+255+4+1+255+2 {
				t.Errorf("%x: read %d bytes", in, read)
			}
		}
		if outcomes[1] != outcomes[0] || outcomes[2] != outcomes[0] {
			t.Errorf("%x: the pieces make a difference: %+v", in, outcomes)
		}
	})
}

// FuzzConnect: whatever a proxy says, the client ends, and asks twice at most.
func FuzzConnect(f *testing.F) {
	f.Add(join(agreed, "data"))
	f.Add(join(5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0))
	f.Add(join(5, 0, 5, 2, 0))
	f.Add(join(5, 0xFF))
	f.Fuzz(func(t *testing.T, in []byte) {
		w := &writes{Reader: iotest.OneByteReader(bytes.NewReader(in))}
		if err := socks5.Connect(w, addr); err == nil && len(in) < 9 {
			t.Errorf("%x: agreed", in)
		}
		if len(w.each) > 2 {
			t.Errorf("%x: %d writes", in, len(w.each))
		}
	})
}
