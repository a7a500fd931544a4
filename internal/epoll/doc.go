// Package epoll waits for many descriptors at once, for loops that serve
// connections without a goroutine for each: epoll(7) and what such loops need
// around it. It is empty on other systems than Linux.
//
//	p, err := epoll.New()
//	p.Add(fd, unix.EPOLLIN, place)     // any goroutine
//	p.Ring()                           // any goroutine: Wait returns
//	for _, e := range p.Wait(-1) { … } // the loop; e.Fd is the place, or Bell
//	p.Close()                          // when the loop has ended
//
// What is special about it is how it waits. To the scheduler of the runtime a
// system call that blocks is an exception: another thread takes the processor
// away from it, and it must get one back afterwards. In a loop that is woken
// some thousands of times a second that costs as much as a third of its work.
// So, as long as the process has processors to spare, it waits for the first
// millisecond without telling the scheduler. A program whose main work is such
// loops should therefore see to it that runtime.GOMAXPROCS is [Spare] at least,
// however many processors the machine has.
package epoll

// Spare is how large runtime.GOMAXPROCS must be for loops to keep their
// processor for a moment while they wait.
const Spare = 4
