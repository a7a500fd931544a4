package main

import "testing"

func TestCrowd(t *testing.T) {
	var c crowd
	for i, step := range []struct {
		n    int
		gone bool
	}{
		{0, false}, {100, false}, {10, false}, // that is no crowd
		{256, false}, {300, false}, {151, false}, {150, true}, {140, false}, // half of it has gone
		{5000, false}, {2501, false}, {2500, true}, {1250, true}, {0, true}, {0, false},
	} {
		if got := c.gone(step.n); got != step.gone {
			t.Errorf("step %d, %d connections: gone %t, want %t", i, step.n, got, step.gone)
		}
	}
}
