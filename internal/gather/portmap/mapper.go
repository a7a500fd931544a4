package portmap

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

// Config says what to map and how.
type Config struct {
	// Methods is how gateways may be asked. If zero, no packet is sent to any,
	// and none is listened to.
	Methods Methods
	// Port is the local TCP port. If zero, Methods count as zero, too: to a
	// gateway it would mean all ports (RFC 6887, 11.1).
	Port uint16
	// Gateways finds the gateways. If nil, [DefaultGateways] does.
	Gateways func() ([]Gateway, error)

	dial   dialFunc                               // nil: dialSystem
	listen func(Gateway) (net.PacketConn, error)  // nil: listenSystem
	jitter func(most time.Duration) time.Duration // nil: at random
}

// A Mapper keeps one TCP port mapped at the gateways of the network that the
// machine is in: of each family, by the first method that works. Make one with
// [New]. Its methods may be called by several goroutines.
//
// One keeper for each method and gateway, a goroutine, asks, renews, and in the
// end removes; a keeper waits while one that comes before it works. They have
// nothing in common but the report.
type Mapper struct {
	config  Config
	nonce   [12]byte
	refresh chan struct{}
	cancel  context.CancelFunc
	done    chan struct{} // closed when the goroutine has ended

	mu       sync.Mutex
	results  []Result
	restarts int
	changed  chan struct{} // closed at the next change of the two
	keepers  []*keeper     // of the present network
	clocks   map[identity]epoch

	speakers map[identity]speaker // the goroutine's own: networks seen so far
}

// identity is one method at one gateway.
type identity struct {
	method  Methods
	gateway Gateway
}

// A speaker knows one protocol, and remembers what a gateway granted last, so
// that it asks for the same when the machine comes back to that network.
type speaker interface {
	ask(context.Context) (lease, error) // makes the mapping, or renews it
	remove(context.Context) error
}

// maxSpeakers bounds what is remembered of earlier networks.
const maxSpeakers = 32

// New starts to map the port, and returns at once. Close ends it.
func New(c Config) *Mapper {
	if c.Port == 0 {
		c.Methods = 0
	}
	if c.Gateways == nil {
		c.Gateways = DefaultGateways
	}
	if c.dial == nil {
		c.dial = dialSystem
	}
	if c.listen == nil {
		c.listen = listenSystem
	}
	if c.jitter == nil {
		c.jitter = mathrand.N
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &Mapper{
		config: c, refresh: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{}),
		changed: make(chan struct{}), clocks: map[identity]epoch{}, speakers: map[identity]speaker{},
	}
	_, _ = rand.Read(m.nonce[:])
	for _, n := range methodNames {
		if c.Methods&n.method != 0 {
			m.results = append(m.results, Result{Method: n.method, State: Pending})
		}
	}
	if c.Methods == 0 {
		close(m.done)
		return m
	}
	// Owned by m; Close ends it and waits for it.
	go m.run(ctx)
	return m
}

// Report returns what became of the methods so far, and a channel that is
// closed when that has changed.
func (m *Mapper) Report() (Report, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Report{Results: slices.Clone(m.results), Restarts: m.restarts}, m.changed
}

// Refresh has the gateways looked up and asked anew: the network has changed,
// or may have. It returns at once; a report made before that is done is that of
// the network of before.
func (m *Mapper) Refresh() {
	select {
	case m.refresh <- struct{}{}:
	default: // one is on its way
	}
}

// Close removes the mappings, waits at most a second for the gateways to say
// that they did, and returns when nothing is sent any more. It may be called
// again.
func (m *Mapper) Close() {
	m.cancel()
	<-m.done
}

// removeLimit bounds Close, which a program waits for when it exits.
const removeLimit = time.Second

// run serves one network after the other until ctx ends.
func (m *Mapper) run(ctx context.Context) {
	defer close(m.done)
	gateways, err := m.config.Gateways()
	for ctx.Err() == nil {
		gateways, err = m.serve(ctx, gateways, err)
	}
}

// serve keeps the port mapped at the gateways until there are others, which it
// returns, or ctx ends.
func (m *Mapper) serve(ctx context.Context, gateways []Gateway, err error) ([]Gateway, error) {
	inner, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	keepers := m.start(gateways, err)
	for _, k := range keepers {
		// Owned by m; ends with inner; serve waits, which is what removeLimit is for.
		running.Go(func() { k.keep(inner) })
	}
	for _, g := range gateways {
		if g.Announce.IsValid() && slices.ContainsFunc(keepers, func(k *keeper) bool { return k.gateway == g }) {
			// Owned by m; ends with inner, which closes its socket; serve waits.
			running.Go(func() { m.listen(inner, g) })
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil, nil
		case <-m.refresh:
		}
		now, nowErr := m.config.Gateways()
		if !slices.Equal(now, gateways) {
			return now, nowErr
		}
		m.poke(func(*keeper) bool { return true })
	}
}

// gates are how long a method waits for those that come before it while they
// are silent. With nothing but UPnP, a gateway that drops the questions of the
// other two costs half a second.
var gates = map[Methods]time.Duration{NATPMP: 250 * time.Millisecond, UPnP: 500 * time.Millisecond}

