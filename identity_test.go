package dtcp_test

import (
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

func TestFingerprint(t *testing.T) {
	f := dtcp.FingerprintOf([]byte("x"))
	const want = "2D:71:16:42:B7:26:B0:44:01:62:7C:A9:FB:AC:32:F5:C8:53:0F:B1:90:3C:C4:DB:02:25:87:17:92:1A:48:81"
	if f.String() != want || f.IsZero() {
		t.Errorf("fingerprint %v, want %s", f, want)
	}
	plain := strings.ReplaceAll(want, ":", "")
	for _, s := range []string{want, strings.ToLower(want), plain, "sha256:" + plain, "sha256:" + want} {
		if got, err := dtcp.ParseFingerprint(s); err != nil || got != f {
			t.Errorf("ParseFingerprint(%q) = %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "sha256:", want[:len(want)-3], want + ":00", "sha1:" + plain, strings.Repeat("zz", 32)} {
		if got, err := dtcp.ParseFingerprint(s); err == nil {
			t.Errorf("ParseFingerprint(%q) = %v, want an error", s, got)
		}
	}
}

func TestPhrase(t *testing.T) {
	a, b := jid.MustParse("a@example.org/1"), jid.MustParse("b@example.org/2")
	fa, fb := dtcp.FingerprintOf([]byte("a")), dtcp.FingerprintOf([]byte("b"))
	phrase := dtcp.Phrase(a, fa, b, fb)
	// A vector, so that other implementations and later versions say the same.
	const want = "aunt sure young wife cram put sunny wrong stadium depth circle air"
	if phrase != want {
		t.Errorf("phrase %q, want %q", phrase, want)
	}
	if len(strings.Fields(phrase)) != 12 {
		t.Errorf("phrase of %d words", len(strings.Fields(phrase)))
	}
	if other := dtcp.Phrase(b, fb, a.Bare(), fa); other != phrase {
		t.Errorf("the other end, or another resource, says %q", other)
	}
	for _, other := range []string{
		dtcp.Phrase(a, fb, b, fa), dtcp.Phrase(a, fa, b, dtcp.FingerprintOf([]byte("c"))),
		dtcp.Phrase(a, fa, jid.MustParse("c@example.org"), fb),
	} {
		if other == phrase {
			t.Error("another pair has the same phrase")
		}
	}
}
