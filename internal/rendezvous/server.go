// Package rendezvous is a small XMPP server (RFC 6120, RFC 6121) by which the
// users of one domain find each other: accounts, TLS, SCRAM, resources, rosters,
// presence, and the routing of iqs, messages and presence between them. Tests,
// dtcp demo and a standalone relay run on it. There is no federation: another
// domain is remote-server-not-found, unless a service of this process is
// attached under it.
//
//	cert, err := rendezvous.SelfSigned("example.org", time.Now())
//	server, err := rendezvous.New(rendezvous.Config{Domain: "example.org", Certificate: cert})
//	err = server.SetAccount("juliet", password)
//	detach, err := server.Attach("relay.example.org", relay.Answer)
//	err = server.Serve(listener)
//
// # Security
//
// Nothing but the stream header and STARTTLS is understood outside of TLS.
// Of a password the server keeps what SCRAM needs to check it (RFC 5802, 3),
// never the password. Whether an account exists is not told to those who
// cannot log in to it. The 'from' of every stanza is the server's word.
//
// # Limits
//
// A login has 30 s and five attempts. Streams that have not logged in yet are
// limited in number, in all and by address; so are accounts, resources and
// rosters. What waits for a client that does not read is limited: others get
// <resource-constraint/> for what they send it when 512 KiB wait, and its stream
// is closed at 1 MiB or after 30 s; nobody else notices. Stanzas are limited to
// [stanza.MaxBytes].
package rendezvous

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// Config is what [New] makes a server of.
type Config struct {
	// Domain is the server's name, an internationalized host name or an IP
	// literal (IPv6 in brackets). It must be set.
	Domain string

	// Certificate is presented to all clients. It must be set, and should be
	// valid for Domain; [SelfSigned] makes one.
	Certificate tls.Certificate

	// Iterations is the cost of the SCRAM keys of accounts that are set from
	// now on. If zero, 10,000; RFC 7677 asks for 4,096 at least, and fewer are
	// refused.
	Iterations int

	// Intercept, if set, sees every stanza of a client, with 'from' stamped,
	// before it is routed, and returns what is routed in its place, in order;
	// nothing drops it. It is for tests of a server that lies. An element whose
	// 'from' is no longer the sender's goes straight to its 'to'. Intercept is
	// called by the goroutine that reads the sender's stream, by several at
	// once for several streams; while it runs, that sender waits.
	Intercept func(from jid.JID, e stanza.Element) []stanza.Element

	// Trace, if set, is told what happens.
	Trace *Trace
}

// Bounds of the cost of SCRAM keys: RFC 7677, 4, and what a client would have
// to compute at most.
const (
	defaultIterations = 10000
	minIterations     = 4096
	maxIterations     = 1000000
)

// Trace holds functions that a server calls as things happen; each may be nil.
// They are called by the goroutine of the stream concerned, so by several at
// once, with no lock held.
type Trace struct {
	// Login is called when a stream has logged in and has its resource.
	Login func(who jid.JID, remote net.Addr, mechanism string)
	// Logout is called when that stream has ended; why is nil when the client
	// ended it.
	Logout func(who jid.JID, why error)
	// Denied is called for each failed attempt to log in; name is as the
	// client sent it and may hold anything.
	Denied func(name string, remote net.Addr, why error)
	// Refused is called when a connection ends before it has logged in; by the
	// goroutine of Serve when it was one too many.
	Refused func(remote net.Addr, why error)
}

// Server is a running server, made by [New]. Its methods may be called by
// several goroutines at once.
type Server struct {
	config   Config
	domain   jid.JID
	tls      *tls.Config
	endpoint []byte // tls-server-end-point binding (RFC 5929, 4), or none
	limits   limits
	secret   []byte // makes the salts of accounts that do not exist

	done   chan struct{}  // closed by Close
	active sync.WaitGroup // Serve calls and streams

	// mu guards everything below, and the fields of accounts and streams that
	// say so. It is held for computing only: never across I/O or a callback.
	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	guests    map[*stream]string // streams before login, with their address
	accounts  map[string]*account
	services  map[string]func(stanza.IQ) stanza.IQ // by domain
	pushes    uint64                               // numbers the iqs of the server's own
}

