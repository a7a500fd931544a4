package portmap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// PCP, RFC 6887: the part that maps a TCP port.

const (
	pcpVersion  = 2
	pcpAnnounce = 0 // operation codes
	pcpMap      = 1
	pcpResponse = 0x80 // bit of the operation code
	pcpHeader   = 24   // bytes of a header, and of an announcement
	pcpSize     = 60   // bytes of a header and a mapping
	pcpMaxSize  = 1100 // bytes, RFC 6887, 7
	tcp         = 6    // IANA's number of the protocol
)

// maxLifetime is the longest that a client believes (RFC 6887, 15).
const maxLifetime = 24 * time.Hour

// A mapping is what a MAP request asks for, or its answer grants.
type mapping struct {
	lifetime uint32 // seconds; zero asks to remove the mapping
	client   netip.Addr
	nonce    [12]byte
	internal uint16
	external netip.AddrPort // suggested, or assigned
}

// append writes the request (RFC 6887, 7.1 and 11.1).
func (m mapping) append(b []byte) []byte {
	b = append(b, pcpVersion, pcpMap, 0, 0)
	b = binary.BigEndian.AppendUint32(b, m.lifetime)
	client, external := m.client.As16(), m.external.Addr().As16()
	b = append(b, client[:]...)
	b = append(b, m.nonce[:]...)
	b = append(b, tcp, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, m.internal)
	b = binary.BigEndian.AppendUint16(b, m.external.Port())
	return append(b, external[:]...)
}

// A pcpAnswer is a response to a MAP request (RFC 6887, 7.2 and 11.1), or an
// announcement, which has no mapping. Of the mapping, client is not set.
type pcpAnswer struct {
	operation byte
	result    byte
	epoch     uint32
	mapping
}

// errOtherVersion says that whoever answered speaks another version, which on
// this port is NAT-PMP (RFC 6887, appendix A).
var errOtherVersion = errors.New("the gateway does not speak PCP")

// parsePCP reads a response.
func parsePCP(b []byte) (pcpAnswer, error) {
	switch {
	case len(b) >= 4 && b[0] != pcpVersion && b[1]&pcpResponse != 0:
		return pcpAnswer{}, errOtherVersion
	case len(b) < pcpHeader || len(b) > pcpMaxSize || len(b)%4 != 0 || b[0] != pcpVersion || b[1]&pcpResponse == 0:
		return pcpAnswer{}, errUnusable
	}
	a := pcpAnswer{operation: b[1] &^ pcpResponse, result: b[3], epoch: binary.BigEndian.Uint32(b[8:])}
	a.lifetime = binary.BigEndian.Uint32(b[4:])
	switch {
	case a.operation == pcpAnnounce:
		return a, nil
	case a.operation != pcpMap || len(b) < pcpSize || b[36] != tcp:
		return pcpAnswer{}, errUnusable
	}
	copy(a.nonce[:], b[24:36])
	a.internal = binary.BigEndian.Uint16(b[40:])
	a.external = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[44:60])).Unmap(), binary.BigEndian.Uint16(b[42:]))
	return a, nil
}

// The result codes of RFC 6887, 7.4.
const (
	pcpSuccess            = 0
	pcpUnsupportedVersion = 1
)

var pcpResults = [...]string{
	pcpUnsupportedVersion: "UNSUPP_VERSION", 2: "NOT_AUTHORIZED", 3: "MALFORMED_REQUEST", 4: "UNSUPP_OPCODE", 5: "UNSUPP_OPTION",
	6: "MALFORMED_OPTION", 7: "NETWORK_FAILURE", 8: "NO_RESOURCES", 9: "UNSUPP_PROTOCOL", 10: "USER_EX_QUOTA",
	11: "CANNOT_PROVIDE_EXTERNAL", 12: "ADDRESS_MISMATCH", 13: "EXCESSIVE_REMOTE_PEERS",
}

// named returns the name of a result, as far as the table has it.
func named(names []string, code int) string {
	if code < len(names) && names[code] != "" {
		return fmt.Sprintf("%s (%d)", names[code], code)
	}
	return fmt.Sprintf("result %d", code)
}

// A pcpSpeaker asks one gateway by PCP.
type pcpSpeaker struct {
	asker
	port    uint16
	nonce   [12]byte // of all our requests: it makes renewals ours
	suggest netip.AddrPort
}

// newPCP begins with the suggestion that the outside be as the inside: the same
// port and, through a firewall, the same address.
func newPCP(a asker, port uint16, nonce [12]byte) *pcpSpeaker {
	external := netip.IPv4Unspecified()
	if a.gateway.Source.Is6() {
		external = a.gateway.Source
	}
	return &pcpSpeaker{asker: a, port: port, nonce: nonce, suggest: netip.AddrPortFrom(external, port)}
}

func (p *pcpSpeaker) ask(ctx context.Context) (lease, error) {
	a, err := p.request(ctx, uint32(lifetime/time.Second))
	if err != nil {
		return lease{}, err
	}
	granted := min(time.Duration(a.lifetime)*time.Second, maxLifetime)
	if granted == 0 || !usable(a.external) {
		return lease{}, errUnusable
	}
	p.suggest = a.external
	return lease{external: a.external, lifetime: granted}, nil
}

func (p *pcpSpeaker) remove(ctx context.Context) error {
	_, err := p.request(ctx, 0)
	return err
}

// request asks for a mapping of so many seconds.
func (p *pcpSpeaker) request(ctx context.Context, seconds uint32) (answer pcpAnswer, err error) {
	ask := mapping{lifetime: seconds, client: p.gateway.Source, nonce: p.nonce, internal: p.port, external: p.suggest}
	err = p.exchange(ctx, [][]byte{ask.append(nil)}, func(b []byte) (bool, error) {
		a, err := parsePCP(b)
		switch {
		case errors.Is(err, errOtherVersion), err == nil && a.result == pcpUnsupportedVersion:
			return true, &refusal{text: errOtherVersion.Error()}
		case err != nil || a.operation != pcpMap || a.nonce != p.nonce || a.internal != p.port:
			return false, errUnusable
		case a.result != pcpSuccess:
			return true, &refusal{
				text:  "the gateway says " + named(pcpResults[:], int(a.result)),
				retry: time.Duration(a.lifetime) * time.Second,
			}
		}
		answer = a
		p.heard(a.epoch)
		return true, nil
	})
	return answer, err
}

// usable reports whether an address can be that of a mapping at all. Private
// ones can: see [Result.DoubleNAT].
func usable(a netip.AddrPort) bool {
	return a.Port() != 0 && a.Addr().IsGlobalUnicast()
}
