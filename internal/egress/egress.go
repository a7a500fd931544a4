// Package egress opens TCP connections that leave a network through its proxy:
// an HTTP proxy that knows CONNECT (RFC 9110, 9.3.6), plain or inside TLS, or a
// SOCKS5 proxy (RFC 1928), as the environment names it.
//
//	d := egress.FromEnvironment()
//	conn, err := d.DialContext(ctx, "tcp", "example.org:5222")
//
// The variables are those of other programs, in lower case or upper case:
// https_proxy, or else all_proxy, is the URL of the proxy, and no_proxy lists what
// is reached without it. Loopback addresses always are. A name is passed to the
// proxy as it is, and looked up there.
//
// # Security
//
// A proxy that is configured is used: nothing goes around it because it refuses,
// for it may be there to hide where this machine is. What it is told is host and
// port, and a user name and password if its URL has them; with an http URL these
// pass the local network in clear. They are in no error. A proxy can do what
// anybody on the way can do, which TLS inside has to bear.
//
// # Limits
//
// A connection has 20 s until the proxy has let it through, or less if its
// context says so. Of an HTTP proxy's answer up to 16 KiB are read.
package egress

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"
)

// connectTime bounds all that happens until there is a connection.
const connectTime = 20 * time.Second

// Config says which proxy there is. The zero value says: none.
type Config struct {
	Proxy   string // URL: http, https, socks5 or socks5h; "host:port" is http. If empty, there is none.
	NoProxy string // what is reached without it, as in no_proxy: domains, addresses, networks, each perhaps with a port, or "*"
	Name    string // where Proxy comes from, for errors; if empty, "the proxy"

	// TLS is used towards proxies with https URLs. If nil, the system's authorities.
	TLS *tls.Config

	// Dial opens TCP connections. If nil, a [net.Dialer] does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Dialer opens TCP connections. Make one with [New] or [FromEnvironment]. Its
// methods may be called concurrently.
type Dialer struct {
	config  Config
	url     *url.URL // nil: there is no proxy, or err
	err     error    // why Config.Proxy cannot be used
	through func(*url.URL) (*url.URL, error)
}

// FromEnvironment returns a Dialer that does what the environment says.
func FromEnvironment() *Dialer {
	var c Config
	for _, name := range []string{"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"} {
		if c.Proxy = os.Getenv(name); c.Proxy != "" {
			c.Name = name
			break
		}
	}
	c.NoProxy = cmp.Or(os.Getenv("no_proxy"), os.Getenv("NO_PROXY"))
	return New(c)
}

// New returns a Dialer. That a URL cannot be used is said when it would be.
func New(c Config) *Dialer {
	d := &Dialer{config: c}
	if c.Dial == nil {
		d.config.Dial = new(net.Dialer).DialContext
	}
	d.config.Name = cmp.Or(c.Name, "the proxy")
	if c.Proxy == "" {
		return d
	}
	d.url, d.err = parse(c.Proxy)
	// What is excepted is asked of others, whose rules everybody knows.
	rules := httpproxy.Config{HTTPSProxy: "http://proxy.invalid", NoProxy: c.NoProxy}
	d.through = rules.ProxyFunc()
	return d
}

// Errors of URLs. They say nothing of what is in the URL, where a password may be.
var (
	errURL    = errors.New("not the URL of a proxy, such as http://proxy.example.org:3128")
	errScheme = errors.New("the URL of a proxy begins with http, https, socks5 or socks5h")
)

// ports are those of proxies whose URL has none, by scheme.
var ports = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}

// parse reads the URL of a proxy, or host and port.
func parse(s string) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		return nil, errURL
	}
	port, ok := ports[u.Scheme]
	if !ok {
		return nil, errScheme
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	return u, nil
}

// Applies reports whether there is a proxy for an address, "host:port".
func (d *Dialer) Applies(address string) bool {
	if d.through == nil {
		return false
	}
	u, err := d.through(&url.URL{Scheme: "https", Host: address})
	return err == nil && u != nil
}

// Configured reports whether there is a proxy for any address at all.
func (d *Dialer) Configured() bool { return d.through != nil }

// Proxy returns "host:port" of the proxy, "" if there is none that can be used.
func (d *Dialer) Proxy() string {
	if d.url == nil {
		return ""
	}
	return d.url.Host
}

// DialContext connects to an address, "host:port", through the proxy if it
// applies, else directly. The error is a [*Error] if the proxy is to blame. The
// connection is the socket itself, but for a proxy inside TLS.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if !d.Applies(address) {
		return d.config.Dial(ctx, network, address)
	}
	return d.DialProxy(ctx, network, address)
}

// ErrExcepted is the error of [Dialer.DialProxy] where the proxy does not apply.
var ErrExcepted = errors.New("no proxy is to be used for this address")

// DialProxy is [Dialer.DialContext] for what was tried without the proxy already.
func (d *Dialer) DialProxy(ctx context.Context, network, address string) (net.Conn, error) {
	switch {
	case !d.Applies(address):
		return nil, ErrExcepted
	case d.err != nil:
		return nil, &Error{Proxy: d.config.Name, Err: d.err}
	}
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	conn, err := d.config.Dial(ctx, network, d.url.Host)
	if err == nil {
		conn, err = d.pass(ctx, conn, network, address)
	}
	if err != nil {
		e := &Error{Proxy: d.url.Host, Target: address, Err: err}
		errors.As(err, &e.Answer)
		return nil, e
	}
	return conn, nil
}

// pass has the proxy at the other end of conn connect to address. It closes conn
// if that fails.
func (d *Dialer) pass(ctx context.Context, conn net.Conn, network, address string) (_ net.Conn, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	socket := conn
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			_ = socket.Close()
			if ctx.Err() != nil {
				err = ctx.Err() // not that a deadline, which was ours, has passed
			}
		}
	}()
	switch d.url.Scheme {
	case "https":
		config := &tls.Config{}
		if d.config.TLS != nil {
			config = d.config.TLS.Clone()
		}
		config.ServerName = cmp.Or(config.ServerName, d.url.Hostname())
		secured := tls.Client(conn, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn = secured
		fallthrough
	case "http":
		return conn, connect(conn, address, d.url.User)
	}
	var auth *proxy.Auth
	if user := d.url.User; user != nil {
		password, _ := user.Password()
		auth = &proxy.Auth{User: user.Username(), Password: password}
	}
	socks, err := proxy.SOCKS5(network, d.url.Host, auth, nil)
	if err != nil {
		return nil, err
	}
	_, err = socks.(interface {
		DialWithConn(ctx context.Context, c net.Conn, network, address string) (net.Addr, error)
	}).DialWithConn(context.Background(), conn, network, address) // ctx ends it as it does the rest
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "socks connect" {
		err = op.Err // the addresses are told already
	}
	return conn, err
}

// Error says that a proxy cannot be reached, or does not let a connection
// through.
type Error struct {
	Proxy  string // "host:port", or where its URL is from if that cannot be used
	Target string // "host:port"; "" if the URL cannot be used
	Answer *Answer
	Err    error
}

func (e *Error) Error() string {
	switch {
	case e.Target == "":
		return fmt.Sprintf("%s: %v", e.Proxy, e.Err)
	case e.Answer != nil:
		return fmt.Sprintf("the proxy %s lets no connection through to %s: %v", e.Proxy, e.Target, e.Err)
	}
	return fmt.Sprintf("through the proxy %s to %s: %v", e.Proxy, e.Target, e.Err)
}

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }
