package dtcp_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// socket returns the TCP connection under a stream of a host.
func socket(t *testing.T, h *memnet.Host, c *dtcp.Conn) *memnet.Conn {
	t.Helper()
	for _, s := range h.Conns() {
		if s.LocalAddr().String() == c.LocalAddr().String() && s.RemoteAddr().String() == c.RemoteAddr().String() {
			return s
		}
	}
	t.Fatalf("%s has no connection %v", h.Name(), c.Path())
	return nil
}

// took returns how long f takes, in the time of the story.
func took(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Since(began)
}

// wantGone checks that all that is left of a world is the signalling.
func (w *world) wantGone(why string) {
	w.t.Helper()
	for _, h := range []*memnet.Host{w.a.host, w.b.host} {
		for _, c := range h.Conns() {
			if c.RemoteAddr().(*net.TCPAddr).Port != 5222 {
				w.t.Errorf("%s: %s still has the connection %v - %v", why, h.Name(), c.LocalAddr(), c.RemoteAddr())
			}
		}
	}
}

// TestStreamEnds is each way in which a stream from A ends, and what B reads.
// Only what A's application ended reads as an end.
func TestStreamEnds(t *testing.T) {
	l := links[0]
	stories := []struct {
		name  string
		end   func(w *world, near *dtcp.Conn)
		first bool  // B writes before it reads: the write takes the report of a reset
		want  error // of B's reading, after the data; nil is the end
	}{
		{"A half-closes", func(w *world, near *dtcp.Conn) { w.check(near.CloseWrite()) }, false, nil},
		{"A half-closes, and B writes first", func(w *world, near *dtcp.Conn) { w.check(near.CloseWrite()) }, true, nil},
		{"A closes", func(w *world, near *dtcp.Conn) { w.check(near.Close()) }, false, nil},
		{"A closes, and B writes first", func(w *world, near *dtcp.Conn) { w.check(near.Close()) }, true, nil},
		{"A aborts", func(w *world, near *dtcp.Conn) { w.check(near.Abort()) }, false, io.ErrUnexpectedEOF},
		{"A aborts, and B writes first", func(w *world, near *dtcp.Conn) { w.check(near.Abort()) }, true, io.ErrUnexpectedEOF},
		{"A's program ends without a word", func(w *world, near *dtcp.Conn) {
			w.check(socket(w.t, w.a.host, near).Close())
		}, false, io.ErrUnexpectedEOF},
		{"A's program ends without a word, and B writes first", func(w *world, near *dtcp.Conn) {
			w.check(socket(w.t, w.a.host, near).Close())
		}, true, io.ErrUnexpectedEOF},
		{"somebody forges a FIN", func(w *world, near *dtcp.Conn) {
			w.check(socket(w.t, w.a.host, near).CloseWrite())
		}, false, io.ErrUnexpectedEOF},
		{"somebody forges a reset", func(w *world, near *dtcp.Conn) {
			socket(w.t, w.a.host, near).Reset()
		}, false, io.ErrUnexpectedEOF},
		{"somebody forges a reset, and B writes first", func(w *world, near *dtcp.Conn) {
			socket(w.t, w.a.host, near).Reset()
		}, true, io.ErrUnexpectedEOF},
		{"somebody forges half a record and a FIN", func(w *world, near *dtcp.Conn) {
			s := socket(w.t, w.a.host, near)
			_, err := s.Write([]byte{23, 3, 3, 0, 100, 1, 2, 3})
			w.check(errors.Join(err, s.CloseWrite()))
		}, false, io.ErrUnexpectedEOF},
		{"somebody forges a record", func(w *world, near *dtcp.Conn) {
			_, err := socket(w.t, w.a.host, near).Write(append([]byte{23, 3, 3, 0, 32}, make([]byte, 32)...))
			w.check(err)
		}, false, io.ErrUnexpectedEOF},
		{"somebody forges a close_notify in clear", func(w *world, near *dtcp.Conn) {
			s := socket(w.t, w.a.host, near)
			_, err := s.Write([]byte{21, 3, 3, 0, 2, 1, 0})
			w.check(errors.Join(err, s.CloseWrite()))
		}, false, io.ErrUnexpectedEOF},
		{"A's host crashes, and B writes", func(w *world, near *dtcp.Conn) {
			w.check(w.a.Close()) // for a crash closes the listener, too
			w.a.host.Crash()
		}, true, io.ErrUnexpectedEOF},
	}
	told := 0
	for _, s := range stories {
		t.Run(s.name, func(t *testing.T) {
			story(t, options{link: l, noServer: true}, func(w *world) {
				near, far, _ := w.a.stream(w.b)
				_, err := near.Write([]byte("half of it"))
				w.check(err)
				s.end(w, near)
				<-time.After(l.trip) // whatever was sent has arrived
				if s.first {
					_, _ = far.Write([]byte("hello?"))
					<-time.After(l.trip)
					_, _ = far.Write([]byte("hello?"))
				}
				got, err := io.ReadAll(far)
				if !errors.Is(err, s.want) || string(got) != "half of it" && s.want == nil {
					t.Errorf("B reads %q, %v; want %v", got, err, s.want)
				}
				if n, again := far.Read(make([]byte, 1)); n != 0 || (again == io.EOF) != (s.want == nil) {
					t.Errorf("and once more: %d, %v", n, again)
				}
				_ = far.Close()
				_ = near.Close()
				told++
			})
		})
	}
	if told != len(stories) {
		t.Errorf("%d of %d stories came to their end", told, len(stories))
	}
}

