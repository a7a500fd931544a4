package rendezvous

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// SelfSigned makes a certificate for a domain: an IP literal (IPv6 in
// brackets) as an IP subject alternative name, anything else as a DNS name. It
// is valid from an hour before now for ten years, is signed by nobody but
// itself, and has a new ECDSA P-256 key. It is for tests, demonstrations and
// servers whose users pin it.
func SelfSigned(domain string, now time.Time) (tls.Certificate, error) {
	d, err := jid.New("", domain, "")
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("rendezvous: %w", err)
	}
	template := x509.Certificate{
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.AddDate(10, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	literal := strings.TrimSuffix(strings.TrimPrefix(d.Domain(), "["), "]")
	if ip, err := netip.ParseAddr(literal); err == nil {
		template.IPAddresses = []net.IP{ip.AsSlice()}
	} else {
		name, err := idna.Lookup.ToASCII(d.Domain())
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("rendezvous: %w", err)
		}
		template.DNSNames = []string{name}
		// A common name is limited to 64 characters and is for people only.
		template.Subject = pkix.Name{CommonName: name[:min(len(name), 64)]}
	}
	serial := make([]byte, 16)
	rand.Read(serial)
	serial[0] &= 0x7f // positive (RFC 5280, 4.1.2.2)
	template.SerialNumber = new(big.Int).SetBytes(serial)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("rendezvous: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("rendezvous: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("rendezvous: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}
