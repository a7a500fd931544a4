package xmpp

import (
	"bufio"
	"net"

	"github.com/xdg-go/scram"

	"github.com/dtcp-relay/dtcp/internal/xmlstream"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

const (
	LoginTimeout  = loginTimeout
	IdleTimeout   = idleTimeout
	PongTimeout   = pongTimeout
	WriteTimeout  = writeTimeout
	CloseTimeout  = closeTimeout
	PresenceWait  = presenceWait
	PresenceQuiet = presenceQuiet
	SettleWait    = settleWait
	MaxPresences  = maxPresences
	MaxOfContact  = maxPresencesOf
	MaxIterations = maxIterations
	MaxReplies    = maxReplies

	KeepWaiting = keepWaiting
	PingNow     = pingNow
	GiveUp      = giveUp
)

var (
	Answers         = answers
	Backoff         = backoff
	CheckIterations = checkIterations
	ParsePin        = parsePin
	Watch           = watch
)

// Choose shows a choice as the mechanism, the flag and the channel binding.
func Choose(offered, announced []string, possible []scram.ChannelBindingType) (mechanism, flag, bind string, err error) {
	c, err := choose(offered, announced, possible)
	if err != nil {
		return "", "", "", err
	}
	return c.name, string(c.flag), string(c.bind), nil
}

// SRV is a record for Order.
type SRV struct {
	Host             string
	Priority, Weight uint16
}

// Order returns the hosts of records in the order in which they are tried.
func Order(records []SRV, rnd func(n int) int) []string {
	var in []record
	for _, r := range records {
		in = append(in, record{target{host: r.Host}, r.Priority, r.Weight})
	}
	var hosts []string
	for _, t := range order(in, rnd) {
		hosts = append(hosts, t.host)
	}
	return hosts
}

// Given returns what becomes of Config.Server.
func Given(server string) (address, mode string, err error) {
	t, err := given(server, clientPort)
	if err != nil {
		return "", "", err
	}
	return t.address(), t.mode(), nil
}

// SetHooks replaces what is random in c, and shows the plain side of its
// connections to wrap.
func SetHooks(c *Config, nonce, id func() string, wrap func(net.Conn) net.Conn) {
	c.hooks = &hooks{nonce: nonce, id: id, wrap: wrap}
}

// ReadStream has the loops of a logged in session serve conn, which is already
// past its stream header, until it ends, and returns why.
func ReadStream(conn net.Conn, addr jid.JID) error {
	s := &Session{account: addr, content: stanza.NSClient, features: map[string]int{}, config: Config{NoReconnect: true}}
	r := xmlstream.NewReader(bufio.NewReader(conn), MaxStanza)
	if _, err := r.Header(); err != nil {
		return err
	}
	st := newStream(s, conn, r, addr)
	return st.run(nil)
}

// Challenges gives SCRAM the challenges of a server, one after the other, and
// reports whether it believes that the server knows the password.
func Challenges(challenges ...string) (valid bool) {
	l := &login{s: &Session{account: jid.MustParse("romeo@example.org"), config: Config{Password: "secret", hooks: &hooks{nonce: func() string { return "nonce" }}}}}
	x, err := l.start(choice{name: "SCRAM-SHA-256", hash: scram.SHA256, flag: 'y'})
	if err != nil {
		return false
	}
	if _, err := x.Step(""); err != nil {
		return false
	}
	for _, c := range challenges {
		if _, err := x.Step(c); err != nil {
			return false
		}
	}
	return x.Valid()
}
