//go:build linux

package lab_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// streamLimit bounds one stream of a cell, from asking to the end of its bytes.
const streamLimit = 45 * time.Second

var loopbackIP = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// A path is what one stream went over, as both ends said it.
type path struct {
	kind      string
	requester time.Duration // from asking until the requester had its stream
	responder time.Duration // until the responder had
}

// An outcome is what became of a cell.
type outcome struct {
	paths []path // of the streams that were formed
	iqs   int    // requests and results between the two
}

// route is direct or relay; both, if streams took different ones.
func (o outcome) route() string {
	var routes []string
	for _, p := range o.paths {
		if p.direct() {
			routes = append(routes, direct)
		} else {
			routes = append(routes, relayed)
		}
	}
	slices.Sort(routes)
	return fmt.Sprint(slices.Compact(routes))
}

// String lists the streams: the path of each, and the milliseconds until the
// responder and the requester had it.
func (o outcome) String() string {
	var b strings.Builder
	for _, p := range o.paths {
		fmt.Fprintf(&b, "%s %d %d, ", p.kind, p.responder.Milliseconds(), p.requester.Milliseconds())
	}
	return b.String() + fmt.Sprintf("%d iqs", o.iqs)
}

// direct is how many streams end at the peer.
func (o outcome) direct() (n int) {
	for _, p := range o.paths {
		if p.direct() {
			n++
		}
	}
	return n
}

func (p path) direct() bool { return p.kind != relayed && p.kind != "proxy" }

// median is that of what f says of the streams but the first, which waits until
// its program has looked around; of the first if it is the only one.
func (o outcome) median(f func(path) time.Duration) time.Duration {
	var took []time.Duration
	for _, p := range o.paths[min(1, len(o.paths)-1):] {
		took = append(took, f(p))
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// ask has one station ask the other for so many streams, one after the other,
// from one program, and sends something through each and back. What fails is an
// error of the test and ends the cell.
func (g *grid) ask(t *testing.T, a, b *station, streams int) (o outcome) {
	t.Helper()
	forward := g.forward(t, a, b)
	defer forward.run.Stop()
	for n := range streams {
		began := time.Now()
		if err := exchange(forward.from, forward.at, fmt.Appendf(nil, "stream %d of %s\n", n, forward.address)); err != nil {
			t.Errorf("stream %d: %v: %s", n, err, forward.run.Await(t, "error", "path").Message)
			break
		}
		near := forward.run.Await(t, "path")
		far := b.listener.Await(t, "path")
		for far.Peer != forward.address { // of an earlier cell that failed
			far = b.listener.Await(t, "path")
		}
		if near.Kind != far.Kind {
			t.Errorf("stream %d: the requester calls it %s, the responder %s", n, near.Kind, far.Kind)
		}
		o.paths = append(o.paths, path{near.Kind, near.At.Sub(began), far.At.Sub(began)})
		forward.run.Await(t, "done")
	}
	for _, iq := range lab.Between(g.server.IQs(t), forward.address, b.address) {
		if iq.Type != "error" { // an error is the word that a side gives up, and asks for no answer
			o.iqs++
		}
	}
	return o
}

// exchange sends data to a port on the host's loopback and wants it back.
func exchange(h *lab.Host, to netip.AddrPort, data []byte) error {
	c, err := h.Dial(netip.AddrPort{}, to, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(streamLimit)); err != nil {
		return err
	}
	if _, err := c.Write(data); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(io.LimitReader(c, int64(len(data))+1))
	if err == nil && !bytes.Equal(got, data) {
		err = fmt.Errorf("sent %q, got back %q", data, got)
	}
	return err
}

// copyBack answers with what comes, and ends when that does.
func copyBack(c net.Conn) {
	// Owned by the connection: ends with it, which the test's end closes; nobody
	// waits, it touches nothing else.
	go func() {
		_, _ = io.Copy(c, c)
		c.Close()
	}()
}
