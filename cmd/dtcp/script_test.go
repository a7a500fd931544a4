package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/profile"
	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

func TestMain(m *testing.M) {
	// Scripts wait most of their time, so that more of them fit than there are
	// processors.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	if err := os.Setenv(noGatewayVariable, "1"); err != nil { // no test talks to a gateway
		panic(err)
	}
	testscript.Main(m, map[string]func(){"dtcp": main})
}

// scripts is how many there are: a folder that moved would pass silently.
const scripts = 33

// TestScripts runs the promises of the command line, one script each, against
// an XMPP server on loopback that each script has for itself. The scripts know
// the commands of package testscript and those in scriptCommands, and find in
// their environment:
//
//	JULIET, ROMEO, TYBALT  configuration directories that are logged in
//	SERVER, CA     how to reach the XMPP server, whose domain is example.test
//	LOOP           the flag that keeps streams on 127.0.0.1
//	ECHO           a TCP server that answers the end of input by the input
//	DTCP_CONFIG    an empty place
//	RELAY          the relay's address, once there is one
func TestScripts(t *testing.T) {
	t.Parallel()
	const dir = "testdata/script"
	found, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil || len(found) != scripts {
		t.Fatalf("%d scripts in %s, %v, want %d", len(found), dir, err, scripts)
	}
	testscript.Run(t, testscript.Params{
		Dir: dir, Setup: setUpScript, Cmds: scriptCommands,
		RequireExplicitExec: true, RequireUniqueNames: true,
	})
}

// What the XMPP server and, where a script wants one, the relay are called.
const (
	domain      = "example.test"
	relayDomain = "relay.example.test"
)

// serverKey finds the script's server among its values.
type serverKey struct{}

type scriptServer struct {
	*rendezvous.Server
	*cutListener
	roots *x509.CertPool
}

// cutListener can cut the connections that it has accepted.
type cutListener struct {
	net.Listener

	mu    sync.Mutex
	conns []net.Conn
}

func (l *cutListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.conns = append(l.conns, conn)
	}
	return conn, err
}

func (l *cutListener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range l.conns {
		conn.Close()
	}
	l.conns = nil
}

func setUpScript(env *testscript.Env) error {
	certificate, err := rendezvous.SelfSigned(domain, time.Now())
	if err != nil {
		return err
	}
	server, err := rendezvous.New(rendezvous.Config{Domain: domain, Certificate: certificate, Iterations: 4096})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	cuttable := &cutListener{Listener: listener}
	// Owned by the script, which ends it by Close, which waits for it.
	go server.Serve(cuttable)
	env.Defer(func() { server.Close() })
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}))
	if err := os.WriteFile(filepath.Join(env.WorkDir, "ca.pem"), []byte(ca), 0o600); err != nil {
		return err
	}
	for _, name := range []string{"juliet", "romeo", "tybalt"} {
		if err := server.SetAccount(name, name+"'s password"); err != nil {
			return err
		}
		dir, err := profile.Open(filepath.Join(env.WorkDir, name))
		if err != nil {
			return err
		}
		who := jid.MustParse(name + "@" + domain)
		if err := dir.Remember(profile.Account{JID: who, Password: name + "'s password", Server: listener.Addr().String(), CA: ca}); err != nil {
			return err
		}
	}
	echo, err := serveEcho(env)
	if err != nil {
		return err
	}
	env.Setenv("JULIET", filepath.Join(env.WorkDir, "juliet"))
	env.Setenv("ROMEO", filepath.Join(env.WorkDir, "romeo"))
	env.Setenv("TYBALT", filepath.Join(env.WorkDir, "tybalt"))
	env.Setenv("DTCP_CONFIG", filepath.Join(env.WorkDir, "config"))
	env.Setenv("SERVER", listener.Addr().String())
	env.Setenv("CA", filepath.Join(env.WorkDir, "ca.pem"))
	env.Setenv("LOOP", "--public=127.0.0.1:0")
	env.Setenv("ECHO", echo)
	env.Setenv(noGatewayVariable, "1")
	env.Setenv("GORACE", "atexit_sleep_ms=0") // else each process lingers for a second under -race
	roots := x509.NewCertPool()
	roots.AddCert(certificate.Leaf)
	env.Values[serverKey{}] = &scriptServer{server, cuttable, roots}
	processes := &processes{all: map[string]*process{}}
	env.Values[processesKey{}] = processes
	env.Defer(processes.kill)
	return nil
}

