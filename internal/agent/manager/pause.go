package manager

import (
	"context"
	"errors"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Reasons for which the agent pauses by itself.
const (
	ReasonLostContact  = "lost_contact"
	ReasonHostShutdown = "host_shutdown"
)

// slowest is how fast a state is written at the least, bytes a second.
const slowest = 20 << 20

// PauseRequest says what is to be paused.
type PauseRequest struct {
	Sandbox     id.Sandbox
	Incarnation uint64
	// State is the id of the saved state, which also names this command.
	State  id.Snapshot
	Memory bool
	// IfIdleFor, when positive, refuses while something went on since.
	IfIdleFor time.Duration
	Reason    string

	own bool
}

// Pause saves the sandbox's state and then ends its instance. The sandbox is
// paused from the moment Pause succeeds; until then, and after any failure, it
// runs as before, but for its connections. A caller that leaves changes
// nothing, nor does its deadline: how long a pause may take depends on how much
// there is to save. Repeated with the same state id it reports the same state.
//
// Reasons: unknown_sandbox, stale_incarnation, sandbox_not_running,
// sandbox_recovering, already_paused, not_idle, idle_unknown, disk_full,
// state_exists, pause_failed, pause_timeout, sandbox_exited, superseded,
// agent_stopping.
func (m *Manager) Pause(ctx context.Context, req PauseRequest) (state.State, error) {
	if err := validateSave(req.Sandbox, req.Incarnation, req.State); err != nil {
		return state.State{}, err
	}
	for {
		op, mine, st, err := m.trySave(ctx, req, m.startPause)
		if err != nil || op == nil {
			return st, err
		}
		if mine {
			if err := op.answer(ctx); err != nil {
				return state.State{}, err
			}
			return op.state, op.err
		}
		if err := op.wait(ctx); err != nil {
			return state.State{}, err
		}
	}
}

func validateSave(sandbox id.Sandbox, incarnation uint64, which id.Snapshot) error {
	switch {
	case sandbox.IsZero():
		return errs.Field("sandbox_id", "Name the sandbox.")
	case incarnation == 0:
		return errs.Field("incarnation", "Incarnations start at 1.")
	case which.IsZero():
		return errs.Field("state_id", "Name the state.")
	}
	return nil
}

// trySave looks once. It returns an operation to wait for, and whether its
// result is the answer, or the final answer.
func (m *Manager) trySave(caller context.Context, req PauseRequest, start func(context.Context, *entry, PauseRequest) (*operation, error)) (op *operation, mine bool, st state.State, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, false, st, stopping()
	}
	s, err := m.lookup(req.Sandbox, req.Incarnation)
	if err != nil {
		return nil, false, st, err
	}
	if s.op != nil {
		saving := s.op.kind == opPause || s.op.kind == opCheckpoint
		return s.op, saving && s.op.saves == req.State, st, nil
	}
	switch s.rec.Phase {
	case journal.PhasePaused:
		st, err = m.pausedState(s.rec, req.State)
		return nil, false, st, err
	case journal.PhaseRunning, journal.PhasePausing:
	default:
		return nil, false, st, notRunning().With("phase", string(s.rec.Phase))
	}
	if s.link == nil {
		return nil, false, st, recovering()
	}
	op, err = start(caller, s, req)
	return op, true, st, err
}

// pausedState is what a repeated pause reports.
func (m *Manager) pausedState(rec journal.Record, want id.Snapshot) (state.State, error) {
	have := rec.Pause.State
	if want != have {
		return state.State{}, errs.FailedPrecondition("already_paused", "The sandbox is paused already, with another state.").
			With("state_id", have.UUID().String())
	}
	st, ok := m.cfg.States.Get(have)
	if !ok {
		return st, errs.FailedPrecondition("state_damaged", "The saved state of the paused sandbox is damaged or missing.").
			With("state_id", have.UUID().String())
	}
	return st, nil
}

// pausing is a pause in progress.
type pausing struct {
	m      *Manager
	s      *entry
	engine engine.Engine
	req    PauseRequest
	rec    journal.Record // published to s.rec after each step
	link   Guest
	draft  *state.Draft
	state  state.State
	begun  bool // the journal may know of it
	cut    bool // link is closed
}

