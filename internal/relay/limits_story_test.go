package relay_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/memnet"
	"github.com/dtcp-relay/dtcp/internal/relay"
)

// limited returns a configuration with limits.
func limited(l relay.Limits) relay.Config { return relay.Config{Rules: relay.Rules{Limits: l}} }

// TestRate: the streams of an owner share his rate, in both directions, and
// another's are not slower for it.
func TestRate(t *testing.T) {
	const rate, each = 100 << 10, 200 << 10
	at(t, limited(relay.Limits{PerOwner: relay.Quota{Rate: rate}}), func(s *place) {
		l, other := s.lend(alice), s.lend(bob)
		send := func(from, to *peer) (took time.Duration) {
			began := time.Now()
			// Owned by the test, ended by the amount, awaited by what it is read by.
			go func() { _, _ = from.Write(make([]byte, each)) }()
			if _, err := io.CopyN(io.Discard, to.r, each); err != nil {
				t.Error(err)
			}
			return time.Since(began)
		}
		a1, b1 := s.pair("k", l)
		a2, b2 := s.pair("m", l)
		a3, b3 := s.pair("x", other)
		s.wait(10 * time.Second) // until there is a whole burst to be had
		var took [4]time.Duration
		var group sync.WaitGroup
		for i, way := range [][2]*peer{{a1, b1}, {b1, a1}, {b2, a2}, {b3, a3}} {
			group.Go(func() { took[i] = send(way[0], way[1]) })
		}
		group.Wait()
		most := max(took[0], took[1], took[2])
		if want := time.Duration(3*each-rate) * time.Second / rate; most < want || most > want*11/10 {
			t.Errorf("%d bytes at %d a second took %v, want %v and little more", 3*each, rate, most, want)
		}
		if want := time.Duration(each-rate) * time.Second / rate; took[3] < want || took[3] > want*11/10+100*time.Millisecond {
			t.Errorf("%d bytes at %d a second took %v, want %v and little more", each, rate, took[3], want)
		}
		_ = a2
	})
}

// TestBytesPerDay: when they are used up, the streams of the owner are cut, and
// he gets no others until midnight.
func TestBytesPerDay(t *testing.T) {
	at(t, limited(relay.Limits{PerOwner: relay.Quota{BytesPerDay: 100 << 10}}), func(s *place) {
		l := s.lend(alice)
		listener, dialer := s.pair("k", l)
		text := strings.Repeat("x", 60<<10)
		listener.says(text)
		dialer.hears(text)
		dialer.says(text)
		got, err := io.ReadAll(listener.r)
		// What a copier had leave to read when it began to wait may still pass.
		n := len("key:k\n") + len(got)
		if n+len(text) < 100<<10 || err == nil {
			t.Errorf("%d and %d bytes passed, %v", len(text), n, err)
		}
		s.wantUsage(relay.Usage{Owner: alice, Kind: relay.KindLease, Listener: listener.at(), Dialer: dialer.at(), ToDialer: 60 << 10, ToListener: int64(n), Why: relay.EndedQuota})
		s.says(s.owner, l.claim("k")).hears("error:quota\n").ends()
		s.wantRefused("owner-bytes alice")
		s.wait(24*time.Hour - time.Since(s.start))
		s.pair("k", s.lend(alice))
	})
}

