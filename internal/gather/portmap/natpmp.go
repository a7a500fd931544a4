package portmap

import (
	"context"
	"encoding/binary"
	"net/netip"
	"time"
)

// NAT-PMP, RFC 6886: for gateways that do not know PCP, its successor.

const (
	natpmpVersion  = 0
	natpmpExternal = 0 // operation codes
	natpmpMapTCP   = 2
	natpmpResponse = 0x80 // bit of the operation code
)

// natpmpResults are the result codes of RFC 6886, 3.5.
var natpmpResults = [...]string{1: "unsupported version", 2: "not authorized", 3: "network failure", 4: "out of resources", 5: "unsupported opcode"}

// natpmpRequestMap asks for a mapping (RFC 6886, 3.3), or for its removal if
// seconds is zero, when the external port must be zero, too (3.4).
func natpmpRequestMap(internal, external uint16, seconds uint32) []byte {
	b := []byte{natpmpVersion, natpmpMapTCP, 0, 0}
	b = binary.BigEndian.AppendUint16(b, internal)
	b = binary.BigEndian.AppendUint16(b, external)
	return binary.BigEndian.AppendUint32(b, seconds)
}

// natpmpRequestExternal asks for the external address (RFC 6886, 3.2).
func natpmpRequestExternal() []byte { return []byte{natpmpVersion, natpmpExternal} }

// A natpmpAnswer is a response to either request. What its operation does not
// have, and what a failed one does not, is zero.
type natpmpAnswer struct {
	operation          byte
	result             uint16
	epoch              uint32
	addr               netip.Addr // natpmpExternal
	internal, external uint16     // natpmpMapTCP
	lifetime           uint32
}

// parseNATPMP reads a response, or the announcement of an external address.
func parseNATPMP(b []byte) (natpmpAnswer, error) {
	if len(b) < 8 || b[0] != natpmpVersion || b[1]&natpmpResponse == 0 {
		return natpmpAnswer{}, errUnusable
	}
	a := natpmpAnswer{operation: b[1] &^ natpmpResponse, result: binary.BigEndian.Uint16(b[2:]), epoch: binary.BigEndian.Uint32(b[4:])}
	switch {
	case a.result != 0: // may be shorter than a success
	case a.operation == natpmpExternal && len(b) == 12:
		a.addr = netip.AddrFrom4([4]byte(b[8:12]))
	case a.operation == natpmpMapTCP && len(b) == 16:
		a.internal, a.external = binary.BigEndian.Uint16(b[8:]), binary.BigEndian.Uint16(b[10:])
		a.lifetime = binary.BigEndian.Uint32(b[12:])
	default:
		return natpmpAnswer{}, errUnusable
	}
	return a, nil
}

// A natpmpSpeaker asks one gateway by NAT-PMP.
type natpmpSpeaker struct {
	asker
	port    uint16
	suggest uint16
}

func (n *natpmpSpeaker) ask(ctx context.Context) (lease, error) {
	requests := [][]byte{natpmpRequestExternal(), natpmpRequestMap(n.port, n.suggest, uint32(lifetime/time.Second))}
	var addr netip.Addr
	var mapped natpmpAnswer
	err := n.exchange(ctx, requests, func(b []byte) (bool, error) {
		a, err := n.parse(b)
		if err != nil {
			return a.result != 0, err
		}
		switch {
		case a.operation == natpmpExternal:
			addr = a.addr
		case a.lifetime == 0:
			return false, errUnusable
		default:
			mapped = a
		}
		return addr.IsValid() && mapped.lifetime != 0, nil
	})
	if err != nil {
		return lease{}, err
	}
	external := netip.AddrPortFrom(addr, mapped.external)
	if !usable(external) {
		return lease{}, errUnusable
	}
	n.suggest = mapped.external
	return lease{external: external, lifetime: min(time.Duration(mapped.lifetime)*time.Second, maxLifetime)}, nil
}

func (n *natpmpSpeaker) remove(ctx context.Context) error {
	return n.exchange(ctx, [][]byte{natpmpRequestMap(n.port, 0, 0)}, func(b []byte) (bool, error) {
		a, err := n.parse(b)
		return err == nil && a.operation == natpmpMapTCP || a.result != 0, err
	})
}

// parse reads an answer to us. An error with a result is a refusal.
func (n *natpmpSpeaker) parse(b []byte) (natpmpAnswer, error) {
	a, err := parseNATPMP(b)
	switch {
	case err != nil:
		return a, err
	case a.result != 0:
		return a, &refusal{text: "the gateway says " + named(natpmpResults[:], int(a.result))}
	case a.operation == natpmpMapTCP && a.internal != n.port:
		return natpmpAnswer{}, errUnusable
	}
	n.heard(a.epoch)
	return a, nil
}
