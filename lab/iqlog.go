//go:build linux

package lab

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// An IQ is one iq stanza as the server saw it on its way.
type IQ struct {
	Type, ID string
	From, To string // full, as the server stamped them
	Name     string // of the payload
	Space    string // of the payload
}

// IQs returns every iq that clients have sent through the server so far. Those
// between clients are complete on both servers; ejabberd also lists its own
// answers.
func (s *Server) IQs(tb testing.TB) []IQ {
	tb.Helper()
	data, err := os.ReadFile(s.iqLog)
	if err != nil && !os.IsNotExist(err) {
		tb.Fatalf("lab: %v", err)
	}
	iqs, err := parseIQs(string(data))
	if err != nil {
		tb.Fatalf("lab: iq log of %s: %v", s.Name, err)
	}
	return iqs
}

// Between returns the iqs that went from one full address to the other, either
// way, in their order.
func Between(iqs []IQ, a, b string) []IQ {
	var found []IQ
	for _, iq := range iqs {
		if iq.From == a && iq.To == b || iq.From == b && iq.To == a {
			found = append(found, iq)
		}
	}
	return found
}

// parseIQs reads the lines that the servers' modules write: type, id, from, to,
// name and namespace, separated by tabs. A last line without its end is one
// that is being written, and left out.
func parseIQs(log string) ([]IQ, error) {
	var iqs []IQ
	for line := range strings.Lines(log) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 6 {
			return nil, fmt.Errorf("%d fields in %q, want 6", len(f), line)
		}
		iqs = append(iqs, IQ{Type: f[0], ID: f[1], From: f[2], To: f[3], Name: f[4], Space: f[5]})
	}
	return iqs, nil
}
