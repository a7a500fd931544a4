//go:build linux

package lab

import "testing"

// ParseIQs is parseIQs, for a test from outside.
var ParseIQs = parseIQs

// AddRosterItem is addRosterItem, for a test from outside.
var AddRosterItem = addRosterItem

// NewCertificates makes certificates as the servers get them and returns the
// files of the authority and of the chain.
func NewCertificates(tb testing.TB, dir, domain string) (ca, chain string) {
	c := newCertificates(tb, dir, domain)
	return c.CA, c.Chain
}

// NewLog returns a log that keeps only the ends of what is written to it.
func NewLog() interface {
	Write([]byte) (int, error)
	String() string
} {
	return &logBuffer{}
}

// LogKeep is what a log keeps at each end, in bytes.
const LogKeep = logKeep
