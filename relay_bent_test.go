package dtcp_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// bentRelay is a relay that joins legs as Section 3 of protocol.md says and
// checks nothing; and then does to the bytes, or with the legs, what a hostile
// operator could. The honest one is internal/relay.
type bentRelay struct {
	addrs []string // hosts and ports for leases

	// bend, if set, copies one direction of a joined pair, in place of io.Copy.
	// session counts the pairs from 0.
	bend func(session int, fromDialer bool, dst io.Writer, src io.Reader)

	// pair, if set, is asked for the two connections to join in place of the two
	// that belong together; nil ends them.
	pair func(session int, listener, dialer net.Conn) (net.Conn, net.Conn)

	// observe, if set, says what is seen of a connection.
	observe func(remote netip.AddrPort, at net.Addr) string

	mu      sync.Mutex
	waiting map[string][]*bentLeg // listener's legs by key
	held    map[string][]*bentLeg // dialer's legs
	joined  int
	refuse  string // reason with which serve is answered
	claims  int    // to be observed for long
	leases  int    // given out
	all     []net.Conn
}

type bentLeg struct {
	net.Conn
	line []byte // key line of a dialer
	r    *bufio.Reader
}

func newBentRelay(addr string) *bentRelay {
	return &bentRelay{addrs: []string{addr}, waiting: map[string][]*bentLeg{}, held: map[string][]*bentLeg{}}
}

// Answer is the component's.
func (r *bentRelay) Answer(q stanza.IQ) stanza.IQ {
	const nsInfo, nsRelay = "http://jabber.org/protocol/disco#info", "urn:x-dtcp:relay:0"
	switch {
	case q.Payload.Is(nsInfo, "query"):
		return q.Result(stanza.New(nsInfo, "query", stanza.New(nsInfo, "identity").With("category", "proxy").With("type", "dtcp")))
	case q.Payload.Is(nsRelay, "lease"):
		r.mu.Lock()
		defer r.mu.Unlock()
		r.leases++
		var hosts []stanza.Element
		for _, a := range r.addrs {
			host, port, _ := net.SplitHostPort(a)
			hosts = append(hosts, stanza.New(nsRelay, "host").With("addr", host).With("port", port))
		}
		return q.Result(stanza.New(nsRelay, "lease", hosts...).
			With("id", fmt.Sprintf("lease%d", r.leases)).With("secret", "MDEyMzQ1Njc4OWFiY2RlZg").With("expires", "3600"))
	}
	return q.Fail(stanza.NewError(stanza.ServiceUnavailable, ""))
}

// Serve accepts legs until the listener is closed, and then ends them all.
func (r *bentRelay) Serve(l net.Listener) error {
	var legs sync.WaitGroup
	for {
		c, err := l.Accept()
		if err != nil {
			r.mu.Lock()
			for _, c := range r.all {
				_ = c.Close()
			}
			r.mu.Unlock()
			legs.Wait()
			return err
		}
		r.mu.Lock()
		r.all = append(r.all, c)
		r.mu.Unlock()
		legs.Go(func() { r.greet(c) })
	}
}

func (r *bentRelay) greet(c net.Conn) {
	in := bufio.NewReaderSize(c, wire.MaxLine)
	for {
		line, err := wire.NewReader(in).Line()
		if err != nil {
			_ = c.Close()
			return
		}
		switch line.Command {
		case wire.Observe:
			seen := c.RemoteAddr().String()
			if r.observe != nil {
				seen = r.observe(c.RemoteAddr().(*net.TCPAddr).AddrPort(), c.LocalAddr())
			}
			if line.Argument != "" {
				r.mu.Lock()
				r.claims++
				r.mu.Unlock()
			}
			fmt.Fprintf(c, "ok:%s\n", seen)
			continue
		case wire.StartTLS:
			fmt.Fprint(c, "error\n")
			continue
		case wire.Serve:
			claim, err := wire.ParseClaim(line)
			r.mu.Lock()
			refuse := r.refuse
			r.mu.Unlock()
			if refuse != "" || err != nil {
				fmt.Fprintf(c, "error:%s\n", refuse)
				_ = c.Close()
				return
			}
			fmt.Fprintf(c, "ok:%v\n", c.RemoteAddr())
			r.arrive(claim.Key, &bentLeg{Conn: c, r: in}, r.waiting, r.held, false)
		case wire.Key:
			r.arrive(line.Argument, &bentLeg{Conn: c, r: in, line: line.Append(nil)}, r.held, r.waiting, true)
		}
		return
	}
}

// arrive joins a leg to one of the others, or has it wait.
func (r *bentRelay) arrive(key string, leg *bentLeg, own, others map[string][]*bentLeg, dialer bool) {
	r.mu.Lock()
	if len(others[key]) == 0 {
		own[key] = append(own[key], leg)
		r.mu.Unlock()
		return
	}
	other := others[key][0]
	others[key] = others[key][1:]
	session := r.joined
	r.joined++
	r.mu.Unlock()
	listener, from := other, leg
	if !dialer {
		listener, from = leg, other
	}
	var l, d net.Conn = listener, from
	if r.pair != nil {
		if l, d = r.pair(session, listener, from); l == nil {
			return
		}
	}
	r.copy(session, l, d)
}

// copy joins two legs until both directions have ended.
func (r *bentRelay) copy(session int, listener, dialer net.Conn) {
	one := func(fromDialer bool, dst, src net.Conn) {
		var in io.Reader = src
		if leg, ok := src.(*bentLeg); ok {
			in = leg.r
			if fromDialer {
				_, _ = dst.Write(leg.line)
			}
		}
		if r.bend != nil {
			r.bend(session, fromDialer, dst, in)
		} else if _, err := io.Copy(dst, in); err != nil {
			for _, c := range []net.Conn{dst, src} {
				if leg, ok := c.(*bentLeg); ok {
					_ = leg.Conn.(*memnet.Conn).SetLinger(0)
				}
				_ = c.Close()
			}
			return
		}
		if c, ok := dst.(*bentLeg); ok {
			_ = c.Conn.(*memnet.Conn).CloseWrite()
		}
	}
	var both sync.WaitGroup
	both.Go(func() { one(true, listener, dialer) })
	both.Go(func() { one(false, dialer, listener) })
	both.Wait()
	_ = listener.Close()
	_ = dialer.Close()
}