// TestPlainStreamReset: on a stream without TLS a reset that a write has
// reported does not read as the end.
func TestPlainStreamReset(t *testing.T) {
	stockStory(t, dtcp.Config{}, func(t *testing.T, e *dtcp.Endpoint, host *memnet.Host, s *stockPeer) {
		s.hosts = nil
		key, hosts, err := s.ask()
		if err != nil {
			t.Fatal(err)
		}
		k := s.dial(hosts[0])
		k.say("key:" + key)
		k.want("ok:" + s.key)
		k.say("ok")
		c, err := e.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		socket(t, host, c)
		for _, raw := range s.host.Conns() {
			raw.Reset()
		}
		<-time.After(time.Second)
		if _, err := c.Write([]byte("hello?")); err == nil {
			t.Error("writing to a stream that was reset succeeds")
		}
		if got, err := io.ReadAll(c); err != io.ErrUnexpectedEOF {
			t.Errorf("read %q, %v; want %v", got, err, io.ErrUnexpectedEOF)
		}
		_ = c.Close()
		_ = k.Close()
	})
}

// TestCloseWaits: Close takes as long as the peer takes to close, and 2 s at
// the most, whatever else is under way.
func TestCloseWaits(t *testing.T) {
	l := links[0]
	full := make([]byte, 4<<20) // more than fits on the way
	stories := []struct {
		name string
		// before is under way when A closes; it returns what its goroutines end with.
		before func(w *world, near, far *dtcp.Conn) (pending []<-chan error)
		far    func(far *dtcp.Conn) // what B does, from when A closes
		want   time.Duration
		err    error
	}{
		{"B closes when it reads the end", nil, func(far *dtcp.Conn) {
			_, _ = io.Copy(io.Discard, far)
			_ = far.Close()
		}, l.trip, nil},
		{"B has closed its side", func(w *world, near, far *dtcp.Conn) []<-chan error {
			w.check(far.CloseWrite())
			_, err := io.ReadAll(near)
			w.check(err)
			return nil
		}, nil, 0, nil},
		{"B does not close", nil, nil, 2 * time.Second, nil},
		{"B does not read and A's write is under way", func(w *world, near, far *dtcp.Conn) []<-chan error {
			return []<-chan error{ending(func() error { _, err := near.Write(full); return err })}
		}, nil, 2 * time.Second, os.ErrDeadlineExceeded},
		{"A reads", func(w *world, near, far *dtcp.Conn) []<-chan error {
			return []<-chan error{ending(func() error { _, err := near.Read(make([]byte, 1)); return err })}
		}, func(far *dtcp.Conn) {
			_, _ = io.Copy(io.Discard, far)
			_ = far.Close()
		}, l.trip, nil},
		{"B's host is silent", func(w *world, near, far *dtcp.Conn) []<-chan error {
			w.b.host.Silence(true)
			return nil
		}, nil, 2 * time.Second, nil},
		{"the connection was reset", func(w *world, near, far *dtcp.Conn) []<-chan error {
			w.check(far.Abort())
			<-time.After(l.trip)
			return nil
		}, nil, 0, errAny},
	}
	told := 0
	for _, s := range stories {
		t.Run(s.name, func(t *testing.T) {
			story(t, options{link: l, noServer: true}, func(w *world) {
				near, far, _ := w.a.stream(w.b)
				var pending []<-chan error
				if s.before != nil {
					pending = s.before(w, near, far)
				}
				<-time.After(time.Second)
				farDone := make(chan struct{})
				go func() { // ends with what B does; waited for below
					defer close(farDone)
					if s.far != nil {
						s.far(far)
					}
				}()
				var err error
				if after := took(func() { err = near.Close() }); after != s.want {
					t.Errorf("Close took %v, want %v", after, s.want)
				}
				if s.err == errAny && err == nil || s.err != errAny && !errors.Is(err, s.err) {
					t.Errorf("Close: %v, want %v", err, s.err)
				}
				for _, p := range pending {
					if err := <-p; !errors.Is(err, net.ErrClosed) {
						t.Errorf("a call that Close interrupted ended with %v, want %v", err, net.ErrClosed)
					}
				}
				wantClosed(t, near)
				<-farDone
				_ = far.Close()
				w.b.host.Silence(false)
				told++
			})
		})
	}
	if told != len(stories) {
		t.Errorf("%d of %d stories came to their end", told, len(stories))
	}
}

var errAny = errors.New("any error")

