package relay_test

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// TestReloadDenies: who is denied loses what he has here, and nobody else does.
func TestReloadDenies(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		l, other := s.lend(alice), s.lend(bob)
		listener, dialer := s.pair("k", l)
		listener2, dialer2 := s.pair("m", other)
		waits, waits2 := s.serves("x", l), s.serves("y", other)
		observed := s.says(s.owner, l.claim(""))
		observed.hears("ok:" + observed.address() + "\n")
		listener.says("the last")
		dialer.hears("the last")
		s.Reload(relay.Rules{Access: relay.Access{Allow: []jid.JID{jid.MustParse("example.org")}, Deny: []jid.JID{alice}}})
		waits.hears("error:denied\n").ends()
		observed.hears("error:denied\n").ends()
		listener.wantCut("")
		dialer.wantCut("")
		s.wantRefused("denied alice", "denied alice", "denied alice")
		s.wantUsage(relay.Usage{Owner: alice, Kind: relay.KindLease, Listener: listener.at(), Dialer: dialer.at(), ToDialer: 8, ToListener: 6, Why: relay.EndedDenied})
		if got := s.Stats(); got.Refused["denied"] != 3 || got.Streams != 1 || got.Waiting != 1 || got.Observing != 0 {
			t.Errorf("after the reload: %+v", got)
		}
		listener2.says("undisturbed")
		dialer2.hears("undisturbed")
		s.says(s.dialer, "key:y\n")
		waits2.hears("key:y\n")
	})
}

// TestReplace: new master keys and certificates hold from then on; what goes on
// under the old ones is left alone.
func TestReplace(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		tlsHost := func(c *tls.Certificate) []relay.Host { return []relay.Host{{Addr: "192.0.2.1", Port: 5280, TLS: c}} }
		presented := func() *tls.Certificate {
			c := tls.Client(s.from(s.dialer), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"dtcp-relay"}})
			if c.Handshake() != nil {
				return nil
			}
			return &tls.Certificate{Certificate: [][]byte{c.ConnectionState().PeerCertificates[0].Raw}}
		}
		same := func(a, b *tls.Certificate) bool {
			return a == nil && b == nil || a != nil && b != nil && string(a.Certificate[0]) == string(b.Certificate[0])
		}
		old := s.lend(alice)
		listener, dialer := s.pair("k", old)
		waits := s.serves("w", old)
		first, second := certificate(t), certificate(t)
		more := relay.NewKeyring()
		for i, c := range []*tls.Certificate{nil, first, second, nil} {
			hosts := []relay.Host{{Addr: "192.0.2.1", Port: 5280}}
			if c != nil {
				hosts = tlsHost(c)
			}
			if err := s.Replace(more, hosts); err != nil {
				t.Fatal(err)
			}
			if got := presented(); !same(got, c) {
				t.Errorf("replaced %d times: another certificate than that of the hosts", i+1)
			}
		}
		if s.Replace(&relay.Keyring{}, tlsHost(first)) == nil || s.Replace(more, nil) == nil || presented() != nil {
			t.Error("replaced by what cannot be")
		}
		s.says(s.owner, old.claim("x")).hears("error:bad-lease\n").ends()
		s.serves("x", s.lend(alice))
		listener.says("undisturbed")
		dialer.hears("undisturbed")
		s.wait(time.Minute)
		s.says(s.dialer, "key:w\n")
		waits.hears("key:w\n")
		if err := s.Replace(keys, tlsHost(first)); err != nil {
			t.Fatal(err)
		}
		s.serves("z", old)
	})
}
