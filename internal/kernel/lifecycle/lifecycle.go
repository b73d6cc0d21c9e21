// Package lifecycle runs the parts of a program: every goroutine has an owner
// that waits for it.
package lifecycle

import (
	"context"
	"sync"
)

// Group runs parts until one fails or the context ends, then cancels the
// others and waits for all of them.
type Group struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	once   sync.Once
	err    error
}

// NewGroup returns a group and the context its parts run under.
func NewGroup(ctx context.Context) (*Group, context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	return &Group{ctx: ctx, cancel: cancel}, ctx
}

// Go runs a part. A part that returns an error ends the group; one that
// returns nil has merely finished.
func (g *Group) Go(part func(ctx context.Context) error) {
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		if err := part(g.ctx); err != nil {
			g.once.Do(func() {
				g.err = err
				g.cancel(err)
			})
		}
	}()
}

// Stop cancels all parts.
func (g *Group) Stop() { g.cancel(context.Canceled) }

// Wait returns when every part has returned, with the first error that ended
// the group.
func (g *Group) Wait() error {
	g.wg.Wait()
	g.cancel(nil)
	return g.err
}
