//go:build linux

package lab_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/dtcp-relay/dtcp/lab"
)

// TestLabRelayCapture reads along what a relay sees of a stream between two
// users who reveal no address but its: nothing of what they say, and nothing of
// their keys but their names.
func TestLabRelayCapture(t *testing.T) {
	marker := []byte("nobody but the two of us shall read this; ")
	data := bytes.Repeat(marker, 100_000)
	for _, kind := range lab.Kinds {
		t.Run(kind.Name, func(t *testing.T) {
			server := kind.Start(t, lab.Component)
			dtcpd := lab.StartRelay(t, dtcpdBinary, server, "")

			// That a marker would be seen is shown by one that is.
			plain := lab.StartCapture(t, dtcpd.Addr)
			p, err := throughDtcpd(t, oursName, dtcpd, login(t, server, "owner")).stream(sourceAddress(0))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.dialer.Write(marker); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(p.listener, make([]byte, len(marker))); err != nil {
				t.Fatal(err)
			}
			p.close()
			if seen := plain.Stop(t); bytes.Count(seen, marker) != 2 { // on each leg
				t.Fatalf("the marker is %d times in %d bytes captured, want twice: what follows would show nothing", bytes.Count(seen, marker), len(seen))
			}

			alice, bob := lab.NewUser(t, server, dtcpBinary, "alice"), lab.NewUser(t, server, dtcpBinary, "bob")
			capture := lab.StartCapture(t, dtcpd.Addr)
			listener := bob.Listen(t, lab.Streams{}, "--relay-only", "--exec", "cat", "--allow", alice.JID)
			var stdout bytes.Buffer
			dial := alice.Start(t, lab.Streams{Stdin: bytes.NewReader(data), Stdout: &stdout}, "dial", bob.Address("pipe"), "--relay-only")
			for _, run := range []*lab.Run{dial, listener} {
				if got := run.Await(t, "path").Kind; got != "relay" {
					t.Errorf("%s: path of kind %q, want relay", run.Name, got)
				}
			}
			if status := dial.Status(t); status != 0 || !bytes.Equal(stdout.Bytes(), data) {
				t.Errorf("dial: exit status %d, %d bytes came back, want %d", status, stdout.Len(), len(data))
			}
			seen := capture.Stop(t)
			// Both directions, on both legs.
			if least := 4 * len(data); len(seen) < least {
				t.Errorf("captured %d bytes, want %d at least", len(seen), least)
			}
			for _, secret := range [][]byte{marker, marker[:16], []byte(alice.JID), []byte(bob.JID), []byte(alice.Password)} {
				if n := bytes.Count(seen, secret); n > 0 {
					t.Errorf("%q is %d times in what the relay saw", secret, n)
				}
			}
			t.Logf("captured %d bytes of a stream that carried %d each way: the marker is not in them", len(seen), len(data))
		})
	}
}