// pauseStep is one line of a pause. Unlike those of a create they are taken
// back all in the same way, by Manager.unpause.
type pauseStep struct {
	name Step
	do   func(*pausing, context.Context) error
}

func pauseTable() []pauseStep {
	return []pauseStep{
		{StepJournalPausing, (*pausing).begin},
		{StepCutConnections, (*pausing).cutConnections},
		{StepCheckpoint, (*pausing).checkpoint},
		{StepSealState, (*pausing).seal},
		{StepJournalPaused, (*pausing).commit},
	}
}

func pauseSteps() (out []Step) {
	for _, s := range pauseTable() {
		out = append(out, s.name)
	}
	return out
}

// startPause begins a pause. From here on Dial waits. Called with m.mu held.
func (m *Manager) startPause(caller context.Context, s *entry, req PauseRequest) (*operation, error) {
	eng, err := m.engine(s.rec.Spec.Engine)
	if err != nil {
		return nil, err
	}
	op := newOperation(opPause)
	op.saves = req.State
	ctx, cancel := context.WithCancelCause(observe.Follow(m.base, caller))
	op.cancel = cancel
	s.op = op
	p := &pausing{m: m, s: s, engine: eng, req: req, rec: s.rec, link: s.link}
	m.wg.Go(func() {
		defer cancel(nil)
		within, release := context.WithTimeout(ctx, m.pauseWithin(p.rec.Spec.Resources))
		defer release()
		if err := p.run(within); err != nil {
			m.unpause(p, op, explainSave(within, err, p.draft))
			return
		}
		m.paused(ctx, p, op)
	})
	return op, nil
}

func (m *Manager) pauseWithin(r journal.Resources) time.Duration {
	return m.cfg.PauseTimeout + time.Duration((r.MemoryBytes+r.DiskBytes)/slowest)*time.Second
}

func (p *pausing) run(ctx context.Context) error {
	if err := p.admit(ctx); err != nil {
		return err
	}
	for _, s := range pauseTable() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.do(p, ctx); err != nil {
			return err
		}
		p.m.mu.Lock()
		p.s.rec = p.rec
		p.m.mu.Unlock()
		p.m.step(s.name)
	}
	return nil
}

// admit finds out whether the pause may be, before anything is touched. No new
// connection can come in between, since Dial waits for this operation.
func (p *pausing) admit(ctx context.Context) error {
	if p.req.IfIdleFor > 0 {
		idle, err := p.m.idle(ctx, p.link)
		if err != nil {
			return errs.Unavailable("idle_unknown", "The sandbox's daemon did not say how long it has been idle.").Because(err)
		}
		if idle < p.req.IfIdleFor {
			return errs.FailedPrecondition("not_idle", "Something went on in the sandbox since.").With("idle_ms", idle.Milliseconds())
		}
	}
	draft, err := p.m.cfg.States.Create(p.req.State, p.m.need(ctx, p.engine, p.rec, p.req.Memory))
	p.draft = draft
	return err
}

// need is about how many bytes the state will have.
func (m *Manager) need(ctx context.Context, eng engine.Engine, rec journal.Record, memory bool) int64 {
	st, err := eng.Stats(ctx, rec.Handle)
	if err != nil { // then the most there can be of memory
		st.MemoryBytes = rec.Spec.Resources.MemoryBytes
	}
	need := st.DiskBytes
	if memory {
		need += min(st.MemoryBytes, rec.Spec.Resources.MemoryBytes)
	}
	return need
}

func (p *pausing) begin(context.Context) error {
	p.begun = true
	p.rec.Phase = journal.PhasePausing
	p.rec.Pause = &journal.Pause{State: p.req.State, Memory: p.req.Memory, Reason: p.req.Reason, Own: p.req.own}
	return p.m.cfg.Journal.Pausing(p.rec)
}

