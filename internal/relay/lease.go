package relay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

const (
	leaseLife = time.Hour // of every lease (Section 3 of protocol.md)
	nonceSize = 12        // of AES-GCM, random: good for 2^32 leases under one key (NIST SP 800-38D, 8.3)
	maxNode   = 32        // bytes of the name of a node, so that owners have room
)

// errLongOwner: the id of a lease holds its owner, and a claim must fit in a line.
var errLongOwner = errors.New("the address is too long for a lease")

// lease is what the id of a lease says to who can open it.
type lease struct {
	owner   jid.JID   // bare
	expires time.Time // to the second
	node    string    // where it is good
	quota   Quota     // filled: Streams, Rate and BytesPerDay of the owner; the others are none
}

// seal returns the id of a lease: base64url of the number of the master key, a
// nonce, and the lease sealed by AES-256-GCM; and its secret. The only error is
// [errLongOwner].
func (k *Keyring) seal(l lease, nonce [nonceSize]byte) (id string, secret []byte, err error) {
	m := &k.keys[0]
	b := append([]byte{m.number}, nonce[:]...)
	b = m.lease.Seal(b, nonce[:], l.append(nil), b[:1])
	id = base64.RawURLEncoding.EncodeToString(b)
	if len(id) > wire.MaxLease {
		return "", nil, errLongOwner
	}
	return id, m.secretOf(id), nil
}

// open returns the lease that was sealed in an id, and its secret. Whether it is
// over is not looked at.
func (k *Keyring) open(id string) (l lease, secret []byte, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(id)
	// The decoder passes over line ends, but there must be one way to write an id.
	if err != nil || len(b) < 1+nonceSize || len(id) > wire.MaxLease || strings.ContainsAny(id, "\r\n") {
		return lease{}, nil, false
	}
	m := k.find(b[0])
	if m == nil {
		return lease{}, nil, false
	}
	text, err := m.lease.Open(nil, b[1:1+nonceSize], b[1+nonceSize:], b[:1])
	if err != nil {
		return lease{}, nil, false
	}
	l, ok = parseLease(text)
	return l, m.secretOf(id), ok
}

// secretOf derives the secret of a lease, so that nobody needs to keep it.
func (m *masterKey) secretOf(id string) []byte {
	h := hmac.New(sha256.New, m.secret)
	h.Write([]byte(id))
	return h.Sum(nil)
}

// verify returns the lease to which a claim was made, or why it is refused: a
// reason of package wire.
func (k *Keyring) verify(c wire.Claim, node string, who admission, now time.Time) (l lease, reason string) {
	l, secret, ok := k.open(c.Lease)
	switch {
	case !ok || !c.Verify(secret, now):
		return lease{}, wire.BadLease
	case !now.Before(l.expires):
		reason = wire.Expired
	case l.node != node:
		reason = wire.WrongNode
	case !who.allows(l.owner):
		reason = wire.Denied
	}
	return l, reason
}

// append appends what is sealed: expiry in Unix seconds and the three limits as
// varints, a limit that is none as 0, then the node behind its length, and the
// owner.
func (l lease) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(l.expires.Unix()))
	for _, limit := range l.limits() {
		b = binary.AppendUvarint(b, uint64(limit))
	}
	b = append(binary.AppendUvarint(b, uint64(len(l.node))), l.node...)
	return append(b, l.owner.String()...)
}

// limits returns what the quota of the lease has, 0 for a limit that is none:
// streams at once, bytes a second, bytes a day.
func (l lease) limits() [3]int64 {
	limits := [3]int64{int64(l.quota.Streams), l.quota.Rate, l.quota.BytesPerDay}
	for i, none := range [3]int64{noLimitInt, noLimit, noLimit} {
		if limits[i] >= none {
			limits[i] = 0
		}
	}
	return limits
}

// parseLease reads what a relay has sealed: one of another version, at worst.
func parseLease(b []byte) (l lease, ok bool) {
	var numbers [5]uint64
	for i := range numbers {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > noLimit {
			return lease{}, false
		}
		numbers[i], b = v, b[n:]
	}
	if numbers[4] > uint64(len(b)) {
		return lease{}, false
	}
	limit := func(v uint64) int64 {
		if v == 0 {
			return -1
		}
		return int64(v)
	}
	l = lease{
		expires: time.Unix(int64(numbers[0]), 0),
		quota:   Quota{-1, int(limit(numbers[1])), -1, limit(numbers[2]), limit(numbers[3])}.filled(unlimited),
		node:    string(b[:numbers[4]]),
	}
	owner, err := jid.Parse(string(b[numbers[4]:]))
	l.owner = owner
	return l, err == nil && owner.IsBare()
}
