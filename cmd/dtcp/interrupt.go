package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// hangupTime is what streams get to end by themselves after SIGHUP.
const hangupTime = time.Second

// interruptible returns a context that the first SIGINT or SIGTERM ends, with
// errInterrupted as its cause; then there is time to close what is open. SIGHUP
// does so after hangupTime, with errHangup: ssh sends it to its ProxyCommand as
// soon as it has closed the connection, whose end is still on its way then. The
// second signal ends the process at once, after a call of last.
func interruptible(parent context.Context, last func()) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM)
	// Not in the background of a shell without job control, which has it ignored.
	if !signal.Ignored(os.Interrupt) {
		signal.Notify(signals, os.Interrupt)
	}
	// Not under nohup, which has it ignored.
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	// Caught rather than ignored, because that is not inherited by commands: a
	// write to a pipe without a reader then fails, instead of ending this process
	// and leaving the peer with a stream that was cut for no reason it can see.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	done := make(chan struct{})
	// Owned by run, which ends it by the function returned; nobody waits.
	go func() {
		var hangup <-chan time.Time
		for count := 1; ; count++ {
			select {
			case s := <-signals:
				if count > 1 {
					last()
					os.Exit(exitInterrupted)
				}
				if s == syscall.SIGHUP {
					hangup = time.After(hangupTime)
				} else {
					cancel(errInterrupted)
				}
			case <-hangup:
				cancel(errHangup)
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(nil)
	}
}
