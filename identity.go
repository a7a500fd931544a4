package dtcp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/tyler-smith/go-bip39/wordlists"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// Fingerprint is the SHA-256 of a whole certificate, by which a peer is known.
// It is comparable; the zero Fingerprint is none.
type Fingerprint [sha256.Size]byte

// FingerprintOf returns the fingerprint of a certificate in DER.
func FingerprintOf(der []byte) Fingerprint { return sha256.Sum256(der) }

// ParseFingerprint reads 64 hexadecimal digits of either case, with or without
// colons between the bytes, and with or without "sha256:" before them.
func ParseFingerprint(s string) (Fingerprint, error) {
	var f Fingerprint
	digits := strings.ReplaceAll(strings.TrimPrefix(s, "sha256:"), ":", "")
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) != len(f) {
		return f, fmt.Errorf("dtcp: %.100q is no SHA-256 fingerprint (64 hexadecimal digits)", s)
	}
	copy(f[:], b)
	return f, nil
}

// String returns the form of Section 2 of protocol.md: upper-case hex with
// colons.
func (f Fingerprint) String() string {
	b := make([]byte, 0, 3*len(f))
	for i, c := range f {
		if i > 0 {
			b = append(b, ':')
		}
		b = fmt.Appendf(b, "%02X", c)
	}
	return string(b)
}

// IsZero reports whether f is no fingerprint.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

// NewCertificate makes a self-signed certificate with a new P-256 key. Nothing
// in it tells who made it: names, dates and issuers of pinned certificates are
// not checked (Section 2 of protocol.md), and so it says nothing.
func NewCertificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("dtcp: making a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("dtcp: making a certificate: %w", err)
	}
	template := x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "dtcp"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280, 4.1.2.5: no expiry
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("dtcp: making a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Phrase returns 12 words that two people compare by voice, for a server
// between them could lie about fingerprints: 132 bits of a hash of both
// fingerprints and both bare addresses, the same on both ends whoever calls
// whom (Section 5 of protocol.md). The words are those of BIP-39, in English.
func Phrase(a jid.JID, fa Fingerprint, b jid.JID, fb Fingerprint) string {
	one, two := phraseHalf(a, fa), phraseHalf(b, fb)
	if two < one {
		one, two = two, one
	}
	sum := sha256.Sum256([]byte("dtcp phrase\x00" + one + "\x00" + two))
	n := new(big.Int).SetBytes(sum[:])
	n.Rsh(n, uint(8*len(sum)-phraseWords*bitsPerWord))
	mask := big.NewInt(1<<bitsPerWord - 1)
	words := make([]string, phraseWords)
	for i := range words {
		index := new(big.Int).And(n, mask).Int64()
		words[len(words)-1-i] = wordlists.English[index]
		n.Rsh(n, bitsPerWord)
	}
	return strings.Join(words, " ")
}

const (
	phraseWords = 12
	bitsPerWord = 11 // 2,048 words
)

func phraseHalf(j jid.JID, f Fingerprint) string { return j.Bare().String() + "\x00" + f.String() }
