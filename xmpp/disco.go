package xmpp

import (
	"context"
	"slices"
	"sync"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

const (
	nsInfo = "http://jabber.org/protocol/disco#info"
	nsPing = "urn:xmpp:ping"
)

// Identity says what an entity is (XEP-0030, 3.1).
type Identity struct{ Category, Type, Name string }

// Info is what service discovery tells of an entity.
type Info struct {
	Identities []Identity
	Features   []string
}

// Has reports whether the entity announces feature.
func (i Info) Has(feature string) bool { return slices.Contains(i.Features, feature) }

// Info asks an entity for its identities and features (XEP-0030). Errors are
// those of RoundTrip.
func (s *Session) Info(ctx context.Context, to jid.JID) (Info, error) {
	q := stanza.IQ{Header: stanza.Header{To: to}, Type: stanza.Get, Payload: stanza.New(nsInfo, "query")}
	answer, err := s.RoundTrip(ctx, q)
	if err != nil {
		return Info{}, err
	}
	var i Info
	for _, e := range answer.Payload.All(nsInfo, "identity") {
		i.Identities = append(i.Identities, Identity{e.Attr("category"), e.Attr("type"), e.Attr("name")})
	}
	for _, e := range answer.Payload.All(nsInfo, "feature") {
		i.Features = append(i.Features, e.Attr("var"))
	}
	return i, nil
}

// Ping asks an entity for a sign of life (XEP-0199). Errors are those of
// RoundTrip; an error that the entity itself sent is a sign of life too, but
// one that its server sent looks the same.
func (s *Session) Ping(ctx context.Context, to jid.JID) error {
	_, err := s.RoundTrip(ctx, pingOf(to))
	return err
}

func pingOf(to jid.JID) stanza.IQ {
	return stanza.IQ{Header: stanza.Header{To: to}, Type: stanza.Get, Payload: stanza.New(nsPing, "ping")}
}

// AddFeature announces a feature by service discovery, from now until remove.
func (s *Session) AddFeature(feature string) (remove func()) {
	s.count(feature, 1)
	var once sync.Once
	return func() { once.Do(func() { s.count(feature, -1) }) }
}

func (s *Session) count(feature string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.features[feature] += n; s.features[feature] <= 0 {
		delete(s.features, feature)
	}
}

// describe answers a disco#info question to us.
func (s *Session) describe(q stanza.IQ) stanza.IQ {
	if q.Payload.Attr("node") != "" {
		return q.Fail(stanza.NewError(stanza.ItemNotFound, ""))
	}
	identity := stanza.New(nsInfo, "identity").With("category", "client").With("type", "pc").With("name", "dtcp")
	if s.component != nil {
		identity = stanza.New(nsInfo, "identity").With("category", "component").With("type", "generic").With("name", "dtcp")
	}
	answer := stanza.New(nsInfo, "query", identity)
	s.mu.Lock()
	names := make([]string, 0, len(s.features))
	for f := range s.features {
		names = append(names, f)
	}
	s.mu.Unlock()
	slices.Sort(names)
	for _, f := range names {
		answer.Children = append(answer.Children, stanza.New(nsInfo, "feature").With("var", f))
	}
	return q.Result(answer)
}