// serveEcho starts the server at ECHO.
func serveEcho(env *testscript.Env) (address string, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	var serving sync.WaitGroup
	// Owned by the script, which closes the listener and waits.
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(patience))
				if input, err := io.ReadAll(conn); err == nil {
					conn.Write(input)
				}
			})
		}
	})
	env.Defer(func() {
		listener.Close()
		serving.Wait()
	})
	return listener.Addr().String(), nil
}

var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"start":  cmdStart,
	"await":  cmdAwait,
	"feed":   cmdFeed,
	"eof":    cmdEOF,
	"signal": cmdSignal,
	"end":    cmdEnd,
	"status": cmdStatus,
	"tcp":    cmdTCP,
	"peer":   cmdPeer,
	"take":   cmdTake,
	"cut":    cmdCut,
	"down":   cmdDown,
	"friend": cmdFriend,
	"relay":  cmdRelay,
	"proxy":  cmdProxy,
	"random": cmdRandom,
	"same":   cmdSame,
	"mark":   cmdMark,
	"grown":  cmdGrown,
	"offer":  cmdOffer,
}

// status [-in FILE] STATUS PROGRAM [ARG...] runs a program and checks its exit
// status.
func cmdStatus(ts *testscript.TestScript, _ bool, args []string) {
	var input string
	if len(args) > 2 && args[0] == "-in" {
		input, args = ts.ReadFile(args[1]), args[2:]
	}
	if len(args) < 2 {
		ts.Fatalf("usage: status [-in FILE] STATUS PROGRAM [ARG...]")
	}
	p := newProcess(ts, args[1:])
	if err := p.cmd.Start(); err != nil {
		ts.Fatalf("%v", err)
	}
	io.WriteString(p.stdin, input)
	p.stdin.Close()
	p.finish(ts, args[0])
}

// tcp ADDRESS TEXT [COPIES] sends text over as many connections as are asked
// for, all at once, ends its side, and prints what comes back.
func cmdTCP(ts *testscript.TestScript, neg bool, args []string) {
	copies := 1
	if len(args) == 3 {
		copies, _ = strconv.Atoi(args[2])
	}
	if len(args) < 2 || copies < 1 {
		ts.Fatalf("usage: [!] tcp ADDRESS TEXT [COPIES]")
	}
	type answer struct {
		text string
		err  error
	}
	answers := make(chan answer, copies)
	for range copies {
		// Owned by this command, which waits for its answer.
		go func() {
			text, err := askTCP(args[0], args[1])
			answers <- answer{text, err}
		}()
	}
	for range copies {
		a := <-answers
		if (a.err != nil) != neg {
			ts.Fatalf("got %q, %v", a.text, a.err)
		}
		io.WriteString(ts.Stdout(), a.text+"\n")
	}
}

func askTCP(address, text string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
		return "", err
	}
	all, err := io.ReadAll(conn)
	return string(all), err
}

// peer RESOURCE ANSWER logs tybalt in, and has him answer requests for a
// stream. If ANSWER is silence, he does not; if it is nothing, he offers an
// address where nobody listens, and dials none; else he refuses, with that text,
// in which Go's escapes are understood.
func cmdPeer(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: peer RESOURCE ANSWER")
	}
	text, err := strconv.Unquote(`"` + args[1] + `"`)
	ts.Check(err)
	session := scriptLogin(ts, "tybalt", args[0])
	session.HandleIQ(xml.Name{Space: featureDTCP, Local: "query"}, func(q stanza.IQ) {
		if text == "silence" || q.Type != stanza.Set {
			return
		}
		answers := []stanza.IQ{q.Fail(stanza.NewError(stanza.Forbidden, text))}
		if text == "nothing" {
			answers = offerNothing(q)
		}
		// Owned by the session, which ends it when it is closed.
		go func() {
			for _, a := range answers {
				session.Send(context.Background(), a)
			}
		}()
	})
}

