package epoll_test

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dtcp-relay/dtcp/internal/epoll"
)

// both tells a story with processors to spare and without.
func both(t *testing.T, story func(t *testing.T, p *epoll.Poll)) {
	for _, procs := range []int{1, epoll.Spare} {
		was := runtime.GOMAXPROCS(procs)
		p, err := epoll.New()
		if err != nil {
			t.Fatal(err)
		}
		story(t, p)
		p.Close()
		runtime.GOMAXPROCS(was)
	}
}

func wants(t *testing.T, what string, got []unix.EpollEvent, want ...int32) {
	t.Helper()
	for i, e := range got {
		if i >= len(want) || e.Fd != want[i] {
			t.Fatalf("%s: %v, want %v", what, got, want)
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

func TestWait(t *testing.T) {
	both(t, func(t *testing.T, p *epoll.Poll) {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fds[0])
		defer unix.Close(fds[1])
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(p.Add(fds[0], unix.EPOLLIN|unix.EPOLLET, 7))
		wants(t, "nothing", p.Wait(0))
		if _, err := unix.Write(fds[1], []byte("x")); err != nil {
			t.Fatal(err)
		}
		wants(t, "a byte", p.Wait(-1), 7)
		wants(t, "the same, once", p.Wait(0))
		must(p.Change(fds[0], unix.EPOLLIN|unix.EPOLLET, 8))
		wants(t, "the same, looked at anew", p.Wait(time.Minute), 8)
		must(p.Remove(fds[0]))
		if _, err := unix.Write(fds[1], []byte("x")); err != nil {
			t.Fatal(err)
		}
		wants(t, "after it was removed", p.Wait(0))
		if err := p.Remove(fds[0]); err == nil {
			t.Error("removed twice")
		}
	})
}

func TestPause(t *testing.T) {
	both(t, func(t *testing.T, p *epoll.Poll) {
		p.Pause(time.Microsecond)
		wants(t, "nothing", p.Wait(0))
	})
}

func TestRing(t *testing.T) {
	both(t, func(t *testing.T, p *epoll.Poll) {
		p.Ring()
		p.Ring()
		wants(t, "two rings", p.Wait(-1), epoll.Bell)
		wants(t, "they are over", p.Wait(0))
		rung := make(chan bool)
		go func() { // ends at once
			<-time.After(10 * time.Millisecond)
			p.Ring()
			close(rung)
		}()
		for got := p.Wait(-1); len(got) == 0; got = p.Wait(-1) { // a signal may come first
		}
		<-rung
	})
}
