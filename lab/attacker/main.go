// Command attacker does to a relay what strangers on the internet do, from 200
// addresses of 127/8 at once, each of which stays below what one address may do.
//
//	attacker KIND RELAY [LEASE SECRET]
//
// RELAY is the relay's address on loopback. It goes on until its standard input
// ends, and then prints one line of JSON: how many connections it opened, how
// many of these the relay closed, how many could not be opened, and how many
// were open at most at once. LEASE and SECRET are for the kind paused: an
// attacker who is a user of the relay.
package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dtcp-relay/dtcp/internal/wire"
)

// addresses is how many the attacker has.
const addresses = 200

// An attack is what one address does.
type attack struct {
	connections int           // at once
	every       time.Duration // opens a connection, if it may have one more
	// play does what is done with one connection. It returns when the relay has
	// closed it, with nil, or when there is no more to do.
	play func(a *attacker, c *net.TCPConn) error
}

// attacks are the kinds. By default a relay allows an address 256 connections
// that wait and 50 new ones a second.
var attacks = map[string]attack{
	// Say nothing.
	"half-open": {60, 30 * time.Millisecond, (*attacker).listen},
	// Say what is no protocol, or begins like one.
	"garbage": {10, 40 * time.Millisecond, (*attacker).garbage},
	// Connect and be gone.
	"scan": {10, 25 * time.Millisecond, (*attacker).scan},
	// Say a line a byte a second.
	"loris": {40, 40 * time.Millisecond, (*attacker).loris},
	// Ask for keys that nobody serves.
	"keys": {15, 25 * time.Millisecond, (*attacker).askForKey},
	// Take every descriptor.
	"exhaust": {95, 21 * time.Millisecond, (*attacker).begin},
	// Have the relay hold what nobody reads. Each is a pair of connections.
	"paused": {1, 300 * time.Millisecond, (*attacker).pause},
}

// An attacker is one run.
type attacker struct {
	relay  string
	lease  string
	secret []byte
	over   chan struct{} // closed when it is to end

	open atomic.Int64
	outcome
}

// outcome is what the attacker prints.
type outcome struct {
	Opened atomic.Int64
	Closed atomic.Int64 // by the relay
	Failed atomic.Int64 // to connect
	Most   atomic.Int64 // open at once
	Bytes  atomic.Int64 // of paused streams
}

// MarshalJSON prints the numbers.
func (o *outcome) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]int64{
		"opened": o.Opened.Load(), "closed": o.Closed.Load(), "failed": o.Failed.Load(), "most": o.Most.Load(), "bytes": o.Bytes.Load(),
	})
}

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "attacker:", err)
		os.Exit(1)
	}
}

func run(args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 2 && len(args) != 4 {
		return errors.New("usage: attacker KIND RELAY [LEASE SECRET]")
	}
	kind, ok := attacks[args[0]]
	if !ok {
		return fmt.Errorf("kinds are %s", strings.Join(slices.Sorted(maps.Keys(attacks)), ", "))
	}
	a := &attacker{relay: args[1], over: make(chan struct{})}
	if len(args) == 4 {
		secret, err := base64.RawURLEncoding.DecodeString(args[3])
		if err != nil {
			return err
		}
		a.lease, a.secret = args[2], secret
	}
	var running sync.WaitGroup
	for n := range addresses {
		// Owned by run, which waits for it; over ends it and what it began.
		running.Go(func() { a.attack(kind, net.IPv4(127, 200, byte(n>>8), byte(n))) })
	}
	_, err := io.Copy(io.Discard, stdin)
	close(a.over)
	running.Wait()
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(&a.outcome)
}

// attack plays one address until the attacker ends.
func (a *attacker) attack(kind attack, from net.IP) {
	var running sync.WaitGroup
	defer running.Wait()
	free := make(chan struct{}, kind.connections)
	tick := time.NewTicker(kind.every)
	defer tick.Stop()
	for {
		select {
		case <-a.over:
			return
		case <-tick.C:
		}
		select {
		case free <- struct{}{}:
		default:
			continue
		}
		// Owned by attack, which waits for it; over closes its connection.
		running.Go(func() {
			defer func() { <-free }()
			a.once(kind, from)
		})
	}
}

// once opens a connection and plays it to its end.
func (a *attacker) once(kind attack, from net.IP) {
	c, err := a.dial(from)
	if err != nil {
		return
	}
	done := make(chan struct{})
	defer close(done)
	// Owned by once: ends with it.
	go func() {
		select {
		case <-a.over:
		case <-done:
		}
		c.Close()
		a.open.Add(-1)
	}()
	if kind.play(a, c) == nil {
		a.Closed.Add(1)
	}
}

func (a *attacker) dial(from net.IP) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: from}, KeepAlive: -1}
	c, err := d.Dial("tcp", a.relay)
	if err != nil {
		a.Failed.Add(1)
		return nil, err
	}
	a.Opened.Add(1)
	for n := a.open.Add(1); ; {
		if most := a.Most.Load(); n <= most || a.Most.CompareAndSwap(most, n) {
			return c.(*net.TCPConn), nil
		}
	}
}

// listen reads what comes until the relay closes. Nil says that it has.
func (a *attacker) listen(c *net.TCPConn) error {
	_, err := io.Copy(io.Discard, c)
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil // also when it was reset
}

// begin says one byte, so that the connection is one that the relay has to hold
// and not only its kernel.
func (a *attacker) begin(c *net.TCPConn) error {
	_, _ = c.Write([]byte{'k'})
	return a.listen(c)
}

func (a *attacker) garbage(c *net.TCPConn) error {
	data := make([]byte, 1+rand.IntN(4096))
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	if begin := []byte{0x05, 0x16, 'k', 's', data[0]}[rand.IntN(5)]; rand.IntN(2) == 0 {
		data[0] = begin
	} else {
		data = append([]byte("serve:"), data...)
	}
	_, _ = c.Write(data)
	return a.listen(c)
}

func (a *attacker) scan(c *net.TCPConn) error {
	if rand.IntN(2) == 0 {
		_ = c.SetLinger(0)
	}
	return net.ErrClosed
}

func (a *attacker) loris(c *net.TCPConn) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for _, b := range []byte("key:" + strings.Repeat("a", 128)) {
		if _, err := c.Write([]byte{b}); err != nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-a.over:
			return net.ErrClosed
		}
	}
	return a.listen(c)
}

func (a *attacker) askForKey(c *net.TCPConn) error {
	_, _ = fmt.Fprintf(c, "key:%022d\n", rand.Uint64())
	return a.listen(c)
}

// pause serves a key on c, dials it, sends as fast as it can, and reads nothing.
func (a *attacker) pause(c *net.TCPConn) error {
	key := fmt.Sprintf("%022d", rand.Uint64())
	if _, err := c.Write(wire.NewClaim(wire.Serve, key, a.lease, a.secret, time.Now()).Line().Append(nil)); err != nil {
		return err
	}
	answer := make([]byte, 64)
	if n, err := c.Read(answer); err != nil || !strings.HasPrefix(string(answer[:n]), "ok:") {
		return a.listen(c) // over the quota
	}
	dialer, err := a.dial(c.LocalAddr().(*net.TCPAddr).IP)
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	defer close(stop)
	// Owned by pause: ends with it.
	go func() {
		select {
		case <-a.over:
		case <-stop:
		}
		dialer.Close()
		a.open.Add(-1)
	}()
	piece := make([]byte, 256<<10)
	copy(piece, "key:"+key+"\n")
	for {
		n, err := dialer.Write(piece)
		a.Bytes.Add(int64(n))
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			return nil
		}
	}
}
