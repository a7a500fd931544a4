package transfer

// This file is what a sender does with what the receiver says: it runs in the
// stream's reader.

// handle takes a frame of the receiver.
func (a *sending) handle(k kind, n int) error {
	b, err := a.st.payload(n)
	if err != nil {
		return err
	}
	a.mu.Lock()
	greeted, accepted := a.greeted, a.accepted
	a.mu.Unlock()
	f := fields{b: b}
	switch {
	case !greeted:
		if err := checkHello(k, b); err != nil {
			return err
		}
		a.mu.Lock()
		a.greeted = true
		a.mu.Unlock()
		return nil
	case k == kindRefuse && !accepted:
		e := &RefusedError{code: code(f.number()), Reason: f.text()}
		if err := f.end(k); err != nil {
			return err
		}
		return e
	case k == kindAccept && !accepted:
		a.mu.Lock()
		a.accepted = true
		a.mu.Unlock()
		if a.s.Accepted != nil {
			a.s.Accepted()
		}
		return nil
	case k == kindAsk && accepted:
		return a.handleAsk(f)
	case k == kindGo && accepted && !isClosed(a.went):
		a.mu.Lock()
		a.open = len(a.asks)
		a.mu.Unlock()
		close(a.went)
		return nil
	case k == kindFrom && isClosed(a.went):
		return a.handleFrom(f)
	case k == kindResult && accepted:
		return a.handleResult(f)
	case k == kindComplete && a.sent.Load() && !isClosed(a.complete):
		f.number()
		f.number()
		if err := f.end(k); err != nil {
			return err
		}
		a.st.closing.Store(true)
		a.settleRest()
		close(a.complete)
		return nil
	}
	return protocolError("a frame %q out of turn", k)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// index takes the number of an entry with data.
func (a *sending) index(f *fields) (int, error) {
	i := f.number()
	if f.bad || i >= uint64(len(a.list.entries)) {
		return 0, protocolError("an entry that was not offered")
	}
	return int(i), nil
}

func (a *sending) handleAsk(f fields) error {
	i, err := a.index(&f)
	if err != nil {
		return err
	}
	q := ask{entry: i}
	e := &a.list.entries[i]
	for last := int64(0); len(f.b) > 0; q.n++ {
		n := f.size()
		if f.bad || q.n == maxPrefixes || n <= last || n > e.size {
			return protocolError("a malformed frame %q", kindAsk)
		}
		q.lengths[q.n], last = n, n
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked == nil {
		a.asked = make([]int32, len(a.list.entries))
	}
	if e.typ != typeFile || q.n == 0 || a.asked[i] != 0 || e.status != Pending || isClosed(a.went) {
		return protocolError("a question about an entry that has none")
	}
	if q.lengths[0] < e.size {
		if a.parts++; a.parts > maxParts {
			return protocolError("more than %d parts", maxParts)
		}
	}
	a.asks = append(a.asks, q)
	a.asked[i] = int32(len(a.asks))
	return nil
}

// handleFrom notes from where to send a file that was asked about.
func (a *sending) handleFrom(f fields) error {
	i, err := a.index(&f)
	if err != nil {
		return err
	}
	offset := f.size()
	if err := f.end(kindFrom); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked == nil || a.asked[i] == 0 {
		return protocolError("an answer to nothing")
	}
	if q := a.asks[a.asked[i]-1]; offset != 0 && (offset != q.lengths[0] || offset == a.list.entries[i].size) {
		return protocolError("an offset that it did not ask about")
	}
	a.closeAsk(i)
	a.from[i], a.resumed[i] = offset, offset
	return nil
}

// closeAsk counts the receiver's word on entry i, which it asked about. a.mu
// must be held.
func (a *sending) closeAsk(i int) {
	a.asked[i] = 0
	if a.open--; a.open == 0 {
		select {
		case a.answered <- struct{}{}:
		default:
		}
	}
}

// handleResult notes what became of an entry.
func (a *sending) handleResult(f fields) error {
	i, err := a.index(&f)
	if err != nil {
		return err
	}
	status, text := f.number(), f.text()
	if f.bad {
		return f.end(kindResult)
	}
	e := &a.list.entries[i]
	switch status {
	case 0:
		a.settle(i, Stored, nil)
	case 1:
		a.mu.Lock()
		known := e.size == 0 || a.asked != nil && a.asked[i] != 0
		a.mu.Unlock()
		if !known {
			return protocolError("a file that was there, of which it did not ask")
		}
		a.settle(i, Present, nil)
	case 2:
		var err error = errMore
		if a.reasons++; a.reasons <= maxReasons {
			err = &EntryError{Reason: text}
		}
		a.settle(i, Failed, err)
	default:
		return protocolError("a result of unknown sort %d", status)
	}
	// Last: with the last question closed, files that are still pending are sent.
	a.mu.Lock()
	defer a.mu.Unlock()
	if isClosed(a.went) && a.asked != nil && a.asked[i] != 0 {
		a.closeAsk(i)
	}
	return nil
}
