package sandbox

import (
	"context"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// awaitLimit bounds how long a request waits for the operation that it opened.
const awaitLimit = 15 * time.Minute

// Reasons for a pause that are this package's own; agents say others.
const (
	PausedRequested = "requested"
	PausedDeadline  = "deadline"
	PausedIdle      = "idle"
	PausedDrain     = "drain" // its host is being emptied
)

// pending is an accepted operation, opened by this request or joined by it.
type pending struct {
	sandbox   Sandbox
	operation id.Operation
	joined    bool
}

// Pause saves a running sandbox and ends its instance. In a transition it waits
// first, and it joins a pause under way. When it fails the sandbox runs on.
// Without wait it returns once the pause is accepted.
func (s *Service) Pause(ctx context.Context, by principal.Principal, sandbox id.Sandbox, memory, wait bool) (Sandbox, error) {
	team, err := writer(by)
	if err != nil {
		return Sandbox{}, err
	}
	for {
		p, err := s.begin(ctx, team, sandbox, StatusRunning, StatusPausing, func(x Sandbox) (Begin, error) {
			b, err := s.pausing(x, by, PausedRequested, memory)
			entry := audit.By(by).SandboxPaused(team, sandbox, memory)
			b.Audit = &entry
			return b, err
		})
		if err != nil || !wait {
			return p.sandbox, err
		}
		x, err := s.finish(ctx, p)
		if p.joined && errs.Is(err, "pause_failed") && errs.As(err).Details["reason"] == "not_idle" {
			continue // that one wanted it only when idle; this one wants it anyway
		}
		return x, err
	}
}

// pausing is the beginning of a pause.
func (s *Service) pausing(x Sandbox, by principal.Principal, reason string, memory bool) (Begin, error) {
	made, err := s.making(x, by, StatePause, memory)
	return Begin{
		ID: x.ID, From: StatusRunning, To: StatusPausing, Operation: id.NewOperation(), Kind: KindPause,
		Params: Params{State: made.ID, Memory: memory, Reason: reason}, Making: &made,
		Event: "pausing", EventData: map[string]any{"reason": reason, "by": by.ActorName()},
	}, err
}

// making is a state of x that is about to be saved. Its environment is sealed
// anew, for what starts from it is another sandbox.
func (s *Service) making(x Sandbox, by principal.Principal, kind StateKind, memory bool) (NewSnapshot, error) {
	n := NewSnapshot{
		ID: id.NewSnapshot(), Kind: kind, Memory: memory,
		CreatedByType: string(by.Kind), CreatedByID: by.ActorID(), CreatedByName: by.ActorName(),
	}
	var err error
	n.EnvSealed, err = resealedEnv(s.secret, x, n.ID)
	return n, err
}

// Resume lets a paused sandbox go on where it was, with its deadline timeoutSec
// away; nil is what it was created with. With bootDisk its memory is given up.
// It joins a resume under way; of one that runs it is refused.
func (s *Service) Resume(ctx context.Context, by principal.Principal, sandbox id.Sandbox, timeoutSec *int64, bootDisk, wait bool) (Sandbox, error) {
	team, err := writer(by)
	if err != nil {
		return Sandbox{}, err
	}
	if err := within("timeout_sec", timeoutSec, 1, maxTimeoutSec); err != nil {
		return Sandbox{}, err
	}
	p, err := s.begin(ctx, team, sandbox, StatusPaused, StatusResuming, func(x Sandbox) (Begin, error) {
		b, err := s.resuming(ctx, x, by, bootDisk)
		override(&b.Params.TimeoutSec, timeoutSec)
		return b, err
	})
	if err != nil || !wait {
		return p.sandbox, err
	}
	return s.finish(ctx, p)
}

// resuming is the beginning of a resume.
func (s *Service) resuming(ctx context.Context, x Sandbox, by principal.Principal, bootDisk bool) (Begin, error) {
	if x.StateID == nil {
		return Begin{}, errs.FailedPrecondition("no_state", "The sandbox has no saved state to go on from.")
	}
	state, err := s.store.State(ctx, *x.StateID)
	if err != nil {
		return Begin{}, err
	}
	memory := state.Memory && !bootDisk
	reach, err := s.store.Reach(ctx, state, x.TeamID, x.ID)
	if err != nil {
		return Begin{}, err
	}
	if len(reach.Later) > 0 {
		return Begin{}, LaterLife(reach.Later)
	}
	if reach.Awaited {
		return Begin{}, ErrJustRestored
	}
	want := wanted(x, state, reach)
	want.Avoid = reach.Avoid
	entry := audit.By(by).SandboxResumed(x.TeamID, x.ID)
	return Begin{
		ID: x.ID, From: StatusPaused, To: StatusResuming, NewIncarnation: true, Operation: id.NewOperation(), Kind: KindResume,
		Params: Params{State: state.ID, Memory: memory, TimeoutSec: x.TimeoutSec, Reason: PausedRequested},
		Place:  s.placer(by, started(want, memory)...), Want: want, Row: x,
		Event: "resuming", EventData: map[string]any{"memory": memory, "by": by.ActorName()}, Audit: &entry,
	}, nil
}

// Snapshot saves a running sandbox under a name; it goes on running.
func (s *Service) Snapshot(ctx context.Context, by principal.Principal, req SnapshotRequest) (SnapshotReceipt, error) {
	team, err := snapshotter(by)
	if err != nil {
		return SnapshotReceipt{}, err
	}
	if err := req.Validate(); err != nil {
		return SnapshotReceipt{}, err
	}
	for {
		x, err := s.settled(ctx, team, req.Sandbox, "")
		if err != nil {
			return SnapshotReceipt{}, err
		}
		if x.Status != StatusRunning {
			return SnapshotReceipt{}, InvalidState(x)
		}
		made, err := s.making(x, by, StateSnapshot, req.Memory)
		if err != nil {
			return SnapshotReceipt{}, err
		}
		made.Name, made.Overwrite = req.Name, req.Overwrite
		entry := audit.By(by).SnapshotCreated(team, made.ID, req.Name, x.ID)
		lease, reserved := s.runner.reserve()
		receipt, moved, op, err := s.store.BeginSnapshot(ctx, Begin{
			ID: x.ID, Team: &team, From: StatusRunning, To: StatusSnapshotting, Operation: id.NewOperation(), Kind: KindSnapshot,
			Params: Params{State: made.ID, Memory: req.Memory}, Making: &made, Lease: lease,
			Event: "snapshotting", EventData: map[string]any{"snapshot": req.Name, "by": by.ActorName()}, Audit: &entry,
		})
		s.hand(ctx, reserved, op, err == nil)
		if errs.Is(err, "invalid_state") {
			continue // it moved on; look again
		}
		if err == nil {
			s.watch.Publish(moved)
		}
		return receipt, err
	}
}

// AwaitSnapshot returns an accepted snapshot once it is complete, or why it is
// not.
func (s *Service) AwaitSnapshot(ctx context.Context, r SnapshotReceipt) (Snapshot, error) {
	x, err := s.store.Get(ctx, r.Sandbox)
	if err != nil {
		return Snapshot{}, err
	}
	if _, err := s.finish(ctx, pending{sandbox: x, operation: r.Operation}); err != nil {
		return Snapshot{}, err
	}
	return s.store.State(ctx, r.Snapshot)
}

// settled returns a sandbox of the team once no operation moves it, or when it
// is in join. The wait is bounded; InvalidState is its end.
func (s *Service) settled(ctx context.Context, team id.Team, sandbox id.Sandbox, join Status) (Sandbox, error) {
	x, err := s.owned(ctx, team, sandbox)
	if err != nil || x.Status == join || !x.Status.Transient() {
		return x, err
	}
	wctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	seen, err := s.until(wctx, sandbox, func(x Sandbox) bool { return x.Status == join || !x.Status.Transient() })
	if err != nil {
		if ctx.Err() == nil && wctx.Err() != nil {
			return x, InvalidState(seen)
		}
		return x, err
	}
	return s.owned(ctx, team, sandbox) // what the watch tells lacks what other rows hold
}

// begin opens an operation on a sandbox in status from, waits for that as long
// as requests wait, and joins one that has it in status join.
func (s *Service) begin(ctx context.Context, team id.Team, sandbox id.Sandbox, from, join Status, plan func(Sandbox) (Begin, error)) (pending, error) {
	for {
		x, err := s.settled(ctx, team, sandbox, join)
		if err != nil {
			return pending{}, err
		}
		if x.Status == join {
			op, err := s.store.OpenOperation(ctx, sandbox)
			if err != nil {
				return pending{}, err
			}
			if op.IsZero() {
				continue
			}
			return pending{sandbox: x, operation: op, joined: true}, nil
		}
		if x.Status != from {
			return pending{}, InvalidState(x)
		}
		if !x.Host.Online && from != StatusPaused {
			return pending{}, hostAway()
		}
		b, err := plan(x)
		if err != nil {
			return pending{}, err
		}
		b.Team = &team
		moved, op, _, err := s.open(ctx, b)
		if errs.Is(err, "invalid_state") {
			continue // it moved on; look again
		}
		if err != nil {
			return pending{}, err
		}
		return pending{sandbox: moved, operation: op.ID}, nil
	}
}

// open begins an operation and has it driven.
func (s *Service) open(ctx context.Context, b Begin) (Sandbox, Operation, bool, error) {
	lease, reserved := s.runner.reserve()
	b.Lease = lease
	x, op, begun, err := s.store.Begin(ctx, b)
	s.hand(ctx, reserved, op, begun && err == nil)
	if begun && err == nil {
		s.watch.Publish(x)
	}
	return x, op, begun, err
}

// hand gives an opened operation to the runner, or the slot back.
func (s *Service) hand(ctx context.Context, reserved bool, op Operation, opened bool) {
	switch {
	case reserved && opened:
		s.runner.start(ctx, op)
	case reserved:
		s.runner.release()
	case opened:
		s.runner.Wake()
	}
}

// finish waits until an operation is closed and says how it ended.
func (s *Service) finish(ctx context.Context, p pending) (Sandbox, error) {
	wctx, cancel := context.WithTimeout(ctx, awaitLimit)
	defer cancel()
	told, stop := s.watch.changes(p.sandbox.ID)
	defer stop()
	for {
		f, err := s.store.Finished(wctx, p.operation)
		if err != nil {
			return p.sandbox, err
		}
		if f.Outcome != "" {
			x, err := s.store.Get(ctx, p.sandbox.ID)
			if err != nil {
				return x, err
			}
			return x, failureOf(f, x)
		}
		select {
		case <-told:
		case <-wctx.Done():
			return p.sandbox, errs.New(errs.CodeCanceled, "canceled", "The request ended before this was done; it goes on. Read it with GET /v1/sandboxes/{id}.").
				Because(wctx.Err())
		}
	}
}

// failureOf is what the caller of an operation hears.
func failureOf(f Finished, x Sandbox) error {
	switch f.Outcome {
	case OutcomeSucceeded:
		return nil
	case OutcomeSuperseded:
		return InvalidState(x)
	}
	after := " The sandbox runs on."
	if f.Kind == KindResume {
		after = " The sandbox is paused as before."
	}
	failed := errs.Unavailable(string(f.Kind)+"_failed", f.Message+after).After(5 * time.Second)
	switch f.Reason {
	case "engine_build_missing", "guest_build_missing", "state_incompatible": // what no repetition changes
		failed = errs.FailedPrecondition(failed.Reason, failed.Message)
	}
	return failed.With("reason", f.Reason).With("sandbox_id", x.ID.String())
}

func hostAway() *errs.Error {
	return errs.Unavailable("host_unavailable", "The host of this sandbox is out of reach. Try again when it is back.").After(5 * time.Second)
}

var errScopeSnapshots = errs.Forbidden("missing_scope", "This key may not make snapshots. Make one with the scope `snapshots`.")

func snapshotter(by principal.Principal) (id.Team, error) {
	if !by.Can(principal.ScopeSnapshots) {
		return id.Team{}, errScopeSnapshots
	}
	return by.Team()
}
