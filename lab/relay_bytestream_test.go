//go:build linux

package lab_test

import (
	"crypto/sha1"
	"encoding/hex"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// TestLabRelayBytestream lets two stock clients of XEP-0065 transfer bytes
// through the server's own proxy and through ours, attached to that server.
func TestLabRelayBytestream(t *testing.T) {
	const length = 20_000_001
	for _, kind := range lab.Kinds {
		t.Run(kind.Name, func(t *testing.T) {
			server := kind.Start(t, lab.Proxy, lab.Component)
			dtcpd := lab.StartRelay(t, dtcpdBinary, server, "")
			sender := lab.StartBytestream(t, server, server.Account(t, "sender"))
			receiver := lab.StartBytestream(t, server, server.Account(t, "receiver"))
			proxies := []string{server.Proxy, server.Component}
			var setups, times [2][]float64 // seconds
			for n := range 6 {             // in turns
				i := n % 2
				sender.Command(t, "proxy %s", proxies[i])
				if at := sender.Await(t, "proxy").Host; i == 1 && at != dtcpd.Addr {
					t.Fatalf("%s is at %s, want %s", proxies[i], at, dtcpd.Addr)
				}
				sender.Command(t, "send %s %d", receiver.Address, length)
				sent := sender.Await(t, "sent")
				received := receiver.Await(t, "received")
				if sent.Sent != length || received.Received != length || received.SHA256 != sent.SHA256 {
					t.Errorf("through %s: sent %+v, received %+v", proxies[i], sent, received)
				}
				setups[i], times[i] = append(setups[i], sent.Setup), append(times[i], received.Seconds)
			}
			for i, proxy := range proxies {
				slices.Sort(setups[i])
				slices.Sort(times[i])
				t.Logf("%-20s set up in %.1f ms, %d bytes in %.0f ms (medians of %d)", proxy, setups[i][1]*1e3, length, times[i][1]*1e3, len(times[i]))
			}
			for _, got := range awaitUsage(t, dtcpd, 3) {
				if got.Kind != "proxy" || got.ToListener+got.ToDialer != length || got.Owner != bareOf(sender.Address) {
					t.Errorf("usage log: got %+v, want %d bytes of %s", got, length, sender.Address)
				}
			}
		})
	}
}

// awaitUsage waits until the usage log has so many records.
func awaitUsage(t *testing.T, dtcpd *lab.Relay, n int) []lab.UsageRecord {
	t.Helper()
	var got []lab.UsageRecord
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if got = dtcpd.UsageLog(t); len(got) >= n {
			break
		}
	}
	if len(got) != n {
		t.Errorf("usage log has %d records, want %d", len(got), n)
	}
	return got
}

// TestLabRelaySOCKS says to our proxy what it must understand however the bytes
// of it are cut: one at a time, and all at once, together with what follows.
func TestLabRelaySOCKS(t *testing.T) {
	server := lab.StartProsody(t, lab.Component)
	dtcpd := lab.StartRelay(t, dtcpdBinary, server, "")
	s := login(t, server, "requester")
	proxy, target := jid.MustParse(dtcpd.Domain), jid.MustParse("target@"+server.Domain+"/lab")
	for _, ways := range [][2]func(net.Conn, []byte) error{{inBytes, inBytes}, {atOnce, inBytes}, {inBytes, atOnce}, {atOnce, atOnce}} {
		sid := newKey()
		sum := sha1.Sum([]byte(sid + s.LocalAddr().String() + target.String()))
		stream := []byte(hex.EncodeToString(sum[:]))
		var legs [2]net.Conn
		for i, write := range ways {
			c, err := dialFrom(sourceAddress(i), dtcpd.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			legs[i] = c
			request := slices.Concat([]byte{5, 1, 0, 3, byte(len(stream))}, stream, []byte{0, 0})
			if err := write(c, slices.Concat([]byte{5, 1, 0}, request)); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, 2+len(request))
			want := slices.Concat([]byte{5, 0, 5, 0}, request[2:])
			if _, err := io.ReadFull(c, answer); err != nil || !slices.Equal(answer, want) {
				t.Fatalf("got %x, %v; want %x", answer, err, want)
			}
		}
		activate := stanza.New(bytestreams, "query", stanza.New(bytestreams, "activate", stanza.Text(target.String()))).With("sid", sid)
		if _, err := ask(s, proxy, stanza.Set, activate); err != nil {
			t.Fatal(err)
		}
		for i, from := range legs {
			if _, err := from.Write([]byte("across")); err != nil {
				t.Fatal(err)
			}
			if err := from.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(legs[1-i]); err != nil || string(got) != "across" {
				t.Errorf("leg %d: got %q, %v", 1-i, got, err)
			}
		}
	}
}

// inBytes writes each byte by itself, with time for it to travel alone.
func inBytes(c net.Conn, data []byte) error {
	for i := range data {
		if _, err := c.Write(data[i : i+1]); err != nil {
			return err
		}
		time.Sleep(100 * time.Microsecond)
	}
	return nil
}

func atOnce(c net.Conn, data []byte) error {
	_, err := c.Write(data)
	return err
}
