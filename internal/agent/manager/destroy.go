package manager

import (
	"context"
	"time"

	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// ReasonSuperseded is the reason of a destroy that a later incarnation causes.
const ReasonSuperseded = "superseded"

// Destroy ends the sandbox up to the given incarnation whatever it is doing,
// and returns when nothing of it is left. It succeeds on nothing, and leaves a
// tombstone before it touches anything. A destroy that could not be finished
// says destroy_unfinished and is tried again by itself.
func (m *Manager) Destroy(ctx context.Context, sandbox id.Sandbox, incarnation uint64, reason string) error {
	switch {
	case sandbox.IsZero():
		return errs.Field("sandbox_id", "Name the sandbox.")
	case incarnation == 0:
		return errs.Field("incarnation", "Incarnations start at 1.")
	}
	for {
		op, mine, err := m.tryDestroy(sandbox, incarnation, reason)
		if err != nil || op == nil {
			return err
		}
		if op.kind == opCreate || op.kind == opPause || op.kind == opCheckpoint {
			// From here on no create of this incarnation starts again.
			if err := m.cfg.Journal.Bury(sandbox, incarnation, m.cfg.Clock.Now()); err != nil {
				return err
			}
			op.cancel(errSuperseded)
		}
		if err := op.wait(ctx); err != nil {
			return err
		}
		if mine {
			return op.err
		}
	}
}

// tryDestroy looks once. It returns an operation to wait for, and whether its
// result is the answer; neither an operation nor an error means done.
func (m *Manager) tryDestroy(sandbox id.Sandbox, incarnation uint64, reason string) (op *operation, mine bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, false, stopping()
	}
	s := m.sandboxes[sandbox]
	if s == nil {
		buried, err := m.cfg.Journal.Buried(sandbox)
		if err != nil || buried >= incarnation {
			return nil, false, err
		}
		s = &entry{}
		m.sandboxes[sandbox] = s
		return m.startDestroy(sandbox, s, incarnation, reason), true, nil
	}
	if have := s.rec.Spec.Incarnation; incarnation < have {
		return nil, false, stale(sandbox, have)
	}
	if s.op != nil {
		return s.op, s.op.kind == opDestroy && s.op.incarnation >= incarnation, nil
	}
	return m.startDestroy(sandbox, s, incarnation, reason), true, nil
}

// startDestroy begins a destroy; incarnation 0 leaves no tombstone. Called with
// m.mu held.
func (m *Manager) startDestroy(sandbox id.Sandbox, s *entry, incarnation uint64, reason string) *operation {
	op := newOperation(opDestroy)
	op.incarnation = incarnation
	s.op = op
	m.wg.Go(func() { m.destroy(sandbox, s, op, reason) })
	return op
}

func (m *Manager) destroy(sandbox id.Sandbox, s *entry, op *operation, reason string) {
	m.mu.Lock()
	rec, link := s.rec, s.link
	s.link = nil
	m.mu.Unlock()

	rec, err := m.runDestroy(sandbox, s, rec, link, op.incarnation, reason)
	if err != nil {
		m.log(rec).Error("destroy is not finished", "err", err)
		err = errs.Unavailable("destroy_unfinished", "Not all of the sandbox could be removed yet; the host tries again by itself.").Because(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.rec = rec
	switch {
	case err == nil && rec.Before != nil:
		s.rec, s.exit = *rec.Before, nil
	case err == nil || rec.Instance == "":
		delete(m.sandboxes, sandbox)
	}
	s.finish(op, Report{}, err)
}

func (m *Manager) runDestroy(sandbox id.Sandbox, s *entry, rec journal.Record, link Guest, incarnation uint64, reason string) (journal.Record, error) {
	if rec.Instance == "" { // there is nothing but the command
		return rec, m.cfg.Journal.Bury(sandbox, incarnation, m.cfg.Clock.Now())
	}
	if rec.Before != nil && incarnation == 0 { // a resume that could not be undone at once
		err := m.undo(rec, undoAll)
		if err == nil {
			err = m.revert(rec)
		}
		return rec, err
	}
	rec.Before = nil
	rec.Phase = journal.PhaseDestroying
	rec.DestroyIncarnation = max(incarnation, rec.DestroyIncarnation)
	rec.DestroyReason = reason
	if err := m.cfg.Journal.Destroying(rec, m.cfg.Clock.Now()); err != nil {
		return rec, err
	}
	m.mu.Lock()
	s.rec = rec
	m.mu.Unlock()
	m.step(StepJournalDestroying)
	m.stopWatch(s)
	if link != nil {
		link.Close()
	}
	if err := m.undo(rec, undoAll); err != nil {
		return rec, err
	}
	return rec, m.forget(rec, m.event(rec, EventDestroyed, map[string]any{"reason": reason}))
}

// sweep tries unfinished cleanups again and prunes tombstones, until the
// manager is closed.
func (m *Manager) sweep(ctx context.Context) {
	ticker := time.NewTicker(m.cfg.RetryInterval)
	defer ticker.Stop()
	var pruned time.Time
	for {
		if now := m.cfg.Clock.Now(); now.Sub(pruned) >= pruneInterval {
			pruned = now
			if _, err := m.cfg.Journal.Prune(now.Add(-journal.TombstoneAge)); err != nil {
				m.cfg.Logger.Error("tombstones could not be pruned", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		m.cfg.States.Tidy()
		m.mu.Lock()
		for sandbox, s := range m.sandboxes {
			switch {
			case m.closed || s.op != nil:
			case s.rec.Phase == journal.PhaseDestroying:
				m.startDestroy(sandbox, s, s.rec.DestroyIncarnation, s.rec.DestroyReason)
			case s.owed:
				m.startCleanup(s)
			}
		}
		m.mu.Unlock()
	}
}

// pruneInterval is how often old tombstones are looked for.
const pruneInterval = 24 * time.Hour
