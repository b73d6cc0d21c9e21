package manager

import (
	"context"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Checkpoint saves the sandbox's state and lets it go on running. Repeated with
// the same state id it reports the same state. Reasons are those of Pause.
func (m *Manager) Checkpoint(ctx context.Context, sandbox id.Sandbox, incarnation uint64, which id.Snapshot, memory bool) (state.State, error) {
	if err := validateSave(sandbox, incarnation, which); err != nil {
		return state.State{}, err
	}
	req := PauseRequest{Sandbox: sandbox, Incarnation: incarnation, State: which, Memory: memory}
	for {
		if st, ok := m.cfg.States.Get(which); ok && st.Sandbox == sandbox && st.Incarnation == incarnation {
			return st, nil
		}
		op, mine, st, err := m.trySave(ctx, req, m.startCheckpoint)
		if err != nil || op == nil {
			return st, err
		}
		if err := op.wait(ctx); err != nil {
			return state.State{}, err
		}
		if mine {
			return op.state, op.err
		}
	}
}

// startCheckpoint begins a checkpoint. Nothing is written to the journal: a
// running instance is thawed by every start of the agent, and what was not
// sealed removed. Called with m.mu held.
func (m *Manager) startCheckpoint(caller context.Context, s *entry, req PauseRequest) (*operation, error) {
	eng, err := m.engine(s.rec.Spec.Engine)
	if err != nil {
		return nil, err
	}
	op := newOperation(opCheckpoint)
	op.saves = req.State
	ctx, cancel := context.WithCancelCause(observe.Follow(m.base, caller))
	op.cancel = cancel
	s.op = op
	rec, link := s.rec, s.link
	m.wg.Go(func() {
		defer cancel(nil)
		within, release := context.WithTimeout(ctx, m.pauseWithin(rec.Spec.Resources))
		defer release()
		st, err := m.checkpoint(within, eng, rec, req)
		if err != nil {
			m.log(rec).Warn("checkpoint failed", "err", err)
		}
		m.mu.Lock()
		op.state = st
		op.say(report(rec), err)
		m.mu.Unlock()
		m.settle(s, op, rec, link)
	})
	return op, nil
}

func (m *Manager) checkpoint(ctx context.Context, eng engine.Engine, rec journal.Record, req PauseRequest) (st state.State, err error) {
	draft, err := m.cfg.States.Create(req.State, m.need(ctx, eng, rec, req.Memory))
	if err != nil {
		return st, err
	}
	err = eng.Checkpoint(ctx, rec.Handle, engine.CheckpointOptions{Dir: draft.Dir(), LeaveRunning: true, DiskOnly: !req.Memory})
	if err == nil {
		m.step(StepCheckpoint)
		st, err = m.seal(ctx, draft, rec, req.Memory)
	}
	if err != nil {
		err = explainSave(ctx, err, draft)
		draft.Discard()
		return state.State{}, err
	}
	draft.Keep()
	m.step(StepSealState)
	return st, nil
}

// DeleteState removes a saved state from this host. It succeeds on nothing and
// waits for those that are just starting from it. The state a paused sandbox
// consists of is refused, with state_in_use.
func (m *Manager) DeleteState(ctx context.Context, which id.Snapshot) error {
	if which.IsZero() {
		return errs.Field("state_id", "Name the state.")
	}
	m.mu.Lock()
	closed, used := m.closed, false
	for _, s := range m.sandboxes {
		used = used || needs(s.rec, which) || s.op != nil && s.op.kind == opPause && s.op.saves == which
	}
	m.mu.Unlock()
	switch {
	case closed:
		return stopping()
	case used:
		return errs.FailedPrecondition("state_in_use", "A paused sandbox of this host consists of that state.").With("state_id", which.UUID().String())
	}
	return m.cfg.States.Delete(ctx, which)
}

// needs tells whether a sandbox would be lost without the state. That of a
// pause in flight is not complete yet.
func needs(rec journal.Record, which id.Snapshot) bool {
	if rec.Before != nil {
		return needs(*rec.Before, which)
	}
	return rec.Pause != nil && rec.Pause.State == which && rec.Phase != journal.PhaseDestroying
}
