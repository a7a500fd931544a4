package egress_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/egress"
)

// What is reached through the proxies of these tests, and how they let in.
const (
	target   = "xmpp.example.org:5222"
	greeting = "who goes there?\n"
	user     = "romeo"
	password = "open:sesame"
)

// patience bounds every test. It is reached only when one fails.
const patience = 10 * time.Second

// proxyServer serves each connection by a function, until the test ends.
func proxyServer(t *testing.T, serve func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	// Owned by the test, which closes the listener and waits.
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

// answerEnd is who is reached: he speaks first, and then says everything back.
func answerEnd(c net.Conn, rest io.Reader) {
	if _, err := io.Copy(c, rest); err == nil {
		c.(interface{ CloseWrite() error }).CloseWrite()
	}
}

// httpProxy serves CONNECT to the target, with a login if one is wanted. Its answer
// and what the target says at once are one write.
func httpProxy(t *testing.T, login bool) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		q, err := http.ReadRequest(r)
		if err != nil {
			t.Errorf("the proxy cannot read the request: %v", err)
			return
		}
		if q.Method != http.MethodConnect || q.RequestURI != target || q.Host != target {
			t.Errorf("the proxy is asked to %s %s, host %s", q.Method, q.RequestURI, q.Host)
		}
		want := ""
		if login {
			want = "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
		}
		if got := q.Header.Get("Proxy-Authorization"); got != want {
			io.WriteString(c, "HTTP/1.1 407 Who are you?\r\nProxy-Authenticate: Basic realm=\"x\"\r\nProxy-Authenticate: NTLM\r\n\r\n")
			return
		}
		io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 Connection established\r\nVia: nobody\r\n\r\n"+greeting)
		answerEnd(c, r)
	}
}

// socksProxy serves SOCKS5 (RFC 1928, RFC 1929); a reply other than 0 refuses.
func socksProxy(t *testing.T, login bool, reply byte) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		read := func(n int) []byte {
			b := make([]byte, n)
			if _, err := io.ReadFull(r, b); err != nil {
				t.Errorf("the proxy reads %v", err)
			}
			return b
		}
		methods := read(int(read(2)[1]))
		method := byte(0)
		if login {
			method = 2
		}
		if !strings.Contains(string(methods), string(method)) {
			c.Write([]byte{5, 0xff})
			return
		}
		c.Write([]byte{5, method})
		if login {
			name := string(read(int(read(2)[1])))
			secret := string(read(int(read(1)[0])))
			if name != user || secret != password {
				c.Write([]byte{1, 1})
				return
			}
			c.Write([]byte{1, 0})
		}
		head := read(5)
		host := string(read(int(head[4])))
		port := read(2)
		if head[1] != 1 || head[3] != 3 || host != "xmpp.example.org" || int(port[0])<<8|int(port[1]) != 5222 {
			t.Errorf("the proxy is asked for %v %s %v", head, host, port)
		}
		c.Write(append([]byte{5, reply, 0, 1, 0, 0, 0, 0, 0, 0}, greeting...))
		if reply == 0 {
			answerEnd(c, r)
		}
	}
}

// dial connects to the target by the proxy with this URL.
func dial(t *testing.T, url string) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return egress.New(egress.Config{Proxy: url}).DialContext(ctx, "tcp", target)
}

// wantTarget checks that a connection leads to the target: to what it says first,
// and to its half-close.
func wantTarget(t *testing.T, name string, c net.Conn, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "a friend\n"); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if got, err := io.ReadAll(c); string(got) != greeting+"a friend\n" || err != nil {
		t.Errorf("%s: read %q, %v", name, got, err)
	}
}

// Every kind of proxy lets through, with a login and without.
func TestThrough(t *testing.T) {
	const login = user + ":open%3Asesame@"
	for name, tt := range map[string]struct {
		serve func(net.Conn)
		url   string
	}{
		"HTTP":                {httpProxy(t, false), "http://"},
		"HTTP with login":     {httpProxy(t, true), "http://" + login},
		"host and port":       {httpProxy(t, false), ""},
		"SOCKS5":              {socksProxy(t, false, 0), "socks5://"},
		"SOCKS5 with login":   {socksProxy(t, true, 0), "socks5h://" + login},
		"SOCKS5, login spare": {socksProxy(t, false, 0), "socks5://" + login},
	} {
		c, err := dial(t, tt.url+proxyServer(t, tt.serve))
		wantTarget(t, name, c, err)
		if _, ok := c.(*net.TCPConn); err == nil && !ok {
			t.Errorf("%s: got a %T, want the socket", name, c)
		}
	}
}

