package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// The events of --json. Their members are fixed, since scripts rely on them,
// and "event" comes first.
type (
	readyEvent struct {
		Event   string  `json:"event"`
		Address jid.JID `json:"address"`
		Listen  string  `json:"listen,omitempty"` // of forward: the local address
	}
	pathEvent struct {
		Event       string  `json:"event"`
		Peer        jid.JID `json:"peer"`
		Kind        string  `json:"kind"`
		Local       string  `json:"local"`
		Remote      string  `json:"remote"`
		Relay       string  `json:"relay"`
		Fingerprint string  `json:"fingerprint"`
		SetupMS     float64 `json:"setup_ms"`
	}
	offerEvent struct {
		Event   string  `json:"event"`
		From    jid.JID `json:"from"`
		Service string  `json:"service"`
		Files   int64   `json:"files"`
		Bytes   int64   `json:"bytes"` // -1 if one of them is a pipe
	}
	progressEvent struct {
		Event string `json:"event"`
		Bytes int64  `json:"bytes"`
		Total int64  `json:"total"` // -1 if it is not known
	}
	failedEvent struct {
		Event   string `json:"event"`
		Name    string `json:"name"`
		Message string `json:"message"`
	}
	doneEvent struct {
		Event   string  `json:"event"`
		Bytes   int64   `json:"bytes"`   // both directions of a stream together
		Resumed int64   `json:"resumed"` // bytes of files that did not have to be sent again
		Seconds float64 `json:"seconds"`
		SHA256  string  `json:"sha256"` // "" where nobody computed it
	}
	errorEvent struct {
		Event    string   `json:"event"`
		Code     int      `json:"code"` // the exit status
		Message  string   `json:"message"`
		Attempts []string `json:"attempts"` // each candidate that was tried, and what became of it
		Hints    []string `json:"hints"`    // what can be done about it
	}
	messageEvent struct {
		Event   string `json:"event"`
		Message string `json:"message"`
	}
	accountEvent struct {
		Event   string  `json:"event"`
		JID     jid.JID `json:"jid"`
		Server  string  `json:"server"`
		Default bool    `json:"default"`
	}
	peerEvent struct {
		Event       string  `json:"event"`
		JID         jid.JID `json:"jid"`
		State       string  `json:"state"`
		Fingerprint string  `json:"fingerprint"`
		Time        string  `json:"time"`
		Phrase      string  `json:"phrase,omitempty"` // of verify
	}
)

// encode returns an event as a line of JSON without anything that a terminal
// could take for a command.
func encode(event any) []byte {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(event); err != nil {
		panic(err) // an event holds strings and numbers only
	}
	var line []byte
	for _, r := range strings.TrimSuffix(b.String(), "\n") {
		if !hostile(r) {
			line = utf8.AppendRune(line, r)
			continue
		}
		// They occur inside of strings only, where JSON has an escape for them.
		for _, unit := range utf16.AppendRune(nil, r) {
			line = fmt.Appendf(line, `\u%04x`, unit)
		}
	}
	return append(line, '\n')
}

// failed is the event of a failure that is explained by what and hints.
func failed(err error, what string, hints []string) errorEvent {
	e := errorEvent{Event: "error", Code: status(err), Message: what, Attempts: attempts(err), Hints: []string{}}
	for _, h := range hints {
		if !strings.HasPrefix(h, attemptMark) {
			e.Hints = append(e.Hints, h)
		}
	}
	return e
}

// attempts returns what was tried in vain, one string each.
func attempts(err error) []string {
	tried := []string{}
	var noPath *dtcp.NoPathError
	if errors.As(err, &noPath) {
		for _, a := range noPath.Attempts {
			tried = append(tried, a.String())
		}
	}
	return tried
}
