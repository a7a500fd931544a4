package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// checkService is what dtcp check asks peers for: a stream that ends as soon as
// it is there. listen and receive give it to whom they would let in.
const checkService = "dtcp-check"

func (t *tool) checkCommand() *cobra.Command {
	var service string
	c := &cobra.Command{
		Use:   "check [JID]",
		Short: "Say what this machine can offer, and why a path to a peer is what it is",
		Long: `check tells at which addresses peers can dial this machine, which relay lends it one,
how its NAT assigns ports (mapping, in the words of RFC 4787 and RFC 5382), and what
became of each way to ask its gateway for a mapping.

With a JID it also gets a stream to a peer that runs dtcp listen or dtcp receive and
would let this account in, and ends it at once, which does not count there. It tells
what became of each address that was tried, which was taken, and, if that is a
relay's, what would help. A JID without a resource stands for any that offers
streams, or, with --service, the one of that service.

A line is a word that says what it is about, and what there is to say, with tabs
between; with --json an object.`,
		Example: `  dtcp check
  dtcp check juliet@example.org`,
		Args: t.positional(0, "JID"),
	}
	c.Flags().StringVar(&service, "service", "", "`name` of the service whose place to check (default: any)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return t.check(c.Context())
		}
		peer, err := parsePeer(args[0])
		if err != nil {
			return err
		}
		if service != "" {
			if err := new(serviceName).Set(service); err != nil {
				return &usageError{fmt.Errorf("--service: %w", err)}
			}
		}
		return t.checkPeer(c.Context(), peer, service)
	}
	return c
}

// check tells of this machine.
func (t *tool) check(ctx context.Context) error {
	bounded, cancel := t.setUp(ctx)
	defer cancel()
	l, err := t.checkLink(bounded, nil)
	if err != nil {
		return err
	}
	defer l.close()
	t.advise(prospect(l.endpoint.Report(), &t.options))
	return nil
}

// checkLink logs in, and tells of this machine.
func (t *tool) checkLink(ctx context.Context, watch func(*dtcp.Trace)) (*link, error) {
	l, err := t.link(ctx, linkConfig{
		resource:    func(jid.JID) string { return randomResource() },
		watch:       watch,
		noReconnect: true,
	})
	if err != nil {
		return nil, err
	}
	relay := l.awaitRelay(ctx)
	if err := l.gathered(ctx); err != nil {
		l.close()
		return nil, because(ctx, err)
	}
	t.tellMachine(l.session.LocalAddr(), l.endpoint.Report(), relay)
	return l, nil
}

// The events of check.
type (
	candidateEvent struct {
		Event string `json:"event"`
		Type  string `json:"type"`
		Addr  string `json:"addr"`
	}
	relayEvent struct {
		Event   string  `json:"event"`
		JID     jid.JID `json:"jid"`     // "" if there is none
		Proxy   bool    `json:"proxy"`   // it knows XEP-0065 alone
		Message string  `json:"message"` // why there is none
	}
	natEvent struct {
		Event          string `json:"event"`
		Mapping        string `json:"mapping"`
		PortPreserving bool   `json:"port_preserving"`
		Step           int    `json:"step"`
		DoubleNAT      bool   `json:"double_nat"`
		Punchable      bool   `json:"punchable"`
	}
	filteringEvent struct {
		Event     string `json:"event"`
		Filtering string `json:"filtering"`
	}
	observationEvent struct {
		Event  string         `json:"event"`
		Local  netip.AddrPort `json:"local"`
		Server netip.AddrPort `json:"server"`
		Seen   netip.AddrPort `json:"seen"`
	}
	gatewayEvent struct {
		Event    string `json:"event"`
		Method   string `json:"method"`
		State    string `json:"state"`
		Gateway  string `json:"gateway"`
		External string `json:"external"`
		Private  bool   `json:"private"`
		Detail   string `json:"detail"`
		Message  string `json:"message"`
	}
	attemptEvent struct {
		Event     string `json:"event"`
		Candidate string `json:"candidate"`
		Ours      bool   `json:"ours"` // the peer was to dial it
		Result    string `json:"result"`
	}
	adviceEvent struct {
		Event   string `json:"event"`
		Message string `json:"message"`
	}
)

// tellMachine prints what an endpoint has found out; noRelay is why there is none.
func (t *tool) tellMachine(own jid.JID, r dtcp.Report, noRelay error) {
	t.out.print(readyEvent{Event: "ready", Address: own}, "account", own.String())
	for _, c := range r.Candidates {
		relayed := c.Type == dtcp.Relay || c.Type == dtcp.Proxy
		if t.relayOnly && !relayed || t.directOnly && relayed {
			continue
		}
		kind, addr, _ := strings.Cut(c.String(), " ")
		t.out.print(candidateEvent{"candidate", kind, addr}, "offer", kind, addr)
	}
	relay := relayEvent{Event: "relay", JID: r.Relay, Proxy: r.Proxy}
	switch {
	case r.Relay.IsZero():
		if noRelay != nil {
			relay.Message, _ = explain(noRelay)
		}
		t.out.print(relay, "relay", "none", relay.Message)
	case r.Proxy:
		t.out.print(relay, "relay", r.Relay.String(), "an XEP-0065 proxy")
	default:
		t.out.print(relay, "relay", r.Relay.String())
	}
	t.tellNAT(r.NAT)
	for _, g := range r.Gateways {
		e := gatewayEvent{Event: "gateway", Method: g.Method, State: g.State, Private: g.Private, Detail: g.Detail}
		fields := []string{"gateway", g.Method, g.State}
		if g.Addr.IsValid() {
			e.Gateway = g.Addr.String()
			fields = append(fields, "at "+e.Gateway)
		}
		if g.External.IsValid() {
			e.External = g.External.String()
			fields = append(fields, "peers can dial "+e.External)
		}
		if g.Private {
			fields = append(fields, "which is behind another NAT")
		}
		if g.Err != nil {
			e.Message = trimmed(g.Err)
			fields = append(fields, e.Message)
		}
		if g.Detail != "" {
			fields = append(fields, g.Detail)
		}
		t.out.print(e, fields...)
	}
	if len(r.Gateways) == 0 {
		t.out.print(gatewayEvent{Event: "gateway", State: "unasked"}, "gateway", "not asked")
	}
}

