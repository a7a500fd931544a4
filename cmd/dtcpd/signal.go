package main

import (
	"os"
	"os/signal"
	"syscall"
)

// signals are those that the daemon listens to.
type signals struct {
	reload chan os.Signal // SIGHUP
	end    chan os.Signal // SIGTERM, SIGINT
}

func newSignals() *signals {
	s := &signals{make(chan os.Signal, 1), make(chan os.Signal, 2)}
	signal.Notify(s.reload, syscall.SIGHUP)
	signal.Notify(s.end, syscall.SIGTERM, os.Interrupt)
	signal.Ignore(syscall.SIGPIPE) // or the end of who reads the log would be that of the relay
	return s
}

func (s *signals) stop() {
	signal.Stop(s.reload)
	signal.Stop(s.end)
}
