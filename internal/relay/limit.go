package relay

// Limits bound what the relay takes upon itself. In every field: if zero, the
// default; if negative, there is no limit.
type Limits struct {
	PerAddress Quota // for each IPv4 address or IPv6 /64
	PerOwner   Quota // for each bare JID; a lease carries those of the day it was made, and the lower ones hold

	// Connections is how many connections the relay holds at once before it is
	// full: then none that would have to wait is taken, but those that complete a
	// pair are. A sixteenth more, and a connection that has not said anything is
	// closed for each that arrives. Each takes a descriptor; pairs that are busy
	// take a few more. The default is 16,384.
	Connections int
}

// Quota is what one address or one owner may have. In every field: if zero, the
// default; if negative, there is no limit.
type Quota struct {
	HalfOpen    int   // connections that are not joined, at once; default 256 for an address, 128 for an owner
	Streams     int   // legs that are joined, wait, or are held, at once; default 512 for an address, 128 for an owner
	Handshakes  int   // connections and further lines, a second, and ten times that in a burst; default 50
	Rate        int64 // bytes a second, both directions together; by default there is no limit
	BytesPerDay int64 // both directions together, from midnight to midnight UTC; by default there is no limit
}
