package relay

import (
	"net/netip"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// BenchmarkPair is all that the core does for a stream, from the arrival of the
// two legs to its end, with a real lease.
func BenchmarkPair(b *testing.B) {
	keys := NewKeyring()
	who := Access{Allow: []jid.JID{jid.MustParse("example.org")}}.admission()
	p := newPairing(Limits{PerOwner: Quota{Handshakes: -1}, PerAddress: Quota{Handshakes: -1}}, func(c wire.Claim, now time.Time) (lease, string) {
		return keys.verify(c, "a", who, now)
	})
	id, secret, err := keys.seal(lease{owner: jid.MustParse("alice@example.org"), expires: noon.Add(time.Hour), node: "a", quota: unlimited}, [nonceSize]byte{})
	if err != nil {
		b.Fatal(err)
	}
	serve := []byte(wire.NewClaim(wire.Serve, "k", id, secret, noon).Line().String())
	dial := []byte("key:k")
	out := make([]action, 0, 4)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, byte(i >> 8), byte(i)}), 1)
		var listener, dialer leg
		out = p.arrive(out[:0], &listener, from, noon)
		out = p.line(out[:0], &listener, serve, noon)
		out = p.arrive(out[:0], &dialer, from, noon)
		out = p.line(out[:0], &dialer, dial, noon)
		if len(out) != 1 || out[0].do != join {
			b.Fatalf("told %+v", out)
		}
		out = p.ended(out[:0], out[0].stream, noon)
	}
}
