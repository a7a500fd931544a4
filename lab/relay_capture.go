//go:build linux

package lab

import (
	"encoding/binary"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A Capture holds what goes over the loopback interface of the lab's network to
// and from one TCP port: the payloads of the packets one after another, as
// somebody sees them who reads along.
type Capture struct {
	fd     int
	port   uint16
	ended  sync.WaitGroup
	cancel [2]int // a pipe that wakes the reader

	mu    sync.Mutex
	bytes []byte
}

// captureBuffer is what the kernel may hold for the reader, in bytes.
const captureBuffer = 256 << 20

// StartCapture captures until [Capture.Stop], or the test's end.
func StartCapture(tb testing.TB, address string) *Capture {
	tb.Helper()
	if !Inside() {
		tb.Fatal("lab: no capture outside the lab's own network")
	}
	port, err := strconv.ParseUint(portOf(address), 10, 16)
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	// Packets without the link's header. The protocol is in network byte order.
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		tb.Fatalf("lab: packet socket: %v", err)
	}
	c := &Capture{fd: fd, port: uint16(port)}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
		tb.Fatalf("lab: packet socket: %v", err)
	}
	if err := unix.Pipe2(c.cancel[:], unix.O_CLOEXEC); err != nil {
		tb.Fatalf("lab: %v", err)
	}
	// Owned by c; Stop ends it through the pipe and waits for it.
	c.ended.Go(c.read)
	tb.Cleanup(c.end)
	return c
}

// read appends the payloads of the port's packets.
func (c *Capture) read() {
	packet := make([]byte, 1<<16)
	for {
		ready := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}, {Fd: int32(c.cancel[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(ready, -1); err != nil && err != unix.EINTR {
			return
		}
		if ready[0].Revents&unix.POLLIN == 0 {
			if ready[1].Revents != 0 {
				return // and nothing more is there
			}
			continue
		}
		n, from, err := unix.Recvfrom(c.fd, packet, 0)
		if err != nil {
			continue
		}
		// What loopback carries is seen twice: sent and received.
		if link, ok := from.(*unix.SockaddrLinklayer); ok && link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if payload := c.payload(packet[:n]); len(payload) > 0 {
			c.mu.Lock()
			c.bytes = append(c.bytes, payload...)
			c.mu.Unlock()
		}
	}
}

// payload is that of an IPv4 packet of TCP to or from the port.
func (c *Capture) payload(packet []byte) []byte {
	if len(packet) < 20 || packet[9] != unix.IPPROTO_TCP {
		return nil
	}
	segment := packet[int(packet[0]&15)*4:]
	if len(segment) < 20 {
		return nil
	}
	source, destination := binary.BigEndian.Uint16(segment), binary.BigEndian.Uint16(segment[2:])
	header := int(segment[12]>>4) * 4
	if source != c.port && destination != c.port || header > len(segment) {
		return nil
	}
	return segment[header:]
}

// Stop ends the capture and returns what was seen. It fails the test when the
// kernel had to leave packets out.
func (c *Capture) Stop(tb testing.TB) []byte {
	tb.Helper()
	_, _ = unix.Write(c.cancel[1], []byte{0})
	c.ended.Wait()
	statistics, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		tb.Errorf("lab: capture: %v", err)
	} else if statistics.Drops > 0 {
		tb.Errorf("lab: capture: %d packets of %d are missing", statistics.Drops, statistics.Packets)
	}
	return c.bytes
}

// end lets go of everything; it may be called after Stop.
func (c *Capture) end() {
	_, _ = unix.Write(c.cancel[1], []byte{0})
	c.ended.Wait()
	for _, fd := range []int{c.fd, c.cancel[0], c.cancel[1]} {
		_ = unix.Close(fd)
	}
}
