package portmap

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/huin/goupnp"
)

// What the tests look into, or put their own in place of.

// SetDial replaces the sockets by which gateways are asked.
func (c *Config) SetDial(f func(ctx context.Context, network string, local netip.Addr, remote netip.AddrPort) (net.Conn, error)) {
	c.dial = f
}

// SetListen replaces the socket at which announcements arrive, and makes the
// wait after one exact.
func (c *Config) SetListen(f func(Gateway) (net.PacketConn, error), wait time.Duration) {
	c.listen = f
	c.jitter = func(time.Duration) time.Duration { return wait }
}

var (
	ParseSearchReply = parseSearchReply
	ParseDescription = parseDescription
	ParseNATPMP      = parseNATPMP
	ParsePCP         = parsePCP
	MapNATPMP        = natpmpRequestMap
	NewGateway       = newGateway
)

// Services is how many services that map ports there are.
func Services(root *goupnp.RootDevice) int {
	return len(services([]*goupnp.RootDevice{root}, http.DefaultClient))
}

// EpochOf and ExternalOf read an answer.
func EpochOf(a pcpAnswer) uint32            { return a.epoch }
func ExternalOf(a pcpAnswer) netip.AddrPort { return a.external }

// MapPCP is a MAP request.
func MapPCP(seconds uint32, client netip.Addr, nonce [12]byte, internal uint16, external netip.AddrPort) []byte {
	return mapping{lifetime: seconds, client: client, nonce: nonce, internal: internal, external: external}.append(nil)
}

// Continues is whether a clock that showed before can show after once the time
// between has passed.
func Continues(before, after uint32, between time.Duration) bool {
	at := time.Unix(1000, 0)
	return epoch{before, at}.continues(after, at.Add(between))
}

const (
	Lifetime   = lifetime
	MaxRetry   = maxRetry
	MinRetry   = minRetry
	MinRenewal = minRenewal
)
