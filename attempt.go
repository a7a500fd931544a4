package dtcp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
)

// attempt is one TCP connection of a session, dialed or accepted. Its goroutine
// goes straight through the handshake, tells the session how far it came, and
// waits for verdicts; it alone closes the connection, unless it hands it over.
type attempt struct {
	s         *session
	id        int
	candidate Candidate // dialed; or the relay by way of which it came in
	dialed    bool
	t         *transport // nil until connected

	cancel    context.CancelFunc // lets the attempt go
	ctx       context.Context
	verdicts  chan actionKind // proceed, nominate, confirm, refuse, deliver: each once at the most
	nominated bool            // the nomination was sent
	place     bool            // it has a place among the streams that wait for Accept
	refused   bool            // the verdict was refuse; owned by the session's loop
	err       error           // why it ended; read by the session after died
}

// relayed reports whether the other end of the connection is a relay's.
func (a *attempt) relayed() bool { return a.candidate.Type != "" && !a.candidate.Type.direct() }

// maxVerdicts is how many verdicts an attempt can get: proceed, nominate,
// deliver. The channel holds them all, so that the session never waits.
const maxVerdicts = 4

func (s *session) newAttempt(id int) *attempt {
	ctx, cancel := context.WithCancel(s.ctx)
	return &attempt{s: s, id: id, ctx: ctx, cancel: cancel, verdicts: make(chan actionKind, maxVerdicts)}
}

// dialCandidate is the goroutine of a dialed connection.
func (a *attempt) dialCandidate() {
	a.s.trace.dialing(a.s.stream, a.candidate)
	conn, err := a.connect()
	if err != nil {
		a.finish(a.reason(err))
		return
	}
	a.t = newTransport(conn)
	a.s.post(input{event: event{kind: connected, id: a.id}})
	a.run()
}

// connect dials the candidate; a name is resolved and checked as addresses are.
func (a *attempt) connect() (c net.Conn, err error) {
	to, at := a.candidate, []netip.AddrPort(nil)
	if to.Name != "" && !a.s.rules.ours(to) {
		if at, err = a.s.e.resolve(a.ctx, to); err != nil {
			return nil, err
		}
		at = slices.DeleteFunc(at, func(one netip.AddrPort) bool {
			refused := a.s.rules.checkAddr(one)
			if refused != nil {
				err = refused
			}
			return refused != nil
		})
		if len(at) == 0 {
			return nil, err
		}
		to.Name, to.Addr = "", at[0] // nobody is to look the name up once more, and find another address
	}
	if to.Type == Proxy { // it is the peer's: the peer is the requester of the bytestream
		return a.s.e.connectProxy(a.ctx, to, at, a.s.peer, a.s.local)
	}
	hole := slices.Contains(a.s.holes, to)
	if !hole {
		if err := a.s.beforeOthers(a.ctx); err != nil {
			return nil, err
		}
	}
	switch {
	case to.Type == Relay:
		return a.dialRelay(to, at)
	case hole:
		return a.punch(to.Addr)
	}
	return a.s.e.network.Dial(a.ctx, netip.AddrPort{}, to.Addr)
}

// Bounds of dialing a relay again that refuses connections.
const (
	relayAgain     = time.Second
	relayAgainTime = 5 * time.Second
)

// dialRelay dials a relay, and again for a while when it refuses: it may be about
// to be there once more after a restart, and often it is the one way there is.
func (a *attempt) dialRelay(c Candidate, at []netip.AddrPort) (net.Conn, error) {
	for began := time.Now(); ; {
		conn, err := a.s.e.dialRelay(a.ctx, c, at)
		if err == nil || !turnedAway(err) || time.Since(began) >= relayAgainTime {
			return conn, err
		}
		if err := rest(a.ctx, relayAgain); err != nil {
			return nil, err
		}
	}
}

// acceptKey is the rest of the goroutine of an accepted connection, which has
// named the session's key. It waits until the offers are exchanged.
func (a *attempt) acceptKey() {
	// A held dialer waits up to 30 s (Section 1 of protocol.md).
	if err := a.wait(proceed, attemptTime); err != nil {
		a.finish(err)
		return
	}
	a.run()
}

// run takes a connected attempt to its end.
func (a *attempt) run() {
	stop := a.t.interrupt(a.ctx)
	err := a.deadline(handshakeTime)
	if err == nil {
		if a.s.extended() {
			err = a.extendedHandshake()
		} else {
			err = a.stockHandshake()
		}
	}
	if !stop() && err == nil {
		err = context.Canceled
	}
	if err == nil {
		err = a.t.rec.Conn.SetDeadline(time.Time{})
	}
	if err != nil {
		a.finish(a.reason(err))
		return
	}
	a.s.handOver(a)
	a.cancel()
	a.s.post(input{event: event{kind: handed, id: a.id}})
}

// deadline bounds what follows at the socket.
func (a *attempt) deadline(d time.Duration) error {
	if err := a.t.rec.Conn.SetDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	return a.ctx.Err() // it may have ended just before, and set a deadline that is now lost
}

