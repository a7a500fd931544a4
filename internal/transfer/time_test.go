package transfer_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// receive runs r on rw; the channel gives its error.
func receive(r *transfer.Receiver, rw io.ReadWriteCloser) <-chan error {
	done := make(chan error, 1)
	// Owned by the caller, which waits for done.
	go func() {
		_, err := r.Receive(context.Background(), rw)
		done <- err
	}()
	return done
}

// dial gives a Dial that hands out these streams, and after them an error.
func dial(streams ...io.ReadWriteCloser) func(context.Context) (io.ReadWriteCloser, error) {
	return func(context.Context) (io.ReadWriteCloser, error) {
		if len(streams) == 0 {
			return nil, errors.New("nobody there")
		}
		rw := streams[0]
		streams = streams[1:]
		return rw, nil
	}
}

// TestStalledReceiver: a sender whose peer is silent gives up after 30 s, at
// every point, and not before.
func TestStalledReceiver(t *testing.T) {
	for _, say := range [][][]byte{
		nil,
		{transfer.RawHello()},
		{transfer.RawHello(), transfer.RawNumbers('y')},
		{transfer.RawHello(), transfer.RawNumbers('y'), transfer.RawNumbers('g')},
		{transfer.RawHello(), transfer.RawNumbers('y'), transfer.RawNumbers('g'), transfer.RawNumbers('r', 0, 0)},
	} {
		synctest.Test(t, func(t *testing.T) {
			a, b := pipe()
			raw{t, b}.send(say...)
			began := time.Now()
			s := &transfer.Sender{Dial: dial(a)}
			_, err := s.Send(t.Context(), blob("large", strings.Repeat("x", 1<<20)))
			if took := time.Since(began); !errors.Is(err, transfer.ErrStalled) || took < 30*time.Second || took > 34*time.Second {
				t.Errorf("after %d frames: %v after %v, want a stall after 30 s", len(say), err, took)
			}
		})
	}
}

// TestStalledSender: likewise a receiver.
func TestStalledSender(t *testing.T) {
	for _, say := range [][][]byte{
		nil,
		{transfer.RawHello()},
		{transfer.RawHello(), offerOf(4, rawFile("f", 4))},
		{transfer.RawHello(), offerOf(4, rawFile("f", 4)), nil, transfer.RawNumbers('f', 0, 0), transfer.RawFrame('d', []byte("da"))},
	} {
		to := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			a, b := pipe()
			d := folder(t, to)
			began := time.Now()
			done := receive(&transfer.Receiver{Folder: d, Accept: accept}, b)
			for _, f := range say {
				if f == nil {
					raw{t, a}.want("hyg")
					continue
				}
				raw{t, a}.send(f)
			}
			err := <-done
			if took := time.Since(began); !errors.Is(err, transfer.ErrStalled) || took < 30*time.Second || took > 34*time.Second {
				t.Errorf("after %d frames: %v after %v, want a stall after 30 s", len(say), err, took)
			}
		})
		if len(say) > 3 {
			if got := tree(t, to)["f.part"]; !strings.HasSuffix(got, "da") {
				t.Errorf("what arrived is kept as %q, want f.part with two bytes", got)
			}
		}
	}
}

// TestOfferMustEnd: a sender that offers a little every now and then does not
// keep the receiver busy for ever.
func TestOfferMustEnd(t *testing.T) {
	to := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe()
		began := time.Now()
		done := receive(&transfer.Receiver{Folder: folder(t, to), Accept: accept}, b)
		raw{t, a}.send(transfer.RawHello())
		tick := time.NewTicker(20 * time.Second)
		defer tick.Stop()
		var err error
		for err == nil {
			select {
			case <-tick.C:
				raw{t, a}.send(transfer.RawFrame('m', nil))
			case err = <-done:
			}
		}
		if took := time.Since(began); !errors.Is(err, transfer.ErrStalled) || took < transfer.OfferTime || took > transfer.OfferTime+5*time.Second {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// TestMutualHeartbeats: two ends that only beat keep nobody alive: a heartbeat
// is no reason for another.
func TestMutualHeartbeats(t *testing.T) {
	to := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe()
		began := time.Now()
		done := receive(&transfer.Receiver{Folder: folder(t, to), Accept: accept}, b)
		peer := raw{t, a}
		peer.send(transfer.RawHello(), offerOf(4, rawFile("f", 4)))
		peer.want("hyg")
		beat := transfer.RawFrame('b', nil)
		beats := 0
		// Owned by the test: it ends with the stream.
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			var header [5]byte
			for {
				if _, err := io.ReadFull(a, header[:]); err != nil || header[0] != 'b' {
					return
				}
				beats++
				peer.send(beat)
			}
		}()
		err := <-done
		_ = a.Close()
		<-ended
		if took := time.Since(began); !errors.Is(err, transfer.ErrStalled) || took > 40*time.Second {
			t.Errorf("%v after %v and %d beats, want a stall", err, took, beats)
		}
	})
}

