package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/profile"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// Bounds of the steps of a set-up, where --timeout sets none.
const (
	loginTime  = 30 * time.Second
	answerTime = 30 * time.Second
)

// returnTime is how long a question to a peer waits for a login that was lost.
// Who asks should rather know than wait.
const returnTime = time.Second

// What is announced by service discovery (doc/protocol.md). The name of a
// service follows the session's namespace behind a '#'.
const (
	featureDTCP    = "http://jabber.org/protocol/dtcp"
	featureSession = "urn:x-dtcp:session:0"
)

// priority of every presence: no chat message is caught.
const priority = -1

// profile opens the configuration directory.
func (t *tool) profile() (*profile.Dir, error) { return t.openProfile(profile.Open) }

// remembered opens it for a look.
func (t *tool) remembered() (*profile.Dir, error) { return t.openProfile(profile.OpenToRead) }

func (t *tool) openProfile(open func(path string) (*profile.Dir, error)) (*profile.Dir, error) {
	path := t.config
	if path == "" {
		var err error
		if path, err = profile.DefaultPath(); err != nil {
			return nil, err
		}
	}
	return open(path)
}

// credentials returns the account to log in with: what is remembered of it,
// changed by the flags, and with a password.
func (t *tool) credentials(ctx context.Context, dir *profile.Dir) (profile.Account, error) {
	a, err := dir.Account(t.account)
	switch {
	case errors.Is(err, profile.ErrNoAccount) && !t.account.IsZero():
		a = profile.Account{JID: t.account.Bare()}
	case err != nil:
		return a, err
	}
	t.adjust(&a)
	password, err := t.givenPassword()
	if err != nil {
		return a, &loginError{err}
	}
	if password != "" {
		a.Password = password
	}
	if a.Password == "" {
		if a.Password, err = askPassword(ctx, a.JID); err != nil {
			return a, &loginError{err}
		}
	}
	return a, nil
}

// adjust applies the flags that say how to reach the server.
func (t *tool) adjust(a *profile.Account) {
	if t.server != "" {
		a.Server = t.server
	}
	if t.ca != "" {
		a.CA, a.Pin = t.ca, dtcp.Fingerprint{}
	}
	if !t.pin.IsZero() {
		a.Pin = t.pin
	}
}

// loginConfig says how to log in with an account.
func (t *tool) loginConfig(a profile.Account, resource string) (*xmpp.Config, error) {
	who, err := a.JID.WithResource(resource)
	if err != nil {
		return nil, err
	}
	c := &xmpp.Config{JID: who, Password: a.Password, Server: a.Server, Priority: priority, Dial: t.dialServer, Trace: t.loginTrace()}
	if a.CA != "" {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM([]byte(a.CA)) {
			return nil, fmt.Errorf("no certificate among those remembered for %v: dtcp login again", a.JID)
		}
	}
	if !a.Pin.IsZero() {
		c.Pin = "sha256:" + a.Pin.String()
	}
	return c, nil
}

// connect logs in.
func connect(ctx context.Context, c *xmpp.Config) (*xmpp.Session, error) {
	bounded, cancel := context.WithTimeout(ctx, loginTime)
	defer cancel()
	s, err := xmpp.Connect(bounded, c)
	switch {
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, &loginError{fmt.Errorf("not in the time that --timeout gives: %w", err)}
	case err != nil:
		return nil, &loginError{err}
	}
	return s, nil
}

// loginTrace tells of a login that comes and goes.
func (t *tool) loginTrace() *xmpp.Trace {
	var before atomic.Bool
	trace := &xmpp.Trace{
		Connected: func(who jid.JID) {
			if before.Swap(true) {
				t.out.say("logged in again as %v", who)
			} else {
				t.out.trace("logged in as %v", who)
			}
		},
		Retrying: func(err error, in time.Duration) {
			t.out.say("the XMPP server is out of reach: %s; next try in %v", loss(err), in.Round(100*time.Millisecond))
		},
	}
	if t.out.tracing() {
		trace.Element = func(sent bool, xml string) {
			if sent {
				t.out.trace("> %s", xml)
			} else {
				t.out.trace("< %s", xml)
			}
		}
	}
	return trace
}

// randomResource names a login that nobody needs to find.
func randomResource() string { return "dtcp." + strings.ToLower(rand.Text()[:12]) }

// link is a login with an endpoint on it.
type link struct {
	*tool
	session  *xmpp.Session
	endpoint *dtcp.Endpoint
	opened   chan struct{} // closed when there is the endpoint; requests may come before
	trust    *trust
}

// linkConfig is what a command wants of its link.
type linkConfig struct {
	resource    func(account jid.JID) string
	features    []string
	allow       func(*link) func(context.Context, *dtcp.Request) error // nil: nobody
	paths       func(peer jid.JID) dtcp.PathPolicy                     // nil: what the flags say
	watch       func(*dtcp.Trace)                                      // adds to what is told of streams; nil: nothing
	noReconnect bool
}