// outwait waits for the first word of a requester that may have to hold our
// connection until the iq-result has reached it (Section 1 of protocol.md).
// After that the ordinary bound is in force again.
func (a *attempt) outwait() error {
	if a.s.role == requester {
		return nil
	}
	if err := a.deadline(attemptTime); err != nil {
		return err
	}
	if _, err := a.t.in.Peek(1); err != nil {
		return err
	}
	return a.deadline(handshakeTime)
}

// reply sends a line after a wait.
func (a *attempt) reply(command, argument string) error {
	if err := a.deadline(answerTime); err != nil {
		return err
	}
	return a.t.send(command, argument)
}

// finish ends an attempt that did not become a stream.
func (a *attempt) finish(err error) {
	a.cancel()
	if a.t != nil {
		_ = a.t.rec.abort()
	}
	if a.place {
		a.s.e.freePlace()
	}
	a.err = err
	a.s.post(input{event: event{kind: died, id: a.id}, attempt: a})
}

// reason makes of an error what became of the candidate.
func (a *attempt) reason(err error) error {
	switch {
	case a.ctx.Err() != nil && a.nominated:
		return errNoReply
	case a.ctx.Err() != nil:
		return errLetGo
	case a.t != nil && errors.Is(err, os.ErrDeadlineExceeded):
		return errSilent
	case err == io.EOF:
		return errNoNotify
	case alerted(err, alertBadCertificate), alerted(err, alertAccessDenied):
		return errCertRefused
	}
	return err
}

// Alerts by which a peer refuses a certificate (RFC 8446, 6.2).
const (
	alertBadCertificate tls.AlertError = 42
	alertAccessDenied   tls.AlertError = 49
)

// alerted reports whether err is this alert of the other end. crypto/tls has no
// exported type for it (tls.AlertError is QUIC's) but its text.
func alerted(err error, alert tls.AlertError) bool {
	var e *net.OpError
	return errors.As(err, &e) && e.Op == "remote error" && e.Err.Error() == alert.Error()
}

// wait waits for one verdict.
func (a *attempt) wait(want actionKind, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case got := <-a.verdicts:
		if got == want {
			return nil
		}
		return a.other(got)
	case <-a.ctx.Done():
		return a.ctx.Err()
	case <-timer.C:
		return fmt.Errorf("no word from the negotiation for %v", d)
	}
}

// other is what a verdict means where another was hoped for.
func (a *attempt) other(got actionKind) error {
	if got == refuse {
		if a.s.extended() { // to a stock peer a line would be data
			a.sayError("")
		}
		return errDeclined
	}
	return fmt.Errorf("verdict %d out of turn", got)
}

// sayError answers a nomination by error, with a reason or "".
func (a *attempt) sayError(why string) {
	if a.deadline(answerTime) == nil && a.t.send(wire.Error, why) == nil {
		a.hangUp()
	}
}

// hangUp waits until the other end has taken the reason why this one ends the
// connection: a reset right behind that would destroy it on systems other than
// Linux.
func (a *attempt) hangUp() {
	c, ok := a.t.rec.Conn.(interface{ CloseWrite() error })
	if ok && a.deadline(hangUpTime) == nil && c.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, a.t.rec.r, readSize) // as much as an honest peer never sends
	}
}

// hangUpTime bounds that.
const hangUpTime = time.Second

// extendedHandshake is Section 2 of protocol.md, 1 to 4. On success the
// connection carries the stream.
func (a *attempt) extendedHandshake() error {
	a.t.rec.first = firstByte("")
	if a.dialed {
		key := wire.Line{Command: wire.Key, Argument: a.s.peerKey}.Append(nil)
		a.t.rec.first = firstByte(a.s.key)
		if a.s.role == requester {
			a.t.rec.queue(key) // the ClientHello goes right behind it
		} else if _, err := a.t.rec.Write(key); err != nil {
			return err
		} else if err := a.outwait(); err != nil {
			return err
		}
	}
	began := time.Now()
	if err := a.t.secure(a.s.role == requester, sessionTLS(a.s.e.certificate, a.s.checkCertificate)); err != nil {
		if errors.Is(err, ErrFingerprint) {
			a.hangUp() // behind the alert that says so
		}
		return err
	}
	// Not in VerifyConnection: crypto/tls calls that before it has checked the
	// signature, and whoever saw a certificate once can present it.
	if err := a.s.verifyPeer(a.t.tls.ConnectionState().PeerCertificates[0]); err != nil {
		a.sayError(wire.Certificate)
		a.s.cancel(err)
		return err
	}
	a.s.trace.ready(a.s.stream, a.path())
	a.s.post(input{event: event{kind: proven, id: a.id, trip: time.Since(began)}})
	if a.s.role == requester {
		return a.nominateExtended()
	}
	return a.awaitNomination()
}