// start begins the report of a network anew and makes its keepers.
func (m *Mapper) start(gateways []Gateway, err error) []*keeper {
	if len(m.speakers) >= maxSpeakers {
		clear(m.speakers)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keepers = nil
	if len(m.clocks) >= maxSpeakers {
		clear(m.clocks)
	}
	for i := range m.results {
		r := Result{Method: m.results[i].Method, State: Pending}
		at := slices.IndexFunc(gateways, func(g Gateway) bool { return g.Addr.Is6() == (r.Method == Pinhole) })
		if at < 0 {
			r.State, r.Err = Failed, err
			if err == nil {
				r.Err = errors.New("there is no gateway of that family")
			}
			m.results[i] = r
			continue
		}
		r.Gateway = gateways[at].Addr
		m.results[i] = r
		id := identity{r.Method, gateways[at]}
		k := &keeper{m: m, identity: id, result: i, poke: make(chan struct{}, 1), speaker: m.speaker(id)}
		if r.Method != Pinhole {
			k.after = r.Method - 1 // those whose bits are lower
		}
		m.keepers = append(m.keepers, k)
	}
	m.signal()
	return m.keepers
}

// speaker returns the one that has spoken there before, or a new one.
func (m *Mapper) speaker(id identity) speaker {
	if s := m.speakers[id]; s != nil {
		return s
	}
	a := asker{gateway: id.gateway, dial: m.config.dial, heard: func(seconds uint32) { m.heard(id, seconds) }}
	var s speaker
	switch id.method {
	case NATPMP:
		s = &natpmpSpeaker{asker: a, port: m.config.Port, suggest: m.config.Port}
	case UPnP:
		s = newUPnP(a, m.config.Port)
	default:
		s = newPCP(a, m.config.Port, m.nonce)
	}
	m.speakers[id] = s
	return s
}

// signal tells those who wait that the report has changed. The caller holds mu.
func (m *Mapper) signal() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// poke has the keepers ask now.
func (m *Mapper) poke(which func(*keeper) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.keepers {
		if which(k) {
			select {
			case k.poke <- struct{}{}:
			default:
			}
		}
	}
}

// heard notes how long a gateway remembers. If it has forgotten what was
// mapped, all keepers but the one that is asking ask again. Their clocks begin
// anew: the restart was noticed once, and gateways exist whose clock for one
// protocol is not that for another.
func (m *Mapper) heard(id identity, seconds uint32) {
	now := time.Now()
	m.mu.Lock()
	last, known := m.clocks[id]
	restarted := known && !last.continues(seconds, now)
	if restarted {
		m.restarts++
		clear(m.clocks)
		m.signal()
	}
	m.clocks[id] = epoch{seconds, now}
	m.mu.Unlock()
	if restarted {
		m.poke(func(k *keeper) bool { return k.identity != id })
	}
}

// maxAnnouncementDelay is from RFC 6887, 14.1.3: not all clients at once.
const maxAnnouncementDelay = 5 * time.Second

// listen waits for the gateway to announce that it has restarted. When it
// cannot, renewals find that out.
func (m *Mapper) listen(ctx context.Context, g Gateway) {
	conn, err := m.config.listen(g)
	if err != nil {
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	packet := make([]byte, pcpMaxSize)
	var due time.Time // when the keepers are to ask; zero: no announcement
	for {
		if err := conn.SetReadDeadline(due); err != nil {
			return
		}
		n, from, err := conn.ReadFrom(packet)
		var timeout net.Error
		switch {
		case err == nil:
			udp, ok := from.(*net.UDPAddr)
			if ok && udp.AddrPort().Addr().Unmap() == g.Addr && due.IsZero() && isAnnouncement(packet[:n]) {
				due = time.Now().Add(m.config.jitter(maxAnnouncementDelay))
			}
		case errors.As(err, &timeout) && timeout.Timeout():
			due = time.Time{}
			m.poke(func(k *keeper) bool { return k.gateway == g })
		default:
			return
		}
	}
}

// isAnnouncement reports whether a packet says that the gateway has restarted
// or has another address. Whether it has forgotten our mappings cannot be told
// from it: there are gateways whose clock is that of the machine and not of the
// service. So they are asked for again, as often as it is repeated, ten times
// in two minutes at most (RFC 6886, 3.2.1).
func isAnnouncement(packet []byte) bool {
	pcp, err := parsePCP(packet)
	if err == nil {
		return pcp.operation == pcpAnnounce
	}
	natpmp, err := parseNATPMP(packet)
	return err == nil && natpmp.operation == natpmpExternal
}

// listenSystem opens the socket at which announcements arrive. Every host is
// member of these groups, so that nothing needs to be sent to join them.
func listenSystem(g Gateway) (net.PacketConn, error) {
	var link *net.Interface
	if zone := g.Announce.Addr().Zone(); zone != "" {
		var err error
		if link, err = net.InterfaceByName(zone); err != nil {
			return nil, fmt.Errorf("listening to the gateway: %w", err)
		}
	}
	network := "udp4"
	if g.Announce.Addr().Is6() {
		network = "udp6"
	}
	return net.ListenMulticastUDP(network, link, net.UDPAddrFromAddrPort(g.Announce))
}
