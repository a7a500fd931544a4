package xmpp

import "time"

// backoff returns how long to wait before attempt n, counted from 0, to log in
// again. The delay doubles from backoffMin; jitter, from 0 to 1, adds up to half
// of it, so that the clients of a restarted server do not come back all at once.
func backoff(n int, jitter float64) time.Duration {
	const most = backoffMax * 2 / 3
	d := most
	if n < 16 {
		d = min(backoffMin<<n, most)
	}
	return d + time.Duration(jitter*float64(d)/2)
}
