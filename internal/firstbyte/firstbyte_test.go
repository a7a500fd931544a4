package firstbyte_test

import (
	"testing"

	"github.com/dtcp-relay/dtcp/internal/firstbyte"
)

func TestOf(t *testing.T) {
	count := map[firstbyte.Protocol]int{}
	for b := range 256 {
		count[firstbyte.Of(byte(b))]++
	}
	if count[firstbyte.TLS] != 1 || count[firstbyte.SOCKS5] != 1 || count[firstbyte.Line] != 95 {
		t.Errorf("bytes of each protocol: %v; want one of TLS, one of SOCKS5, 95 of lines", count)
	}
	for _, c := range []struct {
		what string
		b    byte
		want firstbyte.Protocol
	}{
		{"key:", 'k', firstbyte.Line},
		{"a command nobody knows", 'X', firstbyte.Line},
		{"a ClientHello", 0x16, firstbyte.TLS},
		{"an alert, with which no client begins", 0x15, firstbyte.Other},
		{"SOCKS version 5", 5, firstbyte.SOCKS5},
		{"SOCKS version 4", 4, firstbyte.Other},
		{"an empty line", '\n', firstbyte.Other},
		{"NUL", 0, firstbyte.Other},
		{"not ASCII", 0xC3, firstbyte.Other},
	} {
		if got := firstbyte.Of(c.b); got != c.want {
			t.Errorf("%s (%#02x): %v, want %v", c.what, c.b, got, c.want)
		}
	}
}
