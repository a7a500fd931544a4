package main

import (
	"bufio"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/dtcp-relay/dtcp/internal/wire"
	"github.com/dtcp-relay/dtcp/internal/xmlstream"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"dtcpd": main}) }

// scripts is how many there are: a folder that moved would pass silently.
const scripts = 11

// TestScripts runs the promises of the command line, one script each. The
// scripts know the commands of package testscript and those below, and find in
// their environment:
//
//	SERVER  the component port of an XMPP server that plays its part for
//	        relay.example.test, whose secret is "s3kr1t"
//	HOME    an empty place
func TestScripts(t *testing.T) {
	const dir = "testdata/script"
	found, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil || len(found) != scripts {
		t.Fatalf("%d scripts in %s, %v, want %d", len(found), dir, err, scripts)
	}
	testscript.Run(t, testscript.Params{
		Dir: dir, Setup: setUpScript, RequireExplicitExec: true, RequireUniqueNames: true,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"start": cmdStart, "await": cmdAwait, "signal": cmdSignal, "end": cmdEnd,
			"get": cmdGet, "ask": cmdAsk, "login": cmdLogin, "eventually": cmdEventually,
			"lease": cmdLease, "join": cmdJoin, "part": cmdPart, "tcp": cmdTCP,
			"chmod": cmdChmod, "expand": cmdExpand, "free": cmdFree, "pin": cmdPin, "notified": cmdNotified, "want": cmdWant, "ahead": cmdAhead,
		},
	})
}

func setUpScript(env *testscript.Env) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := &xmppServer{conns: make(chan *xmppConn, 16)}
	// Owned by the script, which closes the listener and waits.
	s.serving.Go(func() { s.serve(l) })
	env.Defer(func() {
		l.Close()
		s.serving.Wait()
	})
	env.Values[serverKey{}] = s
	env.Values[running{}] = map[string]*process{}
	env.Values[legsKey{}] = map[string][]net.Conn{}
	env.Values[notifiedKey{}] = new(*net.UnixConn)
	env.Setenv("SERVER", l.Addr().String())
	env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
	env.Setenv("GORACE", "atexit_sleep_ms=0") // else each process lingers for a second under -race
	return nil
}

type serverKey struct{}

// xmppServer plays the XMPP server of a component.
type xmppServer struct {
	serving sync.WaitGroup
	conns   chan *xmppConn // that are logged in
	ahead   atomic.Int64   // the server's clock, in nanoseconds
	current *xmppConn      // used by the script's goroutine
	asked   int
}

type xmppConn struct {
	net.Conn
	said chan stanza.Element // closed at the end
}

func (s *xmppServer) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conn.SetDeadline(time.Now().Add(patience))
		in := xmlstream.NewReader(bufio.NewReader(conn), 0)
		h, err := in.Header()
		if err != nil {
			conn.Close()
			continue
		}
		conn.Write(xmlstream.Header{From: h.To, ID: "stream-1", Content: stanza.NSComponent}.Append(nil))
		proof, err := in.Next()
		refusal := ""
		switch {
		case h.To.String() != "relay.example.test":
			refusal = "host-unknown"
		case err != nil, proof.Text() != fmt.Sprintf("%x", sha1.Sum([]byte("stream-1s3kr1t"))):
			refusal = "not-authorized"
		}
		if refusal != "" {
			fmt.Fprintf(conn, "<stream:error><%s xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>%s", refusal, xmlstream.End)
			conn.Close()
			continue
		}
		io.WriteString(conn, "<handshake/>")
		c := &xmppConn{conn, make(chan stanza.Element, 16)}
		s.conns <- c
		// Ends with the connection, which has a deadline.
		s.serving.Go(func() {
			defer close(c.said)
			defer conn.Close()
			for {
				e, err := in.Next()
				if err != nil {
					return
				}
				if q, err := stanza.ParseIQ(e); err == nil && q.Payload.Is(nsTime, "time") {
					now := time.Now().Add(time.Duration(s.ahead.Load())).UTC().Format(time.RFC3339)
					answer := q.Result(stanza.New(nsTime, "time", stanza.New(nsTime, "utc", stanza.Text(now))))
					conn.Write(answer.Element(stanza.NSComponent).Append(nil, stanza.NSComponent))
					continue
				}
				c.said <- e
			}
		})
	}
}

