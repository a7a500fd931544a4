//go:build linux

package lab_test

import (
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dtcp-relay/dtcp/lab"
)

var seedFlag = flag.Uint64("seed", 1, "with -lab: where the kills strike; 0: from the clock")

// killsEach is how often one transfer is killed before it may end.
const killsEach = 5

// TestLabKill kills senders and receivers, in turns, while they are at it: 20
// times, or 200 with -long. At no time a final name has a wrong byte, nothing
// that has arrived is sent again, and the last attempt completes what the
// others began.
func TestLabKill(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	journeys := 2 // for each server
	if *longFlag {
		journeys = 20
	}
	points, struck := 0, 0
	for _, kind := range lab.Kinds {
		t.Run(kind.Name, func(t *testing.T) {
			server := kind.Start(t)
			for i := range journeys {
				name, args, sowed := "file", []string(nil), func(root string) int64 {
					sow(t, root, uint64(i), 96<<20)
					return 96 << 20
				}
				if i%2 == 1 {
					name, args, sowed = "folder", []string{"-r"}, func(root string) int64 { return plant(t, root, 300, mixed) }
				}
				t.Run(fmt.Sprintf("%s %d", name, i/2), func(t *testing.T) {
					source := t.TempDir()
					k := &killing{
						courier: newCourier(t, &stage{server: server}), random: random,
						args: append(args, filepath.Join(source, name)), total: sowed(filepath.Join(source, name)),
					}
					k.want = treeOf(t, source)
					for range killsEach {
						if k.strike(t, points%2 == 0) {
							struck++
						}
						points++
					}
					k.complete(t)
				})
			}
		})
	}
	t.Logf("%d points, %d of them before the end of a transfer", points, struck)
	if points == 0 || struck < points*3/4 {
		t.Errorf("struck %d times at %d points, want most of them", struck, points)
	}
}

// mixed is the size of a file: mostly small, some large, one larger, some empty.
func mixed(i int) int64 {
	switch {
	case i == 150:
		return 32 << 20
	case i%37 == 5:
		return 4<<20 + int64(i)
	}
	return int64(i*i*997) % 65_536
}

// A killing is a transfer that is killed again and again.
type killing struct {
	*courier
	random *rand.Rand
	args   []string
	want   map[string]node
	total  int64 // bytes
}

// strike starts the transfer anew and kills one end of it when a part of what
// is missing has arrived. It reports whether the transfer had not ended.
func (k *killing) strike(t *testing.T, killSender bool) bool {
	t.Helper()
	before := k.held(t)
	at := before + 1 + int64(k.random.Float64()*0.45*float64(k.total-before))
	sender := k.start(t, k.args...)
	for k.held(t) < at && sender.Running() {
	}
	victim := sender
	if !killSender {
		victim = k.receiver
	}
	_ = victim.Signal(syscall.SIGKILL) // a sender may have ended
	<-victim.Done()
	k.wantRight(t)
	status := sender.Status(t)
	if killSender {
		// What is on its way to the disk gets there.
		k.receiver.Await(t, "error", "done")
	} else {
		k.receive(t)
	}
	k.wantRight(t)
	after := k.held(t)
	t.Logf("killed %s at %d of %d bytes, aimed at %d", strings.Fields(victim.Name)[1], after, k.total, at)
	if after < before {
		t.Errorf("%d bytes lay there before, %d after", before, after)
	}
	switch {
	case status == 0:
		return false
	case !killSender && status != 1:
		t.Errorf("send, whose receiver was killed: exit status %d, want 1", status)
	}
	return true
}

// complete lets the transfer end and holds it to what it need not send.
func (k *killing) complete(t *testing.T) {
	t.Helper()
	held, before := k.held(t), loopbackBytes(t)
	done := k.send(t, k.args...)
	sent := loopbackBytes(t) - before
	t.Logf("resumed %d of %d bytes, %d lay there; %d went over the network", done.Resumed, k.total, held, sent)
	if done.Bytes != k.total || done.Resumed != held {
		t.Errorf("done: %+v, want %d bytes, %d of them resumed", done, k.total, held)
	}
	// Headers and TLS take a little more; 2 MiB are for all the rest.
	if most := (k.total-held)*11/10 + 2<<20; sent > most {
		t.Errorf("%d bytes went over the network, want at most %d", sent, most)
	}
	wantTree(t, k.folder, k.want)
}

// held is how many bytes of files have arrived, in parts or whole.
func (k *killing) held(t *testing.T) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(k.folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(d.Name(), ".dtcp-") {
			return ignoreGone(err)
		}
		info, err := d.Info()
		if err == nil {
			bytes += info.Size()
		}
		return ignoreGone(err)
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// wantRight fails the test when a final name has anything but what belongs
// there.
func (k *killing) wantRight(t *testing.T) {
	t.Helper()
	for name, got := range treeOf(t, k.folder) {
		if strings.HasSuffix(name, ".part") || strings.HasPrefix(name, ".dtcp-") {
			continue
		}
		want, known := k.want[name]
		right := known && got == want
		if got.Mode.IsDir() {
			right = known && want.Mode.IsDir() // modes and times come last
		}
		if !right {
			t.Errorf("%s is %+v, want %+v", name, got, want)
		}
	}
}

// loopbackBytes is what the lab's network has carried so far, headers and all.
func loopbackBytes(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "lo:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		t.Fatalf("no loopback interface in\n%s", text)
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
