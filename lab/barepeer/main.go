// Command barepeer moves a stream from one process to another over TCP and
// nothing but crypto/tls: the least program that does what dtcp dial and
// listen do once they have found each other, and the measure they are held to.
//
//	barepeer listen FILE         accept one stream, write it to standard output
//	barepeer dial ADDR FILE      send standard input to it
//
// With one more argument each they are the measure of dtcp send and receive:
//
//	barepeer listen FILE TARGET       write what comes to TARGET, hash it, compare
//	barepeer dial ADDR FILE SOURCE    hash SOURCE while sending it
//
// FILE has a certificate and its key, presented by both and verified by
// neither. Both print a line on standard error when the stream stands; the
// listener's first line is its address.
package main

import (
	"bytes"
	"crypto/sha256"
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
		return listen(args[1], func(c *tls.Conn) error { return pour(os.Stdout, c) })
	case len(args) == 3 && args[0] == "dial":
		return dial(args[1], args[2], func(c *tls.Conn) error { return pour(c, os.Stdin) })
	case len(args) == 3 && args[0] == "listen":
		return listen(args[1], func(c *tls.Conn) error { return take(args[2], c) })
	case len(args) == 4 && args[0] == "dial":
		return dial(args[1], args[2], func(c *tls.Conn) error { return give(c, args[3]) })
	}
	return errors.New("usage: barepeer listen FILE [TARGET] | barepeer dial ADDR FILE [SOURCE]")
}

// listen accepts one stream on loopback and has it read.
func listen(file string, read func(*tls.Conn) error) error {
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
	if err := read(c); err != nil {
		return err
	}
	return c.Close()
}

// dial has a stream to the listener at addr written and waits for its end.
func dial(addr, file string, write func(*tls.Conn) error) error {
	config, err := newConfig(file)
	if err != nil {
		return err
	}
	c, err := tls.Dial("tcp", addr, config)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "stream")
	if err := write(c); err != nil {
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

// give writes a file and then its hash.
func give(w io.Writer, source string) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if err := pour(w, io.TeeReader(f, h)); err != nil {
		return err
	}
	_, err = w.Write(h.Sum(nil))
	return err
}

// take writes what comes, but for the hash at the end, to a new file, and has
// it on the disk before it is done.
func take(target string, r io.Reader) error {
	f, err := os.Create(target)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, bufferSize)
	held := 0 // bytes at the start of buf that may be the hash
	for {
		n, err := r.Read(buf[held:])
		held += n
		if data := held - sha256.Size; data > 0 {
			h.Write(buf[:data])
			if _, err := f.Write(buf[:data]); err != nil {
				return err
			}
			held = copy(buf, buf[data:held])
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if !bytes.Equal(buf[:held], h.Sum(nil)) {
		return errors.New("what came is not what was sent")
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
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
