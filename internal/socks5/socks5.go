// Package socks5 is the little of SOCKS5 (RFC 1928) that SOCKS5 bytestreams use
// (XEP-0065): no authentication, and CONNECT to a "host" whose name is a hash
// that both ends of a bytestream know. No host is ever looked up or dialed.
//
// Both halves of the handshake are here: [Read] and [Request.Answer] for a
// proxy, [Connect] for its clients. They take exactly the bytes of the handshake
// out of the connection, in whatever pieces these come, and at most 519 of them;
// what follows stays. Deadlines are the caller's. There is no state besides.
//
// Nothing is secret or proven: who knows the hash takes part. What is sent over
// a bytestream must be protected by other means.
package socks5

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// AddrLen is the length of a DST.ADDR of XEP-0065: a SHA-1 in hexadecimal.
const AddrLen = 2 * sha1.Size

// Bytes of RFC 1928, 3 to 6.
const (
	version    = 5
	noAuth     = 0    // the method "no authentication required"
	noMethod   = 0xFF // none of the methods offered
	connect    = 1
	typeIPv4   = 1
	typeDomain = 3
	typeIPv6   = 4
)

// Reply is a proxy's word on a request (RFC 1928, 6).
type Reply byte

// The replies that a proxy of XEP-0065 has a use for.
const (
	Succeeded           Reply = 0
	GeneralFailure      Reply = 1
	NotAllowed          Reply = 2
	CommandNotSupported Reply = 7
	AddressNotSupported Reply = 8
)

var replies = []string{
	"succeeded", "general failure", "not allowed", "network unreachable", "host unreachable",
	"connection refused", "TTL expired", "command not supported", "address type not supported",
}

// String returns r in words.
func (r Reply) String() string {
	if int(r) < len(replies) {
		return replies[r]
	}
	return fmt.Sprintf("reply %d", byte(r))
}

// ReplyError is the error of [Connect] when the proxy refused.
type ReplyError struct{ Reply Reply }

// Error implements error.
func (e *ReplyError) Error() string { return "socks5: the proxy refused: " + e.Reply.String() }

// Errors for a peer that does not speak what XEP-0065 uses.
var (
	ErrVersion = errors.New("socks5: not version 5")
	ErrMethod  = errors.New("socks5: no common method of authentication")
	ErrCommand = errors.New("socks5: not a request to connect")
	ErrAddress = errors.New("socks5: not the address of a bytestream")
)

// DstAddr returns the DST.ADDR of a bytestream: the SHA-1 of its id, its
// requester and its target, in hexadecimal (XEP-0065, 6.3.2). The addresses are
// those that stand in the iqs of the two, in canonical form.
func DstAddr(sid, requester, target string) string {
	sum := sha1.Sum([]byte(sid + requester + target))
	return hex.EncodeToString(sum[:])
}

// Request is a client's wish to be connected, which waits for its answer.
type Request struct {
	Addr string // DST.ADDR: AddrLen hexadecimal digits, in lower case

	// What came, from the type of the address to its port: the answer repeats
	// it (XEP-0065, 6.3.2).
	bound []byte
}

