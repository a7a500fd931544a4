package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// What the demonstration uses.
const (
	demoDomain = "demo.example"
	demoRelay  = "relay.demo.example"
	demoName   = "demo.bin"
	demoBytes  = 64 << 20
	demoPiece  = 1 << 20          // of the file: each begins with the marker
	demoTime   = 30 * time.Second // for all of it
)

func (t *tool) demoCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show a file on its way between two accounts, all in this process",
		Long: `demo starts a small XMPP server, a relay, and two peers with an account each, all in
this process and on 127.0.0.1 only. One sends the other a file of 64 MiB, which is
stored in a temporary folder; both compute the SHA-256. It goes over directly, and
once more when nothing that one dials of the other arrives, so that the relay is left.
A line that is all over the file is looked for in what the relay copies: it sees
ciphertext only. --direct-only and --relay-only show one of the two.

It needs no network and no account, and leaves nothing behind.`,
		Args: t.positional(0),
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		if !t.relay.IsZero() {
			return &usageError{errors.New("--relay: the demonstration has a relay of its own")}
		}
		return t.demo(c.Context())
	}
	return c
}

func (t *tool) demo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, demoTime)
	defer cancel()
	file := newDemoFile()
	world, err := startDemoWorld(file.marker, "romeo", "juliet")
	if err != nil {
		return err
	}
	defer world.close()
	t.out.say("an XMPP server for the domain %s listens on %v, and its relay on %v", demoDomain, world.address, world.relayAddress)

	var peers [2]*demoPeer
	for i, name := range []string{"romeo", "juliet"} {
		if peers[i], err = t.demoLogin(ctx, world, name); err != nil {
			return err
		}
		defer peers[i].session.Close()
	}
	if !t.relayOnly {
		t.out.say("first, directly")
		if err := t.demoTransfer(ctx, peers[0], peers[1], file, &dtcp.Config{NoRelay: true}); err != nil {
			return err
		}
	}
	if t.directOnly {
		return nil
	}
	t.out.say("then without a direct path: what one dials of the other is lost, as between two firewalls; both reach the relay")
	walled := &dtcp.Config{Network: walledNetwork{world.relayAddress}}
	if err := t.demoTransfer(ctx, peers[0], peers[1], file, walled); err != nil {
		return err
	}
	return t.demoTap(world.tap)
}

// demoTap tells what the relay saw.
func (t *tool) demoTap(tap *tap) error {
	seen, found := tap.bytes.Load(), tap.found.Load()
	switch {
	case seen < demoBytes:
		return fmt.Errorf("of a file of %d bytes the relay saw %d: it was not on the path", demoBytes, seen)
	case found > 0:
		return fmt.Errorf("the relay saw %q, which is in the file: the stream is not encrypted", tap.marker)
	}
	t.out.say("the relay saw %d bytes, and in them not once the line %q, which is %d times in the file: ciphertext only",
		seen, tap.marker, demoBytes/demoPiece)
	return nil
}

// demoTransfer sends the file from one peer to the other.
func (t *tool) demoTransfer(ctx context.Context, romeo, juliet *demoPeer, file *demoFile, config *dtcp.Config) error {
	for _, p := range []*demoPeer{romeo, juliet} {
		if err := t.demoOpen(p, romeo, config); err != nil {
			return err
		}
		defer p.endpoint.Close()
	}
	dir, err := os.MkdirTemp("", "dtcp-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	folder, err := transfer.OpenFolder(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // without a stream, the receiver would wait on
	type receipt struct {
		result *transfer.Result
		err    error
	}
	received := make(chan receipt, 1)
	// Owned by this call, which waits for it; it ends with the stream, or by ctx.
	go func() {
		result, err := juliet.receive(ctx, folder)
		received <- receipt{result, err}
	}()

	t.out.say("%v sends %v a file of %d MiB", romeo.session.LocalAddr(), juliet.session.LocalAddr(), demoBytes>>20)
	meter := newMeter(t.out).gauge()
	defer meter.end()
	sender := transfer.Sender{
		Dial:     func(ctx context.Context) (io.ReadWriteCloser, error) { return t.demoDial(ctx, romeo, juliet) },
		Progress: meter.show,
	}
	sent, err := sender.Send(ctx, transfer.Blob(demoName, demoBytes, time.Now(), file.open))
	meter.end()
	if err != nil {
		cancel()
		<-received
		return because(ctx, err)
	}
	got := <-received
	if got.err != nil {
		return because(ctx, got.err)
	}
	seconds := sent.Elapsed.Seconds()
	t.out.say("%d bytes in %.2f s: %.0f MB/s, both ends, their hashing and the disk on this machine", got.result.Bytes, seconds, float64(got.result.Bytes)/1e6/seconds)
	t.out.say("SHA-256 sent:     %s", sent.SHA256)
	t.out.say("SHA-256 received: %s", got.result.SHA256)
	if got.result.SHA256 != sent.SHA256 || got.result.Bytes != demoBytes {
		return errors.New("what was received is not what was sent")
	}
	t.out.say("the same on both ends: the stream works; the file is removed again")
	t.out.done(got.result, sent.Elapsed)
	return nil
}

// demoDial gets the stream.
func (t *tool) demoDial(ctx context.Context, romeo, juliet *demoPeer) (io.ReadWriteCloser, error) {
	to := juliet.session.LocalAddr()
	conn, err := romeo.endpoint.DialSummary(ctx, to, fileService, 1, demoBytes)
	if err != nil {
		return nil, &dialError{peer: to, service: fileService, own: romeo.session.LocalAddr(), err: because(ctx, err)}
	}
	t.out.took(conn, true)
	if path := conn.Path(); path.Fingerprint != juliet.fingerprint() {
		conn.Abort()
		return nil, fmt.Errorf("the peer's fingerprint is %v, not %v", path.Fingerprint, juliet.fingerprint())
	}
	t.out.say("each end has proven the key of the certificate that it announced over XMPP")
	return conn, nil
}

// demoFile is random bytes, but for a line that each piece begins with.
type demoFile struct {
	seed   [32]byte
	marker string
}

func newDemoFile() *demoFile {
	f := &demoFile{marker: "for the two ends alone: " + rand.Text()}
	rand.Read(f.seed[:])
	return f
}

func (f *demoFile) open() (io.ReadCloser, error) {
	noise := mathrand.NewChaCha8(f.seed)
	var pieces []io.Reader
	for range demoBytes / demoPiece {
		pieces = append(pieces, bytes.NewReader([]byte(f.marker)), io.LimitReader(noise, demoPiece-int64(len(f.marker))))
	}
	return io.NopCloser(io.MultiReader(pieces...)), nil
}