func (a *attempt) nominateExtended() error {
	if err := a.wait(nominate, attemptTime); err != nil {
		return err
	}
	proof, err := a.s.agreed.Proof(a.t.tls.ConnectionState())
	if err != nil {
		return err
	}
	if err := a.deadline(attemptTime); err != nil { // the session's own is shorter
		return err
	}
	a.nominated = true
	if err := a.t.send(wire.OK, proof); err != nil {
		return err
	}
	line, err := a.t.line()
	switch {
	case err != nil:
		return err
	case line.Command == wire.OK:
		a.s.post(input{event: event{kind: accepted, id: a.id}})
		return a.wait(deliver, attemptTime)
	case line.Command == wire.Error && line.Argument == wire.Certificate:
		return errCertRefused
	case line.Command == wire.Error:
		a.s.post(input{event: event{kind: declined, id: a.id}})
		return errDeclined
	}
	return errNotDTCP
}

func (a *attempt) awaitNomination() error {
	if err := a.deadline(attemptTime); err != nil {
		return err
	}
	line, err := a.t.line()
	switch {
	case err != nil:
		return err
	case line.Command == wire.Error && line.Argument == wire.Certificate:
		return errCertRefused
	case line.Command == wire.Move:
		a.sayError(wire.Gone)
		return errNotDTCP
	case line.Command != wire.OK || !a.s.agreed.Verify(a.t.tls.ConnectionState(), line.Argument):
		a.sayError("")
		return ErrProof
	}
	a.s.post(input{event: event{kind: nomination, id: a.id}})
	if err := a.awaitConfirm(); err != nil {
		return err
	}
	return a.reply(wire.OK, "")
}

// awaitConfirm waits for the session's word on a nomination, and for a place
// among the streams that wait for Accept: what is answered ok must be held.
func (a *attempt) awaitConfirm() error {
	if err := a.wait(confirm, attemptTime); err != nil {
		return err
	}
	if a.place = a.s.e.takePlace(); !a.place {
		return a.other(refuse)
	}
	return nil
}

// stockHandshake is that of XEP-0046, with the final say of the requester in
// the place of the nomination.
func (a *attempt) stockHandshake() error {
	if a.dialed {
		return a.stockDialer()
	}
	if a.s.role == requester {
		a.s.post(input{event: event{kind: proven, id: a.id}})
		if err := a.wait(nominate, attemptTime); err != nil {
			return err
		}
		if err := a.reply(wire.OK, a.s.peerKey); err != nil {
			return err
		}
		a.s.post(input{event: event{kind: accepted, id: a.id}})
		return a.wait(deliver, attemptTime)
	}
	if err := a.t.send(wire.OK, a.s.peerKey); err != nil {
		return err
	}
	a.s.post(input{event: event{kind: proven, id: a.id}})
	if err := a.deadline(attemptTime); err != nil {
		return err
	}
	line, err := a.t.line()
	switch {
	case err != nil:
		return err
	case line.Command != wire.OK || line.Argument != "":
		return errNotDTCP
	}
	a.s.post(input{event: event{kind: nomination, id: a.id}})
	return a.awaitConfirm()
}

func (a *attempt) stockDialer() error {
	// Encrypted whenever the other can.
	if err := a.t.send(wire.StartTLS, ""); err != nil {
		return err
	}
	if err := a.outwait(); err != nil {
		return err
	}
	line, err := a.t.line()
	if err != nil {
		return err
	}
	switch line.Command {
	case wire.OK:
		if err := a.t.secure(true, stockTLS(nil)); err != nil {
			return err
		}
	case wire.Error:
	default:
		return errNotDTCP
	}
	if err := a.t.send(wire.Key, a.s.peerKey); err != nil {
		return err
	}
	if err := a.outwait(); err != nil {
		return err
	}
	line, err = a.t.line()
	switch {
	case err != nil:
		return err
	case line.Command == wire.Error:
		return errUnknownKey
	case line.Command != wire.OK:
		return errNotDTCP
	case line.Argument != a.s.key:
		return errWrongKey
	}
	if a.s.role == responder {
		a.s.post(input{event: event{kind: nomination, id: a.id}})
		return a.awaitConfirm()
	}
	a.s.post(input{event: event{kind: proven, id: a.id}})
	if err := a.wait(nominate, attemptTime); err != nil {
		return err
	}
	if err := a.reply(wire.OK, ""); err != nil {
		return err
	}
	a.s.post(input{event: event{kind: accepted, id: a.id}})
	return a.wait(deliver, attemptTime)
}

// kind returns the type of the listener's candidate.
func (a *attempt) kind(local, remote netip.AddrPort) CandidateType {
	switch {
	case a.dialed, a.relayed():
		return a.candidate.Type
	case a.t.port != nil:
		return Reflexive
	}
	return listenerKind(a.s.own.candidates(), local, remote)
}

// path describes the connection.
func (a *attempt) path() Path {
	p := Path{
		Dialed: a.dialed, Encrypted: a.t.tls != nil, Setup: time.Since(a.s.began),
		Local: addrPort(a.t.rec.Conn.LocalAddr()), Remote: addrPort(a.t.rec.Conn.RemoteAddr()),
	}
	if a.s.extended() {
		p.Kind, p.Fingerprint = a.kind(p.Local, p.Remote), a.s.peerSession.fingerprint
	} else {
		p.Kind = Stock
	}
	if a.relayed() {
		p.Relay = a.candidate.address()
	}
	return p
}