// offerNothing is an answer with one address where nobody listens, and that its
// sender dials no more (Sections 1 and 2 of protocol.md).
func offerNothing(q stanza.IQ) []stanza.IQ {
	const closed = "1024" // no program listens there
	text := func(name, text string) stanza.Element {
		return stanza.New(featureDTCP, name, stanza.Text(text))
	}
	session := stanza.New(featureSession, "session",
		stanza.New("urn:xmpp:jingle:apps:dtls:0", "fingerprint", stanza.Text(dtcp.FingerprintOf(nil).String())).With("hash", "sha-256"),
		stanza.New(featureSession, "candidate").With("type", "host").With("addr", "127.0.0.1").With("port", closed))
	offer := stanza.New(featureDTCP, "query", text("key", "tybalts-key"), text("host", "127.0.0.1:"+closed), session)
	gone := q.Fail(stanza.NewError(stanza.ServiceUnavailable, ""))
	gone.ID = "gone"
	gone.Payload = stanza.New(featureDTCP, "query", text("key", q.Payload.Child(featureDTCP, "key").Text()))
	return []stanza.IQ{q.Result(offer), gone}
}

// take RESOURCE logs in as juliet at a resource that may be in use, and stays.
func cmdTake(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: take RESOURCE")
	}
	scriptLogin(ts, "juliet", args[0])
}

// cut cuts all connections to the XMPP server.
func cmdCut(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 0 {
		ts.Fatalf("usage: cut")
	}
	ts.Value(serverKey{}).(*scriptServer).cut()
}

// down ends the XMPP server.
func cmdDown(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 0 {
		ts.Fatalf("usage: down")
	}
	server := ts.Value(serverKey{}).(*scriptServer)
	server.cutListener.Close()
	server.cut()
}

// relay JID... adds a relay to the XMPP server, which lists it as
// relay.example.test. Those who are named may use it, accounts or domains.
func cmdRelay(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: relay JID...")
	}
	var rules relay.Rules
	for _, who := range args {
		rules.Allow = append(rules.Allow, jid.MustParse(who))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	port := listener.Addr().(*net.TCPAddr).Port
	relayed, err := relay.New(relay.Config{
		Domain: jid.MustParse(relayDomain), Keys: relay.NewKeyring(), Rules: rules,
		Hosts: []relay.Host{{Addr: "127.0.0.1", Port: uint16(port)}},
	})
	ts.Check(err)
	// Owned by the script, which ends it by Close, which waits for it.
	go relayed.Serve(listener)
	ts.Defer(func() { relayed.Close() })
	_, err = ts.Value(serverKey{}).(*scriptServer).Attach(relayDomain, relayed.Answer)
	ts.Check(err)
	ts.Setenv("RELAY", listener.Addr().String())
}

// friend NAME NAME lets two accounts see each other's presence.
func cmdFriend(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: friend NAME NAME")
	}
	var who [2]jid.JID
	for i, name := range args {
		who[i] = jid.MustParse(name + "@" + domain)
	}
	ts.Check(ts.Value(serverKey{}).(*scriptServer).Subscribe(who[0], who[1]))
}

// scriptLogin logs in within the test process, until the script ends.
func scriptLogin(ts *testscript.TestScript, name, resource string) *xmpp.Session {
	server := ts.Value(serverKey{}).(*scriptServer)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	session, err := xmpp.Connect(ctx, &xmpp.Config{
		JID:      jid.MustParse(name + "@" + domain + "/" + resource),
		Password: name + "'s password", Server: server.Addr().String(), RootCAs: server.roots, NoReconnect: true,
	})
	ts.Check(err)
	ts.Defer(func() { session.Close() })
	return session
}
