package relay

import "github.com/dtcp-relay/dtcp/internal/wire"

// Reasons for which something is refused, in [Stats] and for [Config].Refused.
// The peer is told a word of the protocol, which can say less.
const (
	RefusedAddressHalfOpen   = "address-half-open"  // Quota.HalfOpen of the address
	RefusedAddressHandshakes = "address-handshakes" // Quota.Handshakes of the address
	RefusedAddressStreams    = "address-streams"    // Quota.Streams of the address
	RefusedAddressBytes      = "address-bytes"      // Quota.BytesPerDay of the address
	RefusedOwnerHalfOpen     = "owner-half-open"    // and of the owner
	RefusedOwnerHandshakes   = "owner-handshakes"
	RefusedOwnerStreams      = "owner-streams"
	RefusedOwnerBytes        = "owner-bytes"
	RefusedWaiting           = "waiting"      // more legs wait for the key than are ever needed
	RefusedObserved          = "observed"     // more than 4 observed connections of a lease
	RefusedHeld              = "held"         // who made room for another: too many dialers are held, wait for the proxy, or are in a handshake
	RefusedFull              = wire.Full      // Limits.Connections
	RefusedExpired           = wire.Expired   // the lease is over
	RefusedBadLease          = wire.BadLease  // the claim is not what the owner of a lease says
	RefusedDenied            = wire.Denied    // Access
	RefusedInUse             = wire.InUse     // another owner serves the key
	RefusedWrongNode         = wire.WrongNode // the lease is of another node
	RefusedShutdown          = wire.Shutdown  // Drain or Close
	RefusedUnserved          = wire.Unserved  // nobody came to serve the key, or to activate the proxy's stream
	RefusedSilent            = "silent"       // nothing was said in time
	RefusedUnknown           = "unknown"      // not a line of the protocol; or TLS or SOCKS5 that failed, or is not spoken here
)

// Reasons returns all reasons for which something is refused.
func Reasons() []string {
	return []string{
		RefusedAddressHalfOpen, RefusedAddressHandshakes, RefusedAddressStreams, RefusedAddressBytes,
		RefusedOwnerHalfOpen, RefusedOwnerHandshakes, RefusedOwnerStreams, RefusedOwnerBytes,
		RefusedWaiting, RefusedObserved, RefusedHeld, RefusedFull, RefusedExpired, RefusedBadLease, RefusedDenied,
		RefusedInUse, RefusedWrongNode, RefusedShutdown, RefusedUnserved, RefusedSilent, RefusedUnknown,
	}
}

// plain is how a dialer is refused, and whoever says nothing that is known.
const plain = wire.Error + "\n"

// refusal returns the line by which who makes a claim is refused.
func refusal(reason string) string {
	switch reason {
	case RefusedFull, RefusedExpired, RefusedBadLease, RefusedDenied, RefusedInUse, RefusedWrongNode, RefusedShutdown, RefusedUnserved:
		return wire.Error + ":" + reason + "\n"
	}
	return wire.Error + ":" + wire.Quota + "\n"
}
