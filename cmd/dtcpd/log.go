package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode"
)

// logger writes messages for people, a line each. Its methods may be called by
// several goroutines at once.
type logger struct {
	verbose bool // set before anybody else uses it

	mu sync.Mutex // of w: one line, one write
	w  io.Writer
}

func newLog(w io.Writer) *logger { return &logger{w: w} }

// say prints a message. A log that cannot be written is nobody's business: the
// relay goes on.
func (l *logger) say(format string, args ...any) {
	line := "dtcpd: " + clean(fmt.Sprintf(format, args...)) + "\n"
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = io.WriteString(l.w, line)
}

// trace prints what only --verbose wants to know.
func (l *logger) trace(format string, args ...any) {
	if l.verbose {
		l.say(format, args...)
	}
}

// clean returns s without what a terminal, or a reader of the log, could take
// for something else: users and servers choose parts of it.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
