package portmap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"time"
)

// SSDP, the search of the UPnP Device Architecture, 1.3. The library's own waits
// 2 s for answers even when there is one, asks on every interface, and logs.

// targets are what is searched: the services that map ports, and the device
// that has them, for gateways that answer to nothing else.
var targets = []string{
	"urn:schemas-upnp-org:service:WANIPConnection:2",
	"urn:schemas-upnp-org:service:WANIPConnection:1",
	"urn:schemas-upnp-org:service:WANPPPConnection:1",
	"urn:schemas-upnp-org:device:InternetGatewayDevice:1",
}

// searchWaits are the waits after each sending. Devices answer within a second
// (MX). Once there is an answer, more are awaited for moreWait: a gateway may
// describe its versions 1 and 2 in two places.
var searchWaits = [...]time.Duration{300 * time.Millisecond, 1100 * time.Millisecond}

const (
	moreWait     = 100 * time.Millisecond
	maxLocations = 4
	maxReply     = 2048 // bytes of a packet
)

// errNoDevice says that no gateway answered; errElsewhere, that one did that is
// not on the way to the Internet.
var (
	errNoDevice  = errors.New("no UPnP gateway answers")
	errElsewhere = errors.New("a UPnP gateway answers that is not the default gateway")
)

// search returns where the gateway says that it describes itself.
func search(ctx context.Context, g Gateway) ([]*url.URL, error) {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(g.Source, 0)))
	if err != nil {
		return nil, fmt.Errorf("searching UPnP gateways: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	var found []*url.URL
	last := errNoDevice
	packet := make([]byte, maxReply)
	for _, wait := range searchWaits {
		if err := sendSearch(conn, g); err != nil {
			return nil, err
		}
		end := time.Now().Add(wait)
		for len(found) < maxLocations {
			if err := conn.SetReadDeadline(end); err != nil {
				return nil, failure(ctx, err)
			}
			n, from, err := conn.ReadFromUDPAddrPort(packet)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, failure(ctx, err)
			}
			location, err := parseSearchReply(packet[:n])
			switch {
			case err != nil:
			case from.Addr().Unmap() != g.Addr || location.Hostname() != g.Addr.String():
				last = errElsewhere
			case !slices.ContainsFunc(found, func(u *url.URL) bool { return *u == *location }):
				if len(found) == 0 {
					end = time.Now().Add(moreWait)
				}
				found = append(found, location)
			}
		}
		if len(found) > 0 {
			return found, nil
		}
	}
	return nil, last
}

// sendSearch asks for all targets, at the group and at the gateway itself. One
// that can be sent is enough.
func sendSearch(conn *net.UDPConn, g Gateway) error {
	failed := errNoDevice
	sent := 0
	for _, to := range g.Search {
		for _, target := range targets {
			if !to.IsValid() {
				continue
			}
			question := "M-SEARCH * HTTP/1.1\r\nHOST: " + to.String() + "\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: " + target + "\r\n\r\n"
			if _, err := conn.WriteToUDPAddrPort([]byte(question), to); err != nil {
				failed = fmt.Errorf("searching UPnP gateways: %w", err)
				continue
			}
			sent++
		}
	}
	if sent == 0 {
		return failed
	}
	return nil
}

// parseSearchReply returns the location that an answer names, which must be
// plain HTTP at a numeric address and port.
func parseSearchReply(packet []byte) (*url.URL, error) {
	reply, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(packet)), nil)
	if err != nil {
		return nil, errUnusable
	}
	reply.Body.Close()
	location, err := url.Parse(reply.Header.Get("Location"))
	if err != nil || reply.StatusCode != http.StatusOK || location.Scheme != "http" || location.User != nil {
		return nil, errUnusable
	}
	if _, err := netip.ParseAddr(location.Hostname()); err != nil {
		return nil, errUnusable
	}
	return location, nil
}
