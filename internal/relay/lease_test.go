package relay

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

var leaseTime = time.Unix(1795000000, 0)

// testKeys returns a keyring with one key, made of its number.
func testKeys(numbers ...byte) *Keyring {
	k := &Keyring{}
	for _, n := range numbers {
		k.keys = append(k.keys, newMasterKey(n, sha256.Sum256([]byte{n})))
	}
	return k
}

func testLease(owner string) lease {
	return lease{
		owner:   jid.MustParse(owner),
		expires: leaseTime.Add(leaseLife),
		node:    "a",
		quota:   Quota{-1, 128, -1, 1 << 20, 10 << 30}.filled(unlimited),
	}
}

var testNonce = [nonceSize]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}

// TestLeaseVectors: leases outlive the relay that made them, so what one version
// has sealed the next must open. The master key of number n is SHA-256(n).
func TestLeaseVectors(t *testing.T) {
	for _, c := range []struct {
		lease      lease
		number     byte
		id, secret string
	}{
		{
			testLease("juliet@example.org"), 1,
			"AQECAwQFBgcICQoLDD_xh7qp2v4kt0Gu_ztYkwpC0E3HNELiFaKBe0LU6cxcR8hyDUOT5hFzGxtO-dXh73lTtA",
			"8246454cf12fa8946f41462f64e6bda95fb16b55ae63969a941388b5f59ced23",
		},
		{
			lease{owner: jid.MustParse("juliet@example.org"), expires: time.Unix(0, 0), quota: Quota{}.filled(unlimited)}, 255,
			"_wECAwQFBgcICQoLDLdds3t_CyEzz0d-PpS0kVcJ2eZ0m5t6iYOm7wkTXLkWuS9gbEegaw",
			"3d84bcc1ad146dfa7c497374cd2eccf0b437b3c13e338bccd44e0da14debf35b",
		},
	} {
		k := testKeys(c.number)
		id, secret, err := k.seal(c.lease, testNonce)
		if err != nil || id != c.id || hex.EncodeToString(secret) != c.secret {
			t.Errorf("key %d: sealed, %v\ngot  %s\n     %x\nwant %s\n     %s", c.number, err, id, secret, c.id, c.secret)
		}
		got, secret, ok := k.open(c.id)
		if !ok || got != c.lease || hex.EncodeToString(secret) != c.secret {
			t.Errorf("key %d: opened\ngot  %+v, %x, %v\nwant %+v, %s", c.number, got, secret, ok, c.lease, c.secret)
		}
	}
}

// TestLeaseTravels: what is sealed is what is opened, for all that may be in it,
// and the claim that names it fits in a line.
func TestLeaseTravels(t *testing.T) {
	k := testKeys(1)
	quotas := []Quota{
		{-1, -1, -1, -1, -1},
		{-1, 1, -1, 1, 1},
		{-1, math.MaxInt32, -1, noLimit - 1, noLimit - 1},
	}
	checked := 0
	for _, owner := range []string{"a@b", "example.org", "juliet@example.org", strings.Repeat("ü", 50) + "@example.org"} {
		for _, node := range []string{"", "a", strings.Repeat("n", maxNode)} {
			for _, q := range quotas {
				want := lease{jid.MustParse(owner), leaseTime, node, q.filled(unlimited)}
				id, secret, err := k.seal(want, testNonce)
				if err != nil {
					t.Errorf("%+v: %v", want, err)
					continue
				}
				got, again, ok := k.open(id)
				if !ok || got != want || string(again) != string(secret) {
					t.Errorf("got %+v, %v, want %+v; secrets %x and %x", got, ok, want, again, secret)
				}
				c := wire.NewClaim(wire.Serve, strings.Repeat("k", 22), id, secret, leaseTime)
				if n := len(c.Line().Append(nil)); n > wire.MaxLine {
					t.Errorf("%s: a claim of %d bytes", owner, n)
				}
				checked++
			}
		}
	}
	if checked != 36 {
		t.Errorf("checked %d leases, want 36", checked)
	}
}

// TestLeaseOfLongOwner finds the longest owner that has room in a claim.
func TestLeaseOfLongOwner(t *testing.T) {
	k := testKeys(1)
	longest := 0
	for n := 1; n < 400; n++ {
		l := testLease(strings.Repeat("j", n) + "@b")
		l.node = strings.Repeat("n", maxNode)
		switch id, _, err := k.seal(l, testNonce); {
		case err == nil && len(id) <= wire.MaxLease:
			longest = len(l.owner.String())
		case err == nil:
			t.Fatalf("an id of %d characters", len(id))
		case err != errLongOwner:
			t.Fatal(err)
		}
	}
	if longest < 200 || longest > 300 {
		t.Errorf("the longest owner has %d bytes, want 200 or more", longest)
	}
}

