package rendezvous

import (
	"crypto/hmac"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/xdg-go/scram"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// mechanism is a way to log in.
type mechanism struct {
	name string
	plus bool // binds to the TLS channel
	hash scram.HashGeneratorFcn
	pick func(keys) scram.StoredCredentials
}

func pickSHA1(k keys) scram.StoredCredentials   { return k.sha1 }
func pickSHA256(k keys) scram.StoredCredentials { return k.sha256 }

// mechanisms are all there are, best first. All are for use inside TLS.
var mechanisms = []mechanism{
	{"SCRAM-SHA-256-PLUS", true, scram.SHA256, pickSHA256},
	{"SCRAM-SHA-1-PLUS", true, scram.SHA1, pickSHA1},
	{"SCRAM-SHA-256", false, scram.SHA256, pickSHA256},
	{"SCRAM-SHA-1", false, scram.SHA1, pickSHA1},
	{"PLAIN", false, scram.SHA256, pickSHA256},
}

// saslError is an attempt to log in that failed (RFC 6120, 6.5).
type saslError struct {
	condition string
	name      string // as the client gave it, if it did
	guess     bool   // a password was tried
	why       error
}

func (e *saslError) Error() string {
	if e.why == nil {
		return "login failed: " + e.condition
	}
	return fmt.Sprintf("login failed: %s: %v", e.condition, e.why)
}

// endpointBinding returns the channel binding tls-server-end-point for a
// certificate, or nil where RFC 5929, 4.1 defines none.
func endpointBinding(leaf *x509.Certificate) []byte {
	b, err := scram.NewTLSServerEndpointBinding(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})
	if err != nil {
		return nil
	}
	return b.Data
}

// bindings returns the channel bindings that this connection offers, best
// first. tls-exporter needs TLS 1.3 (RFC 9266, 4.2).
func (st *stream) bindings() []scram.ChannelBinding {
	var all []scram.ChannelBinding
	state := st.secure.ConnectionState()
	if state.Version >= tls.VersionTLS13 {
		if b, err := scram.NewTLSExporterBinding(&state); err == nil {
			all = append(all, b)
		}
	}
	if st.server.endpoint != nil {
		all = append(all, scram.ChannelBinding{Type: scram.ChannelBindingTLSServerEndpoint, Data: st.server.endpoint})
	}
	return all
}

// authenticate opens the stream inside TLS and has the client log in
// (RFC 6120, 6). It returns the localpart of the account and the mechanism.
func (st *stream) authenticate() (name, used string, err error) {
	bindings := st.bindings()
	var features []stanza.Element
	list := stanza.New(nsSASL, "mechanisms")
	for _, m := range mechanisms {
		if !m.plus || len(bindings) > 0 {
			list.Children = append(list.Children, stanza.New(nsSASL, "mechanism", stanza.Text(m.name)))
		}
	}
	features = append(features, list)
	if len(bindings) > 0 { // XEP-0440
		types := stanza.New(nsBindings, "sasl-channel-binding")
		for _, b := range bindings {
			types.Children = append(types.Children, stanza.New(nsBindings, "channel-binding").With("type", string(b.Type)))
		}
		features = append(features, types)
	}
	if err := st.open(features...); err != nil {
		return "", "", err
	}
	penalty := st.server.limits.penalty
	for range st.server.limits.attempts {
		e, err := st.xml.Next()
		if err != nil {
			return "", "", err
		}
		if !e.Is(nsSASL, "auth") {
			return "", "", &streamError{condition: "not-authorized", text: "not logged in"}
		}
		name, proof, err := st.attempt(e, bindings)
		if err == nil {
			return name, e.Attr("mechanism"), st.sayElement(stanza.New(nsSASL, "success", data(proof)...))
		}
		var failed *saslError
		if !errors.As(err, &failed) {
			return "", "", err
		}
		if f := st.server.config.Trace.Denied; f != nil {
			f(failed.name, st.conn.RemoteAddr(), failed)
		}
		if failed.guess {
			if err := st.pause(penalty); err != nil {
				return "", "", err
			}
			penalty *= 2
		}
		if err := st.sayElement(stanza.New(nsSASL, "failure", stanza.New(nsSASL, failed.condition))); err != nil {
			return "", "", err
		}
	}
	return "", "", &streamError{condition: "policy-violation", text: "too many attempts to log in"}
}

// pause makes guessing slow.
func (st *stream) pause(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-st.server.done:
		return &streamError{condition: "system-shutdown"}
	}
}

