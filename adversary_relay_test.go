package dtcp_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/memnet"
)

// bentStory tells a story in which A and B have nothing between them but a
// relay that is A's, and bent.
func bentStory(t *testing.T, bend func(*bentRelay), config func(*peer), f func(w *world, r *bentRelay)) {
	t.Helper()
	r := newBentRelay(relayAddr.String())
	bend(r)
	only := relayed("A")
	story(t, options{link: links[0], relay: &relayOptions{run: r}, noServer: true, config: func(p *peer) {
		only(p)
		if config != nil {
			config(p)
		}
	}}, func(w *world) { f(w, r) })
}

// cutter copies the first n bytes as they are; what becomes of the rest is its
// business.
func after(n int64, rest func(dst io.Writer, src io.Reader)) func(io.Writer, io.Reader) {
	return func(dst io.Writer, src io.Reader) {
		if _, err := io.CopyN(dst, src, n); err == nil {
			rest(dst, src)
		}
	}
}

// flip turns one bit over and goes on.
func flip(dst io.Writer, src io.Reader) {
	var b [1]byte
	if _, err := io.ReadFull(src, b[:]); err == nil {
		_, _ = dst.Write([]byte{b[0] ^ 0x10})
		_, _ = io.Copy(dst, src)
	}
}

// end ends the direction, as if the peer had.
func end(io.Writer, io.Reader) {}

// TestRelayTampers: a relay flips a bit, or ends a direction early, at many
// places of the handshake and of the stream. Nobody takes what arrives for what
// was sent: either there is no stream, or both ends see it cut.
func TestRelayTampers(t *testing.T) {
	message := bytes.Repeat([]byte("all of this, or an error. "), 400)
	var cut, none int
	for name, rest := range map[string]func(io.Writer, io.Reader){"flips a bit": flip, "ends it": end} {
		for _, fromDialer := range []bool{true, false} {
			for at := int64(30); at < 10000; at += 331 {
				t.Run(fmt.Sprintf("%s after %d bytes, from the dialer %t", name, at, fromDialer), func(t *testing.T) {
					bent := func(r *bentRelay) {
						r.bend = func(_ int, d bool, dst io.Writer, src io.Reader) {
							if d == fromDialer {
								after(at, rest)(dst, src)
							} else {
								_, _ = io.Copy(dst, src)
							}
						}
					}
					bentStory(t, bent, nil, func(w *world, _ *bentRelay) {
						result := w.a.dial(w.patience(), w.b)
						accepted := make(chan *dtcp.Conn, 1)
						go func() {
							c, _ := w.b.Accept(w.patience())
							accepted <- c
						}()
						d := <-result
						if d.err != nil {
							none++
							w.check(w.b.Close()) // and Accept ends
							if c := <-accepted; c != nil {
								// B may hold it for a moment: the last ok was lost.
								if _, err := io.ReadAll(c); err == nil {
									t.Error("A has no stream, and B reads to its end")
								}
								w.check(c.Abort())
							}
							return
						}
						far := <-accepted
						cut++
						var both sync.WaitGroup
						faults := make(chan error, 2)
						for _, c := range []*dtcp.Conn{d.conn, far} {
							both.Go(func() {
								// As applications do: no end before the other's words are there.
								go func() { _, _ = c.Write(message) }()
								got := make([]byte, len(message))
								_, err := io.ReadFull(c, got)
								if err == nil {
									if !bytes.Equal(got, message) {
										t.Error("what was read is not what was written")
									}
									_ = c.CloseWrite()
									_, err = io.ReadAll(c)
								}
								if err != nil {
									_ = c.Abort()
								}
								faults <- err
							})
						}
						both.Wait()
						if a, b := <-faults, <-faults; a == nil || b == nil {
							t.Errorf("reading: %v and %v; want an error at both ends", a, b)
						}
						_, _ = d.conn.Abort(), far.Abort()
					})
				})
			}
		}
	}
	if cut < 20 || none < 20 {
		t.Errorf("%d streams cut and %d not made, want 20 of each at least", cut, none)
	}
}

// TestRelaySwaps: a relay joins the legs of two sessions crosswise, and changes
// the key lines so that each looks right. The certificates are, for they are the
// same in both; the proof is not.
func TestRelaySwaps(t *testing.T) {
	var mu sync.Mutex
	var first [2]*bentLeg
	bent := func(r *bentRelay) {
		r.pair = func(session int, listener, dialer net.Conn) (net.Conn, net.Conn) {
			mu.Lock()
			defer mu.Unlock()
			l, d := listener.(*bentLeg), dialer.(*bentLeg)
			if session > 1 {
				return nil, nil
			}
			if session == 0 {
				first = [2]*bentLeg{l, d}
				return nil, nil
			}
			l.line, d.line, first[1].line = nil, first[1].line, d.line
			go r.copy(10, l, first[1]) // its key line is now that of l's session
			return first[0], d
		}
	}
	bentStory(t, bent, nil, func(w *world, _ *bentRelay) {
		one, two := w.a.dial(w.patience(), w.b), w.a.dial(w.patience(), w.b)
		for _, r := range []dialed{<-one, <-two} {
			if r.err == nil {
				t.Error("a stream was made of two sessions")
				continue
			}
			if !strings.Contains(r.err.Error(), "declined") {
				t.Errorf("Dial: %v; want B to have declined", r.err)
			}
		}
	})
}

