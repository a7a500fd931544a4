package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Commands to a relay (Section 3 of protocol.md). To a relay, too, a dialer
// says key: and no more; what follows is for the other peer.
const (
	Serve   = "serve"   // the owner of a lease: whoever names this key is for me
	Observe = "observe" // what address and port do I come from?
)

// Limits of what is said to a relay.
const (
	MaxLease  = 400             // characters of the id of a lease, so that a serve line fits into MaxLine
	ClockSkew = 5 * time.Minute // between the time in a claim and the relay's clock
)

// Reasons for which a relay refuses a claim: the argument of its error.
const (
	Expired    = "expired"    // the lease is over: fetch another
	BadLease   = "bad-lease"  // not a lease of this relay, or the mac or the time is wrong
	Denied     = "denied"     // the operator's access rules
	Quota      = "quota"      // the owner, or the address, has used up what it may
	Full       = "full"       // the relay has no descriptors to spare
	InUse      = "in-use"     // another owner serves this key
	WrongNode  = "wrong-node" // the lease is of another node of the relay
	Shutdown   = "shutdown"   // the relay is about to stop
	Unserved   = "unserved"   // the relay does not do this
	maxSeconds = 1<<53 - 1    // of a claim: what any language can count
)

// ErrBadClaim says that a claim cannot be read.
var ErrBadClaim = errors.New("not a claim to a lease")

// Claim is what the owner of a lease says to a relay: it serves a key, or wants
// to be observed for longer than a moment. Its mac shows that it knows the
// secret of the lease.
type Claim struct {
	Command string // Serve or Observe
	Key     string // with Serve
	Lease   string // the lease's id, sealed by the relay
	Seconds int64  // when the claim was made, in Unix seconds
	mac     [sha256.Size]byte
}

// NewClaim makes a claim; key is empty for [Observe].
func NewClaim(command, key, lease string, secret []byte, now time.Time) Claim {
	c := Claim{Command: command, Key: key, Lease: lease, Seconds: now.Unix()}
	c.mac = c.sum(secret)
	return c
}

// Line returns the claim as it is sent.
func (c Claim) Line() Line {
	argument := fmt.Sprintf("%s %d %s", c.Lease, c.Seconds, base64.RawURLEncoding.EncodeToString(c.mac[:]))
	if c.Command == Serve {
		argument = c.Key + " " + argument
	}
	return Line{c.Command, argument}
}

// ParseClaim reads a line whose command is [Serve], or [Observe] with an
// argument. Errors are [ErrBadClaim].
func ParseClaim(l Line) (Claim, error) {
	c := Claim{Command: l.Command}
	fields := strings.Split(l.Argument, " ")
	if l.Command == Serve {
		c.Key, fields = fields[0], fields[1:]
		if !ValidKey(c.Key) {
			return Claim{}, ErrBadClaim
		}
	} else if l.Command != Observe {
		return Claim{}, ErrBadClaim
	}
	if len(fields) != 3 || len(fields[0]) > MaxLease || !inAlphabet(fields[0]) {
		return Claim{}, ErrBadClaim
	}
	c.Lease = fields[0]
	seconds, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil || seconds > maxSeconds {
		return Claim{}, ErrBadClaim
	}
	c.Seconds = int64(seconds)
	mac, err := base64.RawURLEncoding.Strict().DecodeString(fields[2])
	if err != nil || len(mac) != len(c.mac) {
		return Claim{}, ErrBadClaim
	}
	copy(c.mac[:], mac)
	return c, nil
}

// Verify reports whether who made the claim knows the secret, and made it
// within [ClockSkew] of now.
func (c Claim) Verify(secret []byte, now time.Time) bool {
	sum := c.sum(secret)
	age := now.Sub(time.Unix(c.Seconds, 0))
	return hmac.Equal(sum[:], c.mac[:]) && age.Abs() <= ClockSkew
}

// sum is the mac: HMAC-SHA-256 over command, key and seconds, separated by NUL,
// so that a claim of one kind is none of another.
func (c Claim) sum(secret []byte) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, secret)
	fmt.Fprintf(h, "%s\x00%s\x00%d", c.Command, c.Key, c.Seconds)
	h.Sum(sum[:0])
	return sum
}
