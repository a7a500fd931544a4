//go:build linux

package lab

import (
	"embed"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// startLimit is what a server has until it accepts connections. They need a
// second; a busy machine may need more.
const startLimit = time.Minute

// serverModules are the modules that the lab adds to the servers.
//
//go:embed servers
var serverModules embed.FS

// A Server is a running XMPP server that serves one domain, on loopback unless
// it is on a [Host], and offers SCRAM behind STARTTLS, which it demands.
type Server struct {
	Name      string // "prosody" or "ejabberd"
	Domain    string
	Addr      string // of the STARTTLS port
	DirectTLS string // address of the port that speaks TLS at once (XEP-0368)
	CAFile    string // PEM of the authority that signed the domain's certificate
	Chain     string // PEM of the domain's certificate, and the authority's

	ComponentAddr string // with [Component]: where its program logs in
	Component     string // with [Component]: its address
	SecretFile    string // with [Component]: mode 0600, one line
	Proxy         string // with [Proxy] or [TunedProxy]: its address

	host     *Host // nil: the lab's own network
	process  *Process
	launch   func(testing.TB) *Process // returns when every port answers
	accounts atomic.Int64
	iqLog    string
	register func(testing.TB, Account)
	befriend func(tb testing.TB, owner, contact Account)
}

// An Account is one that the harness made on a Server.
type Account struct {
	Name         string // the part before the @
	JID          string // bare
	Password     string
	PasswordFile string // mode 0600, one line
}

// An Extra is what a server may have besides accounts.
type Extra int

const (
	Component  Extra = iota + 1 // an external component (XEP-0114) at dtcp.DOMAIN
	Proxy                       // the server's own XEP-0065 proxy at proxy.DOMAIN, as it comes
	TunedProxy                  // the same with what its documentation has for speed
)

// A Kind of server, with what starts one for the length of a test.
type Kind struct {
	Name  string
	Start func(testing.TB, ...Extra) *Server
}

// Kinds are the servers that every story is told through.
var Kinds = []Kind{
	{"prosody", StartProsody},
	{"ejabberd", StartEjabberd},
}

// Account makes an account whose name begins with name, one that no other has.
// The password has a space and a letter outside
// ASCII, so that its preparation (RFC 8265) and quoting are used.
func (s *Server) Account(tb testing.TB, name string) Account {
	tb.Helper()
	name += strconv.FormatInt(s.accounts.Add(1), 10)
	a := Account{
		Name:         name,
		JID:          name + "@" + s.Domain,
		Password:     "pässword of " + name,
		PasswordFile: filepath.Join(tb.TempDir(), "password"),
	}
	writeFile(tb, a.PasswordFile, []byte(a.Password+"\n"))
	s.register(tb, a)
	return a
}

// Stop ends the server, as a reboot of its machine would.
func (s *Server) Stop() { s.process.Stop() }

// Restart starts a stopped server again, with what it had stored.
func (s *Server) Restart(tb testing.TB) {
	tb.Helper()
	s.process = s.launch(tb)
}

// extend gives the server the addresses of its extras.
func (s *Server) extend(tb testing.TB, dir string, extras []Extra) {
	tb.Helper()
	for _, extra := range extras {
		switch extra {
		case Component:
			s.ComponentAddr, s.Component = loopback(FreePort(tb)), "dtcp."+s.Domain
			if s.host != nil {
				s.ComponentAddr = net.JoinHostPort(s.host.V4.String(), portOf(s.ComponentAddr))
			}
			s.SecretFile = filepath.Join(dir, "secret")
			writeFile(tb, s.SecretFile, []byte(componentSecret+"\n"))
		case Proxy, TunedProxy:
			s.Proxy = "proxy." + s.Domain
		}
	}
}

// componentSecret is that of every server's component. It never leaves loopback.
const componentSecret = "secret of the component"

// portOf is the port of an address that the harness made.
func portOf(address string) string {
	return address[strings.LastIndexByte(address, ':')+1:]
}

// await returns when the server accepts connections at addr.
func (s *Server) await(tb testing.TB, p *Process, addr string) {
	tb.Helper()
	if s.host == nil {
		awaitPort(tb, p, addr, startLimit)
		return
	}
	s.host.AwaitPort(tb, p, netip.MustParseAddrPort(addr))
}

// For is the address at which a user logs in from a host of the server's
// internet: at a port that every network lets out.
func (s *Server) For(h *Host) string {
	if h == nil {
		return s.Addr
	}
	ip := s.host.V4
	if !h.V4.IsValid() {
		ip = s.host.V6
	}
	return net.JoinHostPort(ip.String(), portOf(s.DirectTLS))
}

// Process is the server's process, as it runs now.
func (s *Server) Process() *Process { return s.process }

// Befriend subscribes two accounts to each other's presence. Neither may be
// logged in.
func (s *Server) Befriend(tb testing.TB, a, b Account) {
	tb.Helper()
	s.befriend(tb, a, b)
	s.befriend(tb, b, a)
}

// installModule copies one of the lab's modules into dir.
func installModule(tb testing.TB, dir, name string) string {
	tb.Helper()
	source, err := serverModules.ReadFile("servers/" + name)
	if err != nil {
		tb.Fatalf("lab: %v", err)
	}
	file := filepath.Join(dir, name)
	writeFile(tb, file, source)
	return file
}

// tailOf returns the end of a log file, for a failed test's output.
func tailOf(file string) func() string {
	return func() string {
		data, err := os.ReadFile(file)
		if err != nil {
			return err.Error()
		}
		if len(data) > logKeep {
			data = data[len(data)-logKeep:]
			return "…" + string(data[strings.IndexByte(string(data), '\n')+1:])
		}
		return string(data)
	}
}