// TestRelayReplays: what a relay has recorded of one session is of no use in
// another, nor in the same once more.
func TestRelayReplays(t *testing.T) {
	for _, direction := range []bool{true, false} {
		t.Run(fmt.Sprintf("from the dialer %t", direction), func(t *testing.T) {
			var mu sync.Mutex
			var recorded bytes.Buffer
			bent := func(r *bentRelay) {
				r.bend = func(session int, fromDialer bool, dst io.Writer, src io.Reader) {
					switch {
					case fromDialer != direction:
						_, _ = io.Copy(dst, src)
					case session == 0:
						_, _ = io.Copy(io.MultiWriter(dst, writerFunc(func(p []byte) (int, error) {
							mu.Lock()
							defer mu.Unlock()
							return recorded.Write(p)
						})), src)
					default:
						mu.Lock()
						_, _ = dst.Write(recorded.Bytes())
						mu.Unlock()
						_, _ = io.Copy(io.Discard, src)
					}
				}
			}
			bentStory(t, bent, nil, func(w *world, _ *bentRelay) {
				near, far, _ := w.a.stream(w.b)
				w.wantTransfer(near, far)
				mu.Lock()
				if recorded.Len() < 500 {
					t.Errorf("%d bytes recorded, want a handshake", recorded.Len())
				}
				mu.Unlock()
				if d := <-w.a.dial(w.patience(), w.b); d.err == nil {
					t.Error("a replay was taken for a session")
				} else if e := new(dtcp.NoPathError); !errors.As(d.err, &e) {
					t.Errorf("Dial: %v", d.err)
				}
			})
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestRelayAnswers: a relay answers the dialer in the listener's place, with a
// certificate of its own; it dials nobody, so nobody else hears of it.
func TestRelayAnswers(t *testing.T) {
	for _, requester := range []string{"A", "B"} {
		t.Run(requester+" asks", func(t *testing.T) {
			bent := func(r *bentRelay) {
				r.pair = func(_ int, _, dialer net.Conn) (net.Conn, net.Conn) {
					own, err := dtcp.NewCertificate()
					if err != nil {
						t.Error(err)
					}
					config := &tls.Config{
						Certificates: []tls.Certificate{own}, NextProtos: []string{"dtcp"}, InsecureSkipVerify: true,
						ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13,
					}
					c := tls.Server(buffered{dialer.(*bentLeg)}, config)
					if requester == "A" { // then the dialer is the server
						c = tls.Client(buffered{dialer.(*bentLeg)}, config)
					}
					_, _ = io.Copy(io.Discard, c)
					return nil, nil
				}
			}
			bentStory(t, bent, nil, func(w *world, _ *bentRelay) {
				req, res := w.a, w.b
				if requester == "B" {
					req, res = w.b, w.a
				}
				d := <-req.dial(w.patience(), res)
				if d.err == nil {
					t.Fatal("the relay was taken for the peer")
				}
				if requester == "B" && !errors.Is(d.err, dtcp.ErrFingerprint) {
					t.Errorf("Dial: %v, want it to name the certificate", d.err)
				}
			})
		})
	}
}

// buffered reads what a leg has buffered first.
type buffered struct{ *bentLeg }

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// TestRelaySeesCiphertext: what goes through the relay is recorded, and holds
// nothing of what was sent.
func TestRelaySeesCiphertext(t *testing.T) {
	marker := []byte("a marker that nobody else says")
	var mu sync.Mutex
	var seen bytes.Buffer
	o := &relayOptions{}
	story(t, options{link: links[0], relay: o, config: relayed("A")}, func(w *world) {
		defer w.net.Tap(func(p memnet.Packet) {
			mu.Lock()
			defer mu.Unlock()
			if p.To == relayAddr || p.From == relayAddr {
				seen.Write(p.Data)
			}
		})()
		near, far, _ := w.a.stream(w.b)
		go func() {
			_, _ = near.Write(bytes.Repeat(marker, 1000))
			_ = near.CloseWrite()
		}()
		got, err := io.ReadAll(far)
		w.check(err)
		if bytes.Count(got, marker) != 1000 {
			t.Errorf("%d markers arrived", bytes.Count(got, marker))
		}
		_, _ = near.Abort(), far.Abort()
		<-time.After(time.Second)
		mu.Lock()
		defer mu.Unlock()
		if seen.Len() < 2*len(got) || bytes.Contains(seen.Bytes(), marker[:12]) {
			t.Errorf("the relay saw %d bytes, the marker among them: %t", seen.Len(), bytes.Contains(seen.Bytes(), marker[:12]))
		}
	})
}
