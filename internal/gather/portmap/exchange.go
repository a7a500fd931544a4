package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// PCP and NAT-PMP as packets: a question, repeated until there is an answer.

// errSilent says that no answer came; errUnusable, that none of those that came
// was one to our question.
var (
	errSilent   = errors.New("the gateway does not answer")
	errClosed   = errors.New("nobody at the gateway listens")
	errUnusable = errors.New("the gateway's answer makes no sense")
)

// attempts are the waits after each sending of a question. RFC 6886, 3.1, begins
// with these, and goes on for a minute; RFC 6887, 8.1.1, begins with 3 s. But a
// gateway is one hop away, and an offer waits for it for 1 s at most.
var attempts = [...]time.Duration{250 * time.Millisecond, 500 * time.Millisecond, 250 * time.Millisecond}

// dialFunc opens a connection. The local port is chosen by the system.
type dialFunc func(ctx context.Context, network string, local netip.Addr, remote netip.AddrPort) (net.Conn, error)

func dialSystem(ctx context.Context, network string, local netip.Addr, remote netip.AddrPort) (net.Conn, error) {
	from := netip.AddrPortFrom(local, 0)
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(from)}
	if network == "tcp" {
		d.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	return d.DialContext(ctx, network, remote.String())
}

// An asker is what asks one gateway by one method.
type asker struct {
	gateway Gateway
	dial    dialFunc
	heard   func(epoch uint32) // told of each answer
}

// exchange sends the requests and gives each packet that comes back to accept,
// until that is done. An error without done is that of a packet which is not
// ours: it is returned if no better one comes. A connected socket takes packets
// from nobody but the gateway.
func (a *asker) exchange(ctx context.Context, requests [][]byte, accept func([]byte) (done bool, err error)) error {
	conn, err := a.dial(ctx, "udp", a.gateway.Source, a.gateway.PCP)
	if err != nil {
		return fmt.Errorf("asking the gateway: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	last := errSilent
	packet := make([]byte, pcpMaxSize+1) // one more shows what is too long
	for _, wait := range attempts {
		deadline := time.Now().Add(wait)
		if err := conn.SetDeadline(deadline); err != nil {
			return failure(ctx, err)
		}
		for _, r := range requests {
			if _, err := conn.Write(r); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return failure(ctx, err)
			}
		}
		for {
			n, err := conn.Read(packet)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return failure(ctx, err)
			}
			done, err := accept(packet[:n])
			if done {
				return err
			}
			if err != nil {
				last = err
			}
		}
	}
	return last
}

// failure explains the error of a socket.
func failure(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, syscall.ECONNREFUSED):
		return errClosed
	}
	return fmt.Errorf("asking the gateway: %w", err)
}

// An epoch is what a gateway last said of the time since it began to remember
// mappings (RFC 6887, 8.5; RFC 6886, 3.6).
type epoch struct {
	seconds uint32
	at      time.Time // by our clock
}

// continues reports whether the gateway can have said so now without having
// forgotten its mappings in between: its clock may differ from ours by two
// seconds and a sixteenth.
func (e epoch) continues(seconds uint32, now time.Time) bool {
	if int64(seconds) < int64(e.seconds)-1 {
		return false
	}
	ours, theirs := int64(now.Sub(e.at)/time.Second), int64(seconds)-int64(e.seconds)
	return ours+2 >= theirs-theirs/16 && theirs+2 >= ours-ours/16
}
