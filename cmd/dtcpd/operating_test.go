package main

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// TestOperating: the manual for operators names every key and every metric.
func TestOperating(t *testing.T) {
	text, err := os.ReadFile("../../doc/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	manual := string(text)
	names := 0
	for _, key := range tomlKeys(reflect.TypeFor[config](), "") {
		names++
		if !strings.Contains(manual, "`"+key+"`") && !strings.Contains(manual, "`"+last(key)+"`") && !strings.Contains(manual, "["+key+"]") {
			t.Errorf("doc/operating.md does not name the key %s", key)
		}
	}
	r, err := relay.New(relay.Config{Domain: jid.MustParse("relay.example.org"), Keys: relay.NewKeyring(), Hosts: []relay.Host{{Addr: "192.0.2.1", Port: 5280}}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d := &daemon{relay: r, xmpp: &standalone{}, usage: &usageLog{}}
	families, err := newMetrics(d).registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "dtcpd_") {
			continue // those of the process
		}
		names++
		if !strings.Contains(manual, "`"+f.GetName()+"`") {
			t.Errorf("doc/operating.md does not name the metric %s", f.GetName())
		}
	}
	for _, reason := range relay.Reasons() {
		names++
		if !strings.Contains(manual, "`"+reason+"`") {
			t.Errorf("doc/operating.md does not name the reason %s", reason)
		}
	}
	if names < 60 {
		t.Errorf("looked for %d names: are they found?", names)
	}
}