// A proxy may itself be inside TLS, which is checked.
func TestThroughTLS(t *testing.T) {
	certificate, roots := selfSigned(t)
	address := proxyServer(t, func(c net.Conn) {
		secured := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate}})
		if secured.Handshake() == nil {
			httpProxy(t, true)(secured)
		}
	})
	url := "https://" + user + ":open%3Asesame@" + address
	c, err := egress.New(egress.Config{Proxy: url, TLS: &tls.Config{RootCAs: roots}}).DialContext(t.Context(), "tcp", target)
	wantTarget(t, "HTTPS", c, err)
	_, err = egress.New(egress.Config{Proxy: url, TLS: &tls.Config{RootCAs: x509.NewCertPool()}}).DialContext(t.Context(), "tcp", target)
	wantError(t, "an unknown certificate", err, address, "certificate")
}

func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

// wantError checks that an error blames the proxy, says what is wanted, and tells
// no password.
func wantError(t *testing.T, name string, err error, proxy, says string) *egress.Error {
	t.Helper()
	var e *egress.Error
	if !errors.As(err, &e) {
		t.Errorf("%s: %v, want an error of the proxy's", name, err)
		return nil
	}
	if e.Proxy != proxy {
		t.Errorf("%s: blames %q, want %q", name, e.Proxy, proxy)
	}
	if !strings.Contains(err.Error(), says) {
		t.Errorf("%s: says %q, want something with %q", name, err, says)
	}
	if strings.Contains(err.Error(), "sesame") || strings.Contains(err.Error(), user) {
		t.Errorf("%s: tells the login: %q", name, err)
	}
	return e
}

// What a proxy refuses, or says in place of an answer, is told; nothing of it is
// taken for the target's.
func TestRefused(t *testing.T) {
	says := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			r := bufio.NewReader(c)
			if _, err := http.ReadRequest(r); err != nil {
				t.Errorf("the proxy cannot read the request: %v", err)
			}
			io.WriteString(c, text)
		}
	}
	const login = "//" + user + ":open%3Asesame@"
	for name, tt := range map[string]struct {
		serve  func(net.Conn)
		scheme string
		want   string
		status int
	}{
		"not this port":  {says("HTTP/1.0 403 Not \x1b[2Jthis port\r\n\r\n"), "http:", "lets no connection through to " + target + ": 403 Not [2Jthis port", 403},
		"no reason":      {says("HTTP/1.1 502\n\n"), "http:", ": 502", 502},
		"wrong password": {httpProxy(t, false), "http:", "407 Who are you? (it wants Basic or NTLM)", 407},
		"not HTTP":       {says("SSH-2.0-OpenSSH\r\n"), "http:", "not HTTP/1", 0},
		"HTTP/2":         {says("HTTP/2 200 OK\r\n\r\n"), "http:", "not HTTP/1", 0},
		"no number":      {says("HTTP/1.1 2OO fine\r\n\r\n"), "http:", "not HTTP/1", 0},
		"only interim":   {says(strings.Repeat("HTTP/1.1 100 Wait\r\n\r\n", 20)), "http:", "not HTTP/1", 0},
		"nothing":        {says(""), "http:", "closed the connection", 0},
		"half":           {says("HTTP/1.1 200 OK\r\nVia: "), "http:", "closed the connection", 0},
		"endless":        {says("HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 1<<12)), "http:", "more than 16384 bytes", 0},
		"SOCKS password": {socksProxy(t, true, 0), "socks5:", "username/password", 0},
		"SOCKS rules":    {socksProxy(t, false, 2), "socks5:", "not allowed by ruleset", 0},
		"SOCKS nobody":   {socksProxy(t, false, 5), "socks5:", "connection refused", 0},
	} {
		address := proxyServer(t, tt.serve)
		url := tt.scheme + login + address
		if name == "SOCKS password" {
			url = tt.scheme + "//" + user + ":sesame@" + address
		}
		_, err := dial(t, url)
		if e := wantError(t, name, err, address, tt.want); e == nil {
			continue
		} else if got := e.Answer; tt.status == 0 && got != nil || tt.status != 0 && (got == nil || got.Status != tt.status) {
			t.Errorf("%s: answer %+v, want status %d", name, got, tt.status)
		}
	}
}

// A proxy that is not there, or says nothing, is blamed; who does not want to wait
// need not.
func TestSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().String()
	l.Close()
	_, err = dial(t, "http://"+gone)
	wantError(t, "gone", err, gone, "connect")

	for _, scheme := range []string{"http://", "https://", "socks5://"} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		address := proxyServer(t, func(c net.Conn) {
			io.ReadFull(c, make([]byte, 3))
			cancel()
			<-ended
		})
		_, err := egress.New(egress.Config{Proxy: scheme + address}).DialContext(ctx, "tcp", target)
		close(ended)
		wantError(t, scheme, err, address, "")
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want that it was given up", scheme, err)
		}
	}
}

