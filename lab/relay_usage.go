//go:build linux

package lab

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"
)

// CPUSoFar is the processor time that the running process, with all its
// threads, has used until now, to the nanosecond. Its children are not counted.
//
// It is read from the process's CPU clock (clock_getcpuclockid(3)): the same
// sum as utime and stime of /proc/PID/stat, which are cut to hundredths of a
// second.
func (p *Process) CPUSoFar() (time.Duration, error) {
	const schedulerClock = 2
	clock := uintptr(^p.cmd.Process.Pid)<<3 | schedulerClock
	var now syscall.Timespec
	// The clock's number is 32 bits, negative for a process.
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(int32(clock)), uintptr(unsafe.Pointer(&now)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("processor time of %s: %w", p.Name, errno)
	}
	return time.Duration(now.Nano()), nil
}

// Usage is what a process holds.
type Usage struct {
	RSS   int64 // bytes
	Files int64 // descriptors
}

// Usage returns what the running process holds now.
func (p *Process) Usage() (u Usage, err error) {
	if u.RSS, err = p.RSS(); err == nil {
		u.Files, err = p.Files()
	}
	return u, err
}

// PID is the number of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }
