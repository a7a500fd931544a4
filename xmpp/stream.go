package xmpp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/dtcp-relay/dtcp/internal/xmlstream"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// maxReplies bounds the answers that wait to be sent. A server that asks more
// without reading gets none.
const maxReplies = 64

// errSilent ends a stream whose server gave no sign of life.
var errSilent = errors.New("the server was silent, and did not answer a ping in time")

// stream is one login. Two goroutines serve it, read and write, both owned by
// the session's supervisor; everything else reaches the connection through
// them. What belongs to one login only is kept here and dies with it.
type stream struct {
	s    *Session
	conn net.Conn
	r    *xmlstream.Reader
	addr jid.JID
	born time.Time // when the login was done

	out     chan packet   // unbuffered: taken means it will be written
	replies chan []byte   // answers of the read loop, which must not wait
	probes  chan struct{} // capacity 1: the server is to show that it is there
	lost    chan struct{} // closed by fail, which sets err before
	once    sync.Once
	err     error

	mu        sync.Mutex // held for moments, never while anything waits
	heard     time.Time  // the newest stanza
	pending   map[string]*request
	presences map[jid.JID]map[jid.JID]int8 // by account, the priority of each available full JID
	known     int                          // how many these are
	told      chan struct{}                // closed and replaced when presences change
	announced time.Time                    // when our presence was sent last
	settled   bool                         // the server has had its turn to send presences since
	roster    map[jid.JID]RosterItem
}

// packet is something to write. The writer sends one error to done.
type packet struct {
	data []byte
	done chan error
}

func newStream(s *Session, conn net.Conn, r *xmlstream.Reader, addr jid.JID) *stream {
	now := time.Now()
	return &stream{
		s: s, conn: conn, r: r, addr: addr, born: now, heard: now,
		out: make(chan packet), replies: make(chan []byte, maxReplies), probes: make(chan struct{}, 1), lost: make(chan struct{}),
		pending: make(map[string]*request), presences: make(map[jid.JID]map[jid.JID]int8), told: make(chan struct{}),
	}
}

// encoded is e as it stands in the stream.
func (s *Session) encoded(e stanza.Element) []byte { return e.Append(nil, s.content) }

// fail ends the stream for the first reason given. The supervisor closes the
// connection.
func (st *stream) fail(err error) {
	st.once.Do(func() {
		st.err = err
		close(st.lost)
	})
}

// failed is the error of requests after fail.
func (st *stream) failed() error {
	return &lostError{err: st.err, permanent: st.s.permanent(st.err) || st.s.config.NoReconnect}
}

// read is the read loop. It ends with the stream, whose connection the
// supervisor closes then.
func (st *stream) read() {
	for {
		// The writer notices silence earlier, unless it is stuck itself.
		deadline := idleTimeout + pongTimeout + writeTimeout
		if err := st.conn.SetReadDeadline(time.Now().Add(deadline)); err != nil {
			st.fail(err)
			return
		}
		e, err := st.r.Next()
		if err != nil {
			st.fail(err)
			return
		}
		st.s.traceElement(false, e)
		st.mu.Lock()
		st.heard = time.Now()
		st.mu.Unlock()
		switch {
		case e.Is(stanza.NSStream, "error"):
			st.fail(st.s.streamError(e))
			return
		case e.Is(st.s.content, "iq"):
			st.iq(e)
		case e.Is(stanza.NSClient, "presence"): // a component keeps none
			st.presence(e)
		}
	}
}

