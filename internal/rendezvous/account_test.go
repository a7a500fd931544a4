package rendezvous_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

func TestAccounts(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.server.SetLimits(rendezvous.Limits{Accounts: 5})
		for _, bad := range []struct{ name, password string }{
			{"", "x"}, {"tybalt", ""}, {"a@b", "x"}, {"a b", "x"}, {"tybalt", "a\x00b"}, {strings.Repeat("x", 2000), "x"},
		} {
			if err := w.server.SetAccount(bad.name, bad.password); err == nil {
				t.Errorf("SetAccount(%.20q, %q) succeeded", bad.name, bad.password)
			}
		}
		for _, name := range []string{"Tybalt", "tybalt", "mercutio"} {
			if err := w.server.SetAccount(name, "password of "+name); err != nil {
				t.Error(err)
			}
		}
		if err := w.server.SetAccount("paris", "x"); !errors.Is(err, rendezvous.ErrManyAccounts) {
			t.Errorf("a sixth account: %v", err)
		}
		if got, want := w.server.Accounts(), []string{"juliet", "mercutio", "nurse", "romeo", "tybalt"}; !slices.Equal(got, want) {
			t.Errorf("Accounts: %q, want %q", got, want)
		}
		// The last password counts; streams that are open stay.
		before := w.login(juliet, "balcony")
		if err := w.server.SetAccount("juliet", "new"); err != nil {
			t.Fatal(err)
		}
		before.sync()
		c := w.dial()
		c.directTLS(&tls.Config{})
		for _, try := range []struct{ name, password, want string }{
			{"juliet", password("juliet"), "failure"},
			{"tybalt", "password of Tybalt", "failure"},
			{"TYBALT", "password of tybalt", "success"},
		} {
			if e := c.authPlain("", try.name, try.password); e.Name.Local != try.want {
				t.Errorf("%s with %q: %v", try.name, try.password, e)
			}
		}
		c.bind("")
		if c.jid.Bare() != jid.MustParse("tybalt@example.org") {
			t.Errorf("logged in as %v", c.jid)
		}
	})
}

func TestNew(t *testing.T) {
	cert, err := rendezvous.SelfSigned(domain, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]rendezvous.Config{
		"no domain":          {Certificate: cert},
		"malformed domain":   {Domain: "a@b", Certificate: cert},
		"no certificate":     {Domain: domain},
		"no real one":        {Domain: domain, Certificate: tls.Certificate{Certificate: [][]byte{{1}}}},
		"too few iterations": {Domain: domain, Certificate: cert, Iterations: 4095},
	} {
		if _, err := rendezvous.New(c); err == nil || !strings.HasPrefix(err.Error(), "rendezvous: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	cert.Leaf = nil
	s, err := rendezvous.New(rendezvous.Config{Domain: domain, Certificate: cert})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestSelfSigned(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for domain, host := range map[string]string{
		"example.org":    "example.org",
		"Example.ORG":    "example.org",
		"bücher.example": "xn--bcher-kva.example",
		"localhost":      "localhost",
		"127.0.0.1":      "127.0.0.1",
		"[2001:db8::1]":  "2001:db8::1",
		strings.Repeat("a", 60) + "." + strings.Repeat("b", 60): strings.Repeat("a", 60) + "." + strings.Repeat("b", 60),
	} {
		cert, err := rendezvous.SelfSigned(domain, now)
		if err != nil {
			t.Errorf("%s: %v", domain, err)
			continue
		}
		roots := x509.NewCertPool()
		roots.AddCert(cert.Leaf)
		for _, at := range []time.Time{now, now.Add(-time.Hour), now.AddDate(9, 11, 0)} {
			if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host, CurrentTime: at}); err != nil {
				t.Errorf("%s at %v: %v", domain, at, err)
			}
		}
		if err := cert.Leaf.VerifyHostname("other.example"); err == nil {
			t.Errorf("%s is valid for any name", domain)
		}
	}
	for _, bad := range []string{"", "a@b", "a/b", "[::1"} {
		if _, err := rendezvous.SelfSigned(bad, now); err == nil {
			t.Errorf("SelfSigned(%q) succeeded", bad)
		}
	}
}

// TestCertificateWithoutEndpointBinding: RFC 5929 names no hash for Ed25519, so
// that TLS 1.2 has no channel binding at all, and nothing announces one.
func TestCertificateWithoutEndpointBinding(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var der []byte
	make := func(c *rendezvous.Config) {
		template := x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{domain}}
		if der, err = x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key); err != nil {
			t.Fatal(err)
		}
		c.Certificate = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	inBubble(t, make, func(t *testing.T, w *world) {
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		w.roots.AddCert(leaf)
		for version, want := range map[uint16]string{
			tls.VersionTLS12: "",
			tls.VersionTLS13: "<sasl-channel-binding xmlns='urn:xmpp:sasl-cb:0'><channel-binding type='tls-exporter'/></sasl-channel-binding>",
		} {
			c := w.dial()
			f := c.directTLS(&tls.Config{MaxVersion: version})
			if got := f.Child("urn:xmpp:sasl-cb:0", "sasl-channel-binding"); got.IsZero() != (want == "") || (want != "" && !match(got, parse(t, want))) {
				t.Errorf("TLS %x: %v", version, f)
			}
			if strings.Contains(f.String(), "-PLUS") != (want != "") {
				t.Errorf("TLS %x: %v", version, f)
			}
			if want == "" {
				c.write("<auth" + saslNS + " mechanism='SCRAM-SHA-1-PLUS'>" + b64("p=tls-server-end-point,,n=juliet,r=a") + "</auth>")
				c.want("<failure" + saslNS + "><invalid-mechanism/></failure>")
			}
		}
	})
}