// TestCrowd: 1,025 dialers are held from many addresses, and the first is told
// error when the last comes.
func TestCrowd(t *testing.T) {
	at(t, relay.Config{}, func(s *place) {
		var first, last *peer
		for i := range 1025 {
			if i%16 == 0 {
				s.dialer = s.net.Host(fmt.Sprint(i), netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
			}
			last = s.says(s.dialer, fmt.Sprintf("key:k%d\n", i))
			if i == 0 {
				first = last
				synctest.Wait() // so that it is the first
			}
		}
		first.hears("error\n").ends()
		synctest.Wait()
		if got := s.Stats(); got.Held != 1024 {
			t.Errorf("%d are held", got.Held)
		}
		s.wantRefused("held")
		s.serves("k1024", s.lend(alice)).hears("key:k1024\n").says("for the last")
		last.hears("for the last")
	})
}

// TestFull: when there is room for no more, silent connections make it, and
// streams go on.
func TestFull(t *testing.T) {
	at(t, limited(relay.Limits{Connections: 16}), func(s *place) {
		l := s.lend(alice)
		listener, dialer := s.pair("k", l)
		for i := range 14 {
			s.says(s.dialer, fmt.Sprintf("key:k%d\n", i))
		}
		synctest.Wait()
		s.says(s.owner, l.claim("m")).hears("error:full\n").ends()
		s.wantRefused("full alice")
		silent := s.from(s.dialer)
		late := s.from(s.dialer)
		silent.ends()
		s.wantRefused("full")
		listener.says("undisturbed")
		dialer.hears("undisturbed")
		late.Close()
	})
}

// certificate is self-signed; nobody looks at its dates.
func certificate(t *testing.T) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestTLS: either leg may come by TLS, on a host that is leased so; both ends of
// the stream are passed on.
func TestTLS(t *testing.T) {
	config := relay.Config{Hosts: []relay.Host{{Addr: "192.0.2.1", Port: 5280, TLS: certificate(t)}}}
	at(t, config, func(s *place) {
		l := s.lend(alice)
		secure := func(p *peer, protocols ...string) *tls.Conn {
			return tls.Client(p.Conn, &tls.Config{InsecureSkipVerify: true, NextProtos: protocols})
		}
		hears := func(c net.Conn, want string) {
			t.Helper()
			got := make([]byte, len(want))
			if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
				t.Fatalf("heard %q, %v; want %q", got[:n], err, want)
			}
		}
		says := func(c net.Conn, text string) {
			t.Helper()
			if _, err := io.WriteString(c, text); err != nil {
				t.Fatal(err)
			}
		}
		for _, kind := range []string{"listener", "dialer", "both"} {
			p, q := s.from(s.owner), s.from(s.dialer)
			var listener, dialer net.Conn = p, q
			if kind != "dialer" {
				listener = secure(p, "dtcp-relay")
			}
			if kind != "listener" {
				dialer = secure(q, "dtcp-relay")
			}
			says(listener, l.claim("k"))
			hears(listener, "ok:"+p.address()+"\n")
			says(dialer, "key:k\nfollows")
			hears(listener, "key:k\nfollows")
			says(listener, "answer")
			if err := listener.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(dialer); string(got) != "answer" || err != nil {
				t.Errorf("%s by TLS: %q, %v", kind, got, err)
			}
			says(dialer, "later")
			if err := dialer.Close(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(listener); string(got) != "later" || err != nil {
				t.Errorf("%s by TLS: %q, %v", kind, got, err)
			}
			listener.Close()
			s.wantUsage(relay.Usage{Owner: alice, Kind: relay.KindLease, Listener: p.at(), Dialer: q.at(), ToDialer: 6, ToListener: 18, Why: relay.EndedClosed})
		}
		for _, protocols := range [][]string{nil, {"dtcp"}, {"h2"}} {
			if err := secure(s.from(s.owner), protocols...).Handshake(); err == nil && protocols != nil {
				t.Errorf("TLS for %q", protocols)
			}
		}
		c := secure(s.from(s.owner), "dtcp-relay")
		says(c, "\x05\x01\x00") // SOCKS5 is spoken outside
		if got, err := io.ReadAll(c); string(got) != "error\n" || err != nil {
			t.Errorf("SOCKS5 inside TLS: %q, %v", got, err)
		}
		s.start = time.Now()
		silent := s.says(s.dialer, "\x16\x03\x01\x02\x00")
		if _, err := io.ReadAll(silent.r); err != nil {
			t.Error(err)
		}
		if d := time.Since(s.start); d != 10*time.Second+4*dialersWay {
			t.Errorf("a handshake that stops lasts %v", d)
		}
	})
}

// TestSoak: many pairs of both orders, cut at any time from either side or
// ended; every byte that was promised is there, and every stream is accounted
// for.
func TestSoak(t *testing.T) {
	const pairs = 150
	at(t, limited(relay.Limits{PerOwner: relay.Quota{Streams: -1, HalfOpen: -1, Handshakes: -1}, PerAddress: relay.Quota{Streams: -1, HalfOpen: -1, Handshakes: -1}}), func(s *place) {
		l := s.lend(alice)
		var dialers []*memnet.Host // no more than 16 may be held of one
		for i := range 12 {
			dialers = append(dialers, s.net.Host(fmt.Sprint(i), netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})))
		}
		var whole, cut atomic.Int64
		var group sync.WaitGroup
		for i := range pairs {
			r := mathrand.New(mathrand.NewPCG(uint64(i), 1))
			delay := func() <-chan time.Time { return time.After(time.Duration(r.IntN(3000)) * time.Millisecond) }
			key, size := fmt.Sprint("k", i), r.IntN(300<<10)
			one, other, kill, victim := delay(), delay(), delay(), r.IntN(4)
			legs := make(chan *peer, 2)
			group.Go(func() {
				<-one
				p := s.from(s.owner)
				legs <- p
				_, _ = io.WriteString(p, l.claim(key))          // fails only if it is cut
				if _, err := p.r.ReadString('\n'); err != nil { // its ok
					return
				}
				if _, err := p.r.ReadString('\n'); err != nil { // the key
					return
				}
				if _, err := p.Write(make([]byte, size)); err == nil {
					_ = p.CloseWrite() // fails only if it is cut
				}
				_, _ = io.Copy(io.Discard, p.r)
			})
			group.Go(func() {
				<-other
				p := s.from(dialers[i%len(dialers)])
				legs <- p
				_, _ = io.WriteString(p, "key:"+key+"\n") // fails only if it is cut
				n, err := io.Copy(io.Discard, p.r)
				switch {
				case err == nil && n == int64(size):
					whole.Add(1)
				case err == nil && n > 0 && victim > 1:
					t.Errorf("%d of %d bytes, and a clean end", n, size)
				default:
					cut.Add(1)
				}
				_ = p.CloseWrite() // fails only if it is cut
			})
			group.Go(func() {
				first, second := <-legs, <-legs
				<-kill
				switch victim {
				case 0:
					first.cut()
				case 1:
					second.cut()
				}
			})
		}
		group.Wait()
		s.wait(3 * time.Minute) // whoever has no partner is let go
		got := s.Stats()
		if got.Fresh+got.Waiting+got.Held+got.Streams > 0 || got.LeaseStreams == 0 {
			t.Errorf("left: %+v", got)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.usage) != int(got.LeaseStreams) {
			t.Errorf("%d records of %d streams", len(s.usage), got.LeaseStreams)
		}
		var sum int64
		for _, u := range s.usage {
			sum += u.ToDialer + u.ToListener
		}
		if sum != got.BytesOut {
			t.Errorf("the records have %d bytes, the counter %d", sum, got.BytesOut)
		}
		if whole.Load() < pairs/3 || cut.Load() < pairs/10 {
			t.Errorf("%d streams were whole, %d cut: this tests too little", whole.Load(), cut.Load())
		}
	})
}