func TestLeaseForged(t *testing.T) {
	k := testKeys(1, 2)
	id, secret, err := k.seal(testLease("juliet@example.org"), testNonce)
	if err != nil {
		t.Fatal(err)
	}
	b, err := base64.RawURLEncoding.DecodeString(id)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	for i := range b {
		for bit := range 8 {
			b[i] ^= 1 << bit
			if l, _, ok := k.open(encode(b)); ok {
				t.Errorf("bit %d of byte %d turned: opened as %+v", bit, i, l)
			}
			b[i] ^= 1 << bit
		}
	}
	for n := range b {
		if l, _, ok := k.open(encode(b[:n])); ok {
			t.Errorf("cut to %d bytes: opened as %+v", n, l)
		}
	}
	foreign, _, err := (&Keyring{[]masterKey{newMasterKey(1, [masterSize]byte{})}}).seal(testLease("juliet@example.org"), testNonce)
	if err != nil {
		t.Fatal(err)
	}
	for what, id := range map[string]string{
		"of another relay":             foreign,
		"longer":                       encode(append(b[:len(b):len(b)], 0)),
		"with padding":                 id + "=",
		"with a line end":              id + "\n",
		"with spare bits":              id[:len(id)-1] + "_",
		"too long":                     strings.Repeat("A", wire.MaxLease+1),
		"not base64url":                "é",
		"sealed, but not a lease":      sealed(k, []byte("hello")),
		"sealed, with no owner":        sealed(k, lease{expires: leaseTime}.append(nil)),
		"sealed, with a full JID":      sealed(k, testLease("juliet@example.org/balcony").append(nil)),
		"sealed, with a node too long": sealed(k, []byte{1, 1, 1, 1, 9, 'a'}),
		"sealed, with a number too great": sealed(k, append([]byte{1, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 1, 1, 0},
			"juliet@example.org"...)),
	} {
		if l, _, ok := k.open(id); ok {
			t.Errorf("%s: opened as %+v", what, l)
		}
	}
	// The same lease sealed once more has another secret.
	_, other, err := k.seal(testLease("juliet@example.org"), [nonceSize]byte{})
	if err != nil || string(other) == string(secret) {
		t.Errorf("two leases with one secret, %v", err)
	}
}

// sealed returns the id that holds text.
func sealed(k *Keyring, text []byte) string {
	b := append([]byte{k.keys[0].number}, testNonce[:]...)
	return base64.RawURLEncoding.EncodeToString(k.keys[0].lease.Seal(b, testNonce[:], text, b[:1]))
}

func TestVerify(t *testing.T) {
	k := testKeys(1)
	id, secret, err := k.seal(testLease("juliet@example.org"), testNonce)
	if err != nil {
		t.Fatal(err)
	}
	access := Access{Allow: []jid.JID{jid.MustParse("example.org")}}
	serve := func(secret []byte, now time.Time) wire.Claim {
		return wire.NewClaim(wire.Serve, "key", id, secret, now)
	}
	over := leaseTime.Add(leaseLife)
	for _, c := range []struct {
		what   string
		claim  wire.Claim
		node   string
		access Access
		now    time.Time
		want   string
	}{
		{"as it should be", serve(secret, leaseTime), "a", access, leaseTime, ""},
		{"observe", wire.NewClaim(wire.Observe, "", id, secret, leaseTime), "a", access, leaseTime, ""},
		{"a second before its end", serve(secret, over), "a", access, over.Add(-time.Second), ""},
		{"at its end", serve(secret, over), "a", access, over, wire.Expired},
		{"another secret", serve([]byte("secret"), leaseTime), "a", access, leaseTime, wire.BadLease},
		{"another secret, and over", serve([]byte("secret"), over), "a", access, over, wire.BadLease},
		{"an old claim", serve(secret, leaseTime), "a", access, leaseTime.Add(301 * time.Second), wire.BadLease},
		{"another node", serve(secret, leaseTime), "b", access, leaseTime, wire.WrongNode},
		{"nobody is allowed any more", serve(secret, leaseTime), "a", Access{}, leaseTime, wire.Denied},
		{"another lease", wire.NewClaim(wire.Serve, "key", "lease", secret, leaseTime), "a", access, leaseTime, wire.BadLease},
	} {
		l, got := k.verify(c.claim, c.node, c.access.admission(), c.now)
		if got != c.want {
			t.Errorf("%s: refused as %q, want %q", c.what, got, c.want)
		}
		if known := c.want != wire.BadLease; known != (l.owner == jid.MustParse("juliet@example.org")) {
			t.Errorf("%s: owner %v", c.what, l.owner)
		}
	}
}

// FuzzOpen: no text is a lease but one that was sealed.
func FuzzOpen(f *testing.F) {
	k := testKeys(1)
	id, _, err := k.seal(testLease("juliet@example.org"), testNonce)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(id)
	f.Add(id[1:])
	f.Add("")
	f.Add("AQ")
	f.Fuzz(func(t *testing.T, text string) {
		if l, _, ok := k.open(text); ok && text != id {
			t.Errorf("%q opened as %+v", text, l)
		}
	})
}

// FuzzParseLease reads what an older or newer relay may have sealed.
func FuzzParseLease(f *testing.F) {
	f.Add(testLease("juliet@example.org").append(nil))
	f.Add(lease{owner: jid.MustParse("a@b"), expires: time.Unix(0, 0)}.append(nil))
	f.Add([]byte{1, 1, 1, 1, 9, 'a'})
	f.Fuzz(func(t *testing.T, text []byte) {
		l, ok := parseLease(text)
		if !ok {
			return
		}
		if again, ok := parseLease(l.append(nil)); !ok || again != l {
			t.Errorf("%q: read as %+v, written and read again %+v, %v", text, l, again, ok)
		}
	})
}