// tellNAT prints how ports are mapped, and by what one can tell.
func (t *tool) tellNAT(n dtcp.NAT) {
	e := natEvent{"nat", n.Mapping, n.PortPreserving, n.Step, n.DoubleNAT, n.Punchable}
	fields := []string{"mapping", n.Mapping}
	switch {
	case n.Mapping == "unknown":
		fields = append(fields, "that takes a relay or STUN server with two addresses to look")
	case n.Mapping == "none":
		fields = append(fields, "there is no NAT")
	case n.Step != 0:
		fields = append(fields, "ports are assigned in steps of "+strconv.Itoa(n.Step))
	case n.PortPreserving:
		fields = append(fields, "the external port is the local one")
	}
	if n.DoubleNAT {
		fields = append(fields, "and another NAT behind the gateway")
	}
	if n.Mapping != "unknown" && n.Punchable {
		fields = append(fields, "holes can be punched")
	} else if n.Mapping != "unknown" {
		fields = append(fields, "holes cannot be punched")
	}
	t.out.print(e, fields...)
	for _, o := range n.Observed {
		t.out.print(observationEvent{"observation", o.Local, o.Server, o.Seen}, "seen", o.Local.String(), "as "+o.Seen.String(), "by "+o.Server.String())
	}
}

// advise prints the last line, if there is advice.
func (t *tool) advise(text string) {
	if text != "" {
		t.out.print(adviceEvent{"advice", text}, "advice", text)
	}
}

// checkPeer tells of this machine and of the paths to a peer.
func (t *tool) checkPeer(ctx context.Context, peer jid.JID, service string) error {
	bounded, cancel := t.setUp(ctx)
	defer cancel()
	tried := &trial{own: map[string]bool{}, theirs: map[dtcp.CandidateType]bool{}}
	l, err := t.checkLink(bounded, tried.watch)
	if err != nil {
		return err
	}
	defer l.close()
	tried.offers(l.endpoint.Report().Candidates)
	conn, err := l.dialCheck(bounded, peer, service)
	var noPath *dtcp.NoPathError
	errors.As(err, &noPath)
	events, theirs := tried.result(noPath)
	for _, e := range events {
		whose := "peer's"
		if e.Ours {
			whose = "ours"
		}
		t.out.print(e, "tried", whose, e.Candidate, e.Result)
	}
	report := l.endpoint.Report()
	if err != nil {
		if noPath != nil {
			t.tellFiltering(report, nil)
		}
		return err
	}
	path := conn.Path()
	if err := conn.Close(); err != nil {
		t.out.trace("ending the stream: %v", err)
	}
	t.tellFiltering(report, &path)
	e := pathOf(conn)
	t.out.print(e, "path", e.Kind, e.Local+" to "+e.Remote, fmt.Sprintf("set up in %.0f ms", e.SetupMS))
	t.advise(advice(report, path.Kind, theirs, &t.options))
	return nil
}

func (t *tool) tellFiltering(r dtcp.Report, path *dtcp.Path) {
	f := filtering(r, path, &t.options)
	t.out.print(filteringEvent{"filtering", f}, "filtering", f)
}

// dialCheck gets a stream that nobody needs.
func (l *link) dialCheck(ctx context.Context, peer jid.JID, service string) (*dtcp.Conn, error) {
	var at []jid.JID
	switch {
	case peer.IsFull():
		at = []jid.JID{peer}
	case service != "":
		found, err := l.resolve(ctx, peer, service)
		if err != nil {
			return nil, &dialError{peer: peer, service: service, own: l.session.LocalAddr(), err: because(ctx, err)}
		}
		at = []jid.JID{found}
	default:
		for _, s := range []string{fileService, "pipe"} {
			known, err := peer.WithResource(wellKnown(s))
			if err != nil {
				return nil, err
			}
			at = append(at, known)
		}
		bounded, cancel := context.WithTimeout(ctx, discoTime)
		defer cancel()
		if l.sees(bounded, peer) {
			if found := l.discover(bounded, peer, at[0], featureSession); found != at[0] {
				at = []jid.JID{found}
			}
		}
	}
	var conn *dtcp.Conn
	var err error
	for _, full := range at {
		conn, err = l.dialPeer(ctx, full, checkService)
		var refused *dtcp.RefusedError
		if err == nil || !errors.As(err, &refused) || status(err) != exitAbsent {
			break
		}
	}
	return conn, err
}
