package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// relistenWait is how long a port that failed is left alone.
const relistenWait = time.Second

// drainReport is how often a daemon that drains says what is left.
const drainReport = 30 * time.Second

// daemon is a relay, what connects it with XMPP, and what tells of it.
type daemon struct {
	config  atomic.Pointer[config] // replaced by SIGHUP
	started *config                // with which it was started
	log     *logger
	relay   *relay.Relay
	xmpp    xmppSide
	usage   *usageLog // nil: none is kept
	metrics *metrics  // nil: nowhere

	ports   []*port
	ending  chan struct{} // closed when ports must not be listened at again
	serving sync.WaitGroup
}

// xmppSide is how the relay is reached by XMPP: as a component, or in the same
// process.
type xmppSide interface {
	start(d *daemon) error
	trouble() string // why nobody can ask the relay now, or ""
	reload() error
	close()
}

// newDaemon opens everything that must be there for the daemon to be of use: a
// failure is fatal, while what fails later is tried again.
func newDaemon(c *config, log *logger) (*daemon, error) {
	d := &daemon{started: c, log: log, ending: make(chan struct{})}
	d.config.Store(c)
	if err := d.open(c); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// open opens it all; what is open when it fails is for close.
func (d *daemon) open(c *config) error {
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return err
	}
	if c.Component.SecretFile != "" && exposed(c.Component.SecretFile) {
		d.log.say("warning: all users can read %s: chmod o= it", c.Component.SecretFile)
	}
	if short := c.shortage(); short != "" {
		d.log.say("warning: %s", short)
	}
	keys, err := relay.LoadKeyring(c.Relay.KeyFile)
	if err != nil {
		return err
	}
	for _, address := range c.Relay.Listen {
		if err := d.listen(relayPort, address); err != nil {
			return err
		}
	}
	hosts, err := d.leased(c)
	if err != nil {
		return err
	}
	if c.Usage.File != "" {
		if d.usage, err = openUsageLog(c.Usage.File, c.Usage.Blur, d.log); err != nil {
			return fmt.Errorf("usage log: %w", err)
		}
	}
	d.metrics = newMetrics(d)
	d.relay, err = relay.New(relay.Config{
		Domain: c.domain, Keys: keys, Node: c.Relay.Node, Hosts: hosts, Rules: c.rules,
		Usage: d.ended, Refused: d.refused,
	})
	if err != nil {
		return err
	}
	d.log.say("%s", d.introduction(c, hosts))
	if listen := *c.Metrics.Listen; listen != "" {
		if err := d.metrics.listen(listen); err != nil {
			return err
		}
	}
	for _, p := range d.ports {
		d.serve(p, d.relay.Serve)
	}
	if c.Standalone != nil {
		d.xmpp = &standalone{}
	} else {
		d.xmpp = &component{}
	}
	if err := d.xmpp.start(d); err != nil {
		return err
	}
	d.metrics.serve()
	return nil
}

// introduction says what the relay is, to those who read the log.
func (d *daemon) introduction(c *config, hosts []relay.Host) string {
	var told []string
	for _, h := range hosts {
		at := net.JoinHostPort(h.Addr, fmt.Sprint(h.Port))
		if h.TLS != nil {
			at += " (TLS)"
		}
		told = append(told, at)
	}
	return fmt.Sprintf("relay %v is at %s, for %s", d.started.domain, strings.Join(told, ", "), allowed(c.rules.Allow))
}

// What ports are of.
const (
	relayPort = "relay"
	xmppPort  = "XMPP"
)

// port is an address that is listened at for as long as the daemon runs.
type port struct {
	what     string                 // relayPort or xmppPort
	address  string                 // of the configuration; with the port that the system chose
	listener net.Listener           // the first one
	served   bool                   // then it is serve's
	down     atomic.Pointer[string] // why, while it is
}

// listen opens a port; serve serves it.
func (d *daemon) listen(what, address string) error {
	l, err := listenAt(what, address)
	if err != nil {
		return err
	}
	host, _, _ := net.SplitHostPort(address)
	_, number, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		l.Close()
		return err
	}
	d.ports = append(d.ports, &port{what: what, address: net.JoinHostPort(host, number), listener: l})
	return nil
}

// listenAt opens a port; the error says what to do.
func listenAt(what, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s port: %w: does dtcpd run already, or something else there?", what, err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%s port: %w: ports below 1024 need CAP_NET_BIND_SERVICE", what, err)
	case err != nil:
		return nil, fmt.Errorf("%s port: %w", what, err)
	}
	return l, nil
}