// New makes a server without accounts. It serves nobody until
// [Server.Serve] is called.
func New(c Config) (*Server, error) {
	domain, err := jid.New("", c.Domain, "")
	if err != nil {
		return nil, fmt.Errorf("rendezvous: %w", err)
	}
	switch {
	case len(c.Certificate.Certificate) == 0:
		return nil, errors.New("rendezvous: no certificate")
	case c.Iterations == 0:
		c.Iterations = defaultIterations
	case c.Iterations < minIterations:
		return nil, fmt.Errorf("rendezvous: %d iterations are too few", c.Iterations)
	}
	if c.Certificate.Leaf == nil {
		if c.Certificate.Leaf, err = x509.ParseCertificate(c.Certificate.Certificate[0]); err != nil {
			return nil, fmt.Errorf("rendezvous: %w", err)
		}
	}
	if c.Trace == nil {
		c.Trace = &Trace{}
	}
	secret := make([]byte, 32)
	rand.Read(secret)
	return &Server{
		config: c,
		domain: domain,
		tls: &tls.Config{
			Certificates: []tls.Certificate{c.Certificate},
			MinVersion:   tls.VersionTLS12,
			// XEP-0368; a client that offers other protocols only has taken us
			// for something else.
			NextProtos: []string{"xmpp-client"},
			// Streams are long; a ticket costs a write after each handshake.
			SessionTicketsDisabled: true,
			// A batch of stanzas is one record and one write.
			DynamicRecordSizingDisabled: true,
		},
		endpoint:  endpointBinding(c.Certificate.Leaf),
		limits:    defaultLimits,
		done:      make(chan struct{}),
		secret:    secret,
		listeners: make(map[net.Listener]struct{}),
		guests:    make(map[*stream]string),
		accounts:  make(map[string]*account),
		services:  make(map[string]func(stanza.IQ) stanza.IQ),
	}, nil
}

// Serve accepts clients from l until [Server.Close] is called, and returns nil
// then, or until l fails, and returns its error. It closes l. STARTTLS and
// direct TLS (XEP-0368) are told apart by the first byte. Several listeners may
// be served at once.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	if !s.listen(l) {
		return fmt.Errorf("rendezvous: %w", net.ErrClosed)
	}
	defer s.active.Done()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.listeners, l)
	}()
	var pause time.Duration
	for {
		conn, err := l.Accept()
		if err == nil {
			pause = 0
			s.admit(conn)
			continue
		}
		select {
		case <-s.done:
			return nil
		default:
		}
		// Out of descriptors, or a client that was gone too soon: these pass.
		var passing interface{ Temporary() bool }
		if !errors.As(err, &passing) || !passing.Temporary() {
			return fmt.Errorf("rendezvous: %w", err)
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-s.done:
			timer.Stop()
			return nil
		}
	}
}

func (s *Server) listen(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.listeners[l] = struct{}{}
	s.active.Add(1)
	return true
}

// admit gives conn a stream, unless there are too many that have not logged
// in yet.
func (s *Server) admit(conn net.Conn) {
	st := newStream(s, conn)
	if why := s.welcome(st); why != nil {
		conn.Close()
		s.refused(conn, why)
		return
	}
	// The stream's goroutine: it ends with the stream, which has deadlines of
	// its own and which Close ends; Close waits for it through s.active.
	go func() {
		defer s.active.Done()
		st.run()
	}()
}

func (s *Server) refused(conn net.Conn, why error) {
	if f := s.config.Trace.Refused; f != nil {
		f(conn.RemoteAddr(), why)
	}
}

// Close closes the listeners and ends all streams, those that have logged in
// with <system-shutdown/>. It returns when all goroutines of the server have
// ended: within some three seconds, whatever the clients do. Accounts stay, but
// the server cannot serve again.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	var closers []func() error
	for l := range s.listeners {
		closers = append(closers, l.Close)
	}
	for st := range s.guests {
		closers = append(closers, st.conn.Close)
	}
	for _, a := range s.accounts {
		for _, st := range a.streams {
			st.end(&streamError{condition: "system-shutdown"})
		}
	}
	s.mu.Unlock()
	for _, c := range closers {
		c() // an error would say that it was closed already
	}
	s.active.Wait()
	return nil
}
