package relay_test

import (
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/internal/relay"
)

// answers is all that a relay may say to a stranger, or to somebody who has
// overheard a claim, in lines.
var answers = regexp.MustCompile(`^(ok:192\.0\.2\.20:[0-9]+\n|error(:[a-z-]+)?\n)*$`)

// FuzzFirstBytes sends anything to a relay. It must answer nothing but what the
// protocol has, and let go in time.
func FuzzFirstBytes(f *testing.F) {
	for _, seed := range []string{
		"", "\n", "key:k\n", "key:k\n\x16\x03\x01", "starttls\nkey:k\n", "starttls\nstarttls\n", "observe\nobserve\n", "observe\nkey:k\n",
		"serve:k AQECAwQF 946684800 NlU4V_b9EJ9ypceEj45r45LB-y04yT7qLsilX8lKOzA\n",
		"observe:AQECAwQF 946684800 NlU4V_b9EJ9ypceEj45r45LB-y04yT7qLsilX8lKOzA\n",
		"\x05\x01\x00\x05\x01\x00\x03\x2898b8d688d0f5d895fd41c5e7309a2e9e33ba32ff\x00\x00data",
		"\x05\x02\x01\x02", "\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50", "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\x00", "key:\xff\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		at(t, relay.Config{}, func(s *place) {
			stranger := s.from(s.dialer)
			began := time.Now()
			_, _ = io.WriteString(stranger, text) // may be refused before it is all read
			got, _ := io.ReadAll(stranger.r)      // the end, or a reset because of what was not read
			socks := strings.HasPrefix(text, "\x05") && (len(got) == 0 || got[0] == 5)
			if !socks && !answers.Match(got) {
				t.Errorf("%q is answered %q", text, got)
			}
			// At most: some lines, then a connection to the proxy.
			if d := time.Since(began); d > 131*time.Second {
				t.Errorf("%q: let go after %v", text, d)
			}
		})
	})
}