// write is the write loop, which also watches for silence. It ends with the
// stream.
func (st *stream) write() {
	timer := time.NewTimer(idleTimeout)
	defer timer.Stop()
	var pinged time.Time
	patience := pongTimeout
	ping := func() error {
		pinged = time.Now()
		// A component asks itself, which goes through the server.
		q := pingOf(st.addr.Server())
		q.ID, q.From = st.s.newID(), st.s.stamp(jid.JID{})
		return st.put(st.s.encoded(q.Element(st.s.content)))
	}
	for {
		select {
		case <-st.lost:
			return
		case p := <-st.out:
			err := st.put(p.data)
			p.done <- err
			if err != nil {
				return
			}
		case b := <-st.replies:
			if st.put(b) != nil {
				return
			}
		case <-st.probes:
			if ping() != nil {
				return
			}
			patience = probeTime
			timer.Reset(patience)
		case <-timer.C:
			st.mu.Lock()
			heard := st.heard
			st.mu.Unlock()
			action, wait := watch(time.Now(), heard, pinged, patience)
			switch action {
			case giveUp:
				st.fail(errSilent)
				return
			case pingNow:
				if ping() != nil {
					return
				}
				patience = pongTimeout
			}
			timer.Reset(wait)
		}
	}
}

// watchAction is what watch asks for.
type watchAction int

const (
	keepWaiting watchAction = iota // the server spoke lately, or has time left to answer
	pingNow                        // it was silent for idleTimeout
	giveUp                         // and did not answer
)

// watch decides what silence means, and when to look again. heard is when the
// server last sent a stanza, pinged when it was last asked for one, patience the
// time that it has to answer.
func watch(now, heard, pinged time.Time, patience time.Duration) (watchAction, time.Duration) {
	if pinged.After(heard) {
		if left := patience - now.Sub(pinged); left > 0 {
			return keepWaiting, left
		}
		return giveUp, 0
	}
	if left := idleTimeout - now.Sub(heard); left > 0 {
		return keepWaiting, left
	}
	return pingNow, pongTimeout
}

// put writes one stanza by one write. Only the write loop calls it.
func (st *stream) put(b []byte) error {
	err := st.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		if st.s.tracing() {
			st.s.config.Trace.Element(true, string(b))
		}
		_, err = st.conn.Write(b)
	}
	if err != nil {
		st.fail(fmt.Errorf("sending: %w", err))
	}
	return err
}

// send hands b to the write loop and waits until it was written. The end of
// ctx ends the wait, not the writing.
func (st *stream) send(ctx context.Context, b []byte) error {
	p := packet{b, make(chan error, 1)}
	select {
	case st.out <- p:
	case <-ctx.Done():
		return ctx.Err()
	case <-st.lost:
		return st.failed()
	}
	select {
	case err := <-p.done:
		if err != nil {
			return st.failed()
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reply queues an answer of the read loop.
func (st *stream) reply(q stanza.IQ) {
	q.From = st.s.stamp(q.From)
	if st.s.component != nil && q.To.IsZero() {
		return // it may send nothing to nobody
	}
	select {
	case st.replies <- st.s.encoded(q.Element(st.s.content)):
	default:
	}
}

// bye closes the stream from our side and gives the server a moment to close
// its own (RFC 6120, 4.4).
func (st *stream) bye() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var last []byte
	if st.s.component == nil {
		last = st.s.encoded(stanza.Presence{Type: stanza.Unavailable}.Element(stanza.NSClient))
	}
	if st.send(ctx, append(last, xmlstream.End...)) != nil {
		return
	}
	select {
	case <-st.lost:
	case <-ctx.Done():
	}
}

// run serves the stream until it fails, or until closing is closed, and
// returns why it ended.
func (st *stream) run(closing <-chan struct{}) error {
	var loops sync.WaitGroup
	// Owned by this call, which closes the connection and waits for both. They
	// end with the stream, or at the close.
	loops.Go(st.read)
	loops.Go(st.write)
	var err error
	select {
	case <-st.lost:
		if err = st.err; errors.Is(err, xmlstream.ErrClosed) {
			// Return the courtesy (RFC 6120, 4.4), if that takes no time.
			_ = st.conn.SetWriteDeadline(time.Now().Add(closeTimeout))
			_, _ = st.conn.Write([]byte(xmlstream.End))
		}
	case <-closing:
		st.bye()
		st.fail(ErrClosed)
		err = ErrClosed
	}
	st.conn.Close()
	loops.Wait()
	return err
}