// Read does the proxy's half of the handshake on a new connection, up to and
// with the request. What it refuses it has answered; the caller then closes.
// The port is not looked at (XEP-0065, 10.1). Errors are those of this package
// or of rw.
func Read(rw io.ReadWriter) (Request, error) {
	var buf [4 + 1 + 255 + 2]byte
	b := buf[:]
	if _, err := io.ReadFull(rw, b[:2]); err != nil {
		return Request{}, err
	}
	if b[0] != version {
		return Request{}, ErrVersion
	}
	methods := b[:b[1]]
	if _, err := io.ReadFull(rw, methods); err != nil {
		return Request{}, err
	}
	if bytes.IndexByte(methods, noAuth) < 0 {
		_, _ = rw.Write([]byte{version, noMethod}) // it is over in any case
		return Request{}, ErrMethod
	}
	if _, err := rw.Write([]byte{version, noAuth}); err != nil {
		return Request{}, err
	}

	// Version, command, a reserved byte, the type of the address, its first byte.
	if _, err := io.ReadFull(rw, b[:5]); err != nil {
		return Request{}, err
	}
	if b[0] != version {
		return Request{}, ErrVersion
	}
	n, ok := addrSize(b[3], b[4])
	if !ok { // where it ends nobody knows
		r := Request{bound: []byte{typeIPv4, 0, 0, 0, 0, 0, 0}}
		return Request{}, r.refuse(rw, AddressNotSupported, ErrAddress)
	}
	r := Request{bound: b[3 : 4+n+2]}
	// A refusal, too, waits for the whole request: to close a connection with
	// bytes unread would reset it, and the refusal might be lost.
	if _, err := io.ReadFull(rw, b[5:4+n+2]); err != nil {
		return Request{}, err
	}
	switch {
	case b[1] != connect:
		return Request{}, r.refuse(rw, CommandNotSupported, ErrCommand)
	case b[3] != typeDomain:
		return Request{}, r.refuse(rw, AddressNotSupported, ErrAddress)
	}
	addr := b[5 : 4+n]
	if !isAddr(addr) {
		return Request{}, r.refuse(rw, NotAllowed, ErrAddress)
	}
	return Request{Addr: string(bytes.ToLower(addr)), bound: bytes.Clone(r.bound)}, nil
}

// Answer returns what tells the client what becomes of its request. It is to be
// sent once.
func (r Request) Answer(reply Reply) []byte {
	return append([]byte{version, byte(reply), 0}, r.bound...)
}

func (r Request) refuse(w io.Writer, reply Reply, err error) error {
	_, _ = w.Write(r.Answer(reply)) // it is over in any case
	return err
}

// Connect does the client's half of the handshake on a new connection: it asks
// for the bytestream addr, and returns when the proxy has agreed. Each of its
// two messages is one write, and neither goes out before its turn: Prosody's
// proxy takes a segment for a message. Errors are a [*ReplyError], others of
// this package, or those of rw.
func Connect(rw io.ReadWriter, addr string) error {
	if !isAddr([]byte(addr)) {
		return ErrAddress
	}
	if _, err := rw.Write([]byte{version, 1, noAuth}); err != nil {
		return err
	}
	var buf [4 + 1 + 255 + 2]byte
	b := buf[:]
	if _, err := io.ReadFull(rw, b[:2]); err != nil {
		return err
	}
	switch {
	case b[0] != version:
		return ErrVersion
	case b[1] != noAuth:
		return ErrMethod
	}
	request := append([]byte{version, connect, 0, typeDomain, AddrLen}, addr...)
	if _, err := rw.Write(append(request, 0, 0)); err != nil {
		return err
	}
	// A proxy that refuses may close before it has said all of its reply.
	if _, err := io.ReadFull(rw, b[:2]); err != nil {
		return err
	}
	switch {
	case b[0] != version:
		return ErrVersion
	case Reply(b[1]) != Succeeded:
		return &ReplyError{Reply(b[1])}
	}
	// What address the proxy says it has bound is of no use, but its bytes must
	// not end up in the stream.
	if _, err := io.ReadFull(rw, b[2:5]); err != nil {
		return err
	}
	n, ok := addrSize(b[3], b[4])
	if !ok {
		return ErrAddress
	}
	_, err := io.ReadFull(rw, b[5:4+n+2])
	return err
}

// addrSize returns how many bytes an address takes, its length included, from
// its type and its first byte (RFC 1928, 5).
func addrSize(kind, first byte) (n int, ok bool) {
	switch kind {
	case typeIPv4:
		return 4, true
	case typeIPv6:
		return 16, true
	case typeDomain:
		return 1 + int(first), true
	}
	return 0, false
}

func isAddr(b []byte) bool {
	var sum [sha1.Size]byte
	n, err := hex.Decode(sum[:], b[:min(len(b), AddrLen)])
	return err == nil && n == len(sum) && len(b) == AddrLen
}
