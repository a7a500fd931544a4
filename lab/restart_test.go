//go:build linux

package lab_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

// TestLabRestart takes the XMPP server away and brings it back. A stream that
// stands does not care; a listener logs in again by itself.
func TestLabRestart(t *testing.T) {
	for _, kind := range lab.Kinds {
		t.Run(kind.Name, func(t *testing.T) {
			s := &stage{server: kind.Start(t)}
			alice, bob := s.user(t, "alice"), s.user(t, "bob")
			bob.Listen(t, lab.Streams{}, "--allow", alice.JID, "--exec", "cat")
			dialer := startEnd(t, alice, "dial", bob.Address("pipe"))
			dialer.run.Await(t, "path")

			s.server.Stop()
			data := bytesOf(9, 1_000_003)
			sent := make(chan error, 1)
			// Owned by this test; ends when dial has taken everything or is
			// dead; the receive below waits for it.
			go func() {
				_, err := dialer.stdin.Write(data)
				sent <- err
				dialer.stdin.Close()
			}()
			got, err := io.ReadAll(dialer.stdout)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("without the server, %d bytes came back (%v), want %d", len(got), err, len(data))
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			if status := dialer.run.Status(t); status != 0 {
				t.Errorf("dial: exit status %d, want 0", status)
			}

			s.server.Restart(t)
			deadline := time.Now().Add(time.Minute)
			for {
				answer := alice.Do(t, strings.NewReader("again"), "dial", bob.Address("pipe"))
				if answer.Status == 0 && string(answer.Stdout) == "again" {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("a minute after the restart: exit status %d, %q\n%s", answer.Status, answer.Stdout, answer.Messages)
				}
				time.Sleep(200 * time.Millisecond)
			}
		})
	}
}
