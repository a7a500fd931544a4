package dtcp

import "time"

// SetGap has an Endpoint draw the times between the dials of a punch from f.
func SetGap(e *Endpoint, f func(least, most time.Duration) time.Duration) { e.gap = f }
