package manager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/state"
)

// recoverWidth is how many sandboxes are looked at at once.
const recoverWidth = 16

// Recover puts the world and the journal in step after a start: unfinished
// creates are undone, unfinished destroys finished, running sandboxes found
// again, and those that ended meanwhile noticed. A pause that was not done is
// taken back, and the cleanup behind one that was is finished. What nobody owns any more, of
// network slots and image mounts, is given back. Instances that only the engine
// knows are left alone: the control plane decides about them.
//
// It is called once, before any other method, and takes at most the configured
// time for each sandbox. One that cannot be settled in that time is tried again
// in the background.
func (m *Manager) Recover(ctx context.Context) error {
	recs, err := m.cfg.Journal.Records()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	width := make(chan struct{}, recoverWidth)
	for _, rec := range recs {
		op := newOperation(opRecover)
		s := &entry{rec: rec, op: op, deadline: rec.Deadline}
		m.mu.Lock()
		m.sandboxes[rec.Spec.Sandbox] = s
		m.mu.Unlock()
		width <- struct{}{}
		wg.Go(func() {
			defer func() { <-width }()
			m.recoverOne(ctx, s, op)
		})
	}
	wg.Wait()
	if err := m.recoverWarm(ctx); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.sweepUnowned(ctx); err != nil {
		return err
	}
	m.wg.Go(func() { m.sweep(m.base) })
	m.wg.Go(func() { m.tendWarm(m.base) })
	if m.cfg.Contact != nil {
		m.wg.Go(func() { m.keepDeadlines(m.base) })
	}
	return nil
}

func (m *Manager) recoverOne(ctx context.Context, s *entry, op *operation) {
	rec := s.rec // nobody else has the entry yet
	if rec.Phase == journal.PhasePaused {
		if m.cfg.States.Has(rec.Pause.State) || !m.lives(ctx, rec) {
			m.clean(s, op, rec)
			return
		}
		// The journal's word was lost on its way: the state was given up and the
		// instance runs.
		m.log(rec).Error("a paused sandbox has no saved state and an instance; it goes on")
		rec.Phase = journal.PhasePausing
		for _, slot := range m.cfg.Networks.Slots() {
			if slot.Owner == rec.Instance {
				rec.Slot = slot.Index
			}
		}
	}
	if rec.Phase == journal.PhaseCreating || rec.Phase == journal.PhaseDestroying {
		m.finishCleanup(s, op)
		return
	}
	if rec.Phase == journal.PhaseExited {
		m.bare(rec) // the agent may have died before it came to that
		m.settle(s, op, rec, nil)
		return
	}
	if rec.Slot >= 0 {
		if _, err := m.cfg.Networks.Adopt(ctx, rec.Slot, rec.Instance); err != nil {
			m.log(rec).Error("a sandbox's network slot is lost", "slot", rec.Slot, "err", err)
		}
	}
	if !m.tryReadopt(ctx, s, op, rec) {
		m.settle(s, op, rec, nil)
		m.wg.Go(func() { m.readoptLater(s, rec) })
	}
}

// finishCleanup undoes a create or finishes a destroy the agent died in.
func (m *Manager) finishCleanup(s *entry, op *operation) {
	rec := s.rec
	err := m.undo(rec, undoAll)
	revert := rec.Before != nil && rec.DestroyIncarnation == 0
	switch {
	case err != nil:
	case revert:
		err = m.revert(rec, m.event(rec, EventResumeFailed, map[string]any{"reason": "agent_restarted"}))
	default:
		kind, reason := EventDestroyed, rec.DestroyReason
		if rec.Phase == journal.PhaseCreating {
			kind, reason = EventCreateFailed, "agent_restarted"
		}
		err = m.forget(rec, m.event(rec, kind, map[string]any{"reason": reason}))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.log(rec).Error("a cleanup from before the restart is not finished", "err", err)
		s.rec.Phase = journal.PhaseDestroying
	} else if revert {
		s.rec = *rec.Before
	} else {
		delete(m.sandboxes, rec.Spec.Sandbox)
	}
	s.finish(op, Report{}, err)
}

