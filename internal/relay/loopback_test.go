package relay_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// TestLoopback has many streams at once over sockets of the system, whose two
// legs race; and then Close amidst those who arrive, wait and talk.
func TestLoopback(t *testing.T) {
	for _, shell := range shells {
		t.Run(shell.name, func(t *testing.T) { loopback(t, shell.wrap) })
	}
}

func loopback(t *testing.T, wrap func(net.Listener) net.Listener) {
	const pairs, size = 60, 200 << 10
	var ended atomic.Int64
	r, err := relay.New(relay.Config{
		Domain: jid.MustParse("relay.example.org"),
		Keys:   keys,
		Node:   "a",
		Hosts:  []relay.Host{{Addr: "127.0.0.1", Port: 5280}},
		Rules:  relay.Rules{Access: relay.Access{Allow: []jid.JID{alice}}, Limits: relay.Limits{PerAddress: relay.Quota{Handshakes: -1}}},
		Usage:  func(relay.Usage) { ended.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	// Owned by the test, ended by Close, awaited by served.
	go func() { served <- r.Serve(wrap(l)) }()
	lease := (&place{T: t, Relay: r}).lend(alice)

	connect := func() (*net.TCPConn, error) {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	// exchange sends text and the end of this side, and reads the other's.
	exchange := func(c *net.TCPConn, in io.Reader, text []byte) ([]byte, error) {
		sent := make(chan error, 1)
		// Owned by this call, ended by the deadline at the latest, awaited below.
		go func() {
			_, err := c.Write(text)
			if err == nil {
				err = c.CloseWrite()
			}
			sent <- err
		}()
		got, err := io.ReadAll(in)
		if err2 := <-sent; err == nil {
			err = err2
		}
		return got, err
	}
	listen := func(key string, text []byte) ([]byte, error) {
		c, err := connect()
		if err != nil {
			return nil, err
		}
		defer c.Close()
		if _, err := io.WriteString(c, lease.claim(key)); err != nil {
			return nil, err
		}
		in := bufio.NewReader(c)
		want := "ok:" + c.LocalAddr().String() + "\n"
		if line, err := in.ReadString('\n'); err != nil || line != want {
			return nil, fmt.Errorf("answered %q, %v; want %q", line, err, want)
		}
		return exchange(c, in, text)
	}
	dial := func(key string, text []byte) ([]byte, error) {
		c, err := connect()
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return exchange(c, c, append([]byte("key:"+key+"\n"), text...))
	}

	var group sync.WaitGroup
	for i := range pairs {
		key := fmt.Sprint("k", i)
		from, to := bytes.Repeat([]byte{byte(i)}, size), bytes.Repeat([]byte{byte(-i)}, size)
		group.Go(func() {
			got, err := listen(key, from)
			if want := append([]byte("key:"+key+"\n"), to...); err != nil || !bytes.Equal(got, want) {
				t.Errorf("listener %d got %d bytes, %v; want %d", i, len(got), err, len(want))
			}
		})
		group.Go(func() {
			if got, err := dial(key, to); err != nil || !bytes.Equal(got, from) {
				t.Errorf("dialer %d got %d bytes, %v; want %d", i, len(got), err, len(from))
			}
		})
	}
	group.Wait()

	stop := make(chan struct{})
	var tries atomic.Int64
	for i := range 8 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if tries.Add(1); i%2 == 0 {
					_, _ = listen("m", []byte("x")) // may be cut
				} else {
					_, _ = dial("m", []byte("y")) // likewise
				}
			}
		})
	}
	for tries.Load() < 200 { // until they are well under way
		<-time.After(time.Millisecond)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	close(stop)
	group.Wait()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	got := r.Stats()
	if got.Fresh+got.Waiting+got.Held+got.Streams > 0 || ended.Load() != got.LeaseStreams || got.LeaseStreams < pairs || got.BytesOut < pairs*2*size {
		t.Errorf("%d streams have ended, and %+v", ended.Load(), got)
	}
}
