// Package firstbyte tells apart the protocols that share one port by the first
// byte that the dialer sends (Section 3 of protocol.md). In all of them it is
// the dialer that speaks first. The byte is looked at, never taken: how to do
// so is the business of whoever owns the connection.
package firstbyte

// Protocol is what a dialer speaks.
type Protocol int

const (
	Other  Protocol = iota // nothing that is spoken here: to be closed
	Line                   // a line of printable ASCII (Section 1 of protocol.md)
	TLS                    // a handshake record (RFC 8446, 5.1)
	SOCKS5                 // the greeting of a client (RFC 1928, 3)
)

// Of returns the protocol that begins with b.
func Of(b byte) Protocol {
	switch {
	case b == 0x16:
		return TLS
	case b == 0x05:
		return SOCKS5
	case 0x20 <= b && b <= 0x7e:
		return Line
	}
	return Other
}
