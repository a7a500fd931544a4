// Package stun asks a STUN server over TCP from which address it sees a
// connection come (RFC 8489): the address that a NAT gave to the local port.
//
// It is the part of a client that needs no credentials: one Binding request and
// its answer, on a connection that the caller has made from the port in question
// and keeps open while the port is offered. The servers are found elsewhere, as
// by XEP-0215.
//
// The server can lie: what it says is a candidate, and nothing is trusted for
// being at that address.
package stun

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"
)

// The fixed parts of a message: RFC 8489, 5, 14 and 18.
const (
	headerSize     = 20
	maxBody        = 1 << 11 // bytes of attributes; a Binding answer has some 50
	cookie         = 0x2112A442
	bindingRequest = 0x0001
	bindingSuccess = 0x0101
	bindingError   = 0x0111

	mappedAddress    = 0x0001
	errorCode        = 0x0009
	unknownAttrs     = 0x000a
	xorMappedAddress = 0x0020
	optional         = 0x8000 // attributes from here on need not be understood
	familyIPv4       = 0x01
	familyIPv6       = 0x02
)

// limit bounds a question and its answer when the caller's context does not:
// the Ti of RFC 8489, 6.2.2, is 39.5 s, too long for an offer.
const limit = 5 * time.Second

// An Error is a server's refusal (RFC 8489, 14.8).
type Error struct {
	Code int // 300 to 699; 300 is a server that wants another one to be asked
}

func (e *Error) Error() string { return fmt.Sprintf("stun: the server refuses with code %d", e.Code) }

var errMalformed = errors.New("stun: the answer is malformed")

// Ask sends a Binding request and returns the address that the server sees. It
// may be called again on the same connection, which keeps the NAT's mapping
// alive, but not by two goroutines at once. It fails after 5 s, or earlier when
// ctx ends, and then the connection is of no more use. Ask sets the connection's
// deadlines, and leaves none behind.
func Ask(ctx context.Context, conn net.Conn) (netip.AddrPort, error) {
	seen, err := ask(ctx, conn)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errors.New("stun: the server does not answer")
	}
	return seen, err
}

func ask(ctx context.Context, conn net.Conn) (netip.AddrPort, error) {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return netip.AddrPort{}, fmt.Errorf("stun: %w", err)
	}
	aborted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(aborted)
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-aborted
		}
		_ = conn.SetDeadline(time.Time{})
	}()

	request := appendRequest(nil)
	if _, err := conn.Write(request); err != nil {
		return netip.AddrPort{}, fmt.Errorf("stun: %w", err)
	}
	answer := make([]byte, headerSize, headerSize+maxBody)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return netip.AddrPort{}, fmt.Errorf("stun: %w", err)
	}
	// Over TCP the length in the header is all the framing (RFC 8489, 6.2.2).
	length := binary.BigEndian.Uint16(answer[2:])
	if length > maxBody {
		return netip.AddrPort{}, errMalformed
	}
	answer = answer[:headerSize+int(length)]
	if _, err := io.ReadFull(conn, answer[headerSize:]); err != nil {
		return netip.AddrPort{}, fmt.Errorf("stun: %w", err)
	}
	return parse(answer, request[4:headerSize])
}

// appendRequest writes a Binding request with a new transaction id.
func appendRequest(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, bindingRequest)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint32(b, cookie)
	var id [12]byte
	_, _ = rand.Read(id[:])
	return append(b, id[:]...)
}

// parse reads the answer to the request with that cookie and id.
func parse(b, id []byte) (netip.AddrPort, error) {
	if len(b) < headerSize || len(b) != headerSize+int(binary.BigEndian.Uint16(b[2:])) || len(b)%4 != 0 || !bytes.Equal(b[4:headerSize], id) {
		return netip.AddrPort{}, errMalformed
	}
	kind := binary.BigEndian.Uint16(b)
	if kind != bindingSuccess && kind != bindingError {
		return netip.AddrPort{}, errMalformed
	}
	var seen netip.AddrPort
	var refusal *Error
	for rest := b[headerSize:]; len(rest) > 0; {
		// The body is a multiple of 4, and so is every attribute with its padding.
		attr, length := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		padded := (length + 3) &^ 3
		if padded > len(rest)-4 {
			return netip.AddrPort{}, errMalformed
		}
		value := rest[4 : 4+length]
		rest = rest[4+padded:]
		switch {
		case attr == xorMappedAddress:
			// Preferred: there are NATs that rewrite any address they find.
			xored, err := parseAddress(value)
			if err != nil {
				return netip.AddrPort{}, err
			}
			seen = unxor(xored, id)
		case attr == mappedAddress && !seen.IsValid():
			plain, err := parseAddress(value)
			if err != nil {
				return netip.AddrPort{}, err
			}
			seen = plain
		case attr == errorCode && kind == bindingError && refusal == nil:
			if len(value) < 4 || value[2]&7 < 3 || value[2]&7 > 6 || value[3] > 99 {
				return netip.AddrPort{}, errMalformed
			}
			refusal = &Error{Code: int(value[2]&7)*100 + int(value[3])}
		case attr < optional && attr != mappedAddress && attr != errorCode && attr != unknownAttrs:
			return netip.AddrPort{}, errMalformed // RFC 8489, 6.3.3
		}
	}
	switch {
	case refusal != nil:
		return netip.AddrPort{}, refusal
	case kind == bindingError || seen.Port() == 0 || !seen.Addr().IsValid() || seen.Addr().IsUnspecified():
		return netip.AddrPort{}, errMalformed
	}
	return netip.AddrPortFrom(seen.Addr().Unmap(), seen.Port()), nil
}

// parseAddress reads the value of an address attribute (RFC 8489, 14.1).
func parseAddress(b []byte) (netip.AddrPort, error) {
	if len(b) < 4 {
		return netip.AddrPort{}, errMalformed
	}
	addr, ok := netip.AddrFromSlice(b[4:])
	if family := b[1]; !ok || addr.Is4() != (family == familyIPv4) || addr.Is6() != (family == familyIPv6) {
		return netip.AddrPort{}, errMalformed
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[2:])), nil
}

// unxor undoes what hides an address from NATs: XOR with the cookie and the
// transaction id (RFC 8489, 14.2).
func unxor(a netip.AddrPort, id []byte) netip.AddrPort {
	addr := a.Addr().AsSlice()
	for i := range addr {
		addr[i] ^= id[i]
	}
	plain, _ := netip.AddrFromSlice(addr)
	return netip.AddrPortFrom(plain, a.Port()^cookie>>16)
}
