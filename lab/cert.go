//go:build linux

package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certFiles are the PEM files of one server.
type certFiles struct {
	CA    string // the authority's certificate: what clients trust
	Chain string // the server's certificate and the authority's
	Key   string // the server's private key, mode 0600
	Both  string // key and chain in one file, as ejabberd wants it
}

// newCertificates makes an authority and a certificate for domain, valid for a
// day, and writes them into dir.
func newCertificates(tb testing.TB, dir, domain string) certFiles {
	tb.Helper()
	now := time.Now()
	caKey, ca := newKey(tb), &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "lab authority of " + domain},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	leafKey, leaf := newKey(tb), &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: domain},
		DNSNames:     []string{domain},
		NotBefore:    ca.NotBefore,
		NotAfter:     ca.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		tb.Fatalf("lab: authority: %v", err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &leafKey.PublicKey, caKey)
	if err != nil {
		tb.Fatalf("lab: certificate of %s: %v", domain, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		tb.Fatalf("lab: key of %s: %v", domain, err)
	}
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	chain := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leafDER}), caPEM...)
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	write := func(name string, data []byte) string {
		file := filepath.Join(dir, name)
		writeFile(tb, file, data)
		return file
	}
	return certFiles{
		CA:    write("ca.pem", caPEM),
		Chain: write("chain.pem", chain),
		Key:   write("key.pem", key),
		Both:  write("both.pem", append(key, chain...)),
	}
}

// newKey makes a P-256 key: the one both servers' TLS stacks take without options.
func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	return key
}

// writeFile writes a file that only its owner can read, with its folder.
func writeFile(tb testing.TB, file string, data []byte) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		tb.Fatalf("lab: %v", err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		tb.Fatalf("lab: %v", err)
	}
}
