package carry

import (
	"context"
	"sync"
	"time"

	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/observe"
)

// tellEvery is how often at most a waiter is told of progress.
const tellEvery = 250 * time.Millisecond

// work is a transfer as it runs; it reports to its flight.
type work func(ctx context.Context, progress transfer.Progress) (transfer.Uploaded, error)

// flight is one transfer under way. Its fields are guarded by flights.mu until
// over is closed.
type flight struct {
	target  string // of an upload: where to
	waiters int
	ended   bool // nobody waits, or it was told to end
	cancel  context.CancelCauseFunc
	over    chan struct{}
	result  transfer.Uploaded
	err     error

	done, total int64
}

// flights are those under way, by what they move.
type flights struct {
	base context.Context
	end  context.CancelCauseFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	under map[string]*flight
}

func newFlights() *flights {
	f := &flights{under: make(map[string]*flight)}
	f.base, f.end = context.WithCancelCause(context.Background())
	return f
}

var errStopping = errs.Unavailable("agent_stopping", "This host's agent stops. Try again.")

// close ends all and waits for them.
func (f *flights) close() {
	f.end(errStopping)
	f.wg.Wait()
}

// join waits for the transfer of a thing, which it begins where there is none. One
// to another target is ended first: what it was for was given up.
func (f *flights) join(ctx context.Context, key, target string, width chan struct{}, progress transfer.Progress, do work) (transfer.Uploaded, error) {
	for {
		fl, mine := f.board(ctx, key, target, width, do)
		if mine {
			return f.await(ctx, fl, progress)
		}
		select {
		case <-fl.over: // and once more
		case <-ctx.Done():
			return transfer.Uploaded{}, context.Cause(ctx)
		}
	}
}

// board returns the flight to wait for; not mine is one that is just ending.
func (f *flights) board(ctx context.Context, key, target string, width chan struct{}, do work) (fl *flight, mine bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl = f.under[key]
	if fl != nil && !fl.ended && fl.target != target {
		f.drop(fl, errs.New(errs.CodeCanceled, "superseded", "A later transfer of the same thing came in between."))
	}
	if fl != nil && fl.ended {
		return fl, false
	}
	if fl != nil {
		fl.waiters++
		return fl, true
	}
	own, cancel := context.WithCancelCause(observe.Follow(f.base, ctx))
	fl = &flight{target: target, waiters: 1, cancel: cancel, over: make(chan struct{})}
	f.under[key] = fl
	f.wg.Go(func() {
		defer cancel(nil)
		result, err := f.run(own, fl, width, do)
		f.mu.Lock()
		defer f.mu.Unlock()
		fl.result, fl.err, fl.ended = result, err, true
		delete(f.under, key)
		close(fl.over)
	})
	return fl, true
}

// run does the work in its turn.
func (f *flights) run(ctx context.Context, fl *flight, width chan struct{}, do work) (transfer.Uploaded, error) {
	select {
	case width <- struct{}{}:
		defer func() { <-width }()
	case <-ctx.Done():
		return transfer.Uploaded{}, context.Cause(ctx)
	}
	result, err := do(ctx, func(done, total int64) {
		f.mu.Lock()
		defer f.mu.Unlock()
		fl.done, fl.total = done, total
	})
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return result, err
}

// await tells progress until the flight is over. The last one who leaves ends it.
func (f *flights) await(ctx context.Context, fl *flight, progress transfer.Progress) (transfer.Uploaded, error) {
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if fl.waiters--; fl.waiters == 0 {
			f.drop(fl, context.Canceled)
		}
	}()
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	var told int64
	for {
		select {
		case <-fl.over:
			return fl.result, fl.err
		case <-ctx.Done():
			return transfer.Uploaded{}, context.Cause(ctx)
		case <-tick.C:
		}
		f.mu.Lock()
		done, total := fl.done, fl.total
		f.mu.Unlock()
		if progress != nil && done != told {
			told = done
			progress(done, total)
		}
	}
}

// drop ends a flight. Called with f.mu held.
func (f *flights) drop(fl *flight, why error) {
	if !fl.ended {
		fl.ended = true
		fl.cancel(why)
	}
}

// stop ends what moves a thing and waits for its end.
func (f *flights) stop(ctx context.Context, key string, why error) error {
	f.mu.Lock()
	fl := f.under[key]
	if fl != nil {
		f.drop(fl, why)
	}
	f.mu.Unlock()
	if fl == nil {
		return nil
	}
	select {
	case <-fl.over:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