// ending runs f in a goroutine, which the receiver waits for.
func ending(f func() error) <-chan error {
	end := make(chan error, 1)
	go func() { end <- f() }()
	return end
}

// wantClosed checks that every method says that the stream is closed.
func wantClosed(t *testing.T, c *dtcp.Conn) {
	t.Helper()
	calls := map[string]func() error{
		"Read":             func() error { _, err := c.Read(make([]byte, 1)); return err },
		"Write":            func() error { _, err := c.Write([]byte("x")); return err },
		"CloseWrite":       c.CloseWrite,
		"Close":            c.Close,
		"Abort":            c.Abort,
		"SetDeadline":      func() error { return c.SetDeadline(time.Now()) },
		"SetReadDeadline":  func() error { return c.SetReadDeadline(time.Now()) },
		"SetWriteDeadline": func() error { return c.SetWriteDeadline(time.Now()) },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s of a closed stream: %v, want %v", name, err, net.ErrClosed)
		}
	}
	if c.Path().Kind != dtcp.Host || c.Peer() == (jid.JID{}) || c.LocalAddr() == nil {
		t.Error("a closed stream no longer knows where it was")
	}
}

// TestTail: what was written just before Close arrives whole, though B is
// writing all the while and does not read at first.
func TestTail(t *testing.T) {
	for name, discards := range map[string]bool{"resets keep what has arrived": false, "resets discard it": true} {
		t.Run(name, func(t *testing.T) {
			story(t, options{link: links[0], noServer: true}, func(w *world) {
				w.net.ResetDiscards(discards)
				near, far, _ := w.a.stream(w.b)
				writing := ending(func() error { // ends when A has closed
					for {
						if _, err := far.Write(make([]byte, 10000)); err != nil {
							return err
						}
					}
				})
				want := bytes.Repeat([]byte("tail "), 60000)
				closed := ending(func() error {
					_, err := near.Write(want)
					return errors.Join(err, near.Close())
				})
				got, err := io.ReadAll(far)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("B reads %d bytes, %v; want all %d", len(got), err, len(want))
				}
				w.check(far.Close())
				if err := <-closed; err != nil {
					t.Errorf("A's Close: %v", err)
				}
				<-writing
			})
		})
	}
}

// TestSilence: deadlines pass to the nanosecond while a host is silent, and
// the stream goes on whole when it is back.
func TestSilence(t *testing.T) {
	story(t, options{link: links[0], noServer: true}, func(w *world) {
		near, far, _ := w.a.stream(w.b)
		w.b.host.Silence(true)
		want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		w.check(near.SetDeadline(time.Now().Add(3 * time.Second)))
		var n int
		var err error
		if after := took(func() { n, err = near.Write(want) }); after != 3*time.Second || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write returns %d, %v after %v, want a deadline after 3 s", n, err, after)
		}
		if n == 0 || n == len(want) {
			t.Errorf("Write says that %d of %d bytes are on their way", n, len(want))
		}
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read: %v, want a deadline", err)
		}
		w.check(far.SetReadDeadline(time.Now().Add(7 * time.Second)))
		if after := took(func() { _, err = far.Read(make([]byte, 1)) }); after != 7*time.Second || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("B's Read returns %v after %v, want a deadline after 7 s", err, after)
		}
		w.b.host.Silence(false)
		w.check(far.SetReadDeadline(time.Time{}))
		w.check(near.SetDeadline(time.Time{}))
		rest := ending(func() error {
			_, err := near.Write(want[n:])
			return errors.Join(err, near.CloseWrite())
		})
		got, err := io.ReadAll(far)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("B reads %d bytes, %v; want all %d in order", len(got), err, len(want))
		}
		w.check(<-rest)
		w.check(far.Close())
		w.check(near.Close())
	})
}

// TestStreamsOutliveTheirEndpoint: Close of an Endpoint is about those to come.
func TestStreamsOutliveTheirEndpoint(t *testing.T) {
	story(t, options{link: links[0], noServer: true}, func(w *world) {
		near, far, _ := w.a.stream(w.b)
		waiting := w.a.dial(w.patience(), w.b)
		d := <-waiting
		w.check(d.err)
		w.check(w.a.Close())
		w.check(w.b.Close())
		w.wantTransfer(near, far)
		// The other one nobody had accepted.
		if _, err := io.ReadAll(d.conn); err != io.ErrUnexpectedEOF {
			t.Errorf("a stream that nobody accepted ends with %v, want %v", err, io.ErrUnexpectedEOF)
		}
		_ = d.conn.Close()
		if _, err := w.b.Accept(w.patience()); !errors.Is(err, dtcp.ErrClosed) {
			t.Errorf("Accept: %v, want %v", err, dtcp.ErrClosed)
		}
		if _, err := w.a.Dial(context.Background(), w.b.jid(), "test"); !errors.Is(err, dtcp.ErrClosed) {
			t.Errorf("Dial: %v, want %v", err, dtcp.ErrClosed)
		}
		<-time.After(time.Second)
		w.wantGone("everything is closed")
	})
}
