package xmpp_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

func TestWatch(t *testing.T) {
	at := func(s int) time.Time { return time.Date(2000, 1, 1, 0, 0, s, 0, time.UTC) }
	tests := []struct {
		name       string
		now, heard int
		pinged     int // -1: never
		action     any
		wait       time.Duration
	}{
		{"just logged in", 0, 0, -1, xmpp.KeepWaiting, 60 * time.Second},
		{"heard a while ago", 70, 30, -1, xmpp.KeepWaiting, 20 * time.Second},
		{"silent", 60, 0, -1, xmpp.PingNow, 20 * time.Second},
		{"silent for long", 500, 0, -1, xmpp.PingNow, 20 * time.Second},
		{"asked just now", 61, 0, 60, xmpp.KeepWaiting, 19 * time.Second},
		{"no answer", 80, 0, 60, xmpp.GiveUp, 0},
		{"answered", 80, 61, 60, xmpp.KeepWaiting, 41 * time.Second},
		{"answered in the same instant", 80, 60, 60, xmpp.KeepWaiting, 40 * time.Second},
		{"answered, and silent again", 121, 61, 60, xmpp.PingNow, 20 * time.Second},
	}
	for _, tt := range tests {
		var pinged time.Time
		if tt.pinged >= 0 {
			pinged = at(tt.pinged)
		}
		action, wait := xmpp.Watch(at(tt.now), at(tt.heard), pinged, xmpp.PongTimeout)
		if action != tt.action || wait != tt.wait {
			t.Errorf("%s: %v %v, want %v %v", tt.name, action, wait, tt.action, tt.wait)
		}
	}
}

func TestKeepalive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		began := time.Now()
		for i := range 3 {
			p.settle()
			if got, want := time.Since(began), time.Duration(i+1)*xmpp.IdleTimeout; got != want {
				t.Errorf("ping %d after %v, want %v", i, got, want)
			}
		}
		// Any stanza will do for an answer; white space will not.
		p.wantIQ(stanza.Get, nsPing, "ping")
		pass(10 * time.Second)
		p.send("<message/>")
		synctest.Wait()
		began = time.Now()
		p.wantIQ(stanza.Get, nsPing, "ping")
		if got := time.Since(began); got != xmpp.IdleTimeout {
			t.Errorf("ping %v after a message", got)
		}
		p.send(" ")
		p.wantEnd()
		if got := time.Since(began); got != xmpp.IdleTimeout+xmpp.PongTimeout {
			t.Errorf("given up %v after a message", got)
		}
		p = n.accept().login()
		p.goodbye(s)
	})
}

// TestProbe: a server that may be gone has 5 s to show that it is not; one that
// answers is kept, and after that has its usual time again.
func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		pass(10 * time.Second)
		began := time.Now()
		s.Probe()
		p.wantIQ(stanza.Get, nsPing, "ping")
		if got := time.Since(began); got != 0 {
			t.Errorf("pinged %v after Probe, want at once", got)
		}
		p.send("<message/>")
		synctest.Wait()
		began = time.Now()
		p.wantIQ(stanza.Get, nsPing, "ping")
		if got := time.Since(began); got != xmpp.IdleTimeout {
			t.Errorf("pinged %v after an answer, want %v", got, xmpp.IdleTimeout)
		}
		p.send("<message/>")
		pass(10 * time.Second)
		began = time.Now()
		s.Probe()
		p.wantIQ(stanza.Get, nsPing, "ping")
		p.wantEnd()
		if got := time.Since(began); got != 5*time.Second {
			t.Errorf("given up %v after Probe, want 5 s", got)
		}
		p = n.accept().login()
		p.goodbye(s)
		s.Probe() // of no use, and does not block
	})
}

// A server that takes no more bytes is left after the time for one write, and
// what waits for it fails.
func TestStuckWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		c := n.config()
		c.NoReconnect = true
		s, p := loggedIn(t, n, c)
		synctest.Wait()
		n.clients[0].out.update(func() { n.clients[0].out.stalled = true })
		began := time.Now()
		first, second := ask(t.Context(), s, juliet), ask(t.Context(), s, juliet)
		for _, done := range []<-chan answered{first, second} {
			if got := <-done; got.err == nil || !strings.Contains(got.err.Error(), "connection lost") {
				t.Errorf("asked a stuck server: %v", got.err)
			}
		}
		if took := time.Since(began); took != xmpp.WriteTimeout {
			t.Errorf("noticed after %v", took)
		}
		<-s.Done()
		_ = p
	})
}

// Close does not wait for long for a server that does not listen.
func TestCloseWhileStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, _ := loggedIn(t, n, n.config())
		synctest.Wait()
		n.clients[0].out.update(func() { n.clients[0].out.stalled = true })
		done := ask(t.Context(), s, juliet)
		synctest.Wait()
		began := time.Now()
		s.Close()
		if took := time.Since(began); took > xmpp.CloseTimeout+5*time.Second {
			t.Errorf("Close took %v", took)
		}
		if got := <-done; got.err == nil {
			t.Error("a question was answered")
		}
	})
}

// A server that reads our closing tag and does not send its own.
func TestCloseUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		s, p := loggedIn(t, n, n.config())
		began := time.Now()
		s.Close()
		if took := time.Since(began); took != xmpp.CloseTimeout {
			t.Errorf("Close took %v", took)
		}
		s.Close() // again, and at once
		if e := p.want(stanza.NSClient, "presence"); e.Attr("type") != "unavailable" {
			t.Errorf("last presence %v", e)
		}
		p.wantEnd()
	})
}