// What is excepted is dialed directly, and never through the proxy.
func TestExcepted(t *testing.T) {
	const noProxy = "example.net, .inside.example.org, 192.0.2.0/24, 198.51.100.7:5280"
	for address, want := range map[string]bool{
		"example.org:5222":                true,
		"example.net:5222":                false,
		"www.example.net:5222":            false,
		"inside.example.org:5222":         true,
		"relay.inside.example.org:5280":   false,
		"192.0.2.9:5280":                  false,
		"198.51.100.7:5280":               false,
		"198.51.100.7:443":                true,
		"203.0.113.1:443":                 true,
		"[2001:db8::1]:443":               true,
		"127.0.0.1:5222":                  false,
		"[::1]:5222":                      false,
		"localhost:5222":                  false,
		"relay.EXAMPLE.net:5280":          false,
		"xn--bcher-kva.example.org.:5222": true,
	} {
		var dialed []string
		d := egress.New(egress.Config{Proxy: "http://proxy.example.org", NoProxy: noProxy, Dial: func(_ context.Context, _, at string) (net.Conn, error) {
			dialed = append(dialed, at)
			return nil, net.ErrClosed
		}})
		if got := d.Applies(address); got != want {
			t.Errorf("%s: through the proxy: %v, want %v", address, got, want)
		}
		_, err := d.DialContext(t.Context(), "tcp", address)
		at := address
		if want {
			at = "proxy.example.org:80"
		}
		if len(dialed) != 1 || dialed[0] != at || !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: dialed %q, %v, want %s", address, dialed, err, at)
		}
		if _, err := d.DialProxy(t.Context(), "tcp", address); want == errors.Is(err, egress.ErrExcepted) {
			t.Errorf("%s: %v, by the proxy alone", address, err)
		}
	}
	all := egress.New(egress.Config{Proxy: "http://proxy.example.org", NoProxy: "*"})
	if all.Applies(target) || !all.Configured() {
		t.Error("* does not except everything")
	}
}

// The environment is read as other programs do.
func TestFromEnvironment(t *testing.T) {
	names := []string{"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "http_proxy"}
	for name, tt := range map[string]struct {
		env  map[string]string
		want string // Proxy
		not  string // an address that is excepted
	}{
		"nothing":         {nil, "", target},
		"plain http":      {map[string]string{"http_proxy": "a:1"}, "", target},
		"lower case":      {map[string]string{"https_proxy": "a:1", "HTTPS_PROXY": "b:1", "all_proxy": "c:1"}, "a:1", "127.0.0.1:1"},
		"upper case":      {map[string]string{"HTTPS_PROXY": "https://b", "all_proxy": "c:1"}, "b:443", "localhost:1"},
		"all":             {map[string]string{"all_proxy": "socks5://c", "ALL_PROXY": "d:1"}, "c:1080", "[::1]:1"},
		"ALL":             {map[string]string{"ALL_PROXY": "socks5h://[2001:db8::1]", "no_proxy": "example.net"}, "[2001:db8::1]:1080", "example.net:1"},
		"NO":              {map[string]string{"ALL_PROXY": "d:1", "NO_PROXY": "example.org"}, "d:1", target},
		"no URL":          {map[string]string{"HTTPS_PROXY": "http://" + user + ":sesame@:x"}, "", "127.0.0.1:1"},
		"no such scheme":  {map[string]string{"ALL_PROXY": "socks4://" + user + ":sesame@d:1"}, "", "127.0.0.1:1"},
		"password, no %%": {map[string]string{"ALL_PROXY": "http://" + user + ":ses%ame@d:1"}, "", "127.0.0.1:1"},
	} {
		for _, n := range names {
			t.Setenv(n, tt.env[n])
		}
		d := egress.FromEnvironment()
		if got := d.Proxy(); got != tt.want {
			t.Errorf("%s: proxy %q, want %q", name, got, tt.want)
		}
		if d.Applies(tt.not) {
			t.Errorf("%s: %s is reached through the proxy", name, tt.not)
		}
		if tt.want != "" || !d.Configured() {
			continue
		}
		set := "HTTPS_PROXY"
		if tt.env[set] == "" {
			set = "ALL_PROXY"
		}
		_, err := d.DialProxy(t.Context(), "tcp", target)
		wantError(t, name, err, set, "the URL of a proxy")
	}
}
