package xmpp

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"

	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

const (
	nsSASL           = "urn:ietf:params:xml:ns:xmpp-sasl"
	nsChannelBinding = "urn:xmpp:sasl-cb:0"
)

// Bounds on the work that a server can ask for by the iteration count of
// SCRAM. Below the first a stolen exchange is too easy to guess from
// (RFC 7677, 4); the second is some seconds of one processor.
const (
	minIterations = 4096
	maxIterations = 10_000_000
)

// maxChallenges bounds the exchange; SCRAM takes two.
const maxChallenges = 4

// mechanisms are the variants of SCRAM that this package speaks, in order of
// preference. Each has a -PLUS form, preferred to all without.
var mechanisms = []struct {
	name string
	hash scram.HashGeneratorFcn
}{
	{"SCRAM-SHA-256", scram.SHA256},
	{"SCRAM-SHA-512", scram.SHA512},
	{"SCRAM-SHA-1", scram.SHA1},
}

// choice is how to log in.
type choice struct {
	name string                   // of the mechanism
	hash scram.HashGeneratorFcn   // nil: PLAIN
	bind scram.ChannelBindingType // "": no channel binding
	// flag is the gs2-cbind-flag of RFC 5802, 7: 'p' if bind, 'y' if we could
	// and the server did not offer it, 'n' if it did or we could not.
	// It is signed: a server that finds 'y' after having offered -PLUS knows
	// that somebody took its offer away.
	flag byte
}

// choose picks the best mechanism of those offered. announced are the channel
// bindings that the server says it has (XEP-0440), nil if it says nothing;
// possible are ours, best first.
//
// A server that does not say which bindings it has is bound to only if it
// insists: older ones offer -PLUS over TLS 1.3 and then know tls-unique alone,
// which TLS 1.3 does not have (ejabberd 23.01, for one), and refuse the login.
func choose(offered, announced []string, possible []scram.ChannelBindingType) (choice, error) {
	var common []scram.ChannelBindingType
	for _, kind := range possible {
		if slices.Contains(announced, string(kind)) {
			common = append(common, kind)
		}
	}
	plus := slices.ContainsFunc(offered, func(name string) bool { return strings.HasSuffix(name, "-PLUS") })
	if c, ok := pick(offered, common); ok {
		return c, nil
	}
	flag := byte('n')
	if !plus && len(possible) > 0 {
		flag = 'y'
	}
	for _, m := range mechanisms {
		if slices.Contains(offered, m.name) {
			return choice{name: m.name, hash: m.hash, flag: flag}, nil
		}
	}
	if announced == nil {
		if c, ok := pick(offered, possible); ok {
			return c, nil
		}
	}
	if slices.ContainsFunc(offered, func(name string) bool { return strings.HasPrefix(name, "SCRAM-") }) {
		return choice{}, errors.New("the server offers no kind of SCRAM that can be used here")
	}
	if slices.Contains(offered, "PLAIN") {
		return choice{name: "PLAIN", flag: 'n'}, nil
	}
	return choice{}, errors.New("the server offers no way to log in by a password that is known here")
}

// pick picks the best mechanism with channel binding, by the first of kinds.
func pick(offered []string, kinds []scram.ChannelBindingType) (choice, bool) {
	if len(kinds) == 0 {
		return choice{}, false
	}
	for _, m := range mechanisms {
		if slices.Contains(offered, m.name+"-PLUS") {
			return choice{name: m.name + "-PLUS", hash: m.hash, bind: kinds[0], flag: 'p'}, true
		}
	}
	return choice{}, false
}

// exchange is one side of a SASL exchange: it answers challenges, the first of
// which is none, and knows whether the server has proven itself.
type exchange interface {
	Step(challenge string) (response string, err error)
	Valid() bool
}

// plain is PLAIN (RFC 4616), in which the server proves nothing.
type plain struct{ local, password string }

func (p plain) Step(challenge string) (string, error) {
	if challenge != "" {
		return "", errors.New("a challenge where PLAIN has none")
	}
	return "\x00" + p.local + "\x00" + p.password, nil
}

func (p plain) Valid() bool { return true }

// bounded is a SCRAM conversation with a limit on the iterations.
type bounded struct{ *scram.ClientConversation }

func (b bounded) Step(challenge string) (string, error) {
	if err := checkIterations(challenge); err != nil {
		return "", err
	}
	return b.ClientConversation.Step(challenge)
}

func checkIterations(challenge string) error {
	if !strings.HasPrefix(challenge, "r=") {
		return nil // not the server's first message (RFC 5802, 7)
	}
	for _, field := range strings.Split(challenge, ",") {
		count, ok := strings.CutPrefix(field, "i=")
		if !ok {
			continue
		}
		i, err := strconv.ParseUint(count, 10, 32)
		if err != nil || i < minIterations || i > maxIterations {
			return fmt.Errorf("the server asks for %.20q iterations; %d to %d are accepted", count, minIterations, maxIterations)
		}
	}
	return nil
}

// start makes the exchange of c.
func (l *login) start(c choice) (exchange, error) {
	local, password := l.s.account.Local(), l.s.config.Password
	if c.hash == nil {
		return plain{local, password}, nil
	}
	client, err := c.hash.NewClient(local, password, "")
	if err != nil {
		// Prepared by SASLprep where that is possible. Characters newer than
		// its tables are no reason to fail: servers take them as they are.
		if client, err = c.hash.NewClientUnprepped(local, password, ""); err != nil {
			return nil, err
		}
	}
	client = client.WithMinIterations(minIterations)
	if h := l.s.config.hooks; h != nil && h.nonce != nil {
		client = client.WithNonceGenerator(h.nonce)
	}
	switch c.flag {
	case 'p':
		binding, err := binding(&l.tls, c.bind)
		if err != nil {
			return nil, fmt.Errorf("channel binding %s: %w", c.bind, err)
		}
		return bounded{client.NewConversationWithChannelBinding(binding)}, nil
	case 'y':
		return bounded{client.NewConversationAdvertisingChannelBinding()}, nil
	}
	return bounded{client.NewConversation()}, nil
}

// authenticate does SASL (RFC 6120, 6) with what features offer.
func (l *login) authenticate(features stanza.Element) error {
	var offered, announced []string
	for _, m := range features.Child(nsSASL, "mechanisms").All(nsSASL, "mechanism") {
		offered = append(offered, strings.TrimSpace(m.Text()))
	}
	if cb := features.Child(nsChannelBinding, "sasl-channel-binding"); !cb.IsZero() {
		announced = []string{}
		for _, b := range cb.All(nsChannelBinding, "channel-binding") {
			announced = append(announced, b.Attr("type"))
		}
	}
	c, err := choose(offered, announced, bindings(&l.tls))
	if err != nil {
		return &AuthError{Offered: offered, Err: err}
	}
	refused := func(err error) error { return &AuthError{Mechanism: c.name, Offered: offered, Err: err} }
	x, err := l.start(c)
	if err != nil {
		return refused(err)
	}
	first, err := x.Step("")
	if err != nil {
		return refused(err)
	}
	if err := l.write(stanza.New(nsSASL, "auth", stanza.Text(encode(first))).With("mechanism", c.name)); err != nil {
		return err
	}
	for range maxChallenges {
		e, err := l.next()
		if err != nil {
			return err
		}
		switch {
		case e.Is(nsSASL, "challenge"):
			challenge, err := decode(e.Text())
			if err != nil {
				return refused(err)
			}
			response, err := x.Step(challenge)
			if err != nil {
				return refused(fmt.Errorf("the server's challenge: %w", err))
			}
			answer := stanza.New(nsSASL, "response")
			if response != "" {
				answer = stanza.New(nsSASL, "response", stanza.Text(encode(response)))
			}
			if err := l.write(answer); err != nil {
				return err
			}
		case e.Is(nsSASL, "success"):
			if text := strings.TrimSpace(e.Text()); text != "" && !(x.Valid() && text == "=") {
				last, err := decode(text)
				if err == nil {
					_, err = x.Step(last)
				}
				if err != nil {
					return refused(fmt.Errorf("the server did not prove that it knows the password: %w", err))
				}
			}
			if !x.Valid() {
				return refused(errors.New("the server did not prove that it knows the password"))
			}
			return nil
		case e.Is(nsSASL, "failure"):
			failure := &AuthError{Mechanism: c.name, Offered: offered, Condition: "undefined-condition"}
			for _, child := range e.Elements() {
				if child.Is(nsSASL, "text") {
					failure.Text = child.Text()
				} else {
					failure.Condition = child.Name.Local
				}
			}
			return failure
		default:
			return refused(fmt.Errorf("<%.40s/> in the midst of the login", e.Name.Local))
		}
	}
	return refused(errors.New("too many challenges"))
}

// encode is the base64 of RFC 6120, 6.4.2, where "=" is data of no length.
func encode(s string) string {
	if s == "" {
		return "="
	}
	return base64.StdEncoding.EncodeToString([]byte(s))
}

func decode(s string) (string, error) {
	s = strings.TrimSpace(s)
	if s == "=" {
		return "", nil
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return "", errors.New("not base64")
	}
	return string(b), nil
}