// ask FROM PAYLOAD has the component asked, and prints its answer; ask hangup
// ends its login.
func cmdAsk(ts *testscript.TestScript, _ bool, args []string) {
	s := ts.Value(serverKey{}).(*xmppServer)
	if s.current == nil {
		select {
		case s.current = <-s.conns:
		case <-time.After(patience):
			ts.Fatalf("no component logs in")
		}
	}
	if len(args) == 1 && args[0] == "hangup" {
		s.current.Close()
		s.current = nil
		return
	}
	s.asked++
	fmt.Fprintf(s.current, "<iq type='get' id='q%d' from='%s' to='relay.example.test'>%s</iq>", s.asked, args[0], args[1])
	e, ok := <-s.current.said
	if !ok {
		ts.Fatalf("no answer")
	}
	fmt.Fprintln(ts.Stdout(), e)
}

// ahead DURATION sets the server's clock.
func cmdAhead(ts *testscript.TestScript, _ bool, args []string) {
	d, err := time.ParseDuration(args[0])
	ts.Check(err)
	ts.Value(serverKey{}).(*xmppServer).ahead.Store(int64(d))
}

// get URL prints the status and the body.
func cmdGet(ts *testscript.TestScript, _ bool, args []string) {
	status, body, err := get(args[0])
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%d\n%s", status, body)
}

func get(url string) (status int, body string, err error) {
	answer, err := http.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text), err
}

// eventually URL TEXT waits until the body has the text.
func cmdEventually(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		_, body, err := get(args[0])
		ts.Check(err)
		if strings.Contains(body, args[1]) {
			return
		}
		select {
		case <-again.C:
		case <-deadline.C:
			ts.Fatalf("%s does not come to have %q:\n%s", args[0], args[1], body)
		}
	}
}

