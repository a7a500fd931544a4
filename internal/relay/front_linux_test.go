package relay_test

import (
	"net/netip"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dtcp-relay/dtcp/internal/relay"
)

// accepted finds the descriptors whose peer is a caller.
func accepted(t *testing.T, c *caller) (fds []int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		fd, err := strconv.Atoi(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if a, err := unix.Getpeername(fd); err == nil {
			if a, ok := a.(*unix.SockaddrInet4); ok && netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String() == c.address() {
				fds = append(fds, fd)
			}
		}
	}
	return fds
}

// TestSocketOptions: keepalive finds out who is gone, and small writes are not
// held back, whichever shell has accepted; and a leg is one descriptor.
func TestSocketOptions(t *testing.T) {
	onSockets(t, relay.Config{}, func(s *street) {
		checked := 0
		l := s.lend(alice)
		listener, dialer := s.pair("k", l)
		for _, c := range []*caller{listener, dialer, s.serves("x", l), s.says("observe\n").hears("ok:")} {
			fds := accepted(t, c)
			if len(fds) != 1 {
				s.Errorf("a leg has descriptors %v", fds)
			}
			for _, fd := range fds {
				for _, o := range []struct{ level, name, want int }{
					{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
					{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30},
					{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
					{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 6},
					{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
				} {
					checked++
					if got, err := unix.GetsockoptInt(fd, o.level, o.name); err != nil || got != o.want && o.name != unix.TCP_NODELAY || got == 0 {
						s.Errorf("option %d of level %d is %d, %v; want %d", o.name, o.level, got, err, o.want)
					}
				}
			}
		}
		if checked != 20 {
			s.Errorf("checked %d options", checked)
		}
	})
}

// TestNoDescriptors: who cannot be accepted for want of a descriptor is accepted
// when there is one.
func TestNoDescriptors(t *testing.T) {
	onSockets(t, relay.Config{}, func(s *street) {
		s.says("observe\n").hears("ok:") // so that all is set up
		var was unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		lowest, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(lowest)
		// One more descriptor, for the caller.
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(lowest) + 1, Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		c := s.says("observe\n")
		if got := s.Stats().Accepted; got != 1 {
			t.Errorf("%d were accepted, want 1", got)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		c.hears("ok:" + c.address() + "\n")
	})
}
