package gather

import (
	"context"
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// hints come from the kernel (rtnetlink, RFC 3549); from a clock where it does
// not let us ask, as in some sandboxes.
func hints(ctx context.Context, to chan<- hint) {
	socket, err := openNetlink()
	if err != nil {
		poll(ctx, to)
		return
	}
	defer socket.Close()
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	defer stop()
	give(ctx, to, hint{}) // for what has changed before there was a socket
	messages := make([]byte, 1<<16)
	for ctx.Err() == nil {
		n, err := socket.Read(messages)
		switch {
		case err == nil:
			if h, ok := parseNetlink(messages[:n]); ok {
				give(ctx, to, h)
			}
		case errors.Is(err, unix.ENOBUFS):
			give(ctx, to, hint{sure: true}) // more has changed than the socket could hold
		default:
			poll(ctx, to)
		}
	}
}

// openNetlink subscribes to links, addresses and routes.
func openNetlink() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// parseNetlink sums up the messages of one read. An address or a default route
// that goes, or a default route that comes, is a sure sign; links come and go
// with containers, and addresses are confirmed by every router advertisement.
func parseNetlink(b []byte) (sum hint, ok bool) {
	for len(b) >= unix.SizeofNlMsghdr {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			break
		}
		kind, body := binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:length]
		b = b[min((length+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
		switch kind {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR:
			ok = true
		case unix.RTM_DELADDR:
			ok = true
			// struct ifaddrmsg: family, prefix length, flags, scope
			sum.sure = sum.sure || len(body) >= unix.SizeofIfAddrmsg && body[3] == unix.RT_SCOPE_UNIVERSE
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			// struct rtmsg: family, destination length, source length, TOS, table
			if len(body) >= unix.SizeofRtMsg && body[1] == 0 && body[4] == unix.RT_TABLE_MAIN {
				ok, sum.sure = true, true
			}
		}
	}
	return sum, ok
}
