package sandbox

import (
	"context"
	"errors"
	"slices"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Pace of saving. A limit that does not grow with the size turns a large healthy
// pause into a failed one.
const (
	saveBase     = time.Minute
	saveMBPerSec = 16
	// retryAfterFailure is how long the sweep leaves a sandbox alone whose pause
	// failed.
	retryAfterFailure = 30 * time.Second
	// retryNotIdle is when the sweep asks again after a host's refusal.
	retryNotIdle = time.Second
)

// saveLimit bounds one call to a host that saves x.
func saveLimit(x Sandbox) time.Duration {
	return saveBase + time.Duration((x.MemoryMB+x.DiskMB)/saveMBPerSec)*time.Second
}

// saving is what differs between the operations that save a sandbox.
type saving struct {
	during, after           Status
	accepted, saved, closed Step
	done, failed            string // events
	newest                  bool
}

func savingOf(kind OperationKind) saving {
	switch kind {
	case KindPause:
		return saving{
			during: StatusPausing, after: StatusPaused, accepted: StepPauseAccepted, saved: StepPauseSaved, closed: StepPausePaused,
			done: "paused", failed: "pause_failed", newest: true,
		}
	case KindCheckpoint:
		return saving{
			during: StatusSnapshotting, after: StatusRunning, accepted: StepCheckpointAccepted, saved: StepCheckpointSaved, closed: StepCheckpointDone,
			done: "checkpoint", failed: "checkpoint_failed", newest: true,
		}
	case KindFork:
		return saving{
			during: StatusSnapshotting, after: StatusRunning, accepted: StepForkAccepted, saved: StepForkSaved, closed: StepForkDone,
			done: "forked", failed: "fork_failed",
		}
	default:
		return saving{
			during: StatusSnapshotting, after: StatusRunning, accepted: StepSnapshotAccepted, saved: StepSnapshotSaved, closed: StepSnapshotDone,
			done: "snapshot", failed: "snapshot_failed",
		}
	}
}

// driveSave has a sandbox saved by its host, and ended there when it is to be
// paused. What the agent says has failed has failed, and the sandbox runs on;
// what became of a call that was lost is asked again, and after the operation's
// deadline the host's inventory decides.
func (r *Runner) driveSave(ctx context.Context, op Operation) error {
	how := savingOf(op.Kind)
	if err := r.step(how.accepted, op); err != nil {
		return err
	}
	x, err := r.store.Get(ctx, op.SandboxID)
	if err != nil {
		return err
	}
	if x.Incarnation != op.Incarnation || x.Status != how.during {
		return InvalidState(x)
	}
	if !time.Now().Before(op.DeadlineAt) {
		return r.lose(ctx, op, x, how.during)
	}
	call := Pause{
		Sandbox: x.ID, Incarnation: x.Incarnation, State: op.Params.State, Memory: op.Params.Memory,
		IfIdleFor: time.Duration(op.Params.IfIdleSec) * time.Second, Reason: op.Params.Reason,
	}
	var saved Saved
	err = r.call(x.Host.ID, func() (err error) {
		callCtx, cancel := context.WithTimeout(ctx, saveLimit(x))
		defer cancel()
		if op.Kind == KindPause {
			saved, err = r.agents.PauseSandbox(callCtx, x.Host, call)
		} else {
			saved, err = r.agents.CheckpointSandbox(callCtx, x.Host, call)
		}
		return err
	})
	if err != nil {
		if errors.Is(err, errCrowded) || ctx.Err() != nil || again(err) {
			return err
		}
		if op.Kind == KindPause && errs.Is(err, "already_paused") {
			return r.forestalled(ctx, op, x, err)
		}
		return r.saveFailed(ctx, op, x, how, err)
	}
	if err := r.step(how.saved, op); err != nil {
		return err
	}
	t := Transition{
		ID: x.ID, From: how.during, To: how.after, Incarnation: x.Incarnation, Outcome: OutcomeSucceeded,
		Making: op.Params.State, Saved: &saved, Newest: how.newest,
		Event: how.done, EventData: map[string]any{"snapshot_id": op.Params.State, "size_bytes": saved.SizeBytes, "memory": saved.Memory},
	}
	if op.Kind == KindPause {
		t.PausedReason, t.EventData["reason"], t.Audit = op.Params.Reason, op.Params.Reason, pauseAudit(op, x)
	}
	if _, err := r.apply(ctx, t); err != nil {
		return err
	}
	if op.Kind == KindPause {
		r.agents.Forget(x.Host, x.ID, x.Incarnation)
	}
	r.Wake() // copies and removals wait for this
	return r.step(how.closed, op)
}

// pauseAudit is nil for a pause that was asked for: that was noted then.
func pauseAudit(op Operation, x Sandbox) *audit.Entry {
	if op.Params.Reason == PausedRequested {
		return nil
	}
	entry := audit.By(principal.System("sweep")).SandboxAutoPaused(x.TeamID, x.ID, op.Params.Reason)
	return &entry
}

// forestalled ends a pause that finds the sandbox paused: its host did it by
// itself, while it heard nobody, with a state of its own. That is the pause.
func (r *Runner) forestalled(ctx context.Context, op Operation, x Sandbox, why error) error {
	inv, err := r.agents.Inventory(ctx, x.Host)
	if err != nil {
		return err
	}
	for _, in := range inv.Instances {
		i := slices.IndexFunc(inv.States, func(h Held) bool { return h.ID == in.State && h.Sandbox == x.ID })
		if in.Sandbox != x.ID || in.Incarnation != x.Incarnation || in.Phase != PhasePaused || i < 0 {
			continue
		}
		sealed, err := resealedEnv(r.secret, x, in.State)
		if err != nil {
			return err
		}
		paused, err := r.store.Adopt(ctx, Adopt{
			Row: x, Held: inv.States[i], Reason: op.Params.Reason, EnvSealed: sealed, Outcome: OutcomeSucceeded, Audit: pauseAudit(op, x),
		})
		if err != nil {
			return err
		}
		r.watch.Publish(paused)
		r.agents.Forget(x.Host, x.ID, x.Incarnation)
		r.Wake()
		return r.step(StepPausePaused, op)
	}
	return r.saveFailed(ctx, op, x, savingOf(op.Kind), why)
}

// saveFailed lets the sandbox run on. That somebody just did something in it is
// no event.
func (r *Runner) saveFailed(ctx context.Context, op Operation, x Sandbox, how saving, why error) error {
	if err := r.step(StepSaveRefused, op); err != nil {
		return err
	}
	e := errs.As(why)
	t := Transition{
		ID: x.ID, From: how.during, To: StatusRunning, Incarnation: x.Incarnation, Making: op.Params.State, Newest: how.newest,
		Outcome: OutcomeFailed, Reason: e.Reason, Message: e.Message,
	}
	switch {
	case e.Reason == "not_idle":
		t.Retry = retryNotIdle
	default:
		t.Event, t.EventData = how.failed, map[string]any{"reason": e.Reason, "message": e.Message}
		t.Retry = retryAfterFailure << min(op.Params.Failed, drainDoublings)
		r.log.WarnContext(ctx, "a sandbox could not be saved and runs on", "sandbox_id", x.ID.String(), "op", string(op.Kind), "error", why)
	}
	if _, err := r.apply(ctx, t); err != nil {
		return err
	}
	r.Wake()
	return r.step(StepSaveFailed, op)
}

// lose gives up to know what became of an operation: its host decides when it
// can be asked.
func (r *Runner) lose(ctx context.Context, op Operation, x Sandbox, from Status) error {
	const message = "The host did not say in time what became of this."
	_, err := r.apply(ctx, Transition{
		ID: x.ID, From: from, To: StatusMissing, Incarnation: x.Incarnation, Outcome: OutcomeFailed, Reason: "host_unavailable", Message: message,
		Event: "missing", EventData: map[string]any{"reason": "host_unavailable", "operation": string(op.Kind)},
	})
	if err != nil {
		return err
	}
	return r.step(StepLost, op)
}

// driveResume starts a paused sandbox again from its saved state. When the host
// cannot, it is paused as before.
func (r *Runner) driveResume(ctx context.Context, op Operation) error {
	if err := r.step(StepResumeAccepted, op); err != nil {
		return err
	}
	x, err := r.store.Get(ctx, op.SandboxID)
	if err != nil {
		return err
	}
	if x.Incarnation != op.Incarnation || x.Status != StatusResuming {
		return InvalidState(x)
	}
	if !time.Now().Before(op.DeadlineAt) {
		if r.neverThere(ctx, x, op.Params.State) {
			return r.resumeFailed(ctx, op, x, errs.Unavailable("deadline_exceeded", "The host could not be brought what the sandbox goes on from in time."))
		}
		return r.lose(ctx, op, x, StatusResuming)
	}
	timeout := time.Duration(op.Params.TimeoutSec) * time.Second
	if err := r.equip(ctx, &op, x, op.Params.State); err != nil {
		if errors.Is(err, errAbandoned) || r.unsure(ctx, err) && (ctx.Err() != nil || x.Host.Online || !r.neverThere(ctx, x, op.Params.State)) {
			return err
		}
		return r.resumeFailed(ctx, op, x, err)
	}
	launch, err := r.launch(ctx, x)
	if errs.CodeOf(err) == errs.CodeUnavailable {
		return err
	}
	if err != nil {
		return r.resumeFailed(ctx, op, x, err)
	}
	launch.State, launch.DiskOnly, launch.Deadline = &op.Params.State, !op.Params.Memory, time.Now().Add(timeout)
	var launched Launched
	err = r.call(x.Host.ID, func() (err error) {
		callCtx, cancel := context.WithTimeout(ctx, saveLimit(x))
		defer cancel()
		launched, err = r.agents.CreateSandbox(callCtx, x.Host, launch)
		return err
	})
	if err != nil {
		if errors.Is(err, errCrowded) || ctx.Err() != nil || again(err) || r.supply(ctx, &op, x, op.Params.State, err) {
			return err
		}
		return r.resumeFailed(ctx, op, x, err)
	}
	if err := r.step(StepResumeLaunched, op); err != nil {
		return err
	}
	if _, err := r.apply(ctx, Transition{
		ID: x.ID, From: StatusResuming, To: StatusRunning, Incarnation: x.Incarnation, EngineVersion: launched.EngineVersion, Timeout: timeout,
		Outcome: OutcomeSucceeded, Event: "resumed", EventData: map[string]any{"snapshot_id": op.Params.State, "memory": op.Params.Memory},
	}); err != nil {
		return err
	}
	return r.step(StepResumeRunning, op)
}

// neverThere says that a sandbox cannot have been started on its host: the state
// that it is to go on from is in the store and was not brought there.
func (r *Runner) neverThere(ctx context.Context, x Sandbox, state id.Snapshot) bool {
	needs, err := r.store.Needs(ctx, x.Host.ID, state)
	return err == nil && needs.State != nil
}

func (r *Runner) resumeFailed(ctx context.Context, op Operation, x Sandbox, why error) error {
	if err := r.step(StepResumeRefused, op); err != nil {
		return err
	}
	e := errs.As(why)
	r.log.WarnContext(ctx, "a sandbox could not be resumed and is paused as before", "sandbox_id", x.ID.String(), "error", why)
	if _, err := r.apply(ctx, Transition{
		ID: x.ID, From: StatusResuming, To: StatusPaused, Incarnation: x.Incarnation, Outcome: OutcomeFailed, Reason: e.Reason, Message: e.Message,
		Event: "resume_failed", EventData: map[string]any{"reason": e.Reason, "message": e.Message},
	}); err != nil {
		return err
	}
	return r.step(StepResumeFailed, op)
}
