//go:build linux

package lab_test

import (
	"testing"

	"github.com/dtcp-relay/dtcp/lab"
)

// TestLabRelayBytestream lets two stock clients of XEP-0065 transfer bytes
// through the server's own proxy and through ours, attached to that server.
func TestLabRelayBytestream(t *testing.T) {
	const length = 20_000_001
	for _, kind := range lab.Kinds {
		t.Run(kind.Name, func(t *testing.T) {
			server := kind.Start(t, lab.Proxy)
			proxies := []string{server.Proxy}
			sender := lab.StartBytestream(t, server, server.Account(t, "sender"))
			receiver := lab.StartBytestream(t, server, server.Account(t, "receiver"))
			for _, proxy := range proxies {
				t.Run(proxy, func(t *testing.T) {
					sender.Command(t, "proxy %s", proxy)
					at := sender.Await(t, "proxy").Host
					for range 3 {
						sender.Command(t, "send %s %d", receiver.Address, length)
						sent := sender.Await(t, "sent")
						received := receiver.Await(t, "received")
						if sent.Sent != length || received.Received != length || received.SHA256 != sent.SHA256 {
							t.Errorf("sent %+v, received %+v", sent, received)
						}
						t.Logf("%s at %s: set up in %.1f ms, %d bytes in %.0f ms", proxy, at, sent.Setup*1e3, length, received.Seconds*1e3)
					}
				})
			}
		})
	}
}
