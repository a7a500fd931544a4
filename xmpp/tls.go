package xmpp

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"

	"github.com/xdg-go/scram"
)

// tlsConfig makes the configuration for the account's domain, whatever host is
// dialed: RFC 6120, 13.7.2 and RFC 6125; RFC 7590 for the version.
func (s *Session) tlsConfig(direct bool) (*tls.Config, error) {
	name, _, err := hostname(s.account.Domain())
	if err != nil {
		return nil, err
	}
	c := &tls.Config{
		ServerName: name,
		RootCAs:    s.config.RootCAs,
		MinVersion: tls.VersionTLS12,
		// A stanza is one record and one write(2), not a dozen small ones.
		DynamicRecordSizingDisabled: true,
	}
	if direct {
		c.NextProtos = []string{"xmpp-client"} // XEP-0368, 3
	}
	if s.pin != nil {
		// The pin takes the place of the check that is skipped here.
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(cs tls.ConnectionState) error { return checkPin(cs.PeerCertificates, s.pin, s.account.Domain()) }
	}
	return c, nil
}

func checkPin(chain []*x509.Certificate, pin []byte, domain string) error {
	if len(chain) == 0 {
		return &TLSError{Domain: domain, Err: errors.New("no certificate")}
	}
	sum := sha256.Sum256(chain[0].Raw)
	if subtle.ConstantTimeCompare(sum[:], pin) == 1 {
		return nil
	}
	err := fmt.Errorf("it is not the pinned certificate sha256:%s", hex.EncodeToString(pin))
	return &TLSError{Domain: domain, Certificate: chain[0], Err: err}
}

// errNotTLS says that a port talks something else where TLS was tried.
var errNotTLS = errors.New("the port does not speak TLS")

// handshake does the TLS handshake as a client. ctx ends it.
func (s *Session) handshake(ctx context.Context, conn net.Conn, direct bool) (*tls.Conn, error) {
	config, err := s.tlsConfig(direct)
	if err != nil {
		return nil, err
	}
	seen := &firstRead{Conn: conn}
	c := tls.Client(seen, config)
	err = c.HandshakeContext(ctx)
	if err == nil {
		return c, nil
	}
	var header tls.RecordHeaderError
	var verification *tls.CertificateVerificationError
	var pinned *TLSError
	switch {
	case errors.As(err, &pinned):
		return nil, pinned
	case errors.As(err, &verification):
		e := &TLSError{Domain: s.account.Domain(), Err: verification.Err}
		if len(verification.UnverifiedCertificates) > 0 {
			e.Certificate = verification.UnverifiedCertificates[0]
		}
		return nil, e
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case direct && (errors.As(err, &header) || (!seen.any && !timedOut(err))):
		return nil, fmt.Errorf("%w: %w", errNotTLS, err)
	}
	return nil, fmt.Errorf("TLS handshake: %w", err)
}

// firstRead notes whether anything was read at all.
type firstRead struct {
	net.Conn
	any bool
}

func (c *firstRead) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.any = c.any || n > 0
	return n, err
}

func timedOut(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// bindings returns the kinds of channel binding that a connection has, best
// first: tls-exporter (RFC 9266) needs TLS 1.3; tls-server-end-point (RFC 5929,
// 4) a certificate whose signature names a hash.
func bindings(cs *tls.ConnectionState) []scram.ChannelBindingType {
	var kinds []scram.ChannelBindingType
	if cs.Version >= tls.VersionTLS13 {
		kinds = append(kinds, scram.ChannelBindingTLSExporter)
	}
	if _, err := scram.NewTLSServerEndpointBinding(cs); err == nil {
		kinds = append(kinds, scram.ChannelBindingTLSServerEndpoint)
	}
	return kinds
}

func binding(cs *tls.ConnectionState, kind scram.ChannelBindingType) (scram.ChannelBinding, error) {
	if kind == scram.ChannelBindingTLSExporter {
		return scram.NewTLSExporterBinding(cs)
	}
	return scram.NewTLSServerEndpointBinding(cs)
}
