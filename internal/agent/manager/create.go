package manager

import (
	"context"
	"errors"
	"maps"
	"time"

	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Create makes the sandbox of spec exist and returns when its daemon answers.
// Repeated with the same arguments it waits for the create in flight, or
// reports what became of it. The caller's deadline is the create's: when it
// passes, everything is undone. A caller that merely leaves changes nothing.
//
// With a state the sandbox goes on from there. Where that is the one it is
// paused with, a failure leaves it paused as before. It never goes back to
// another one by itself: a sandbox that is paused with a different state, or
// that runs, is refused.
//
// Reasons: stale_incarnation, create_mismatch, host_busy, engine_unavailable,
// network_unavailable, image_unavailable, engine_failed, guest_unresponsive,
// sandbox_exited, superseded, agent_stopping, state_mismatch, sandbox_running,
// unknown_state, state_damaged, state_incompatible, engine_build_missing,
// guest_build_missing.
func (m *Manager) Create(ctx context.Context, spec journal.Spec) (Report, error) {
	if err := validate(spec); err != nil {
		return Report{}, err
	}
	if _, err := m.engine(spec.Engine); err != nil {
		return Report{}, err
	}
	for {
		op, mine, rep, err := m.tryCreate(ctx, spec)
		if err != nil || op == nil {
			return rep, err
		}
		if err := op.wait(ctx); err != nil {
			if mine && errors.Is(err, context.DeadlineExceeded) {
				// The create sees the same deadline; it is undone by itself.
				return Report{}, deadline(err)
			}
			return Report{}, err
		}
		if mine {
			return op.report, op.err
		}
		if op.kind == opDestroy && op.err != nil {
			return Report{}, op.err
		}
	}
}

func validate(spec journal.Spec) error {
	switch {
	case spec.Sandbox.IsZero():
		return errs.Field("sandbox_id", "Name the sandbox.")
	case spec.Incarnation == 0:
		return errs.Field("incarnation", "Incarnations start at 1.")
	case spec.Image.Digest == "":
		return errs.Field("image.digest", "Name the template's image.")
	case spec.Resources.CPUMillis <= 0 || spec.Resources.MemoryBytes <= 0 || spec.Resources.DiskBytes <= 0 || spec.Resources.MaxProcesses <= 0:
		return errs.Field("resources", "CPU, memory, disk and processes must all be positive.")
	}
	return nil
}

// tryCreate looks once. It returns an operation to wait for, and whether that
// is the wanted create itself, or the final answer.
func (m *Manager) tryCreate(ctx context.Context, spec journal.Spec) (op *operation, mine bool, rep Report, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.leaving {
		return nil, false, Report{}, stopping()
	}
	buried, err := m.cfg.Journal.Buried(spec.Sandbox)
	if err != nil {
		return nil, false, Report{}, err
	}
	if spec.Incarnation <= buried {
		return nil, false, Report{}, stale(spec.Sandbox, buried)
	}
	s := m.sandboxes[spec.Sandbox]
	if s == nil {
		op, err = m.startCreate(ctx, spec, nil)
		return op, true, Report{}, err
	}
	have := s.rec.Spec.Incarnation
	if spec.Incarnation < have {
		return nil, false, Report{}, stale(spec.Sandbox, have)
	}
	if s.op != nil {
		switch {
		case s.op.kind == opDestroy && spec.Incarnation <= s.op.incarnation:
			return nil, false, Report{}, stale(spec.Sandbox, s.op.incarnation)
		case s.op.kind == opCreate && spec.Incarnation == have:
			if !same(spec, s.rec.Spec) {
				return nil, false, Report{}, mismatch()
			}
			return s.op, true, Report{}, nil
		case s.op.kind == opCreate:
			s.op.cancel(errSuperseded)
		case s.op.kind == opPause && s.rec.Phase == journal.PhasePaused:
			s.op.cancel(errSuperseded) // what goes on behind its answer
		}
		return s.op, false, Report{}, nil
	}
	switch {
	case s.rec.Phase == journal.PhaseDestroying:
		return m.startDestroy(spec.Sandbox, s, s.rec.DestroyIncarnation, s.rec.DestroyReason), false, Report{}, nil
	case s.owed:
		return m.startCleanup(s), false, Report{}, nil
	case spec.Incarnation > have && s.rec.Phase == journal.PhasePaused:
		if spec.State != s.rec.Pause.State {
			return nil, false, Report{}, errs.FailedPrecondition("state_mismatch", "The sandbox is paused here with another state.").
				With("state_id", s.rec.Pause.State.UUID().String())
		}
		op, err = m.startCreate(ctx, spec, s)
		return op, true, Report{}, err
	case spec.Incarnation > have && !spec.State.IsZero() && s.rec.Phase != journal.PhaseExited:
		return nil, false, Report{}, errs.FailedPrecondition("sandbox_running", "The sandbox runs here; it does not go back to a saved state.")
	case spec.Incarnation > have:
		return m.startDestroy(spec.Sandbox, s, have, ReasonSuperseded), false, Report{}, nil
	case !same(spec, s.rec.Spec):
		return nil, false, Report{}, mismatch()
	}
	return nil, false, report(s.rec), nil
}

// same compares what two specs ask for. Where the image is fetched from is signed
// anew each time, the deadline moves on: they say nothing.
func same(a, b journal.Spec) bool {
	return a.Sandbox == b.Sandbox && a.Incarnation == b.Incarnation && a.Team == b.Team &&
		a.Template == b.Template && a.Engine == b.Engine && a.Image.Digest == b.Image.Digest && a.Image.SizeBytes == b.Image.SizeBytes &&
		a.Resources == b.Resources && maps.Equal(a.Env, b.Env) && a.Hostname == b.Hostname &&
		a.AccessToken == b.AccessToken && a.DefaultUser == b.DefaultUser &&
		a.DefaultWorkdir == b.DefaultWorkdir && a.Internet == b.Internet && a.State == b.State && a.DiskOnly == b.DiskOnly
}

// startCreate begins a create, of a new sandbox or of the paused one in s.
// Called with m.mu held.
func (m *Manager) startCreate(caller context.Context, spec journal.Spec, s *entry) (*operation, error) {
	if m.creates >= m.cfg.MaxCreates {
		return nil, errs.Exhausted("host_busy", "This host is already starting as many sandboxes as it may. Try again.")
	}
	eng, err := m.engine(spec.Engine)
	if err != nil {
		return nil, err
	}
	until, ok := caller.Deadline()
	if !ok {
		until = m.cfg.Clock.Now().Add(m.cfg.CreateTimeout)
	}
	ctx, cancel := context.WithCancelCause(observe.Follow(m.base, caller))
	ctx, release := context.WithDeadline(ctx, until)
	op := newOperation(opCreate)
	op.spec, op.cancel = spec, cancel
	rec := m.newRecord(spec)
	var w *warm
	if s == nil {
		s = &entry{}
		m.sandboxes[spec.Sandbox] = s
		if w = m.takeWarm(spec); w != nil {
			rec = claimedRecord(rec, w)
		}
	} else {
		before := s.rec
		rec.Before = &before
	}
	s.rec, s.op, s.deadline = rec, op, spec.Deadline
	m.creates++
	m.wg.Go(func() {
		defer release()
		m.create(ctx, &build{m: m, s: s, engine: eng, rec: rec, warm: w, cancel: cancel}, op)
	})
	return op, nil
}

// newRecord is that of an instance that does not exist yet.
func (m *Manager) newRecord(spec journal.Spec) journal.Record {
	return journal.Record{
		Spec: spec, Phase: journal.PhaseCreating, Slot: -1,
		Instance: newInstanceID(), InitSecret: newSecret(), EngineVersion: m.cfg.Versions[spec.Engine],
		BootID: m.cfg.BootID, CreatedAt: m.cfg.Clock.Now(), Deadline: spec.Deadline,
	}
}

// create runs the table and, on failure, what it did backwards.
func (m *Manager) create(ctx context.Context, b *build, op *operation) {
	at, step, err := m.runCreate(ctx, b)
	if b.held != nil {
		defer b.held.Release()
	}
	if err == nil {
		m.created(b, op)
		return
	}
	err = explain(ctx, err)
	if b.link != nil {
		b.link.Close()
	}
	m.stopWatch(b.s)
	undone := m.undo(b.rec, at)
	if undone == nil && b.warm != nil {
		undone = m.cfg.Journal.ForgetWarm(b.rec.Instance)
	}
	switch {
	case undone != nil || !b.begun:
	case b.rec.Before != nil:
		undone = m.revert(b.rec)
	default:
		undone = m.forget(b.rec, m.event(b.rec, EventCreateFailed, map[string]any{"reason": errs.As(err).Reason}))
	}
	m.log(b.rec).Warn("create failed", "step", string(step), "err", err, "undone", undone == nil)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.createEnded()
	b.s.rec, b.s.exit = b.rec, nil
	switch {
	case undone != nil:
		m.log(b.rec).Error("a failed create could not be undone yet", "err", undone)
		b.s.rec.Phase = journal.PhaseDestroying
		b.s.rec.DestroyReason = EventCreateFailed
	case b.rec.Before != nil:
		b.s.rec = *b.rec.Before
	default:
		delete(m.sandboxes, b.rec.Spec.Sandbox)
	}
	b.s.finish(op, Report{}, err)
}

// revert makes the sandbox what it was before a resume of which nothing is
// left.
func (m *Manager) revert(rec journal.Record, events ...journal.Event) error {
	if err := m.cfg.Journal.Paused(*rec.Before, events...); err != nil {
		return err
	}
	m.step(StepJournalReverted)
	return nil
}

// runCreate takes over the instance that waits, where there is one, or makes one.
// It returns from which line on an undo goes backwards, and the step that failed.
func (m *Manager) runCreate(ctx context.Context, b *build) (int, Step, error) {
	if b.warm != nil {
		step, err := m.claim(ctx, b)
		if err == nil || ctx.Err() != nil {
			return undoAll, step, err
		}
		m.log(b.rec).Warn("a warm instance could not be used; another is started", "step", string(step), "err", err)
		if undone := m.unclaim(b); undone != nil {
			return undoAll, step, errors.Join(err, undone)
		}
	}
	return m.runSteps(ctx, b, createTable(b.rec.Spec))
}

// runSteps returns the line of the table it failed in, and its step.
func (m *Manager) runSteps(ctx context.Context, b *build, table []tableStep) (int, Step, error) {
	for i, s := range table {
		if err := ctx.Err(); err != nil {
			return i, s.name, err
		}
		if err := s.do(b, ctx); err != nil {
			return i, s.name, err
		}
		m.mu.Lock()
		b.s.rec = b.rec
		m.mu.Unlock()
		if !b.rec.Spec.Sandbox.IsZero() && s.name != StepOpenState && s.name != StepJournalBegin && s.name != StepJournalRunning {
			m.cfg.Journal.Mark(b.rec.Spec.Sandbox, string(s.name))
		}
		m.step(s.name)
	}
	return 0, "", nil
}

// created ends a create that succeeded. A guest that ended meanwhile is an exit
// like any later one, and a command that came in between finds it running.
func (m *Manager) created(b *build, op *operation) {
	b.link.Follow()
	m.mu.Lock()
	m.createEnded()
	m.mu.Unlock()
	m.settle(b.s, op, b.rec, b.link)
	// Its first command often follows at once. What comes too late for it, or for
	// the sandbox, is closed.
	b.link.Ahead(m.base)
}

// createEnded counts a create out. Called with m.mu held.
func (m *Manager) createEnded() {
	m.creates--
	m.warm.started = time.Now()
}

// forget removes the record of which nothing is left.
func (m *Manager) forget(rec journal.Record, events ...journal.Event) error {
	if err := m.cfg.Journal.Remove(rec.Spec.Sandbox, events...); err != nil {
		return err
	}
	m.step(StepJournalRemoved)
	return nil
}

// explain turns the end of a create's context into why it ended.
func explain(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case ctx.Err() == nil:
		return err
	case errors.Is(cause, errSuperseded):
		return errs.New(errs.CodeCanceled, "superseded", "A later command about this sandbox ended its start.")
	case errors.Is(cause, errClosing):
		return stopping()
	case errors.Is(cause, context.DeadlineExceeded):
		return deadline(err)
	default: // a typed cause: the guest ended
		return cause
	}
}

func deadline(err error) error {
	return errs.Unavailable("deadline_exceeded", "The sandbox did not start in time; what was begun is undone. Try again.").Because(err)
}

func stopping() error {
	return errs.Unavailable("agent_stopping", "This host's agent stops. Try again.")
}

func mismatch() error {
	return errs.Conflict("create_mismatch", "This incarnation was commanded before with other arguments.")
}
