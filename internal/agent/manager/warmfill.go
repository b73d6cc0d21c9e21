package manager

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
)

const (
	// warmCommand is run once in each instance that waits, so that what a first
	// command takes is behind it. It need not exist.
	warmCommand = "/bin/true"
	// claimWithin bounds how long an instance that waits may take to answer. A new
	// one is there sooner than it would be after that.
	claimWithin = 5 * time.Second
)

// warmTable is the table of an instance that is made to wait for a sandbox.
func warmTable(spec journal.Spec) []tableStep {
	return append(startTable(spec, tableStep{name: StepWarmBegin, do: (*build).beginWarm}),
		tableStep{name: StepWarmCommand, do: (*build).warmUp},
		tableStep{name: StepWarmHold, do: (*build).holdStill},
		tableStep{name: StepWarmReady, do: (*build).ready},
	)
}

// claimTable is the table of a sandbox that takes such an instance over. What
// takes it back is the undo of a whole create.
func claimTable() []tableStep {
	return []tableStep{
		{name: StepClaimWarm, do: (*build).claimWarm},
		{name: StepInitGuest, do: (*build).initGuest},
		{name: StepJournalRunning, do: (*build).running},
	}
}

// newWarm is an instance of a target that does not exist yet. It is nobody's: who
// may talk to its daemon is known to this process alone.
func (m *Manager) newWarm(t WarmTarget, stop context.CancelCauseFunc) *build {
	rec := m.newRecord(journal.Spec{
		Template: t.Spec.Template, Engine: t.Spec.Engine, Image: t.Spec.Image, Resources: t.Spec.Resources, Internet: t.Spec.Internet,
		State: t.Spec.State, Hostname: warmHostname, AccessToken: newSecret(), DefaultUser: "root",
	})
	return &build{
		m: m, s: &entry{rec: rec, op: newOperation(opCreate)}, rec: rec, cancel: stop,
		kept: journal.Warm{Key: t.Key, Build: m.warmBuild(t.Spec.Engine)},
	}
}

// fill makes one instance, and leaves nothing of one that failed.
func (m *Manager) fill(ctx context.Context, t WarmTarget, b *build) {
	err := m.tryFill(ctx, b)
	if err != nil {
		err = explain(ctx, err)
	}
	m.stopWatch(b.s)
	w := &warm{kept: b.kept, slot: b.slot, watch: func() {}}
	w.kept.Record = b.rec
	var undone error
	if err == nil {
		m.watchWarm(w, b.engine)
	} else if undone = m.undo(b.rec, undoAll); undone == nil {
		undone = m.forgetWarm(b.rec.Instance)
	}
	if err != nil {
		m.cfg.Logger.Warn("no instance could be made to wait for a sandbox", "template_id", t.Spec.Template.String(), "err", err, "undone", undone == nil)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		m.warm.ready[b.rec.Instance] = w
		delete(m.warm.retries, string(t.Key))
	default:
		if undone != nil {
			w.tried = time.Now()
			m.warm.going[b.rec.Instance] = w
		}
		m.failedWarm(string(t.Key), err)
	}
	close(m.warm.stopped)
	m.warm.filling, m.warm.stop, m.warm.stopped = "", nil, nil
}

func (m *Manager) tryFill(ctx context.Context, b *build) (err error) {
	if b.engine, err = m.engine(b.rec.Spec.Engine); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.CreateTimeout)
	defer cancel()
	defer func() {
		if b.held != nil {
			b.held.Release()
		}
		if b.link != nil {
			b.link.Close()
		}
	}()
	if _, step, err := m.runSteps(ctx, b, warmTable(b.rec.Spec)); err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	return nil
}

func (b *build) keepWarm(phase journal.Phase) error {
	b.rec.Phase = phase
	b.kept.Record = b.rec
	return b.m.cfg.Journal.KeepWarm(b.kept)
}

func (b *build) beginWarm(context.Context) error { return b.keepWarm(journal.PhaseCreating) }

func (b *build) warmUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, b.m.cfg.GuestTimeout)
	defer cancel()
	if err := b.link.Run(ctx, warmCommand); err != nil {
		return blame(err, "guest_unresponsive", "The daemon could not run a command.")
	}
	return nil
}

