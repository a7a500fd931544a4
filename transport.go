package dtcp

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
)

// handshakeTime bounds each connection from the moment it is established until
// the other end has proven itself, so that a peer that accepts and then says
// nothing blocks nothing; and the arrival of the first line on an accepted
// connection (Section 1 of protocol.md).
const handshakeTime = 10 * time.Second

// alpn is what both ends of an extended path must agree on.
const alpn = "dtcp"

// Errors of a handshake, as they appear in [NoPathError].
var (
	errUnknownKey   = errors.New("the other end does not know this session")
	errNotDTCP      = errors.New("something other than DTCP answers there")
	errWrongKey     = errors.New("the other end named a wrong key")
	errNoALPN       = errors.New("the other end did not agree to speak DTCP inside TLS")
	errCertRefused  = errors.New("the other end refused this end's certificate")
	errDeclined     = errors.New("the other end declined: it has settled on another connection, or does not recognise this session")
	errLetGo        = errors.New("let go")
	errSilent       = fmt.Errorf("connected, and then nothing came for %v", handshakeTime)
	errNoReply      = fmt.Errorf("proven, and then no answer for %v", answerTime)
	errNoConnection = errors.New("nothing arrived")
)

// transport is a TCP connection on its way to a stream: lines, then TLS, then
// lines inside it. It is owned by one goroutine.
type transport struct {
	rec  *record
	port *punchPort    // at which it was accepted, if any
	tls  *tls.Conn     // nil until secured
	in   *bufio.Reader // of the layer in use: data may follow a line in the same record
	out  []byte        // scratch
}

func newTransport(c net.Conn) *transport {
	rec := newRecord(c)
	return &transport{rec: rec, in: rec.r}
}

// send writes one line.
func (t *transport) send(command, argument string) error {
	t.out = wire.Line{Command: command, Argument: argument}.Append(t.out[:0])
	if t.tls != nil {
		_, err := t.tls.Write(t.out)
		return err
	}
	_, err := t.rec.Write(t.out)
	return err
}

// line reads one line of the layer in use.
func (t *transport) line() (wire.Line, error) { return wire.NewReader(t.in).Line() }

// secure does a TLS handshake as client or as server.
func (t *transport) secure(client bool, config *tls.Config) error {
	if client {
		t.tls = tls.Client(t.rec, config)
	} else {
		t.tls = tls.Server(t.rec, config)
	}
	if err := t.tls.Handshake(); err != nil {
		return err
	}
	t.in = bufio.NewReaderSize(t.tls, wire.MaxLine)
	return nil
}

// interrupt makes whatever the owner waits for at the socket fail when ctx
// ends. stop reports whether that did not happen.
func (t *transport) interrupt(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = t.rec.Conn.SetDeadline(time.Unix(1, 0)) })
}

// firstByte returns the check of what the other end sends first, or behind its
// key line if it dialed (Section 2 of protocol.md, 2): TLS, or a refusal. On a
// connection that was dialed from here, for which ownKey is given, it may also
// be a crossing connection's key line, which must name that key and is skipped.
func firstByte(ownKey string) func(*bufio.Reader) error {
	return func(r *bufio.Reader) error {
		b, err := r.Peek(1)
		if err != nil {
			return err
		}
		switch {
		case b[0] == 0x15, b[0] == 0x16: // an alert, a handshake (RFC 8446, 5.1)
			return nil
		case b[0] == 'k' && ownKey != "":
			line, err := wire.NewReader(r).Line()
			if err != nil {
				return err
			}
			if line.Command != wire.Key || line.Argument != ownKey {
				return errWrongKey
			}
			return nil
		case b[0] == 'e':
			return errUnknownKey
		}
		return errNotDTCP
	}
}

// sessionTLS returns the configuration of the TLS of extended paths (Section 2
// of protocol.md, 3). check is asked about the peer's certificate.
func sessionTLS(own *tls.Certificate, check func(*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		Certificates:           []tls.Certificate{*own},
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpn},
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		// Records of full size from the start: the first bytes of a stream are no
		// more urgent than the others.
		DynamicRecordSizingDisabled: true,
		// The hash announced over XMPP is all that counts, and VerifyConnection
		// compares it.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if state.NegotiatedProtocol != alpn {
				return errNoALPN
			}
			if len(state.PeerCertificates) == 0 {
				return ErrFingerprint
			}
			return check(state.PeerCertificates[0])
		},
	}
}

// stockTLS returns the configuration of the TLS of stock paths, which
// authenticates nobody (Section 1 of protocol.md).
func stockTLS(own *tls.Certificate) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true}
	if own != nil {
		c.Certificates = []tls.Certificate{*own}
	}
	return c
}

// pinned compares a certificate to the fingerprint announced.
func pinned(c *x509.Certificate, announced Fingerprint) error {
	if got := FingerprintOf(c.Raw); got != announced {
		return fmt.Errorf("%w: %v was announced, %v is there", ErrFingerprint, announced, got)
	}
	return nil
}
