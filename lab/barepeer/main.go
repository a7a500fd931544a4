// Command barepeer moves a stream from one process to another over TCP and
// nothing but crypto/tls: the least program that does what dtcp dial and
// listen do once they have found each other, and the measure they are held to.
//
//	barepeer listen FILE         accept one stream, write it to standard output
//	barepeer dial ADDR FILE      send standard input to it
//
// FILE has a certificate and its key, presented by both and verified by
// neither. Both print a line on standard error when the stream stands; the
// listener's first line is its address.
package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
)

// bufferSize is that of the copy loop, in bytes: as large as that of dtcp.
const bufferSize = 256 << 10

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "barepeer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "listen":
		return listen(args[1])
	case len(args) == 3 && args[0] == "dial":
		return dial(args[1], args[2])
	}
	return errors.New("usage: barepeer listen FILE | barepeer dial ADDR FILE")
}

// listen accepts one stream on loopback and copies it to standard output.
func listen(file string) error {
	config, err := newConfig(file)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, l.Addr())
	raw, err := l.Accept()
	if err != nil {
		return err
	}
	c := tls.Server(raw, config)
	if err := c.Handshake(); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "stream")
	if err := pour(os.Stdout, c); err != nil {
		return err
	}
	return c.Close()
}

// dial copies standard input to the listener at addr and waits for its end.
func dial(addr, file string) error {
	config, err := newConfig(file)
	if err != nil {
		return err
	}
	c, err := tls.Dial("tcp", addr, config)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "stream")
	if err := pour(c, os.Stdin); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, c)
	return errors.Join(err, c.Close())
}

// pour is the copy loop, without the short cuts of package io, which do not
// apply to TLS.
func pour(dst io.Writer, src io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, bufferSize))
	return err
}

// newConfig is TLS 1.3 with both certificates, as between two extended peers.
func newConfig(file string) (*tls.Config, error) {
	certificate, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{certificate},
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, // a yardstick, not a program to use
		SessionTicketsDisabled: true,
	}, nil
}