func scriptLogin(name, server, pin, password string) (*xmpp.Session, error) {
	account, err := jid.Parse(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return xmpp.Connect(ctx, &xmpp.Config{JID: account, Password: password, Server: server, Pin: pin, NoReconnect: true})
}

// login JID SERVER PIN PASSWORD logs in, as dtcp login would, and out again.
func cmdLogin(ts *testscript.TestScript, neg bool, args []string) {
	s, err := scriptLogin(args[0], args[1], args[2], args[3])
	if err == nil {
		s.Close()
	}
	if (err != nil) != neg {
		ts.Fatalf("login: %v", err)
	}
}

// lease JID SERVER PIN PASSWORD has the user ask for a lease, and notes its id,
// secret and first host in LEASE, SECRET and RELAY; it prints the refusal, if
// there is one.
func cmdLease(ts *testscript.TestScript, neg bool, args []string) {
	s, err := scriptLogin(args[0], args[1], args[2], args[3])
	ts.Check(err)
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	to := jid.MustParse("relay." + s.LocalAddr().Domain())
	answer, err := s.RoundTrip(ctx, stanza.IQ{Header: stanza.Header{To: to}, Type: stanza.Get, Payload: stanza.New("urn:x-dtcp:relay:0", "lease")})
	if (err != nil) != neg {
		ts.Fatalf("lease: %v", err)
	}
	if err != nil {
		fmt.Fprintln(ts.Stdout(), err)
		return
	}
	lease := answer.Payload
	ts.Setenv("LEASE", lease.Attr("id"))
	ts.Setenv("SECRET", lease.Attr("secret"))
	host := lease.Child("urn:x-dtcp:relay:0", "host")
	ts.Setenv("RELAY", net.JoinHostPort(host.Attr("addr"), host.Attr("port")))
}

type legsKey struct{}

// join NAME makes a stream through the relay at RELAY, under the lease of
// LEASE and SECRET, and has 1,000 bytes go each way. It stays until part.
// With ! the relay must refuse, and its word is printed.
func cmdJoin(ts *testscript.TestScript, neg bool, args []string) {
	secret, err := base64.RawURLEncoding.DecodeString(ts.Getenv("SECRET"))
	ts.Check(err)
	key := wire.NewKey()
	dial := func(line wire.Line) net.Conn {
		conn, err := net.DialTimeout("tcp", ts.Getenv("RELAY"), patience)
		ts.Check(err)
		ts.Defer(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(patience))
		_, err = conn.Write(line.Append(nil))
		ts.Check(err)
		return conn
	}
	listener := dial(wire.NewClaim(wire.Serve, key, ts.Getenv("LEASE"), secret, time.Now()).Line())
	in := bufio.NewReader(listener)
	said, err := wire.NewReader(in).Line()
	ts.Check(err)
	if (said.Command != wire.OK) != neg {
		ts.Fatalf("the relay says %v", said)
	}
	if neg {
		fmt.Fprintln(ts.Stdout(), said)
		return
	}
	dialer := dial(wire.Line{Command: wire.Key, Argument: key})
	if line, err := wire.NewReader(in).Line(); err != nil || line.Argument != key {
		ts.Fatalf("the listener reads %v, %v", line, err)
	}
	text := make([]byte, 1000)
	for _, way := range []struct {
		from net.Conn
		to   io.Reader
	}{{listener, dialer}, {dialer, in}} {
		_, err := way.from.Write(text)
		ts.Check(err)
		_, err = io.ReadFull(way.to, text)
		ts.Check(err)
	}
	ts.Value(legsKey{}).(map[string][]net.Conn)[args[0]] = []net.Conn{listener, dialer}
}

// part NAME ends a stream of join, cleanly.
func cmdPart(ts *testscript.TestScript, _ bool, args []string) {
	legs := ts.Value(legsKey{}).(map[string][]net.Conn)[args[0]]
	for _, leg := range legs {
		ts.Check(leg.(*net.TCPConn).CloseWrite())
	}
	for _, leg := range legs {
		_, err := io.Copy(io.Discard, leg)
		ts.Check(err)
	}
}

// tcp ADDRESS TEXT sends a line and prints the first line that comes back.
func cmdTCP(ts *testscript.TestScript, neg bool, args []string) {
	conn, err := net.DialTimeout("tcp", args[0], patience)
	if neg {
		if err == nil {
			conn.Close()
			ts.Fatalf("%s answers", args[0])
		}
		return
	}
	ts.Check(err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, args[1]+"\n")
	line, err := bufio.NewReader(conn).ReadString('\n')
	ts.Check(err)
	io.WriteString(ts.Stdout(), line)
}

// expand FILE... replaces variables of the environment in files.
func cmdExpand(ts *testscript.TestScript, _ bool, args []string) {
	for _, file := range args {
		ts.Check(os.WriteFile(ts.MkAbs(file), []byte(os.Expand(ts.ReadFile(file), ts.Getenv)), 0o600))
	}
}

// free NAME puts the number of a port at which nobody listens into a variable.
func cmdFree(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	_, number, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Check(l.Close())
	ts.Setenv(args[0], number)
}

// pin NAME puts the certificate that a process told its users to trust into
// PIN.
func cmdPin(ts *testscript.TestScript, _ bool, args []string) {
	text, _ := named(ts, args[0]).stderr.now()
	_, pin, ok := strings.Cut(text, "--trust ")
	if !ok {
		ts.Fatalf("%s told no certificate:\n%s", args[0], text)
	}
	pin, _, _ = strings.Cut(pin, "\n")
	ts.Setenv("PIN", pin)
}

type notifiedKey struct{}

// notified plays systemd for programs that are started from now on.
func cmdNotified(ts *testscript.TestScript, _ bool, _ []string) {
	dir, err := os.MkdirTemp("", "n") // the names of sockets must be short
	ts.Check(err)
	path := filepath.Join(dir, "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	ts.Check(err)
	ts.Defer(func() {
		conn.Close()
		os.RemoveAll(dir)
	})
	conn.SetDeadline(time.Now().Add(patience))
	ts.Setenv("NOTIFY_SOCKET", path)
	*ts.Value(notifiedKey{}).(**net.UnixConn) = conn
}

// want STATE waits for the next notification, which must have this line.
func cmdWant(ts *testscript.TestScript, _ bool, args []string) {
	b := make([]byte, 4096)
	n, err := (*ts.Value(notifiedKey{}).(**net.UnixConn)).Read(b)
	ts.Check(err)
	if !slices.Contains(strings.Split(string(b[:n]), "\n"), args[0]) {
		ts.Fatalf("notified %q, want %q", b[:n], args[0])
	}
}

// chmod MODE FILE...
func cmdChmod(ts *testscript.TestScript, _ bool, args []string) {
	var mode os.FileMode
	if _, err := fmt.Sscanf(args[0], "%o", &mode); err != nil {
		ts.Fatalf("usage: chmod MODE FILE...")
	}
	for _, file := range args[1:] {
		ts.Check(os.Chmod(ts.MkAbs(file), mode))
	}
}
