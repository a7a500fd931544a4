package gather

import (
	"encoding/hex"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// markIPv6 sets what the kernel knows of the addresses. Where it does not say,
// they stay as they are. The file is that of the thread's own network namespace.
func markIPv6(interfaces []Interface) {
	text, err := os.ReadFile("/proc/thread-self/net/if_inet6")
	if err != nil {
		return
	}
	flags := parseIfInet6(string(text))
	for _, i := range interfaces {
		for n := range i.Addrs {
			a := &i.Addrs[n]
			f := flags[a.WithZone(i.Name)]
			a.Temporary = f&unix.IFA_F_TEMPORARY != 0
			a.Deprecated = f&unix.IFA_F_DEPRECATED != 0
			// An optimistic address may be used while it is being checked (RFC 4429).
			checking := f&unix.IFA_F_TENTATIVE != 0 && f&unix.IFA_F_OPTIMISTIC == 0
			a.Unusable = checking || f&unix.IFA_F_DADFAILED != 0
		}
	}
}

// parseIfInet6 reads /proc/net/if_inet6: address, index, prefix length, scope
// and flags in hexadecimal, and the name. The addresses have the interface as
// their zone; lines of another form are passed over.
func parseIfInet6(text string) map[netip.Addr]uint64 {
	flags := map[netip.Addr]uint64{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 6 {
			continue
		}
		b, err := hex.DecodeString(fields[0])
		addr, ok := netip.AddrFromSlice(b)
		f, flagErr := strconv.ParseUint(fields[4], 16, 32)
		if err == nil && ok && flagErr == nil {
			flags[addr.WithZone(fields[5])] = f
		}
	}
	return flags
}