// cutConnections ends them while both ends can still learn of it. A connection
// that is open in a saved state has no other end any more.
func (p *pausing) cutConnections(context.Context) error {
	p.cut = true
	p.m.mu.Lock()
	p.s.link = nil
	p.m.mu.Unlock()
	p.link.Close()
	return nil
}

func (p *pausing) checkpoint(ctx context.Context) error {
	return p.engine.Checkpoint(ctx, p.rec.Handle, engine.CheckpointOptions{Dir: p.draft.Dir(), DiskOnly: !p.req.Memory})
}

func (p *pausing) seal(ctx context.Context) (err error) {
	p.state, err = p.m.seal(ctx, p.draft, p.rec, p.req.Memory)
	return err
}

// seal completes a draft the engine has written to.
func (m *Manager) seal(ctx context.Context, draft *state.Draft, rec journal.Record, memory bool) (state.State, error) {
	info, err := engine.ReadCheckpoint(draft.Dir())
	if err != nil {
		return state.State{}, err
	}
	spec := rec.Spec
	manifest := state.Manifest{
		Sandbox: spec.Sandbox, Incarnation: spec.Incarnation, Engine: spec.Engine, EngineVersion: info.Version,
		ImageDigest: spec.Image.Digest, Resources: spec.Resources, Memory: memory, CreatedAt: m.cfg.Clock.Now(),
	}
	if memory {
		manifest.CPUFeatures, manifest.InitSecret = info.CPUFeatures, rec.InitSecret
		if manifest.GuestSeq, err = m.guestSeq(rec); err != nil {
			return state.State{}, err
		}
		manifest.GuestDigest = rec.Guest
		if err := m.keepDaemon(draft, rec); err != nil {
			return state.State{}, err
		}
	}
	return draft.Seal(ctx, manifest)
}

// guestSeq is the last event of the daemon that was forwarded: the journal
// knows it, our own copy of the record does not.
func (m *Manager) guestSeq(rec journal.Record) (int64, error) {
	now, _, err := m.cfg.Journal.Record(rec.Spec.Sandbox)
	return now.GuestSeq, err
}

// commit makes the state the sandbox. The slot is found by its owner from here
// on, as after an exit.
func (p *pausing) commit(context.Context) error {
	rec := p.rec
	pause := *rec.Pause
	pause.At = p.m.cfg.Clock.Now()
	rec.Phase, rec.Slot, rec.Pause = journal.PhasePaused, -1, &pause
	if err := p.m.cfg.Journal.Paused(rec, p.m.pausedEvents(rec)...); err != nil {
		return err
	}
	p.rec = rec
	p.draft.Keep()
	return nil
}

func (m *Manager) pausedEvents(rec journal.Record) []journal.Event {
	if !rec.Pause.Own {
		return nil
	}
	return []journal.Event{m.event(rec, EventPaused, map[string]any{
		"reason": rec.Pause.Reason, "state_id": rec.Pause.State.UUID().String(),
	})}
}

// paused answers, and then removes what is left of the instance.
func (m *Manager) paused(ctx context.Context, p *pausing, op *operation) {
	m.log(p.rec).Info("sandbox paused", "reason", p.req.Reason, "size_bytes", p.state.SizeBytes)
	m.mu.Lock()
	op.state = p.state
	op.say(report(p.rec), nil)
	m.mu.Unlock()
	m.keepDisk(ctx, p)
	m.clean(p.s, op, p.rec)
}

// startCleanup removes what a pause left of its instance. Called with m.mu
// held.
func (m *Manager) startCleanup(s *entry) *operation {
	op, rec := newOperation(opCleanup), s.rec
	s.op = op
	m.wg.Go(func() { m.clean(s, op, rec) })
	return op
}

