package portmap

import (
	"context"
	"errors"
	"time"
)

// A keeper keeps the port mapped by one method at one gateway.
type keeper struct {
	identity
	m       *Mapper
	speaker speaker
	result  int     // its place in m.results
	after   Methods // those that are preferred, of the same family
	poke    chan struct{}
}

// keep asks when it is needed, renews, and removes the mapping when ctx ends.
func (k *keeper) keep(ctx context.Context) {
	gate := time.Now().Add(gates[k.method])
	mapped, failures := false, 0
	for k.needed(ctx, gate) {
		l, err := k.speaker.ask(ctx)
		if err == nil {
			mapped, failures = true, 0
		} else if ctx.Err() != nil {
			break
		}
		wait := k.update(func(r Result) (Result, time.Duration) { return r.settle(l, err, failures, time.Now()) })
		if err != nil {
			failures++
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-k.poke:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	if mapped {
		// Not ctx, which has ended. What cannot be removed runs out by itself.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeLimit)
		defer cancel()
		_ = k.speaker.remove(last)
	}
}

// update changes the keeper's result by f, and returns what else f does.
func (k *keeper) update(f func(Result) (Result, time.Duration)) (wait time.Duration) {
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	k.m.results[k.result], wait = f(k.m.results[k.result])
	k.m.signal()
	return wait
}

// needed waits until the keeper is to ask: while a preferred method works, or
// until the gate has not given its answer. It returns false when ctx has ended.
// Who has a mapping keeps it.
func (k *keeper) needed(ctx context.Context, gate time.Time) bool {
	for ctx.Err() == nil {
		report, changed := k.m.Report()
		preferred := Failed
		for _, r := range report.Results {
			if r.Method&k.after != 0 && (r.State == Works || r.State == Pending && preferred != Works) {
				preferred = r.State
			}
		}
		own := report.Results[k.result].State
		wait := time.Until(gate)
		switch {
		case own == Works, preferred == Failed, preferred == Pending && wait <= 0:
			return true
		case preferred == Works && own != Unneeded:
			k.update(func(r Result) (Result, time.Duration) {
				return Result{Method: r.Method, State: Unneeded, Gateway: r.Gateway}, 0
			})
			continue
		case preferred == Works:
			wait = lifetime // as good as any: only a change ends it
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return false
}

// The waits between questions.
const (
	minRenewal = 15 * time.Second
	minRetry   = time.Minute
	maxRetry   = 30 * time.Minute
)

// settle returns the result after a gateway was asked once more, and how long
// to wait until it is asked again: until half of the mapping's life is over, or
// half of what is left of it while the gateway is silent. Failures are those
// before this one.
func (r Result) settle(l lease, err error, failures int, now time.Time) (Result, time.Duration) {
	if err == nil {
		renewed := 0
		if r.State == Works && r.External == l.external {
			renewed = r.Renewed + 1
		}
		next := Result{Method: r.Method, State: Works, Gateway: r.Gateway, External: l.external, Detail: l.detail, Renewed: renewed}
		if l.lifetime == 0 {
			return next, lifetime / 2
		}
		next.Expires = now.Add(l.lifetime)
		return next, max(min(l.lifetime, lifetime)/2, minRenewal)
	}
	var refused *refusal
	refusedIt := errors.As(err, &refused)
	if left := r.Expires.Sub(now); r.State == Works && !refusedIt && left > 0 {
		r.Err = err
		return r, min(max(left/2, minRenewal), left)
	}
	wait := min(minRetry<<min(failures, 10), maxRetry)
	if refusedIt && refused.retry > 0 {
		wait = min(max(refused.retry, minRetry), maxRetry)
	}
	return Result{Method: r.Method, State: Failed, Gateway: r.Gateway, Err: err}, wait
}
