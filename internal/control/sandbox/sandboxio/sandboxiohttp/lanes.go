package sandboxiohttp

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"

	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	// maxWaiting is the input of one stream that may wait for its command, in
	// bytes; it holds the largest frame.
	maxWaiting = maxFrame
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
	room     *semaphore.Weighted

	// Of the reader alone: what came last in each lane.
	lastInput   <-chan struct{}
	lastControl <-chan struct{}
}

// act is one message to apply.
type act struct {
	do    func(context.Context) error
	after <-chan struct{} // what came before it in the other lane
	by    time.Time       // how long that is waited for; zero is for ever
	bytes int64
	done  chan struct{}
}

func newLanes() *lanes {
	none := make(chan struct{})
	close(none)
	return &lanes{
		inputs: make(chan act, laneLength), controls: make(chan act, laneLength),
		room: semaphore.NewWeighted(maxWaiting), lastInput: none, lastControl: none,
	}
}

// pushInput waits for room. It belongs to the reader.
func (l *lanes) pushInput(ctx context.Context, bytes int, do func(context.Context) error) error {
	if err := l.room.Acquire(ctx, int64(bytes)); err != nil {
		return err
	}
	a := act{do: do, after: l.lastControl, bytes: int64(bytes), done: make(chan struct{})}
	select {
	case l.inputs <- a:
		l.lastInput = a.done
		return nil
	case <-ctx.Done():
		l.room.Release(int64(bytes))
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

// input applies what waits in the lane of input until ctx ends. Bytes are never
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
		l.room.Release(a.bytes)
	})
}

// control applies what waits in the lane of resizes and signals until ctx ends.
func (l *lanes) control(ctx context.Context, report func(error)) {
	l.apply(ctx, l.controls, func(a act) {
		if err := a.do(ctx); err != nil && tellable(ctx, err) {
			report(err)
		}
	})
}

func (l *lanes) apply(ctx context.Context, lane <-chan act, do func(act)) {
	for {
		select {
		case a := <-lane:
			if !a.ready(ctx) {
				return
			}
			do(a)
			close(a.done)
		case <-ctx.Done():
			return
		}
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
		return true
	case <-late:
		return true
	case <-ctx.Done():
		return false
	}
}

// tellable leaves out what the stream's own end will tell: that the command, the
// sandbox or the client is gone.
func tellable(ctx context.Context, err error) bool {
	return ctx.Err() == nil && !errs.Is(err, "exec_not_found") && !errs.Is(err, "sandbox_ended")
}
