package portmap

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/huin/goupnp"
	"github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/soap"
)

// Limits of what a gateway may do to us.
const (
	maxDescription = 256 << 10 // bytes of an HTTP answer's body
	maxHTTPHeader  = 16 << 10
	callLimit      = 3 * time.Second
	upnpLimit      = 8 * time.Second // all calls of one asking
	description    = "dtcp"          // what the gateway's own pages call the mapping
)

// A connection is a service that maps ports: WANIPConnection of version 1 or
// 2, or WANPPPConnection.
type connection interface {
	GetExternalIPAddressCtx(ctx context.Context) (string, error)
	AddPortMappingCtx(ctx context.Context, remoteHost string, external uint16, protocol string, internal uint16, client string,
		enabled bool, description string, lease uint32) error
	DeletePortMappingCtx(ctx context.Context, remoteHost string, external uint16, protocol string) error
}

// An anyConnection chooses another external port by itself: version 2 only.
type anyConnection interface {
	AddAnyPortMappingCtx(ctx context.Context, remoteHost string, external uint16, protocol string, internal uint16, client string,
		enabled bool, description string, lease uint32) (uint16, error)
}

// A upnpSpeaker asks one gateway by UPnP.
type upnpSpeaker struct {
	asker
	port     uint16
	service  connection // nil: to be searched
	kind     string     // of service
	external uint16     // suggested, or mapped
	mapped   bool       // external is ours
	seconds  uint32     // of life; zero for gateways that know permanent ones only
}

func newUPnP(a asker, port uint16) *upnpSpeaker {
	return &upnpSpeaker{asker: a, port: port, external: port, seconds: uint32(lifetime / time.Second)}
}

func (u *upnpSpeaker) ask(ctx context.Context) (lease, error) {
	ctx, cancel := context.WithTimeout(ctx, upnpLimit)
	defer cancel()
	if u.service != nil {
		l, err := u.mapPort(ctx)
		var refused *refusal
		if err == nil || errors.As(err, &refused) || ctx.Err() != nil {
			return l, err
		}
		u.service = nil // after a restart it may be at another port
	}
	if err := u.find(ctx); err != nil {
		return lease{}, err
	}
	return u.mapPort(ctx)
}

func (u *upnpSpeaker) remove(ctx context.Context) error {
	if u.service == nil || !u.mapped {
		return nil
	}
	u.mapped = false
	return u.explain(ctx, u.service.DeletePortMappingCtx(ctx, "", u.external, "TCP"))
}

// find searches the gateway's service, the best first, and takes the one that
// has an external address: a gateway may have more than one way out.
func (u *upnpSpeaker) find(ctx context.Context) error {
	locations, err := search(ctx, u.gateway)
	if err != nil {
		return err
	}
	client := u.client()
	var roots []*goupnp.RootDevice
	for _, l := range locations {
		root, describeErr := u.describe(ctx, client, l)
		if describeErr != nil {
			err = describeErr
			continue
		}
		roots = append(roots, root)
	}
	if len(roots) == 0 {
		return err
	}
	err = &refusal{text: "the UPnP gateway maps no ports"}
	for _, s := range services(roots, client) {
		if _, addrErr := u.address(ctx, s.connection); addrErr != nil {
			err = addrErr
			continue
		}
		u.service, u.kind = s.connection, s.kind
		return nil
	}
	return err
}

// client speaks HTTP with the gateway and with nobody else, whatever URLs its
// answers name.
func (u *upnpSpeaker) client() *http.Client {
	return &http.Client{
		Timeout:       callLimit,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: limited{&http.Transport{
			DisableKeepAlives:      true, // a mapping is renewed in minutes
			MaxResponseHeaderBytes: maxHTTPHeader,
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				to, err := netip.ParseAddrPort(address)
				if err != nil || to.Addr() != u.gateway.Addr {
					return nil, errElsewhere
				}
				return u.dial(ctx, "tcp", u.gateway.Source, to)
			},
		}},
	}
}

// limited is a transport whose answers have a limited length.
type limited struct{ http.RoundTripper }

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := l.RoundTripper.RoundTrip(r)
	if err == nil {
		answer.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(answer.Body, maxDescription), answer.Body}
	}
	return answer, err
}

// errDescription says that a device's description cannot be had or read.
var errDescription = errors.New("the UPnP gateway does not describe itself properly")

// describe fetches what the gateway says of itself.
func (u *upnpSpeaker) describe(ctx context.Context, client *http.Client, location *url.URL) (*goupnp.RootDevice, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, location.String(), nil)
	if err != nil {
		return nil, errDescription
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, u.explain(ctx, err)
	}
	defer answer.Body.Close()
	root, err := parseDescription(answer.Body, location)
	if err != nil || answer.StatusCode != http.StatusOK {
		return nil, errDescription
	}
	return root, nil
}

// parseDescription reads a description, which names its URLs relative to a base
// or to its own location.
func parseDescription(r io.Reader, location *url.URL) (*goupnp.RootDevice, error) {
	d := xml.NewDecoder(r)
	d.DefaultSpace = goupnp.DeviceXMLNamespace
	// What is not ASCII is in names, which nobody reads here.
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	root := new(goupnp.RootDevice)
	if err := d.Decode(root); err != nil {
		return nil, errDescription
	}
	base := location
	if root.URLBaseStr != "" {
		var err error
		if base, err = url.Parse(root.URLBaseStr); err != nil {
			return nil, errDescription
		}
	}
	root.SetURLBase(base)
	return root, nil
}

