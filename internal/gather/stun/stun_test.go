package stun_test

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/gather/stun"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The responses of RFC 5769, 2.2 and 2.3: IPv4 and IPv6, with attributes that
// we need not know.
const (
	sampleID = "2112a442 b7e7a701 bc34d686 fa87dfae"
	sample4  = `0101003c 2112a442 b7e7a701bc34d686fa87dfae
		8022000b 74657374 20766563 746f7220
		00200008 0001a147 e112a643
		00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7
		80280004 c07d4c96`
	sample6 = `01010048 2112a442 b7e7a701bc34d686fa87dfae
		8022000b 74657374 20766563 746f7220
		00200014 0002a147 0113a9fa a5d3f179 bc25f4b5 bed2b9d9
		00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41
		80280004 c8fb0b4c`
)

// withoutIntegrity makes the samples' MESSAGE-INTEGRITY an attribute that need
// not be understood: who sent no credentials is not answered with it.
func withoutIntegrity(s string) string {
	return strings.ReplaceAll(s, "00080014", "80080014")
}

// TestSamples reads the sample responses of RFC 5769.
func TestSamples(t *testing.T) {
	for _, test := range []struct{ message, want string }{
		{sample4, "192.0.2.1:32853"},
		{sample6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853"},
	} {
		if got, err := stun.Parse(unhex(t, withoutIntegrity(test.message)), unhex(t, sampleID)); err != nil || got.String() != test.want {
			t.Errorf("got %v, %v; want %s", got, err, test.want)
		}
	}
}

const id = "2112a442 000000000000000000000001"

// TestParse: answers of older servers, refusals, and what is neither.
func TestParse(t *testing.T) {
	for what, test := range map[string]struct{ message, want string }{
		"an older server's":             {"0101000c" + id + "00010008 00018055 c0000201", "192.0.2.1:32853"},
		"both, the plain one rewritten": {"01010018" + id + "00010008 00018055 0a000001 00200008 0001a147 e112a643", "192.0.2.1:32853"},
		"both, in the other order":      {"01010018" + id + "00200008 0001a147 e112a643 00010008 00018055 0a000001", "192.0.2.1:32853"},
		"an IPv4 address as IPv6":       {"01010018" + id + "00010014 00028055 00000000 00000000 0000ffff c0000201", "192.0.2.1:32853"},
		"a refusal":                     {"01110008" + id + "00090004 00000401", "stun: the server refuses with code 401"},
		"try another":                   {"01110014" + id + "00090004 00000300 80230008 00010d96 c0000202", "stun: the server refuses with code 300"},
		"unknown attribute of ours":     {"01110010" + id + "00090004 00000414 000a0004 0020 0020", "stun: the server refuses with code 420"},
	} {
		got, err := stun.Parse(unhex(t, test.message), unhex(t, id))
		text := got.String()
		if err != nil {
			text = err.Error()
		}
		if text != test.want {
			t.Errorf("%s: got %s, want %s", what, text, test.want)
		}
	}
	bad := map[string]string{
		"nothing":                     "01010000" + id,
		"a request":                   "0001000c" + id + "00200008 0001a147 e112a643",
		"another transaction":         "0101000c 2112a442 000000000000000000000002 00200008 0001a147 e112a643",
		"another length":              "01010010" + id + "00200008 0001a147 e112a643",
		"an odd length":               "0101000a" + id + "00200008 0001a147 e112",
		"an attribute beyond the end": "01010008" + id + "00200008 0001a147",
		"an attribute of 64 KiB":      "0101000c" + id + "0020ffff 0001a147 e112a643",
		"another family":              "0101000c" + id + "00200008 0003a147 e112a643",
		"a family of another length":  "0101000c" + id + "00200008 0002a147 e112a643",
		"an empty address":            "01010004" + id + "00200000",
		"port zero":                   "0101000c" + id + "00010008 00010000 c0000201",
		"no address":                  "0101000c" + id + "00010008 00018055 00000000",
		"an unknown attribute":        "01010010" + id + "00200008 0001a147 e112a643 00150000",
		"an error without a code":     "01110000" + id,
		"a code of no class":          "01110008" + id + "00090004 00000701",
		"a short code":                "01110008" + id + "00090002 00040000",
	}
	for what, message := range bad {
		if got, err := stun.Parse(unhex(t, message), unhex(t, id)); err == nil {
			t.Errorf("%s was read as %v", what, got)
		}
	}
}

// serve answers the requests that arrive at conn, each by a function of its
// header, in pieces of so many bytes.
func serve(conn net.Conn, pieces int, answer func(header []byte) []byte) {
	header := make([]byte, 20)
	for {
		if _, err := io.ReadFull(conn, header); err != nil {
			return
		}
		for rest := answer(header); len(rest) > 0; {
			n := min(pieces, len(rest))
			if _, err := conn.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
	}
}

// success answers with 192.0.2.1:32853.
func success(t testing.TB) func([]byte) []byte {
	body := unhex(t, "00200008 0001a147 e112a643")
	return func(header []byte) []byte {
		return append(append([]byte{1, 1, 0, 12}, header[4:]...), body...)
	}
}

// TestAsk asks three times on one connection, whose bytes arrive one by one.
func TestAsk(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	go serve(far, 1, success(t))
	for range 3 {
		got, err := stun.Ask(t.Context(), near)
		if err != nil || got.String() != "192.0.2.1:32853" {
			t.Fatalf("got %v, %v", got, err)
		}
	}
}

// TestAskSilence: a server that says nothing, or not enough, is given up in time;
// so is one when the caller gives up.
func TestAskSilence(t *testing.T) {
	for what, said := range map[string]string{"nothing": "", "half a header": "0101000c2112", "half a body": "0101000c" + id + "0020"} {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			defer near.Close()
			go serve(far, 100, func([]byte) []byte { return unhex(t, said) })
			began := time.Now()
			got, err := stun.Ask(t.Context(), near)
			if took := time.Since(began); err == nil || took != stun.Limit {
				t.Errorf("%s: got %v, %v after %v, want an error after %v", what, got, err, took, stun.Limit)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			defer near.Close()
			go serve(far, 100, func([]byte) []byte { return unhex(t, said) })
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			_, err := stun.Ask(ctx, near)
			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != time.Second {
				t.Errorf("%s, for a second: %v after %v", what, err, took)
			}
		})
	}
}

// TestAskTooLong: a length that is no answer's is not waited for.
func TestAskTooLong(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	go serve(far, 100, func(header []byte) []byte { return append([]byte{1, 1, 0xff, 0xfc}, header[4:]...) })
	if got, err := stun.Ask(t.Context(), near); err == nil {
		t.Errorf("got %v", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(unhex(f, withoutIntegrity(sample4)), unhex(f, sampleID))
	f.Add(unhex(f, withoutIntegrity(sample6)), unhex(f, sampleID))
	f.Add(unhex(f, "01110008"+id+"00090004 00000401"), unhex(f, id))
	f.Add(unhex(f, "0101000c"+id+"00010008 00018055 c0000201"), unhex(f, id))
	f.Fuzz(func(t *testing.T, message, id []byte) {
		if len(id) != 16 {
			return
		}
		if got, err := stun.Parse(message, id); err == nil && (got.Port() == 0 || got.Addr().IsUnspecified()) {
			t.Errorf("%x was read as %v", message, got)
		}
	})
}
