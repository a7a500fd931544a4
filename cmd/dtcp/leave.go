package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/dtcp-relay/dtcp/internal/egress"
)

// dialServer connects to an XMPP server, through the proxy of the environment if
// there is one for it.
func (t *tool) dialServer(ctx context.Context, network, address string) (net.Conn, error) {
	t.traceProxy(address)
	return t.egress.DialContext(ctx, network, address)
}

// dialRelay is for relays that cannot be reached otherwise.
func (t *tool) dialRelay(ctx context.Context, network, address string) (net.Conn, error) {
	t.traceProxy(address)
	return t.egress.DialProxy(ctx, network, address)
}

func (t *tool) traceProxy(address string) {
	if t.egress.Applies(address) {
		t.out.trace("connecting to %s through the proxy %s", address, t.egress.Proxy())
	}
}

// proxyHint says what helps when the proxy does not let us out.
func proxyHint(e *egress.Error) string {
	const around = "NO_PROXY=HOST names a server that is reached without it"
	basic := func(scheme string) bool { return strings.EqualFold(scheme, "Basic") }
	switch {
	case e.Target == "":
		return "correct it, or unset it where there is no proxy"
	case e.Answer == nil:
		return "is the proxy right? It comes from HTTPS_PROXY or ALL_PROXY; " + around
	case e.Answer.Status != http.StatusProxyAuthRequired:
		return "it may let connections to port 443 pass alone: --server HOST:443, if the XMPP server listens there; " + around
	case len(e.Answer.Schemes) > 0 && !slices.ContainsFunc(e.Answer.Schemes, basic):
		return fmt.Sprintf("it wants a login by %s, and only Basic is known here; a proxy on this machine that can do it may stand between", strings.Join(e.Answer.Schemes, " or "))
	}
	return "it wants a login: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT, with characters such as @ and : of the password as %40 and %3A"
}