// TestSlowPerson: whoever is asked may take ten minutes, and the sender waits.
func TestSlowPerson(t *testing.T) {
	to := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := folder(t, to)
		r := &transfer.Receiver{Folder: d, Accept: func(ctx context.Context, _ *transfer.Offer) error {
			timer := time.NewTimer(10 * time.Minute)
			defer timer.Stop()
			select {
			case <-timer.C:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		began := time.Now()
		run(t, &transfer.Sender{}, r, nil, blob("f", "data")).ok(t)
		if took := time.Since(began); took < 10*time.Minute {
			t.Errorf("it took %v", took)
		}
		// Who is asked hears when the sender is gone.
		a, b := pipe()
		ctx, cancel := context.WithCancel(t.Context())
		done := receive(r, b)
		timer := time.AfterFunc(time.Minute, cancel)
		defer timer.Stop()
		began = time.Now()
		s := &transfer.Sender{Dial: dial(a)}
		if _, err := s.Send(ctx, blob("g", "data")); !errors.Is(err, context.Canceled) {
			t.Errorf("send says %v, want canceled", err)
		}
		var peer *transfer.PeerError
		if err := <-done; !errors.As(err, &peer) || !strings.Contains(err.Error(), "stopped") || time.Since(began) > 2*time.Minute {
			t.Errorf("receive says %v after %v", err, time.Since(began))
		}
	})
}

// slowReader gives its content after an hour.
type slowReader struct{ r io.Reader }

func (s *slowReader) Read(b []byte) (int, error) {
	timer := time.NewTimer(time.Hour)
	<-timer.C
	return s.r.Read(b)
}

// slowWriter takes an hour for each write.
type slowWriter struct{ b strings.Builder }

func (s *slowWriter) Write(b []byte) (int, error) {
	timer := time.NewTimer(time.Hour)
	<-timer.C
	return s.b.Write(b)
}

// TestSlowPipes: a pipe may be silent for hours, on either side.
func TestSlowPipes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out slowWriter
		r := &transfer.Receiver{Output: &out, Accept: accept}
		o := run(t, &transfer.Sender{}, r, nil, transfer.Stream("stdin", &slowReader{strings.NewReader("slow")})).ok(t)
		if out.b.String() != "slow" || o.sent.Bytes != 4 || o.received.Bytes != 4 || o.sent.SHA256 != o.received.SHA256 || o.sent.SHA256 == "" {
			t.Errorf("arrived %q, %+v and %+v", out.b.String(), o.sent, o.received)
		}
	})
}

// TestSlowPath: at 2,000 bytes a second a frame of data takes minutes, and
// nobody calls that a stall.
func TestSlowPath(t *testing.T) {
	to := t.TempDir()
	content := strings.Repeat("slow and steady ", 20_000)
	synctest.Test(t, func(t *testing.T) {
		a, b := pipe()
		c, d := pipe()
		for _, e := range []*end{a, b, c, d} {
			e.out.limit = 1000
		}
		// Owned by the test: both end when the two ends are closed.
		go trickle(b, c, 500*time.Millisecond)
		go trickle(c, b, 0)
		done := receive(&transfer.Receiver{Folder: folder(t, to), Accept: accept}, d)
		s := &transfer.Sender{Dial: dial(a)}
		began := time.Now()
		_, err := s.Send(t.Context(), blob("f", content))
		if err2 := <-done; err != nil || err2 != nil {
			t.Errorf("send: %v, receive: %v after %v", err, err2, time.Since(began))
		}
		if time.Since(began) < 2*time.Minute {
			t.Errorf("it took %v only: nothing was slow", time.Since(began))
		}
	})
	same(t, tree(t, to), map[string]string{"f": "-rw-r--r-- " + content})
}

// trickle carries bytes from one end to another, 1,000 in each step.
func trickle(from, to *end, step time.Duration) {
	b := make([]byte, 1000)
	for {
		n, err := from.Read(b)
		if step > 0 {
			timer := time.NewTimer(step)
			<-timer.C
		}
		if _, werr := to.Write(b[:n]); werr != nil {
			from.Close()
			return
		}
		if err != nil {
			_ = to.CloseWrite()
			return
		}
	}
}

