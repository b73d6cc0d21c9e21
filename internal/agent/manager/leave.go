package manager

import (
	"context"
	"errors"
	"sync"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/kernel/id"
)

// ReasonHostDeleted is the reason of destroys because the host was deleted.
const ReasonHostDeleted = "host_deleted"

// DestroyAll ends every sandbox here whatever it is doing, paused ones too, and
// then every instance that only an engine knows. Nothing is started any more.
// It returns nil when nothing is left; otherwise it may be repeated.
func (m *Manager) DestroyAll(ctx context.Context, reason string) error {
	m.mu.Lock()
	m.leaving = true
	last := make(map[id.Sandbox]uint64, len(m.sandboxes))
	for sandbox, s := range m.sandboxes {
		last[sandbox] = max(s.rec.Spec.Incarnation, 1)
		if s.op != nil {
			last[sandbox] = max(last[sandbox], s.op.spec.Incarnation, s.op.incarnation)
		}
	}
	m.mu.Unlock()
	if err := m.letAllGo(ctx); err != nil {
		return err
	}
	w := newWide(m.cfg.PauseWidth)
	for sandbox, incarnation := range last {
		w.do(func() error { return m.Destroy(ctx, sandbox, incarnation, reason) })
	}
	if err := w.wait(); err != nil {
		return err
	}
	for _, eng := range m.cfg.Engines {
		found, err := eng.Inventory(ctx)
		if err != nil {
			return err
		}
		for _, f := range found {
			w.do(func() error { return m.destroyStranger(ctx, eng, f.ID) })
		}
	}
	return w.wait()
}

func (m *Manager) destroyStranger(ctx context.Context, eng engine.Engine, which engine.InstanceID) error {
	cctx, cancel := context.WithTimeout(ctx, m.cfg.CleanupTimeout)
	defer cancel()
	return eng.Destroy(cctx, which)
}

// wide runs several things at once and keeps their errors.
type wide struct {
	turn chan struct{}
	wg   sync.WaitGroup
	mu   sync.Mutex
	errs []error
}

func newWide(width int) *wide { return &wide{turn: make(chan struct{}, width)} }

func (w *wide) do(f func() error) {
	w.turn <- struct{}{}
	w.wg.Go(func() {
		defer func() { <-w.turn }()
		if err := f(); err != nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.errs = append(w.errs, err)
		}
	})
}

func (w *wide) wait() error {
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.errs...)
}
