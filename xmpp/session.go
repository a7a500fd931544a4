package xmpp

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// Session is an account that is logged in, or on its way to be again. It is
// made by [Connect], or as a component by [NewComponent], may be used by several goroutines, and must be closed.
//
//	            lost                 wait (backoff)
//	logged in ───────▶ logged out ──────────────▶ logging in ─┐
//	    ▲                  ▲                           │      │ done
//	    │                  └──────── failed ───────────┘      │
//	    └─────────────────────────────────────────────────────┘
//
// From every state Close leads to the end; so do, but for a component, a
// conflict and a login that is refused, and with NoReconnect the first loss. Requests wait for a login as
// long as their context allows.
type Session struct {
	config    Config
	account   jid.JID    // or the domain of a component
	content   string     // the namespace of its stanzas
	component *component // nil for an account
	pin       []byte

	stop context.CancelFunc // ends the supervisor
	done chan struct{}      // closed when the supervisor has ended; err is set before

	mu       sync.Mutex // held for moments, never while anything waits
	current  *stream    // nil while logged out
	changed  chan struct{}
	addr     jid.JID
	err      error
	lost     error            // why there is no login, or was none the last time
	presence *stanza.Presence // sent after each login; nil before the first
	handlers map[xml.Name][]*handler
	features map[string]int
}

// Connect logs in once, within ctx, and sends presence. The session then stays
// logged in until Close, whatever becomes of ctx. Errors are, or wrap,
// [*AuthError], [ErrConflict] or [*ConnectError], which may hold [*TLSError].
func Connect(ctx context.Context, c *Config) (*Session, error) {
	pin, err := c.check()
	if err != nil {
		return nil, fmt.Errorf("xmpp: %w", err)
	}
	s := newSession(*c, stanza.NSClient)
	s.pin = pin
	if !c.NoPresence {
		s.presence = &stanza.Presence{Priority: c.Priority}
	}
	st, err := s.connect(ctx, target{})
	if err != nil {
		return nil, fmt.Errorf("xmpp: %w", err)
	}
	s.start(st)
	return s, nil
}

func newSession(c Config, content string) *Session {
	s := &Session{
		config: c, account: c.JID, content: content,
		done: make(chan struct{}), changed: make(chan struct{}),
		handlers: make(map[xml.Name][]*handler), features: make(map[string]int),
	}
	if s.config.Dial == nil {
		s.config.Dial = new(net.Dialer).DialContext
	}
	for _, f := range append([]string{nsInfo, nsPing}, c.Features...) {
		s.features[f]++
	}
	return s
}

// start has the session supervised from its first login on, which is nil if
// that is still to come.
func (s *Session) start(st *stream) {
	if st != nil {
		s.announce(st)
		s.install(st)
	}
	// Bounds the later logins. It is the session's, not that of the call that
	// began it.
	life, stop := context.WithCancel(context.Background())
	s.stop = stop
	// Owned by the session; it ends by Close, or for good as Done says, and
	// Close waits for it.
	go s.supervise(life, st)
}

// install makes st the login that requests use; nil means that there is none.
func (s *Session) install(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = st
	if st != nil {
		s.addr = st.addr
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// supervise runs the logins one after the other, until life ends.
func (s *Session) supervise(life context.Context, st *stream) {
	defer close(s.done)
	defer s.stop()
	var err error
	for tries := 0; ; {
		if st == nil {
			if st, err = s.again(life, err, &tries); err != nil {
				s.end(err)
				return
			}
			s.announce(st)
			s.install(st)
		}
		s.config.Trace.connected(st.addr)
		err = st.run(life.Done())
		s.install(nil)
		s.config.Trace.disconnected(err)
		if s.permanent(err) || s.config.NoReconnect {
			s.end(err)
			return
		}
		if time.Since(st.born) >= backoffReset {
			tries = 0
		}
		st = nil
	}
}

// again logs in until that works or is of no use. lost is why it is needed,
// nil for the first login, which is tried at once; tries counts the waits since
// the last login that lived.
func (s *Session) again(life context.Context, lost error, tries *int) (*stream, error) {
	var hint target
	var moved *StreamError
	if errors.As(lost, &moved) && moved.Host != "" {
		hint, _ = redirected(moved.Host)
	}
	for {
		if lost != nil && !s.pause(life, lost, tries) {
			return nil, ErrClosed
		}
		st, err := s.connect(life, hint)
		switch {
		case err == nil:
			return st, nil
		case life.Err() != nil:
			return nil, ErrClosed
		case s.permanent(err) || s.config.NoReconnect:
			return nil, err
		}
		lost, hint = err, target{}
	}
}

// pause waits before the next attempt to log in, and reports whether there
// is one.
func (s *Session) pause(life context.Context, lost error, tries *int) bool {
	s.mu.Lock()
	s.lost = lost
	s.mu.Unlock()
	wait := backoff(*tries, rand.Float64())
	*tries++
	s.config.Trace.retrying(lost, wait)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-life.Done():
		return false
	}
}

// end notes why the session is over.
func (s *Session) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = fmt.Errorf("xmpp: %w", err)
}

// WaitLogin waits within ctx until the session is logged in. The error is a
// [*LoggedOutError], or that of [Session.Err].
func (s *Session) WaitLogin(ctx context.Context) error {
	_, err := s.login(ctx)
	return err
}

// login returns the current login, and waits for one within ctx.
func (s *Session) login(ctx context.Context) (*stream, error) {
	for {
		s.mu.Lock()
		st, changed := s.current, s.changed
		s.mu.Unlock()
		if st != nil {
			select {
			case <-st.lost: // and soon no longer current
			default:
				return st, nil
			}
		}
		select {
		case <-changed:
		case <-s.done:
			return nil, s.Err()
		case <-ctx.Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			return nil, &LoggedOutError{Lost: s.lost, Err: ctx.Err()}
		}
	}
}

// Probe says that the connection may be dead: the machine has come into another
// network, say, or has slept. The server then has 5 s to answer a ping, or the
// session logs in anew; it would otherwise notice in 80 s. It does not block.
func (s *Session) Probe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		select {
		case s.current.probes <- struct{}{}:
		default: // one is under way
		}
	}
}

// LocalAddr returns the full JID of the newest login, or the domain of a
// component.
func (s *Session) LocalAddr() jid.JID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// Done returns a channel that is closed when the session has ended for good:
// by Close, a conflict, a login that is no longer accepted, or with
// NoReconnect the loss of the connection.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err returns why the session ended, and nil before Done.
func (s *Session) Err() error {
	select {
	case <-s.done:
	default:
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close says good-bye to the server, if it listens, for at most a few seconds,
// ends the session and waits for its goroutines. Requests under way fail. It
// must not be called from a handler or a hook, for which it would wait.
func (s *Session) Close() error {
	s.stop()
	<-s.done
	return nil
}
