package wire_test

import (
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
)

var (
	claimSecret = []byte("0123456789abcdef0123456789abcdef")
	claimTime   = time.Unix(1795000000, 0)
)

func TestClaimTravels(t *testing.T) {
	for _, made := range []wire.Claim{
		wire.NewClaim(wire.Serve, "vHdVQXgMQtDnIlc4Zg7ZqA", strings.Repeat("L", wire.MaxLease), claimSecret, claimTime),
		wire.NewClaim(wire.Observe, "", "lease", claimSecret, claimTime),
	} {
		b := made.Line().Append(nil)
		if len(b) > wire.MaxLine {
			t.Errorf("%s: %d bytes of a line, want at most %d", made.Command, len(b), wire.MaxLine)
		}
		line, err := wire.Parse(b[:len(b)-1])
		if err != nil {
			t.Fatal(err)
		}
		read, err := wire.ParseClaim(line)
		if err != nil || read != made {
			t.Errorf("%s: read %+v, %v; want %+v", made.Command, read, err, made)
		}
		if !read.Verify(claimSecret, claimTime) {
			t.Errorf("%s: not verified with its own secret", made.Command)
		}
	}
}

// TestClaimVector is for other implementations: the line, byte for byte.
func TestClaimVector(t *testing.T) {
	const want = "serve:key1 lease1 1795000000 NlU4V_b9EJ9ypceEj45r45LB-y04yT7qLsilX8lKOzA"
	if got := wire.NewClaim(wire.Serve, "key1", "lease1", claimSecret, claimTime).Line().String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestClaimIsVerified(t *testing.T) {
	serve := wire.NewClaim(wire.Serve, "key", "lease", claimSecret, claimTime)
	other := serve
	other.Key = "yek"
	observe := serve
	observe.Command = wire.Observe
	for _, c := range []struct {
		why    string
		claim  wire.Claim
		secret []byte
		now    time.Time
		want   bool
	}{
		{"as made", serve, claimSecret, claimTime, true},
		{"clock five minutes ahead", serve, claimSecret, claimTime.Add(wire.ClockSkew), true},
		{"clock five minutes behind", serve, claimSecret, claimTime.Add(-wire.ClockSkew), true},
		{"too old", serve, claimSecret, claimTime.Add(wire.ClockSkew + time.Second), false},
		{"from the future", serve, claimSecret, claimTime.Add(-wire.ClockSkew - time.Second), false},
		{"another secret", serve, []byte("secret"), claimTime, false},
		{"another key", other, claimSecret, claimTime, false},
		{"another command", observe, claimSecret, claimTime, false},
	} {
		if got := c.claim.Verify(c.secret, c.now); got != c.want {
			t.Errorf("%s: verified %v, want %v", c.why, got, c.want)
		}
	}
}

func FuzzParseClaim(f *testing.F) {
	f.Add("serve", "key lease 1795000000 NlU4V_b9EJ9ypceEj45r45LB-y04yT7qLsilX8lKOzA")
	f.Add("observe", "lease 1795000000 NlU4V_b9EJ9ypceEj45r45LB-y04yT7qLsilX8lKOzA")
	f.Add("serve", "key lease 18446744073709551615 x")
	f.Add("serve", "")
	f.Add("observe", "a b c d")
	f.Add("key", "lease 1 NlU4V_b9EJ9ypceEj45r45LB-y04yT7qLsilX8lKOzA")
	f.Fuzz(func(t *testing.T, command, argument string) {
		c, err := wire.ParseClaim(wire.Line{Command: command, Argument: argument})
		if err != nil {
			return
		}
		again, err := wire.ParseClaim(c.Line())
		if err != nil || again != c {
			t.Errorf("%q %q: read as %+v, written and read again %+v, %v", command, argument, c, again, err)
		}
	})
}
