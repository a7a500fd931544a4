package dtcp_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"io"
	"strings"
	"testing"
)

// forger writes TLS 1.3 records of any kind with the keys of a connection
// (RFC 8446, 5.2 and 7), which crypto/tls would not.
type forger struct {
	t      *testing.T
	to     io.Writer // the connection beneath TLS
	secret []byte
	seal   cipher.AEAD
	iv     []byte
	n      uint64 // records sealed with this key
}

// secrets is a tls.Config.KeyLogWriter.
type secrets struct{ bytes.Buffer }

// forger goes on with what the owner of s writes, who has written n records
// since the handshake. label is that of the key log. It speaks the suite that
// crypto/tls prefers on processors with instructions for AES; on others it
// returns nil, and a story has to end.
func (l *secrets) forger(s *secured, to io.Writer, label string, n uint64) *forger {
	s.t.Helper()
	if suite := s.tls.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		s.t.Logf("nothing is checked with %s", tls.CipherSuiteName(suite))
		return nil
	}
	f := &forger{t: s.t, to: to}
	for line := range strings.Lines(l.String()) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == label {
			secret, err := hex.DecodeString(fields[2])
			if err != nil {
				s.t.Fatal(err)
			}
			f.use(secret)
			f.n = n
			return f
		}
	}
	s.t.Fatalf("the key log has no %s", label)
	return nil
}

func (f *forger) expand(label string, n int) []byte {
	f.t.Helper()
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(append(append(info, byte(6+len(label))), "tls13 "...), label...)
	out, err := hkdf.Expand(sha256.New, f.secret, string(append(info, 0)), n)
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

// use changes to another secret.
func (f *forger) use(secret []byte) {
	f.t.Helper()
	f.secret, f.n = secret, 0
	f.iv = f.expand("iv", 12)
	block, err := aes.NewCipher(f.expand("key", 16))
	if err == nil {
		f.seal, err = cipher.NewGCM(block)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// record seals one record of a type.
func (f *forger) record(kind byte, content []byte) {
	f.t.Helper()
	inner := append(bytes.Clone(content), kind)
	header := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(inner)+f.seal.Overhead()))
	nonce := binary.BigEndian.AppendUint64(make([]byte, 4), f.n)
	for i := range nonce {
		nonce[i] ^= f.iv[i]
	}
	f.n++
	f.raw(f.seal.Seal(header, nonce, inner, header))
}

// raw writes what is no sealed record; the other end may be gone.
func (f *forger) raw(b []byte) { _, _ = f.to.Write(b) }

func (f *forger) data(s string)          { f.record(23, []byte(s)) }
func (f *forger) alert(level, what byte) { f.record(21, []byte{level, what}) }
func (f *forger) handshake(kind byte, s string) {
	f.record(22, append([]byte{kind, 0, 0, byte(len(s))}, s...))
}

// keyUpdate goes on to the next key (RFC 8446, 4.6.3 and 7.2).
func (f *forger) keyUpdate(request byte) {
	f.t.Helper()
	f.handshake(24, string([]byte{request}))
	f.use(f.expand("traffic upd", len(f.secret)))
}
