package pump

import (
	"time"

	"golang.org/x/sys/unix"
)

// Small is how much of a read may be left over at most where nobody asked for
// the receiver's room.
const Small = small

// RefusePipes has p do without, as if the system refused them.
func RefusePipes(p *Pump) {
	p.kernel.openPipe = func() (pipe, error) { return pipe{}, unix.EPERM }
}

// SetTail has p deliver for less long after a failure.
func SetTail(p *Pump, d time.Duration) { p.tail = d }
