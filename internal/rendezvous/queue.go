package rendezvous

import (
	"strconv"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// queue is what waits to be written to one client. Server.mu guards it.
type queue struct {
	pending []byte
	stanzas int // in pending
}

// spareBuffer is the largest buffer that an idle stream keeps.
const spareBuffer = 16 << 10

// offer enqueues what another client wants delivered here, unless half of the
// queue is full already: the rest is for what the server has to say, so that
// nobody ends another's stream by flooding it. Server.mu is held.
func (st *stream) offer(b []byte) bool {
	l := &st.server.limits
	if st.ended || len(st.pending) > l.queueBytes/2 || st.stanzas > l.queueStanzas/2 {
		return false
	}
	before := len(st.pending)
	st.pending = append(st.pending, b...)
	st.enqueued(before)
	return true
}

// send enqueues a stanza for the client. Server.mu is held.
func (st *stream) send(e stanza.Element) {
	if st.ended {
		return
	}
	before := len(st.pending)
	st.pending = e.Append(st.pending, stanza.NSClient)
	st.enqueued(before)
}

// enqueued ends the stream of a client that reads too slowly. What waited for
// it is lost.
func (st *stream) enqueued(before int) {
	st.stanzas++
	if l := &st.server.limits; len(st.pending) > l.queueBytes || st.stanzas > l.queueStanzas {
		// Nothing is cut: pending begins and ends with whole stanzas.
		st.pending = nil
		st.end(&streamError{condition: "resource-constraint", text: "too much is waiting for this client"})
		return
	}
	if before == 0 {
		st.signal()
	}
}

// signal wakes write.
func (st *stream) signal() {
	select {
	case st.wake <- struct{}{}:
	default: // it is about to look already
	}
}

// take swaps what is pending, if anything, for the buffer that was written last,
// and sets the deadline for writing it. It also reports whether the stream has ended.
func (st *stream) take(spare []byte) (batch []byte, ended bool) {
	s := st.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if cap(spare) > spareBuffer {
		spare = nil
	}
	batch, ended = st.pending, st.ended
	if len(batch) == 0 && !ended {
		return spare[:0], false
	}
	st.pending, st.stanzas = spare[:0], 0
	// Under the lock, so that end, which brings the deadline forward, is not
	// overtaken by this.
	limit := s.limits.write
	if ended {
		limit = s.limits.final
	}
	st.conn.SetWriteDeadline(time.Now().Add(limit))
	return batch, ended
}

// write writes what is enqueued, everything that is there in one batch, until
// the stream has ended; then it closes the connection. It also asks a silent
// client whether it is still there (XEP-0199, 4.1).
func (st *stream) write() {
	defer close(st.written)
	defer st.conn.Close()
	l := &st.server.limits
	idle := time.NewTimer(l.ping)
	defer idle.Stop()
	var batch []byte
	for {
		ended := false
		batch, ended = st.take(batch)
		if len(batch) > 0 {
			if _, err := st.secure.Write(batch); err != nil {
				st.server.mu.Lock()
				st.end(err)
				st.server.mu.Unlock()
				return
			}
			continue
		}
		if ended {
			break
		}
		select {
		case <-st.wake:
		case <-idle.C:
			silent := time.Since(time.Unix(0, st.source.heard.Load()))
			if silent >= l.ping {
				st.askAlive()
				silent = 0
			}
			idle.Reset(l.ping - silent)
		}
	}
	st.secure.CloseWrite()
	linger := time.NewTimer(l.linger)
	defer linger.Stop()
	select {
	case <-st.read:
	case <-linger.C:
	}
}

func (st *stream) askAlive() {
	s := st.server
	s.mu.Lock()
	defer s.mu.Unlock()
	q := stanza.IQ{Header: stanza.Header{To: st.jid, From: s.domain, ID: s.nextID()}, Type: stanza.Get, Payload: stanza.New(nsPing, "ping")}
	st.send(q.Element(stanza.NSClient))
}

// nextID names an iq of the server's own. s.mu is held.
func (s *Server) nextID() string {
	s.pushes++
	return "server-" + strconv.FormatUint(s.pushes, 10)
}