// link logs in and opens an endpoint. Presence is sent last, when requests
// can be answered.
func (t *tool) link(ctx context.Context, c linkConfig) (_ *link, err error) {
	dir, err := t.profile()
	if err != nil {
		return nil, err
	}
	account, err := t.credentials(ctx, dir)
	if err != nil {
		return nil, err
	}
	certificate, err := t.certificate(dir)
	if err != nil {
		return nil, err
	}
	login, err := t.loginConfig(account, c.resource(account.JID))
	if err != nil {
		return nil, err
	}
	login.Features, login.NoPresence, login.NoReconnect = c.features, true, c.noReconnect
	session, err := connect(ctx, login)
	if err != nil {
		return nil, err
	}
	l := &link{tool: t, session: session, opened: make(chan struct{}), trust: &trust{dir: dir, out: t.out, own: dtcp.FingerprintOf(certificate.Certificate[0]), allowPlain: t.allowPlain}}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	config := &dtcp.Config{
		Certificate: &certificate,
		Paths:       c.paths,
		VerifyPeer:  l.trust.verify,
		AllowPlain:  l.trust.plain,
		Listen:      t.options.listen,
		Public:      t.public,
		Relays:      t.relays(),
		Gateway:     t.gateway(),
		Trace:       t.streamTrace(),
	}
	if t.egress.Configured() {
		config.DialRelay = t.dialRelay
	}
	if c.paths == nil {
		config.Paths = func(jid.JID) dtcp.PathPolicy { return t.paths() }
	}
	if c.watch != nil {
		c.watch(config.Trace)
	}
	if c.allow != nil {
		config.Allow = c.allow(l)
	}
	wait := t.timeout
	if wait == 0 {
		wait = answerTime
	}
	if l.endpoint, err = dtcp.NewEndpoint(signaling{session, wait}, config); err != nil {
		return nil, err
	}
	close(l.opened)
	if err := l.checkRelay(ctx); err != nil {
		return nil, err
	}
	if err := session.SendPresence(ctx, stanza.Presence{Priority: priority}); err != nil {
		return nil, &loginError{err}
	}
	return l, nil
}

// certificate returns what is presented to peers: the user's own, or the one of
// this installation.
func (t *tool) certificate(dir *profile.Dir) (tls.Certificate, error) {
	if t.certFile == "" {
		return dir.Certificate()
	}
	c, err := tls.LoadX509KeyPair(t.certFile, t.keyFile)
	if err != nil {
		return c, fmt.Errorf("--cert and --key: %w", err)
	}
	return c, nil
}

func (l *link) close() {
	if l.endpoint != nil {
		l.endpoint.Close()
	}
	l.session.Close()
}

// whileLoggedIn returns a context that ends with the login, should that end for
// good; the cause is then why.
func (l *link) whileLoggedIn(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	// Owned by the caller, who ends it by the function returned; nobody waits.
	go func() {
		select {
		case <-l.session.Done():
			cancel(&loginError{l.session.Err()})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// setUp bounds the time until there is a stream.
func (t *tool) setUp(ctx context.Context) (context.Context, context.CancelFunc) {
	if t.timeout == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, t.timeout)
}

// because returns why ctx ended, when that is more telling than err.
func because(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if err == nil || cause == nil || cause == context.Canceled || cause == context.DeadlineExceeded {
		return err
	}
	return cause
}

// signaling is a session that does not wait for ever for a peer's answer.
type signaling struct {
	*xmpp.Session
	wait time.Duration
}

func (s signaling) RoundTrip(ctx context.Context, q stanza.IQ) (stanza.IQ, error) {
	if err := waitLogin(ctx, s.Session); err != nil {
		return stanza.IQ{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	answer, err := s.Session.RoundTrip(bounded, q)
	var out *xmpp.LoggedOutError
	if err != nil && answer.Error == nil && bounded.Err() != nil && ctx.Err() == nil && !errors.As(err, &out) {
		err = &silenceError{peer: q.To, wait: s.wait}
	}
	return answer, err
}

// waitLogin waits for a login, but not for long.
func waitLogin(ctx context.Context, s *xmpp.Session) error {
	ctx, cancel := context.WithTimeout(ctx, returnTime)
	defer cancel()
	return s.WaitLogin(ctx)
}

// silenceError says that a peer did not answer in time.
type silenceError struct {
	peer jid.JID
	wait time.Duration
}

func (e *silenceError) Error() string { return fmt.Sprintf("no answer from %v in %v", e.peer, e.wait) }
func (e *silenceError) Unwrap() error { return context.DeadlineExceeded }

// streamTrace tells how a stream comes about.
func (t *tool) streamTrace() *dtcp.Trace {
	trace := &dtcp.Trace{
		Refused: func(r *dtcp.Request, err error) {
			t.out.say("refused a stream to %v (service %q): %v", r.From, r.Service, err)
		},
	}
	if !t.out.tracing() {
		return trace
	}
	say := t.out.trace
	trace.Offered = func(stream string, peer jid.JID, service string, requester bool) {
		role := "responder"
		if requester {
			role = "requester"
		}
		say("stream %s: negotiating with %v, service %q, as the %s", stream, peer, service, role)
	}
	trace.Dialing = func(stream string, c dtcp.Candidate) { say("stream %s: dialing %v", stream, c) }
	trace.Failed = func(stream string, c dtcp.Candidate, err error) { say("stream %s: %v failed: %v", stream, c, err) }
	trace.Accepted = func(stream string, remote netip.AddrPort) {
		say("stream %s: accepted a connection from %v", stream, remote)
	}
	trace.Ready = func(stream string, p dtcp.Path) {
		say("stream %s: the peer has proven itself on %s, %v to %v", stream, p.Kind, p.Local, p.Remote)
	}
	trace.Nominated = func(stream string, p dtcp.Path) {
		say("stream %s: nominated %s, %v to %v", stream, p.Kind, p.Local, p.Remote)
	}
	trace.GaveUp = func(stream string, byPeer bool) {
		who := "this side has"
		if byPeer {
			who = "the peer has"
		}
		say("stream %s: %s nothing left to dial", stream, who)
	}
	trace.Ended = func(stream string, d time.Duration, err error) {
		if err != nil {
			say("stream %s: no stream after %v: %v", stream, d.Round(time.Millisecond), err)
		} else {
			say("stream %s: up after %v", stream, d.Round(time.Millisecond))
		}
	}
	return trace
}