// holdStill ends our connections first: what is held does not notice.
func (b *build) holdStill(ctx context.Context) error {
	b.link.Close()
	if err := hold(ctx, b.engine, b.rec.Handle); err != nil {
		return blame(err, "engine_failed", "The engine could not hold the instance.")
	}
	return nil
}

func (b *build) ready(context.Context) error {
	if err := b.keepWarm(journal.PhaseWarm); err != nil {
		return err
	}
	return b.m.mark(b.rec.Instance)
}

// claimedRecord is rec with the instance that waits.
func claimedRecord(rec journal.Record, w *warm) journal.Record {
	was := w.kept.Record
	rec.Instance, rec.Slot, rec.Handle, rec.EngineVersion, rec.Guest = was.Instance, was.Slot, was.Handle, was.EngineVersion, was.Guest
	return rec
}

// claim gives the instance that waits to the sandbox, and the sandbox's identity
// to it. A failure leaves the instance to be removed.
func (m *Manager) claim(ctx context.Context, b *build) (Step, error) {
	ctx, cancel := context.WithTimeout(ctx, claimWithin)
	defer cancel()
	_, step, err := m.runSteps(ctx, b, claimTable())
	return step, err
}

// claimWarm is on disk before the guest is told anything: what the journal calls
// warm was never anybody's. That it runs again meanwhile, and that a connection to
// it is open, changes nothing of that.
func (b *build) claimWarm(ctx context.Context) error {
	var thawing sync.WaitGroup
	var thawed error
	thawing.Go(func() { thawed = b.engine.Thaw(ctx, b.rec.Handle) })
	b.link = b.m.newGuest(b.engine, b.rec, b.warm.kept.Record.InitSecret)
	thawing.Go(func() { b.link.Ahead(ctx) })
	b.begun = true
	err := b.m.unmark(b.rec.Instance)
	if err == nil {
		err = b.m.cfg.Journal.Claim(b.rec)
	}
	thawing.Wait()
	if err = errors.Join(err, thawed); err != nil {
		return blame(err, "engine_failed", "The instance that waited could not be had.")
	}
	b.slot, b.woken = b.warm.slot, true
	b.rec.StartedAt = b.m.cfg.Clock.Now()
	// Its end is found out by what is asked of it next, and does not end the create.
	b.m.startWatch(b.s, b.engine, b.rec, nil)
	return nil
}

// unclaim removes an instance that could not be taken over, and makes the create
// one that begins.
func (m *Manager) unclaim(b *build) error {
	if b.link != nil {
		b.link.Close()
	}
	m.stopWatch(b.s)
	if err := m.undo(b.rec, undoAll); err != nil {
		return err
	}
	if err := m.cfg.Journal.ForgetWarm(b.rec.Instance); err != nil {
		return err
	}
	b.rec = m.newRecord(b.rec.Spec)
	b.warm, b.woken, b.link, b.slot = nil, false, nil, Slot{}
	m.mu.Lock()
	defer m.mu.Unlock()
	b.s.rec, b.s.exit = b.rec, nil
	return nil
}

// warmInstances adds the instances that wait, are made to, or are let go. Called
// with m.mu held.
func (m *Manager) warmInstances(to map[engine.InstanceID]bool) {
	for _, all := range []map[engine.InstanceID]*warm{m.warm.ready, m.warm.going} {
		for i := range all {
			to[i] = true
		}
	}
	if m.warm.filling != "" {
		to[m.warm.filling] = true
	}
}

// warmReports is what waits, by key. Called with m.mu held.
func (m *Manager) warmReports() []WarmReport {
	out := make([]WarmReport, 0, len(m.warm.ready)+len(m.warm.going))
	for i, w := range m.warm.ready {
		out = append(out, WarmReport{Instance: i, Key: w.kept.Key, Ready: !w.dead})
	}
	for i, w := range m.warm.going {
		out = append(out, WarmReport{Instance: i, Key: w.kept.Key})
	}
	if m.warm.filling != "" {
		out = append(out, WarmReport{Instance: m.warm.filling})
	}
	return out
}

// WarmReport is an instance that is no sandbox, and no stranger either.
type WarmReport struct {
	Instance engine.InstanceID
	Key      []byte // of its target, as far as it has one
	Ready    bool
}