// attempt goes through one SASL exchange. It returns the localpart of the
// account and what goes with <success/>; a [*saslError] leaves the client
// another attempt.
func (st *stream) attempt(auth stanza.Element, bindings []scram.ChannelBinding) (name string, proof []byte, err error) {
	var chosen *mechanism
	for i, m := range mechanisms {
		if m.name == auth.Attr("mechanism") && (!m.plus || len(bindings) > 0) {
			chosen = &mechanisms[i]
		}
	}
	if chosen == nil {
		return "", nil, &saslError{condition: "invalid-mechanism"}
	}
	first, err := decode(auth)
	if err != nil {
		return "", nil, err
	}
	if auth.Text() == "" { // no initial response (RFC 6120, 6.4.2)
		if first, err = st.challenge(nil); err != nil {
			return "", nil, err
		}
	}
	if chosen.name == "PLAIN" {
		name, err = st.plain(chosen, first)
		return name, nil, err
	}
	return st.scram(chosen, string(first), bindings)
}

// scram is the mechanism of RFC 5802 and RFC 7677.
func (st *stream) scram(m *mechanism, first string, bindings []scram.ChannelBinding) (string, []byte, error) {
	server, err := m.hash.NewServer(func(name string) (scram.StoredCredentials, error) {
		return st.server.credentials(name, m.pick), nil
	})
	if err != nil {
		return "", nil, err
	}
	flag, _, _ := strings.Cut(first, ",")
	kind, bound := strings.CutPrefix(flag, "p=")
	if bound != m.plus {
		return "", nil, &saslError{condition: "malformed-request", why: fmt.Errorf("%s with channel binding flag %.40q", m.name, flag)}
	}
	conversation := server.NewConversation()
	for _, b := range bindings {
		// Without a binding of its own, a client must still learn from us that
		// somebody took the -PLUS mechanisms from our list ("y").
		if !bound || string(b.Type) == kind {
			conversation = server.NewConversationWithChannelBinding(b)
			break
		}
	}
	answer, err := conversation.Step(first)
	if err != nil {
		return "", nil, &saslError{condition: "not-authorized", name: conversation.Username(), why: err}
	}
	second, err := st.challenge([]byte(answer))
	if err != nil {
		return "", nil, err
	}
	proof, err := conversation.Step(string(second))
	name := conversation.Username()
	if err != nil || !conversation.Valid() {
		return "", nil, &saslError{condition: "not-authorized", name: name, guess: true, why: errors.New("wrong name or password, or not the same TLS channel")}
	}
	local, err := st.server.authorize(name, conversation.AuthzID())
	return local, []byte(proof), err
}

// plain is the mechanism of RFC 4616, checked against the keys of SCRAM.
func (st *stream) plain(m *mechanism, message []byte) (string, error) {
	parts := strings.Split(string(message), "\x00")
	if len(parts) != 3 {
		return "", &saslError{condition: "malformed-request"}
	}
	authzid, name, password := parts[0], parts[1], parts[2]
	want := st.server.credentials(name, m.pick)
	got, err := deriveKey(m.hash, password, want.KeyFactors)
	if err != nil || !hmac.Equal(got.StoredKey, want.StoredKey) {
		return "", &saslError{condition: "not-authorized", name: name, guess: true, why: errors.New("wrong name or password")}
	}
	return st.server.authorize(name, authzid)
}

// authorize returns the localpart of the account name, which has proven
// itself. It may act for nobody but itself (RFC 6120, 6.3.8).
func (s *Server) authorize(name, authzid string) (string, error) {
	bare, err := jid.New(name, s.domain.Domain(), "")
	if err != nil {
		return "", &saslError{condition: "not-authorized", name: name, why: err}
	}
	if authzid != "" {
		if as, err := jid.Parse(authzid); err != nil || as != bare {
			return "", &saslError{condition: "invalid-authzid", name: name}
		}
	}
	return bare.Local(), nil
}

// challenge sends a challenge and returns the client's response.
func (st *stream) challenge(c []byte) ([]byte, error) {
	if err := st.sayElement(stanza.New(nsSASL, "challenge", data(c)...)); err != nil {
		return nil, err
	}
	e, err := st.xml.Next()
	switch {
	case err != nil:
		return nil, err
	case e.Is(nsSASL, "abort"):
		return nil, &saslError{condition: "aborted"}
	case !e.Is(nsSASL, "response"):
		return nil, &streamError{condition: "not-authorized", text: "not logged in"}
	}
	return decode(e)
}

// data is what goes into a SASL element; nothing is the empty element.
func data(b []byte) []stanza.Element {
	if len(b) == 0 {
		return nil
	}
	return []stanza.Element{stanza.Text(base64.StdEncoding.EncodeToString(b))}
}

// decode reads a SASL element, of which "=" is the empty string
// (RFC 6120, 6.4.2).
func decode(e stanza.Element) ([]byte, error) {
	text := e.Text()
	if text == "=" {
		return nil, nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, &saslError{condition: "incorrect-encoding"}
	}
	return b, nil
}
