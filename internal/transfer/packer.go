package transfer

// A packer fills buffers with frames, so that many small files become few
// writes. One goroutine uses it.
type packer struct {
	st  *stream
	buf *buffer
	n   int
}

// frame adds a whole frame.
func (p *packer) frame(b []byte) error {
	if p.buf != nil && p.n+len(b) > len(p.buf) {
		if err := p.flush(); err != nil {
			return err
		}
	}
	if p.buf == nil {
		p.buf = buffers.Get().(*buffer)
	}
	p.n += copy(p.buf[p.n:], b)
	return nil
}

// room is where up to want bytes of a file may be read into, for data to make
// a frame of them. It may be less than want, but never little.
func (p *packer) room(want int64) ([]byte, error) {
	const little = 32 << 10
	if p.buf != nil && int64(len(p.buf)-p.n-headerSize) < min(want, little) {
		if err := p.flush(); err != nil {
			return nil, err
		}
	}
	if p.buf == nil {
		p.buf = buffers.Get().(*buffer)
	}
	b := p.buf[p.n+headerSize:]
	return b[:min(int64(len(b)), want)], nil
}

// data makes a frame of the first n bytes of room.
func (p *packer) data(n int) {
	putHeader(p.buf[p.n:], kindData, n)
	p.n += headerSize + n
}

// flush puts what there is.
func (p *packer) flush() error {
	if p.n == 0 {
		return p.st.cause()
	}
	buf, n := p.buf, p.n
	p.buf, p.n = nil, 0
	return p.st.put(piece{b: buf[:n], in: buf})
}

// drop gives the buffer back.
func (p *packer) drop() {
	if p.buf != nil {
		buffers.Put(p.buf)
	}
	p.abandon()
}

// abandon forgets the buffer: somebody still reads into it.
func (p *packer) abandon() { p.buf, p.n = nil, 0 }