// serve serves p by f, which closes the listener it takes, and returns nil when
// what it belongs to is closed. A port that fails is opened again.
func (d *daemon) serve(p *port, f func(net.Listener) error) {
	p.served = true
	// Owned by the daemon; close ends what f belongs to, and waits.
	d.serving.Go(func() {
		for l := p.listener; l != nil; l = d.relisten(p) {
			if p.down.Swap(nil) != nil {
				d.log.say("%s port %s: listening again", p.what, p.address)
			}
			err := f(l)
			if err == nil {
				return
			}
			d.failed(p, err)
		}
	})
}

// failed notes that p is down.
func (d *daemon) failed(p *port, err error) {
	why := fmt.Sprintf("%s port %s: %v", p.what, p.address, err)
	if p.down.Swap(&why) == nil {
		d.log.say("%s; trying again", why)
	}
}

// relisten opens a port again. It returns nil when the daemon ends.
func (d *daemon) relisten(p *port) net.Listener {
	ticker := time.NewTicker(relistenWait)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-d.ending:
			return nil
		}
		l, err := net.Listen("tcp", p.address)
		if err == nil {
			return l
		}
		d.failed(p, err)
	}
}

// leased returns what leases name: what the configuration says is public, or
// the addresses of the relay's ports.
func (d *daemon) leased(c *config) ([]relay.Host, error) {
	var hosts []relay.Host
	for _, address := range c.Relay.Public {
		host, number, err := splitPublic(address)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, relay.Host{Addr: host, Port: number})
	}
	if len(c.Relay.Public) == 0 {
		own, err := interfaceAddresses()
		if err != nil {
			return nil, err
		}
		private := false
		for _, p := range d.ports {
			if p.what != relayPort {
				continue
			}
			for _, a := range reachable(p.listener.Addr(), own) {
				if a.Addr().IsPrivate() {
					private = true
				}
				hosts = append(hosts, relay.Host{Addr: a.Addr().String(), Port: a.Port()})
			}
		}
		hosts = hosts[:min(len(hosts), maxHosts-len(c.Relay.PublicTLS))]
		if private {
			d.log.say("warning: peers are told private addresses, which only those nearby reach: set relay.public")
		}
		if len(hosts) == 0 && len(c.Relay.PublicTLS) == 0 {
			return nil, errors.New("this machine has no address that could be told to peers: set relay.public")
		}
	}
	if len(c.Relay.PublicTLS) == 0 {
		return hosts, nil
	}
	certificate, err := c.relayCertificate(time.Now())
	if err != nil {
		return nil, fmt.Errorf("the relay's certificate: %w", err)
	}
	for _, address := range c.Relay.PublicTLS {
		host, number, err := splitPublic(address)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, relay.Host{Addr: host, Port: number, TLS: &certificate})
	}
	return hosts, nil
}

func interfaceAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var found []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			found = append(found, p.Addr().Unmap())
		}
	}
	return found, nil
}

// reachable returns the addresses by which others reach a listener: its own, or
// if that is any, those of this machine; public ones, or if there are none,
// private ones.
func reachable(listener net.Addr, own []netip.Addr) []netip.AddrPort {
	at, err := netip.ParseAddrPort(listener.String())
	if err != nil {
		return nil
	}
	if !at.Addr().IsUnspecified() {
		return []netip.AddrPort{netip.AddrPortFrom(at.Addr().Unmap(), at.Port())}
	}
	var public, private []netip.AddrPort
	for _, a := range own {
		switch {
		case !a.IsGlobalUnicast(), at.Addr().Is4() && !a.Is4():
		case a.IsPrivate():
			private = append(private, netip.AddrPortFrom(a, at.Port()))
		default:
			public = append(public, netip.AddrPortFrom(a, at.Port()))
		}
	}
	if len(public) > 0 {
		return public
	}
	return private
}

// ended is told of each stream's end, by the relay.
func (d *daemon) ended(u relay.Usage) {
	d.metrics.ended(u)
	if d.usage != nil {
		d.usage.add(u)
	}
}

// refused is told of each refusal, by the relay, which counts them.
func (d *daemon) refused(reason string, remote netip.AddrPort, owner jid.JID) {
	if d.log.verbose {
		d.log.say("refused: %s (%v %v)", reason, remote, owner)
	}
}

// health says why the relay is of no use now, or "".
func (d *daemon) health() string {
	var troubles []string
	for _, p := range d.ports {
		if why := p.down.Load(); why != nil {
			troubles = append(troubles, *why)
		}
	}
	if why := d.xmpp.trouble(); why != "" {
		troubles = append(troubles, why)
	}
	if d.relay.Stats().Draining {
		troubles = append(troubles, "draining: no new streams")
	}
	return strings.Join(troubles, "; ")
}

// run serves until a signal ends it. load reads the configuration again.
func (d *daemon) run(ctx context.Context, signals *signals, load func() (*config, error)) error {
	defer d.close()
	notify("READY=1", "STATUS=serving")
	look := time.NewTicker(crowdCheck)
	defer look.Stop()
	var guests crowd
	for {
		select {
		case <-look.C:
			if guests.gone(connections(d.relay.Stats())) {
				debug.FreeOSMemory()
			}
		case <-signals.reload:
			d.reload(load)
		case <-signals.end:
			return d.drain(ctx, signals)
		}
	}
}