// clean ends op, a pause that is done or the rest of one.
func (m *Manager) clean(s *entry, op *operation, rec journal.Record) {
	m.stopWatch(s)
	err := m.undo(rec, undoAll)
	if err != nil {
		m.log(rec).Error("not all of a paused sandbox's instance could be removed yet", "err", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.exit, s.owed = nil, err != nil
	s.finish(op, report(rec), nil)
}

// unpause ends a pause that failed: the state goes, the sandbox runs on.
func (m *Manager) unpause(p *pausing, op *operation, why error) {
	if p.draft != nil {
		p.draft.Discard()
		m.step(StepDiscardState)
	}
	if !p.begun {
		m.mu.Lock()
		defer m.mu.Unlock()
		p.s.finish(op, Report{}, why)
		if p.s.exit != nil {
			m.startExit(p.s, *p.s.exit)
		}
		return
	}
	m.log(p.rec).Warn("pause failed", "reason", p.req.Reason, "err", why)
	var events []journal.Event
	if p.req.own {
		e := errs.As(why)
		events = append(events, m.event(p.rec, EventPauseFailed, map[string]any{"reason": p.req.Reason, "error": e.Reason, "message": e.Message}))
	}
	if !p.cut {
		p.link.Close() // before the state table says running again there is a new one
	}
	m.mu.Lock()
	p.s.link = nil
	m.mu.Unlock()
	if !m.thaw(p.s, p.engine, op, p.rec, why, events) {
		m.mu.Lock()
		p.s.rec = p.rec
		p.s.finish(op, Report{}, why)
		m.mu.Unlock()
		m.wg.Go(func() { m.readoptLater(p.s, p.rec) })
	}
}

// thaw lets an instance that may be frozen go on and ends op with err. False:
// it could not find out; the instance is as it was and op is not ended.
func (m *Manager) thaw(s *entry, eng engine.Engine, op *operation, rec journal.Record, result error, events []journal.Event) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.base), m.cfg.CleanupTimeout)
	defer cancel()
	err := eng.Thaw(ctx, rec.Handle)
	switch {
	case err == nil:
	case errors.Is(err, engine.ErrExited), errors.Is(err, engine.ErrNotFound):
		exit, err := eng.Wait(ctx, rec.Handle)
		if err != nil {
			exit = m.vanished(rec)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		s.rec = rec
		s.finish(op, Report{}, result)
		m.startExit(s, exit)
		return true
	default:
		m.log(rec).Error("a sandbox could not be thawed yet", "err", err)
		return false
	}
	m.step(StepThaw)
	rec.Phase, rec.Pause = journal.PhaseRunning, nil
	if seq, err := m.guestSeq(rec); err == nil {
		rec.GuestSeq = seq
	}
	if err := m.cfg.Journal.Running(rec, events...); err != nil {
		// The next start of the agent finds a pause, and the sandbox running.
		m.log(rec).Error("the end of a failed pause could not be recorded", "err", err)
	}
	m.step(StepJournalUnpaused)
	link := m.newGuest(eng, rec, rec.InitSecret)
	link.Follow()
	m.mu.Lock()
	defer m.mu.Unlock()
	s.rec, s.link = rec, link
	s.finish(op, report(rec), result)
	if s.exit != nil {
		m.startExit(s, *s.exit)
	}
	return true
}

// explainSave gives the failure of a pause or checkpoint its reason.
func explainSave(ctx context.Context, err error, draft *state.Draft) error {
	switch cause := context.Cause(ctx); {
	case ctx.Err() == nil:
	case errors.Is(cause, errSuperseded):
		return errs.New(errs.CodeCanceled, "superseded", "A later command about this sandbox came in between.")
	case errors.Is(cause, errClosing):
		return stopping()
	case errors.Is(cause, context.DeadlineExceeded):
		return errs.Unavailable("pause_timeout", "The sandbox's state could not be written in time; it runs on. Try again.").Because(err)
	}
	if draft != nil {
		err = draft.Blame(err)
	}
	switch {
	case errors.Is(err, engine.ErrExited), errors.Is(err, engine.ErrNotFound):
		return errs.Unavailable("sandbox_exited", "The sandbox ended while its state was saved.").Because(err)
	case errors.Is(err, engine.ErrUnsupported):
		return errs.FailedPrecondition("pause_unsupported", "The sandbox's engine cannot save its state.").Because(err)
	}
	return blame(err, "pause_failed", "The engine could not save the sandbox's state; it runs on. Try again.")
}