// TestRetry: a sender that may, dials again after 1, 2, 4 … seconds, and what
// had arrived is not sent again.
func TestRetry(t *testing.T) {
	to := t.TempDir()
	content := strings.Repeat("0123456789abcdef", 60_000)
	synctest.Test(t, func(t *testing.T) {
		d := folder(t, to)
		var waits []time.Duration
		var accepted, dials int
		var lastDone <-chan error
		s := &transfer.Sender{
			Retry:    time.Minute,
			Accepted: func() { accepted++ },
			Retrying: func(err error, wait time.Duration) { waits = append(waits, wait) },
			Dial: func(context.Context) (io.ReadWriteCloser, error) {
				dials++
				if dials == 2 || dials == 3 {
					return nil, errors.New("nobody there")
				}
				a, b := pipe()
				if dials < 6 {
					a.cutAfter(int64(dials) * 200_000)
				}
				lastDone = receive(&transfer.Receiver{From: "romeo@example.org", Folder: d, Accept: accept}, b)
				return a, nil
			},
		}
		result, err := s.Send(t.Context(), blob("f", content))
		if err != nil || <-lastDone != nil {
			t.Fatalf("send: %v", err)
		}
		if result.Tries != 4 && result.Tries != 5 || dials != result.Tries || accepted != dials-2 || result.Resumed < 400_000 {
			t.Errorf("%+v; %d dials, %d accepted", result, dials, accepted)
		}
		if !slices.Equal(waits[:3], []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}) {
			t.Errorf("it waited %v", waits)
		}
	})
	same(t, tree(t, to), map[string]string{"f": "-rw-r--r-- " + content})
}

// TestRetryEnds: without progress it ends in time, by a last attempt, and a
// refusal at once.
func TestRetryEnds(t *testing.T) {
	to := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s := &transfer.Sender{Retry: time.Minute, Dial: dial()}
		result, err := s.Send(t.Context(), blob("f", "data"))
		if took := time.Since(began); err == nil || err.Error() != "nobody there" || took != time.Minute || result.Tries < 6 {
			t.Errorf("%v after %v and %d tries", err, took, result.Tries)
		}
		s = &transfer.Sender{Retry: time.Minute, Dial: dial(), Again: func(error) bool { return false }}
		if result, err = s.Send(t.Context(), blob("f", "data")); err == nil || result.Tries != 1 {
			t.Errorf("%v after %d tries, want 1", err, result.Tries)
		}
		s = &transfer.Sender{Retry: time.Minute}
		o := run(t, s, &transfer.Receiver{Folder: folder(t, to), Accept: func(context.Context, *transfer.Offer) error { return transfer.Refuse("not today") }}, nil, blob("f", "data"))
		var refused *transfer.RefusedError
		if !errors.As(o.sendErr, &refused) || !refused.Declined() || refused.Reason != "not today" || o.sent.Tries != 1 || !errors.As(o.receiveErr, &refused) {
			t.Errorf("send: %v after %d, receive: %v", o.sendErr, o.sent.Tries, o.receiveErr)
		}
		// A pipe cannot be read again.
		a, b := pipe()
		a.cutAfter(1000)
		done := receive(&transfer.Receiver{Folder: folder(t, to), Accept: accept}, b)
		s = &transfer.Sender{Retry: time.Minute, Dial: dial(a)}
		_, err = s.Send(t.Context(), transfer.Stream("-", strings.NewReader(strings.Repeat("x", 10_000))))
		if !errors.Is(err, transfer.ErrCut) || !strings.Contains(err.Error(), "cannot be sent again") {
			t.Errorf("a cut pipe: %v", err)
		}
		if err := <-done; !errors.Is(err, transfer.ErrCut) {
			t.Errorf("receive: %v", err)
		}
	})
}

// TestSuperseded: the attempt before, whose connection died without a word,
// hands its part over to the next one at once.
func TestSuperseded(t *testing.T) {
	to := t.TempDir()
	content := strings.Repeat("0123456789abcdef", 60_000)
	synctest.Test(t, func(t *testing.T) {
		d := folder(t, to)
		r := &transfer.Receiver{From: "romeo@example.org", Folder: d, Accept: accept}
		a, b := pipe()
		old := receive(r, b)
		peer := raw{t, a}
		peer.send(transfer.RawHello(), offerOf(uint64(len(content)), rawFile("f", int64(len(content)))))
		peer.want("hyg")
		peer.send(transfer.RawNumbers('f', 0, 0), transfer.RawFrame('d', []byte(content[:200_000])))
		synctest.Wait()
		began := time.Now()
		o := run(t, &transfer.Sender{}, r, nil, blob("f", content)).ok(t)
		if o.sent.Resumed != 200_000 || time.Since(began) > 5*time.Second {
			t.Errorf("resumed %d bytes after %v", o.sent.Resumed, time.Since(began))
		}
		if err := <-old; !errors.Is(err, transfer.ErrSuperseded) {
			t.Errorf("the old attempt says %v", err)
		}
	})
	same(t, tree(t, to), map[string]string{"f": "-rw-r--r-- " + content})
}

