package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/dtcp-relay/dtcp/internal/rendezvous"
)

// maxPEM bounds a file of a certificate and its key, in bytes.
const maxPEM = 1 << 20

// keptCertificate returns the self-signed certificate of a name from a file in
// the state directory, and makes both at the first time. Those who pin it
// depend on it, so what is there is never replaced.
func keptCertificate(dir, file, name string, now time.Time) (tls.Certificate, error) {
	path := filepath.Join(dir, file)
	text, err := readUpTo(path, maxPEM)
	if errors.Is(err, fs.ErrNotExist) {
		return newCertificate(path, name, now)
	}
	if err != nil {
		return tls.Certificate{}, err
	}
	if exposed(path) {
		return tls.Certificate{}, fmt.Errorf("all users can read the private key in %s: chmod go= it, or remove it for a new one", path)
	}
	c, err := parseCertificate(text, text)
	if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func newCertificate(path, name string, now time.Time) (tls.Certificate, error) {
	c, err := rendezvous.SelfSigned(name, now)
	if err != nil {
		return c, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return c, err
	}
	var text bytes.Buffer
	_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}) // a buffer takes all
	_ = pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: key})
	return c, replaceFile(path, text.Bytes())
}

// parseCertificate reads a pair in PEM form, with its leaf.
func parseCertificate(certificate, key []byte) (tls.Certificate, error) {
	c, err := tls.X509KeyPair(certificate, key)
	if err == nil && c.Leaf == nil {
		c.Leaf, err = x509.ParseCertificate(c.Certificate[0])
	}
	return c, err
}

// relayCertificate returns what the relay's TLS presents.
func (c *config) relayCertificate(now time.Time) (tls.Certificate, error) {
	if c.Relay.Certificate == "" {
		return keptCertificate(c.State, "relay.pem", c.domain.Domain(), now)
	}
	certificate, err := readUpTo(c.Relay.Certificate, maxPEM)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := readUpTo(c.Relay.Key, maxPEM)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := parseCertificate(certificate, key)
	if err != nil {
		return pair, fmt.Errorf("%s and %s: %w", c.Relay.Certificate, c.Relay.Key, err)
	}
	return pair, nil
}

// pinOf is a certificate as 'dtcp login --trust' wants it.
func pinOf(c tls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	return "sha256:" + hex.EncodeToString(sum[:])
}
