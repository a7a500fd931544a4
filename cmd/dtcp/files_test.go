package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/profile"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// random FILE BYTES makes a file of bytes that occur nowhere else in it.
func cmdRandom(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: random FILE BYTES")
	}
	n, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	_, err = io.CopyN(f, rand.NewChaCha8(sha256.Sum256([]byte(args[0]))), n)
	ts.Check(err)
	ts.Check(f.Close())
}

// same FILE FILE compares files of any size.
func cmdSame(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: same FILE FILE")
	}
	var sums [2][]byte
	for i, name := range args {
		f, err := os.Open(ts.MkAbs(name))
		ts.Check(err)
		h := sha256.New()
		_, err = io.Copy(h, f)
		ts.Check(err)
		ts.Check(f.Close())
		sums[i] = h.Sum(nil)
	}
	if !bytes.Equal(sums[0], sums[1]) {
		ts.Fatalf("%s and %s differ", args[0], args[1])
	}
}

// mark FILE has grown count from the size that the file has now.
func cmdMark(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: mark FILE")
	}
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Setenv("MARK", strconv.FormatInt(info.Size(), 10))
}

// grown FILE BYTES waits until a file has grown by so many bytes, from nothing
// or what it had at mark.
func cmdGrown(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: grown FILE BYTES")
	}
	least, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	if mark, err := strconv.ParseInt(ts.Getenv("MARK"), 10, 64); err == nil {
		least += mark
	}
	ticks := time.NewTicker(time.Millisecond)
	defer ticks.Stop()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		if info, err := os.Stat(ts.MkAbs(args[0])); err == nil && info.Size() >= least {
			return
		}
		select {
		case <-ticks.C:
		case <-deadline.C:
			ts.Fatalf("%s does not have %d bytes", args[0], least)
		}
	}
}

// offer NAME ADDRESS FILE... offers empty files over the protocol of
// doc/transfer.md, whatever their names, in which Go's escapes are understood,
// and prints what the receiver says of each.
func cmdOffer(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: offer NAME ADDRESS FILE...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	endpoint, err := dtcp.NewEndpoint(scriptLogin(ts, args[0], "hostile"), &dtcp.Config{
		Listen: "127.0.0.1:0", Certificate: scriptCertificate(ts, args[0]),
	})
	ts.Check(err)
	defer endpoint.Close()
	conn, err := endpoint.Dial(ctx, jid.MustParse(args[1]), fileService)
	ts.Check(err)
	defer conn.Abort()
	ts.Check(conn.SetDeadline(time.Now().Add(patience)))
	var entries []byte
	for _, quoted := range args[2:] {
		name, err := strconv.Unquote(`"` + quoted + `"`)
		ts.Check(err)
		entries = append(entries, 0, 0) // a file, at the top
		entries = append(binary.AppendUvarint(entries, uint64(len(name))), name...)
		entries = append(entries, 0, 0, 0, 0) // mode, time, size
	}
	say := func(kind byte, payload []byte) {
		b := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(payload)))
		_, err := conn.Write(append(b, payload...))
		ts.Check(err)
	}
	say('h', append([]byte("dtcp-file"), 1))
	say('m', entries)
	say('e', []byte{byte(len(args) - 2), 0})
	failed := map[byte]bool{}
	for {
		var header [5]byte
		_, err := io.ReadFull(conn, header[:])
		ts.Check(err)
		payload := make([]byte, binary.BigEndian.Uint32(header[1:]))
		_, err = io.ReadFull(conn, payload)
		ts.Check(err)
		switch header[0] {
		case 'r':
			failed[payload[0]] = payload[1] == 2
			if payload[1] == 2 {
				fmt.Fprintf(ts.Stdout(), "%d: failed: %q\n", payload[0], payload[2:])
			} else {
				fmt.Fprintf(ts.Stdout(), "%d: stored\n", payload[0])
			}
		case 'g':
			for i := range byte(len(args) - 2) {
				if !failed[i] {
					sum := sha256.Sum256(nil)
					say('f', []byte{i, 0})
					say('z', append([]byte{0}, sum[:]...))
				}
			}
			say('q', nil)
		case 'c':
			return
		case 'a', 'n':
			ts.Fatalf("the receiver ended it: %q", payload)
		}
	}
}

// scriptCertificate is the one that an account's configuration has.
func scriptCertificate(ts *testscript.TestScript, name string) *tls.Certificate {
	dir, err := profile.Open(ts.MkAbs(name))
	ts.Check(err)
	c, err := dir.Certificate()
	ts.Check(err)
	return &c
}