// tryReadopt asks the engine once. False: it gave no verdict, ask again.
func (m *Manager) tryReadopt(ctx context.Context, s *entry, op *operation, rec journal.Record) bool {
	eng, err := m.engine(rec.Spec.Engine)
	if err != nil {
		m.log(rec).Error("a sandbox's engine is missing", "err", err)
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.RecoverTimeout)
	defer cancel()
	h, err := eng.Recover(ctx, rec.Handle)
	pausing := rec.Phase == journal.PhasePausing
	if err == nil && pausing {
		// Nobody was told of the state. It goes first: what is complete and belongs
		// to a pause is what the sandbox last was.
		if err := m.cfg.States.Delete(ctx, rec.Pause.State); err != nil {
			m.log(rec).Error("the state of a pause that was not done cannot be removed", "err", err)
		}
		m.step(StepDiscardState)
	}
	if err == nil { // the agent may have died over a checkpoint
		err = eng.Thaw(ctx, h)
	}
	switch {
	case err == nil:
		if pausing {
			m.step(StepThaw)
		}
		if pausing || !bytes.Equal(h, rec.Handle) {
			rec.Handle, rec.Phase, rec.Pause = h, journal.PhaseRunning, nil
			if err := m.cfg.Journal.Running(rec); err != nil {
				m.log(rec).Error("a handle could not be recorded", "err", err)
			}
		}
		link := m.newGuest(eng, rec, rec.InitSecret)
		link.Follow()
		m.startWatch(s, eng, rec, nil)
		m.settle(s, op, rec, link)
		return true
	case errors.Is(err, engine.ErrNotFound), errors.Is(err, engine.ErrExited):
		if st, ok := m.pausedBy(rec); ok {
			return m.finishPause(s, op, rec, st)
		}
		// Also of an instance that left nothing somebody may have seen the end.
		exit, err := eng.Wait(ctx, rec.Handle)
		if err != nil {
			exit = m.vanished(rec)
		}
		m.settleExit(s, op, rec, exit)
		return true
	}
	m.log(rec).Error("a sandbox could not be found again yet", "err", err)
	return false
}

// lives tells whether the engine has the instance running.
func (m *Manager) lives(ctx context.Context, rec journal.Record) bool {
	eng, err := m.engine(rec.Spec.Engine)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.RecoverTimeout)
	defer cancel()
	_, err = eng.Recover(ctx, rec.Handle)
	return err == nil
}

// pausedBy is the complete state of a pause that was not done. The instance was
// frozen from then on, so if it is gone now that is what the sandbox last was.
func (m *Manager) pausedBy(rec journal.Record) (state.State, bool) {
	if rec.Phase != journal.PhasePausing {
		return state.State{}, false
	}
	return m.cfg.States.Get(rec.Pause.State)
}

// finishPause makes a sandbox paused whose instance is gone. False: the journal
// did not take it.
func (m *Manager) finishPause(s *entry, op *operation, rec journal.Record, st state.State) bool {
	pause := *rec.Pause
	pause.At = st.CreatedAt
	rec.Phase, rec.Slot, rec.Pause = journal.PhasePaused, -1, &pause
	if err := m.cfg.Journal.Paused(rec, m.pausedEvents(rec)...); err != nil {
		m.log(rec).Error("a pause could not be recorded", "err", err)
		return false
	}
	m.mu.Lock()
	s.rec = rec
	m.mu.Unlock()
	m.clean(s, op, rec)
	return true
}

// readoptLater goes on where the bounded time of the start was not enough.
func (m *Manager) readoptLater(s *entry, rec journal.Record) {
	for pause := waitRetryMin; ; pause = min(2*pause, waitRetryMax) {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-m.base.Done():
			timer.Stop()
			return
		}
		op := newOperation(opRecover)
		m.mu.Lock()
		if m.sandboxes[rec.Spec.Sandbox] != s || s.op != nil || s.rec.Phase != rec.Phase {
			m.mu.Unlock() // it was destroyed meanwhile
			return
		}
		s.op = op
		m.mu.Unlock()
		if m.tryReadopt(m.base, s, op, rec) {
			return
		}
		m.settle(s, op, rec, nil)
	}
}

// settle ends an operation after which the sandbox is what rec says. An exit
// that its watcher saw meanwhile is recorded now.
func (m *Manager) settle(s *entry, op *operation, rec journal.Record, link Guest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.rec, s.link = rec, link
	s.finish(op, report(rec), nil)
	if s.exit != nil {
		m.startExit(s, *s.exit)
	}
}

func (m *Manager) settleExit(s *entry, op *operation, rec journal.Record, exit engine.Exit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.rec = rec
	s.finish(op, report(rec), nil)
	m.startExit(s, exit)
}

// sweepUnowned gives back what no record accounts for.
func (m *Manager) sweepUnowned(ctx context.Context) error {
	m.mu.Lock()
	images := make(map[string]Holding, len(m.sandboxes))
	owners := make(map[engine.InstanceID]bool, len(m.sandboxes))
	for _, s := range m.sandboxes {
		if s.rec.Phase != journal.PhaseExited && s.rec.Phase != journal.PhasePaused {
			images[string(s.rec.Instance)] = Holding{s.rec.Spec.Image.Digest, s.rec.Guest}
		}
		owners[s.rec.Instance] = true
	}
	for _, all := range []map[engine.InstanceID]*warm{m.warm.ready, m.warm.going} {
		for i, w := range all {
			images[string(i)] = Holding{w.kept.Record.Spec.Image.Digest, w.kept.Record.Guest}
			owners[i] = true
		}
	}
	m.mu.Unlock()
	if err := m.cfg.Images.Recover(ctx, images); err != nil {
		return fmt.Errorf("manager: recover images: %w", err)
	}
	for _, slot := range m.cfg.Networks.Slots() {
		if owners[slot.Owner] {
			continue
		}
		if err := m.cfg.Networks.Release(ctx, slot.Index); err != nil {
			m.cfg.Logger.Error("a network slot nobody owns could not be released", "slot", slot.Index, "err", err)
		}
	}
	return nil
}
