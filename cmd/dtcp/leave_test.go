package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// proxy USER PASSWORD starts an HTTP proxy at PROXY that wants a login, and lets
// connections to xmpp.example.test:5222 alone through, which is the script's server.
func cmdProxy(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: proxy USER PASSWORD")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	server := ts.Getenv("SERVER")
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
				serveProxy(conn.(*net.TCPConn), server, args[0], args[1])
			})
		}
	})
	ts.Defer(func() {
		listener.Close()
		serving.Wait()
	})
	ts.Setenv("PROXY", listener.Addr().String())
}

// serveProxy serves one connection. A script does not last longer than patience
// allows.
func serveProxy(conn *net.TCPConn, server, user, password string) {
	conn.SetDeadline(time.Now().Add(2 * patience))
	r := bufio.NewReader(conn)
	q, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	// BasicAuth knows the header of requests to servers only.
	q.Header.Set("Authorization", q.Header.Get("Proxy-Authorization"))
	if u, p, ok := q.BasicAuth(); !ok || u != user || p != password {
		io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"test\"\r\n\r\n")
		return
	}
	if q.Method != http.MethodConnect || q.Host != "xmpp.example.test:5222" {
		io.WriteString(conn, "HTTP/1.1 403 Forbidden\r\n\r\n")
		return
	}
	beyond, err := net.DialTimeout("tcp", server, patience)
	if err != nil {
		return
	}
	defer beyond.Close()
	beyond.SetDeadline(time.Now().Add(2 * patience))
	io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
	var back sync.WaitGroup
	// Owned and waited for by this call; it ends with the server's connection.
	back.Go(func() {
		io.Copy(conn, beyond)
		conn.Close()
	})
	io.Copy(beyond, r)
	beyond.Close()
	back.Wait()
}
