package microvm

import (
	"context"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
)

// turn makes calls about one instance come one after the other. An urgent one
// cancels the one before it.
type turn struct {
	hold   chan struct{}
	users  int
	cancel context.CancelFunc
}

// patient is the key of a context that does not end with the caller's, but when
// an urgent call wants the turn.
type patient struct{}

// patience is the context for putting things right again after the caller has
// gone, for at most the given time: Destroy need not wait for it.
func patience(ctx context.Context, within time.Duration) (context.Context, context.CancelFunc) {
	own, ok := ctx.Value(patient{}).(context.Context)
	if !ok {
		own = context.WithoutCancel(ctx)
	}
	return context.WithTimeout(context.WithValue(own, patient{}, own), within)
}

// begin takes the instance's turn and returns the context of the call. With
// urgent the call that has it is cancelled.
func (e *Engine) begin(ctx context.Context, id engine.InstanceID, urgent bool) (context.Context, func(), error) {
	e.mu.Lock()
	t := e.calls[id]
	if t == nil {
		t = &turn{hold: make(chan struct{}, 1)}
		e.calls[id] = t
	}
	t.users++
	if urgent && t.cancel != nil {
		t.cancel()
	}
	e.mu.Unlock()
	leave := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(e.calls, id)
		}
	}
	select {
	case t.hold <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, nil, ctx.Err()
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ctx, stop := context.WithCancel(context.WithValue(ctx, patient{}, own))
	context.AfterFunc(own, stop)
	e.mu.Lock()
	if !urgent {
		t.cancel = cancel
	}
	e.mu.Unlock()
	return ctx, func() {
		e.mu.Lock()
		t.cancel = nil
		e.mu.Unlock()
		cancel()
		<-t.hold
		leave()
	}, nil
}
