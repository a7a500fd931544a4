//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A delay carries the packets that an internet's router gives to a TUN device
// back to it, each some time later. The kernels of small virtual machines have
// no netem that would do this.
type delay struct {
	device *os.File
	each   time.Duration
	late   chan latePacket
	ended  sync.WaitGroup
}

// A latePacket is one on its way.
type latePacket struct {
	due  time.Time
	data []byte
}

// delayQueue is how many packets may be on their way; further ones are lost, as
// on a line that is full. It is a hundred megabytes a second at 50 ms.
const delayQueue = 4096

// slow takes every packet that the router forwards through a delay: what comes
// from anywhere is sent to the device, and what comes from it to where it wants.
func (i *Internet) slow() error {
	const name = "slow"
	var device *os.File
	err := i.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("/dev/net/tun: %w", err)
		}
		request, err := unix.NewIfreq(name)
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		// Not blocking, so that Close ends a Read.
		device = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		return err
	}
	const table = 100
	fmt.Fprintf(&i.lines, "link set %s addrgenmode none txqueuelen %d up\n", name, delayQueue)
	for _, lines := range []*strings.Builder{&i.lines, &i.over6} {
		fmt.Fprintf(lines, "route add default dev %s table %d\n", name, table)
		fmt.Fprintf(lines, "rule add iif %s lookup main pref 100\n", name)
		fmt.Fprintf(lines, "rule add iif lo lookup main pref 101\n")
		fmt.Fprintf(lines, "rule add lookup %d pref 102\n", table)
	}
	d := &delay{device: device, each: i.Delay, late: make(chan latePacket, delayQueue)}
	// Owned by d; close ends both, the first by closing the device, the second by
	// the first's end, and waits for them.
	d.ended.Go(d.read)
	d.ended.Go(d.write)
	i.carrier = d
	return nil
}

func (d *delay) read() {
	defer close(d.late)
	buffer := make([]byte, 1<<16)
	for {
		n, err := d.device.Read(buffer)
		if err != nil {
			return
		}
		select {
		case d.late <- latePacket{time.Now().Add(d.each), append([]byte(nil), buffer[:n]...)}:
		default:
		}
	}
}

func (d *delay) write() {
	for p := range d.late {
		time.Sleep(time.Until(p.due))
		// What the kernel does not take is lost, as packets are.
		if _, err := d.device.Write(p.data); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// close ends the delay; what is on its way is lost.
func (d *delay) close() {
	d.device.Close()
	d.ended.Wait()
}