// A service is a connection and what it is called.
type service struct {
	connection
	kind string
}

// services returns the connections of the devices, the best kind first.
func services(roots []*goupnp.RootDevice, client *http.Client) []service {
	var two, one, ppp []service
	for _, root := range roots {
		base := root.URLBase
		// The errors say that there is none.
		v2, _ := internetgateway2.NewWANIPConnection2ClientsFromRootDevice(root, &base)
		for _, c := range v2 {
			c.SOAPClient.HTTPClient = *client
			two = append(two, service{c, "WANIPConnection:2"})
		}
		v1, _ := internetgateway2.NewWANIPConnection1ClientsFromRootDevice(root, &base)
		for _, c := range v1 {
			c.SOAPClient.HTTPClient = *client
			one = append(one, service{c, "WANIPConnection:1"})
		}
		dialUp, _ := internetgateway2.NewWANPPPConnection1ClientsFromRootDevice(root, &base)
		for _, c := range dialUp {
			c.SOAPClient.HTTPClient = *client
			ppp = append(ppp, service{c, "WANPPPConnection:1"})
		}
	}
	return append(append(two, one...), ppp...)
}

// address asks for the external address.
func (u *upnpSpeaker) address(ctx context.Context, c connection) (netip.Addr, error) {
	text, err := c.GetExternalIPAddressCtx(ctx)
	if err != nil {
		return netip.Addr{}, u.explain(ctx, err)
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || !addr.Is4() || !addr.IsGlobalUnicast() {
		return netip.Addr{}, &refusal{text: "the UPnP gateway has no external address"}
	}
	return addr, nil
}

// Error codes of WANIPConnection:2, 2.5, and of the architecture, 3.2.2.
const (
	upnpActionFailed      = 501
	upnpConflict          = 718
	upnpSamePort          = 724
	upnpPermanentOnly     = 725
	upnpNoPorts           = 728
	upnpConflictOtherwise = 729
	upnpNotAuthorized     = 606
)

var upnpErrors = map[int]string{
	401: "invalid action", 402: "invalid arguments", upnpActionFailed: "action failed", 602: "not implemented",
	upnpNotAuthorized: "not authorized", 715: "wildcard not permitted", upnpConflict: "conflict with another mapping",
	upnpSamePort: "same port values required", upnpPermanentOnly: "only permanent leases supported",
	upnpNoPorts: "no port mappings available", upnpConflictOtherwise: "conflict with other mechanisms",
}

// maxPorts is how many external ports are tried; firstPort the least of those
// that are drawn.
const (
	maxPorts  = 5
	firstPort = 1024
)

// mapPort makes or renews the mapping.
func (u *upnpSpeaker) mapPort(ctx context.Context) (lease, error) {
	addr, err := u.address(ctx, u.service)
	if err != nil {
		return lease{}, err
	}
	if err := u.add(ctx); err != nil {
		u.mapped = false
		return lease{}, u.explain(ctx, err)
	}
	u.mapped = true
	return lease{
		external: netip.AddrPortFrom(addr, u.external),
		lifetime: time.Duration(u.seconds) * time.Second,
		detail:   u.kind,
	}, nil
}

// add asks for the port as it is, then for others while the gateway says that
// it is somebody else's. Some say only that they failed.
func (u *upnpSpeaker) add(ctx context.Context) error {
	client := u.gateway.Source.String()
	if anyPort, ok := u.service.(anyConnection); ok && !u.mapped {
		external, err := anyPort.AddAnyPortMappingCtx(ctx, "", u.external, "TCP", u.port, client, true, description, u.seconds)
		if err == nil && external != 0 {
			u.external = external
			return nil
		}
	}
	var err error
	for range maxPorts {
		err = u.service.AddPortMappingCtx(ctx, "", u.external, "TCP", u.port, client, true, description, u.seconds)
		switch code := faultCode(err); {
		case err == nil:
			return nil
		case code == upnpPermanentOnly && u.seconds != 0:
			u.seconds = 0
		case code == upnpConflict, code == upnpConflictOtherwise, code == upnpActionFailed:
			u.external = uint16(firstPort + mathrand.N(1<<16-firstPort))
		default:
			return err
		}
	}
	return err
}

// faultCode returns the error code of an answer, or zero.
func faultCode(err error) int {
	var fault *soap.SOAPFaultError
	if errors.As(err, &fault) {
		return fault.Detail.UPnPError.Errorcode
	}
	return 0
}

// explain says what failed without the gateway's own words.
func (u *upnpSpeaker) explain(ctx context.Context, err error) error {
	var fault *soap.SOAPFaultError
	var refused *refusal
	switch {
	case err == nil || errors.As(err, &refused):
		return err
	case errors.As(err, &fault):
		code := faultCode(err)
		if name := upnpErrors[code]; name != "" {
			return &refusal{text: fmt.Sprintf("the UPnP gateway says: %s (%d)", name, code)}
		}
		return &refusal{text: fmt.Sprintf("the UPnP gateway says: error %d", code)}
	case errors.Is(err, errElsewhere):
		return errElsewhere
	case errors.Is(err, context.DeadlineExceeded), ctx.Err() != nil:
		return errors.New("the UPnP gateway does not answer in time")
	}
	return errors.New("the UPnP gateway does not answer as it should")
}
