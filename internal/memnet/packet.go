package memnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Flags are those of a TCP header.
type Flags uint8

// The flags. A packet without any does not occur.
const (
	SYN Flags = 1 << iota
	ACK
	FIN
	RST
)

// Has reports whether all of the flags in g are set in f.
func (f Flags) Has(g Flags) bool { return f&g == g }

// String returns the names of the flags, as in "SYN|ACK".
func (f Flags) String() string {
	var names []string
	for i, name := range []string{"SYN", "ACK", "FIN", "RST"} {
		if f.Has(1 << i) {
			names = append(names, name)
		}
	}
	return strings.Join(names, "|")
}

// A Packet is what a tap sees: a packet as its sender sent it.
type Packet struct {
	Time   time.Time      // when it was sent
	Sender string         // name of the host, or of the router that sent a reset
	From   netip.AddrPort // before any NAT
	To     netip.AddrPort
	Flags  Flags
	Data   []byte // must not be changed
	Again  bool   // it is a repetition
}

// Opens reports whether p is the first packet of a connection that is asked
// for: a SYN that answers none.
func (p Packet) Opens() bool { return p.Flags.Has(SYN) && !p.Flags.Has(ACK) }

// String describes p in a line.
func (p Packet) String() string {
	again := ""
	if p.Again {
		again = " again"
	}
	return fmt.Sprintf("%s %s: %v -> %v %v %d bytes%s",
		p.Time.Format("15:04:05.000000"), p.Sender, p.From, p.To, p.Flags, len(p.Data), again)
}

// packet is a packet on its way. NATs change src and dst.
type packet struct {
	src, dst netip.AddrPort
	flags    Flags
	data     []byte
	seq      int64 // position of data, or of the FIN, in the sender's stream
	ack      int64 // all of the receiver's stream before it has arrived
	edge     int64 // the receiver may send up to here

	// id is the connection of the sender, peer the one that the sender
	// believes to be at the other end. They stand for the initial sequence
	// numbers of TCP: by them packets of an earlier connection on the same
	// pair of addresses are known. Zero is unknown.
	id, peer uint64

	again  bool
	grants bool          // it is sent only to tell of room in the window
	origin *Host         // nil if a router sent it
	conn   *Conn         // nil if it answers a packet of no connection
	sent   time.Time     // when
	delay  time.Duration // how long it will have travelled when it arrives
}

// reset returns the RST that answers p.
func (p *packet) reset() *packet {
	return &packet{src: p.dst, dst: p.src, flags: RST | ACK, id: p.peer, peer: p.id}
}

// taps are the listeners on the wire, and what they have not yet been told.
type taps struct {
	sent    []*func(Packet)
	lost    []*func(Packet, string)
	pending []tapped
	running bool
}

type tapped struct {
	packet Packet
	lost   string // why; empty if the packet was sent
}

// Tap has f called for every packet that a host or router sends, in order,
// until stop is called. Packets to the host itself are included, and those
// that will be lost. The calls come one at a time, without any lock held,
// right after the packet was sent; when [testing/synctest.Wait] returns all
// of them are done. f may call anything here, but must not wait.
func (n *Net) Tap(f func(Packet)) (stop func()) {
	n.lock()
	defer n.unlock()
	n.taps.sent = append(slices.Clone(n.taps.sent), &f)
	return func() {
		n.lock()
		defer n.unlock()
		n.taps.sent = slices.DeleteFunc(slices.Clone(n.taps.sent), func(g *func(Packet)) bool { return g == &f })
	}
}

// TapLost has f called for every packet that is lost, at the time and with the
// reason of its loss, until stop is called. From and To are as the last NAT on
// its way left them. Otherwise it is as [Net.Tap].
func (n *Net) TapLost(f func(p Packet, why string)) (stop func()) {
	n.lock()
	defer n.unlock()
	n.taps.lost = append(slices.Clone(n.taps.lost), &f)
	return func() {
		n.lock()
		defer n.unlock()
		n.taps.lost = slices.DeleteFunc(slices.Clone(n.taps.lost), func(g *func(Packet, string)) bool { return g == &f })
	}
}

func (p *packet) public(sender string, at time.Time) Packet {
	return Packet{Time: at, Sender: sender, From: p.src, To: p.dst, Flags: p.flags, Data: p.data, Again: p.again}
}

func (n *Net) tapSent(p *packet, sender string) {
	if len(n.taps.sent) > 0 {
		n.taps.pending = append(n.taps.pending, tapped{packet: p.public(sender, p.sent)})
	}
}

func (n *Net) tapLost(p *packet, why string) {
	if len(n.taps.lost) > 0 {
		sender := "router"
		if p.origin != nil {
			sender = p.origin.name
		}
		n.taps.pending = append(n.taps.pending, tapped{p.public(sender, time.Now()), why})
	}
}

// runTaps calls the taps for all pending packets. It gives the lock up for
// each batch, and takes it again. A call from within a tap, or beside one,
// leaves its packets to the one that is running, which keeps the order.
func (n *Net) runTaps() {
	if n.taps.running {
		return
	}
	n.taps.running = true
	for len(n.taps.pending) > 0 {
		batch, sent, lost := n.taps.pending, n.taps.sent, n.taps.lost
		n.taps.pending = nil
		n.mu.Unlock()
		for _, t := range batch {
			if t.lost == "" {
				for _, f := range sent {
					(*f)(t.packet)
				}
				continue
			}
			for _, f := range lost {
				(*f)(t.packet, t.lost)
			}
		}
		n.mu.Lock()
	}
	n.taps.running = false
}
