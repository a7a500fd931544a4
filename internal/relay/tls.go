package relay

import (
	"crypto/tls"
	"errors"
	"net"
)

// alpn is what is spoken inside the TLS of a relay (Section 3 of protocol.md).
const alpn = "dtcp-relay"

var errNoALPN = errors.New("the client did not ask for " + alpn)

// serverTLS returns how TLS is spoken on hosts that are leased so, or nil. The
// client pins the certificate that its lease names; with several, the name that
// it asks for chooses. That TLS is there to pass networks that let nothing else
// pass, and protects nothing from end to end.
func serverTLS(hosts []Host) *tls.Config {
	c := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpn},
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if s.NegotiatedProtocol != alpn {
				return errNoALPN
			}
			return nil
		},
	}
	for _, h := range hosts {
		if h.TLS != nil {
			c.Certificates = append(c.Certificates, *h.TLS)
		}
	}
	if len(c.Certificates) == 0 {
		return nil
	}
	return c
}

// headed is a connection of which something has been read already.
type headed struct {
	net.Conn
	head []byte
	raw  net.Conn // the socket below Conn
}

// Read reads what was read, then on.
func (c *headed) Read(b []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.head)
	c.head = c.head[n:]
	return n, nil
}

// CloseWrite ends this direction.
func (c *headed) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// NetConn returns the socket, as [tls.Conn.NetConn] does.
func (c *headed) NetConn() net.Conn { return c.raw }
