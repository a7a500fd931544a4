//go:build !linux

package gather

import "context"

// hints come from a clock.
func hints(ctx context.Context, to chan<- hint) { poll(ctx, to) }
