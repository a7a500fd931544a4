package gather

// A NAT that gives each peer another port often takes the next one that is free.
// Then the last ports observed tell the next, for a peer to aim at.

// maxStep is the greatest distance that counts as an order. Of two ports at
// random one pair in two thousand is that near.
const maxStep = 16

// firstPort is where a NAT goes on after the last port: those below are not
// assigned (RFC 4787, 4.2.2).
const firstPort = 1024

// Predict returns at most n ports that a NAT will assign next, the likeliest
// first, given those that it assigned last, in order. It returns none when
// they have no order. Other hosts behind the NAT take ports, too: the longer
// ago the last one was observed, the more candidates it takes.
func Predict(ports []uint16, n int) []uint16 {
	d := step(ports)
	if d == 0 {
		return nil
	}
	next := make([]uint16, 0, max(n, 0))
	port := int(ports[len(ports)-1])
	for range n {
		port += d
		switch {
		case port > 1<<16-1:
			port = firstPort
		case port < firstPort:
			port = 1<<16 - 1
		}
		next = append(next, uint16(port))
	}
	return next
}

// step returns the distance of ports that are assigned one after the other:
// what divides all the distances seen, for others take ports between ours. It
// is zero if they are too few, too far apart, or in no order.
func step(ports []uint16) int {
	d := 0
	for i := 1; i < len(ports); i++ {
		distance := int(ports[i]) - int(ports[i-1])
		if distance == 0 || distance > maxStep || distance < -maxStep || d*distance < 0 {
			return 0
		}
		d = divisor(d, distance)
	}
	return d
}

// divisor returns the greatest common divisor, with the sign of b.
func divisor(a, b int) int {
	for a != 0 {
		a, b = b%a, a
	}
	return b
}
