package transfer

import (
	"errors"
	"strings"
	"testing"
)

// TestMeasurePath: either end counts paths alike, and ends at the limits.
func TestMeasurePath(t *testing.T) {
	folder := entry{name: strings.Repeat("d", 250), typ: typeFolder, parent: -1}
	l := &listing{limits: Limits{}.filled(), tops: make(map[int]*top)}
	var err error
	for i := 0; err == nil && i < 20; i++ {
		e := folder
		e.parent, e.depth = int32(i-1), uint8(i)
		err = l.add(e, nil)
	}
	var limit *LimitError
	if !errors.As(err, &limit) || len(l.entries) != 16 || int(l.entries[15].path) != len(pathOf(l.entries, 15)) {
		t.Fatalf("%d folders of 250 bytes each inside each other: %v", len(l.entries), err)
	}
	paths := l.paths
	for err = nil; err == nil && len(l.entries) < 20_000; {
		before := l.paths
		err = l.add(entry{name: "f", parent: 15, depth: 16}, nil)
		if err == nil && l.paths-before != 4017 {
			t.Fatalf("a path of %d bytes was counted as %d", 4017, l.paths-before)
		}
	}
	if want := 16 + (maxPaths-paths)/4017; !errors.As(err, &limit) || len(l.entries) != want {
		t.Errorf("%d entries in the last, want %d: %v", len(l.entries), want, err)
	}
}
