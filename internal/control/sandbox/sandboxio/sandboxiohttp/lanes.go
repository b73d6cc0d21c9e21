package sandboxiohttp

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"

	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	// maxWaiting is the input of one stream that may wait for its command in any
	// case, in bytes; it holds the largest frame.
	maxWaiting = maxFrame
	// maxSpare is what may wait beyond that while few streams need it, so that a
	// signal is not stuck behind a paste that nobody reads, and allSpare the same
	// of all streams together.
	maxSpare = 16 << 20
	allSpare = 32 << 20
	// laneLength is how many messages may wait in a lane.
	laneLength = 256
	// overtake is how long a resize or a signal waits for the input before it to
	// be taken. A command that does not read can still be killed.
	overtake = 500 * time.Millisecond
)

// lanes apply a client's messages in the order they came, with one exception:
// resizes and signals have a lane of their own, so that input which the command
// does not take holds them up for a moment only. Nothing is dropped or merged: a
// full lane stops the reader.
type lanes struct {
	inputs   chan act
	controls chan act
	room     *semaphore.Weighted // of maxWaiting
	spare    *semaphore.Weighted // of maxSpare
	shared   *semaphore.Weighted // of allSpare

	// Of the reader alone: what came last in each lane.
	lastInput   <-chan struct{}
	lastControl <-chan struct{}
}

// act is one message to apply.
type act struct {
	do    func(context.Context) error
	after <-chan struct{} // what came before it in the other lane
	by    time.Time       // how long that is waited for; zero is for ever
	free  func()          // gives back the room it took
	done  chan struct{}
}

func newLanes(shared *semaphore.Weighted) *lanes {
	none := make(chan struct{})
	close(none)
	return &lanes{
		inputs: make(chan act, laneLength), controls: make(chan act, laneLength),
		room: semaphore.NewWeighted(maxWaiting), spare: semaphore.NewWeighted(maxSpare), shared: shared,
		lastInput: none, lastControl: none,
	}
}

// close says that nothing more will come. It belongs to the reader.
func (l *lanes) close() {
	close(l.inputs)
	close(l.controls)
}

// discard gives back what nobody will apply. The lanes are closed.
func (l *lanes) discard() {
	for a := range l.inputs {
		a.free()
	}
}

// take waits for room for n bytes and returns how to give it back.
func (l *lanes) take(ctx context.Context, n int64) (func(), error) {
	if !l.room.TryAcquire(n) {
		if l.spare.TryAcquire(n) {
			if l.shared.TryAcquire(n) {
				return func() { l.shared.Release(n); l.spare.Release(n) }, nil
			}
			l.spare.Release(n)
		}
		if err := l.room.Acquire(ctx, n); err != nil {
			return nil, err
		}
	}
	return func() { l.room.Release(n) }, nil
}

// pushInput waits for room. It belongs to the reader.
func (l *lanes) pushInput(ctx context.Context, bytes int, do func(context.Context) error) error {
	free, err := l.take(ctx, int64(bytes))
	if err != nil {
		return err
	}
	a := act{do: do, after: l.lastControl, free: free, done: make(chan struct{})}
	select {
	case l.inputs <- a:
		l.lastInput = a.done
		return nil
	case <-ctx.Done():
		free()
		return ctx.Err()
	}
}

// pushControl waits for room. It belongs to the reader.
func (l *lanes) pushControl(ctx context.Context, came time.Time, do func(context.Context) error) error {
	a := act{do: do, after: l.lastInput, by: came.Add(overtake), done: make(chan struct{})}
	select {
	case l.controls <- a:
		l.lastControl = a.done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// input applies what waits in the lane of input until it is closed. Bytes are never
// given to a command after a hole: once some were lost, the rest is refused,
// unless somebody at a terminal can see what happened.
func (l *lanes) input(ctx context.Context, terminal func() bool, report func(error)) {
	told := map[string]bool{}
	var lost error
	l.apply(ctx, l.inputs, func(a act) {
		err := lost
		if err == nil {
			err = a.do(ctx)
		}
		if errs.Is(err, "input_lost") && !terminal() {
			lost = err
		}
		if err != nil && tellable(ctx, err) && !told[errs.As(err).Reason] {
			told[errs.As(err).Reason] = true
			report(err)
		}
		a.free()
	})
}

// control applies what waits in the lane of resizes and signals until it is
// closed.
func (l *lanes) control(ctx context.Context, report func(error)) {
	l.apply(ctx, l.controls, func(a act) {
		if err := a.do(ctx); err != nil && tellable(ctx, err) {
			report(err)
		}
	})
}

// apply does what is in a lane until the lane is closed and empty, or ctx ends,
// and then gives back what waits.
func (l *lanes) apply(ctx context.Context, lane <-chan act, do func(act)) {
	for a := range lane {
		if a.ready(ctx) {
			do(a)
		} else if a.free != nil {
			a.free()
		}
		close(a.done)
	}
}

// ready waits for what came before; false when ctx ended.
func (a act) ready(ctx context.Context) bool {
	var late <-chan time.Time
	if !a.by.IsZero() {
		timer := time.NewTimer(time.Until(a.by))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-a.after:
	case <-late:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// tellable leaves out what the stream's own end will tell: that the command, the
// sandbox or the client is gone.
func tellable(ctx context.Context, err error) bool {
	return ctx.Err() == nil && !errs.Is(err, "exec_not_found") && !errs.Is(err, "sandbox_ended")
}