// TestProgress: it is told, it grows, and it ends at the total.
func TestProgress(t *testing.T) {
	to := t.TempDir()
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var sent, received []transfer.Progress
		var reports []transfer.File
		s := &transfer.Sender{Progress: func(p transfer.Progress) { sent = append(sent, p) }, Report: func(f transfer.File) { reports = append(reports, f) }}
		r := &transfer.Receiver{Folder: folder(t, to), Accept: accept, Progress: func(p transfer.Progress) { received = append(received, p) }}
		o := run(t, s, r, nil, transfer.Path(name, false)).ok(t)
		want := transfer.Progress{Bytes: 1 << 20, Total: 1 << 20, Files: 1}
		for _, got := range [][]transfer.Progress{sent, received} {
			if len(got) == 0 || got[len(got)-1] != want {
				t.Errorf("progress was %+v, want %+v at the end", got, want)
			}
		}
		if len(reports) != 1 || reports[0].Name != "f" || reports[0].Status != transfer.Stored || reports[0].SHA256 != o.received.SHA256 {
			t.Errorf("reported was %+v", reports)
		}
	})
}

// TestSameName: two transfers that differ are two transfers, whatever their
// names; one that is declined ends nothing.
func TestSameName(t *testing.T) {
	no := func(context.Context, *transfer.Offer) error { return transfer.Refuse("no") }
	for _, c := range []struct {
		name   string
		accept func(context.Context, *transfer.Offer) error
		source func(r io.Reader) transfer.Source
	}{
		{"a stream declined", no, func(r io.Reader) transfer.Source { return transfer.Stream("stdin", r) }},
		{"a stream accepted", accept, func(r io.Reader) transfer.Source { return transfer.Stream("stdin", r) }},
		{"another file", accept, func(io.Reader) transfer.Source { return blob("stdin", "two") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				d := folder(t, dir)
				a, b := pipe()
				first := receive(&transfer.Receiver{From: "romeo@x", Folder: d, Accept: accept}, b)
				out, in := io.Pipe()
				sent := make(chan error, 1)
				// Owned by the test, which waits for sent.
				go func() {
					_, err := (&transfer.Sender{Dial: dial(a)}).Send(t.Context(), transfer.Stream("stdin", out))
					sent <- err
				}()
				_, _ = in.Write([]byte("one"))
				synctest.Wait()
				a2, b2 := pipe()
				second := receive(&transfer.Receiver{From: "romeo@x", Folder: d, Accept: c.accept}, b2)
				_, _ = (&transfer.Sender{Dial: dial(a2)}).Send(t.Context(), c.source(strings.NewReader("two")))
				<-second
				_ = in.Close()
				if err, err2 := <-sent, <-first; err != nil || err2 != nil {
					t.Errorf("the first ended with %v there and %v here", err, err2)
				}
			})
		})
	}
}

// TestNothingButHeartbeats: they do not hold a receiver that waits for a file,
// but do while the sender hashes, or reads from a pipe.
func TestNothingButHeartbeats(t *testing.T) {
	for _, c := range []struct {
		name string
		size int64 // -1: a stream
		part bool
		ends bool
	}{{"a file", 4, false, true}, {"a file to be hashed", 1000, true, false}, {"a stream", -1, false, false}} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, strings.Repeat("x", 1000), dir, "f")
			synctest.Test(t, func(t *testing.T) {
				a, b := pipe()
				done := receive(&transfer.Receiver{From: "m@x", Folder: folder(t, dir), Accept: accept}, b)
				peer := raw{t, a}
				offer := offerOf(uint64(max(0, c.size)), rawFile("f", c.size))
				if c.size < 0 {
					offer = offerOf(0, transfer.RawEntry(3, -1, "f", "", 0, epoch))
				}
				peer.send(transfer.RawHello(), offer)
				if c.part {
					peer.want("hykg")
				} else {
					peer.want("hyg")
				}
				// Owned by the test: it ends with the pipe.
				go func() { _, _ = io.Copy(io.Discard, a) }()
				began := time.Now()
				for time.Since(began) < time.Hour {
					timer := time.NewTimer(20 * time.Second)
					select {
					case err := <-done:
						if took := time.Since(began); !c.ends || !errors.Is(err, transfer.ErrStalled) || took < 10*time.Minute || took > 11*time.Minute {
							t.Errorf("it ended after %v with %v", took, err)
						}
						_ = a.Close()
						return
					case <-timer.C:
						_, _ = a.Write(transfer.RawFrame('b', []byte("alive")))
					}
				}
				if c.ends {
					t.Error("it still waits after an hour")
				}
				_ = a.Close()
				<-done
			})
		})
	}
}