// allowed names those whom the relay is for.
func allowed(list []jid.JID) string {
	if len(list) == 0 {
		return "nobody: nothing is allowed in [relay]"
	}
	var names []string
	for _, j := range list {
		if j.Local() == "" {
			names = append(names, "users of "+j.String())
		} else {
			names = append(names, j.String())
		}
	}
	if more := len(names) - 5; more > 0 {
		names = append(names[:5], fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

// reload takes over what may change, or says why not.
func (d *daemon) reload(load func() (*config, error)) {
	notify("RELOADING=1")
	defer notify("READY=1")
	if d.usage != nil {
		d.usage.rotated()
	}
	c, err := load()
	var hosts []relay.Host
	if err == nil {
		hosts, err = d.replace(c)
	}
	if err != nil {
		d.log.say("not reloaded, what was goes on: %v", err)
		return
	}
	d.relay.Reload(c.rules)
	if d.usage != nil {
		d.usage.blur.Store(c.Usage.Blur)
	}
	d.config.Store(c)
	d.log.say("reloaded: %s", d.introduction(c, hosts))
	if keys := d.started.fixed(c); len(keys) > 0 {
		d.log.say("changed, but only from the next start on: %s", strings.Join(keys, ", "))
	}
}

// replace has the relay use the master keys and certificates that are there now,
// and lease the addresses that c names. It is what can fail of a reload, and then
// nothing has changed.
func (d *daemon) replace(c *config) ([]relay.Host, error) {
	switch was := d.started; {
	case c.State != was.State:
		return nil, fmt.Errorf("state is %s now, and was %s: master keys and accounts lie there, so restart dtcpd", c.State, was.State)
	case c.domain != was.domain || c.parent() != was.parent(): // whom it is for by default, too
		return nil, fmt.Errorf("it is for %v of %s now, and was for %v of %s: restart dtcpd", c.domain, c.parent(), was.domain, was.parent())
	}
	keys, err := relay.LoadKeyring(c.Relay.KeyFile)
	if err != nil {
		return nil, err
	}
	hosts, err := d.leased(c)
	if err != nil {
		return nil, err
	}
	if err := d.xmpp.reload(); err != nil {
		return nil, err
	}
	return hosts, d.relay.Replace(keys, hosts)
}

// fixed names the keys that differ and that only a start changes.
func (c *config) fixed(other *config) []string {
	var keys []string
	note := func(key string, same bool) {
		if !same {
			keys = append(keys, key)
		}
	}
	note("[component]", c.Component == other.Component && c.secret == other.secret)
	a, b := c.Standalone, other.Standalone
	note("[standalone]", (a == nil) == (b == nil) && (a == nil ||
		a.Domain == b.Domain && a.Relay == b.Relay && a.Public == b.Public && slices.Equal(a.Listen, b.Listen)))
	note("relay.listen", slices.Equal(c.Relay.Listen, other.Relay.Listen))
	note("relay.node", c.Relay.Node == other.Relay.Node)
	note("metrics.listen", *c.Metrics.Listen == *other.Metrics.Listen)
	note("usage.file", c.Usage.File == other.Usage.File)
	return keys
}

// drain lets streams end for as long as the configuration says, or until a
// second signal.
func (d *daemon) drain(ctx context.Context, signals *signals) error {
	notify("STOPPING=1")
	limit := time.Duration(d.config.Load().Relay.Drain)
	if n := d.relay.Stats().Streams; n > 0 {
		d.log.say("draining: %d streams may go on for %v; a second signal ends them", n, limit)
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	drained := make(chan int, 1)
	// Owned by this call, which waits for it; it ends with the streams, or with
	// bounded.
	go func() { drained <- d.relay.Drain(bounded) }()
	progress := time.NewTicker(drainReport)
	defer progress.Stop()
	for {
		select {
		case left := <-drained:
			if left > 0 {
				d.log.say("ended, and %d streams with it", left)
			} else {
				d.log.say("ended")
			}
			return nil
		case <-signals.end:
			cancel()
		case <-progress.C:
			d.log.say("draining: %d streams left", d.relay.Stats().Streams)
		}
	}
}

// close ends everything, in the order in which nobody misses anything.
func (d *daemon) close() {
	close(d.ending)
	if d.xmpp != nil {
		d.xmpp.close()
	}
	if d.relay != nil {
		_ = d.relay.Close() // is always nil
	}
	for _, p := range d.ports {
		if !p.served {
			p.listener.Close()
		}
	}
	d.serving.Wait()
	if d.metrics != nil {
		d.metrics.close()
	}
	if d.usage != nil {
		d.usage.close()
	}
}
