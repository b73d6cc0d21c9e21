package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// ForkRequest is what a caller asks for; absent values are the parent's.
type ForkRequest struct {
	Count      int64
	TimeoutSec *int64
	Metadata   map[string]string
}

// Validate checks what can be checked by itself.
func (r ForkRequest) Validate() error {
	if r.Count < 1 || r.Count > maxFork {
		return errs.Field("count", fmt.Sprintf("count must be between 1 and %d.", maxFork))
	}
	if err := within("timeout_sec", r.TimeoutSec, 1, maxTimeoutSec); err != nil {
		return err
	}
	return validateMetadata(r.Metadata)
}

// Fork makes copies of a running or paused sandbox, which goes on as it was. All
// have their place on the host before any is made; when one cannot be started
// none is left.
func (s *Service) Fork(ctx context.Context, by principal.Principal, sandbox id.Sandbox, req ForkRequest) (ForkReceipt, error) {
	team, err := writer(by)
	if err != nil {
		return ForkReceipt{}, err
	}
	if err := req.Validate(); err != nil {
		return ForkReceipt{}, err
	}
	for {
		x, err := s.settled(ctx, team, sandbox, "")
		if err != nil {
			return ForkReceipt{}, err
		}
		if x.Status != StatusRunning && x.Status != StatusPaused {
			return ForkReceipt{}, InvalidState(x)
		}
		if !x.Host.Online && x.Status == StatusRunning {
			return ForkReceipt{}, hostAway()
		}
		f, err := s.forking(ctx, by, x, req)
		if err != nil {
			return ForkReceipt{}, err
		}
		lease, reserved := s.runner.reserve()
		f.Begin.Team, f.Begin.Lease = &team, lease
		receipt, moved, err := s.store.Fork(ctx, f)
		op := Operation{
			ID: f.Begin.Operation, SandboxID: x.ID, TeamID: team, Kind: KindFork, Params: f.Begin.Params, Incarnation: x.Incarnation, Attempts: 1,
			CreatedAt: moved.UpdatedAt, DeadlineAt: moved.UpdatedAt.Add(TransitionLimit),
		}
		s.hand(ctx, reserved, op, err == nil && x.Status == StatusRunning)
		if errs.Is(err, "invalid_state") {
			continue // it moved on; look again
		}
		if err == nil {
			s.watch.Publish(moved)
			s.runner.Wake()
		}
		return receipt, err
	}
}

// forking plans a fork of x as it is now.
func (s *Service) forking(ctx context.Context, by principal.Principal, x Sandbox, req ForkRequest) (Fork, error) {
	f := Fork{Begin: Begin{ID: x.ID, From: x.Status, Row: x}}
	var state Snapshot
	var reach Reach
	if x.Status == StatusRunning {
		made, err := s.making(x, by, StateFork, true)
		if err != nil {
			return f, err
		}
		// What its memory needs is what its host has.
		state = Snapshot{ID: made.ID, Copies: []id.Host{x.Host.ID}}
		f.Begin = Begin{
			Row: x, ID: x.ID, From: StatusRunning, To: StatusSnapshotting, Operation: id.NewOperation(), Kind: KindFork,
			Params: Params{State: made.ID, Memory: true}, Making: &made,
		}
	} else {
		if x.StateID == nil {
			return f, errs.FailedPrecondition("no_state", "The sandbox has no saved state to copy.")
		}
		var err error
		if state, err = s.store.State(ctx, *x.StateID); err != nil {
			return f, err
		}
		if reach, err = s.store.Reach(ctx, state, x.TeamID, id.Sandbox{}); err != nil {
			return f, err
		}
	}
	env, err := openEnv(s.secret, x.ID.UUID(), x.EnvSealed)
	if err != nil {
		return f, err
	}
	together := make([]id.Sandbox, req.Count)
	for i := range together {
		together[i] = id.NewSandbox()
	}
	want := wanted(x, state, reach)
	want.Count = req.Count
	for _, child := range together {
		c := Sandbox{
			ID: child, TeamID: x.TeamID, TemplateID: x.TemplateID, TemplateName: x.TemplateName, ImageDigest: x.ImageDigest,
			Status: StatusPending, Incarnation: 1, CPUMillis: x.CPUMillis, MemoryMB: x.MemoryMB, DiskMB: x.DiskMB, Internet: x.Internet,
			Metadata: maps.Clone(x.Metadata), TimeoutSec: x.TimeoutSec, OnTimeout: x.OnTimeout, IdleTimeoutSec: x.IdleTimeoutSec, PausedTTLSec: x.PausedTTLSec, AutoResume: x.AutoResume,
			CheckpointIntervalSec: x.CheckpointIntervalSec, FromState: &state.ID,
			CreatedByType: string(by.Kind), CreatedByID: by.ActorID(), CreatedByName: by.ActorName(),
		}
		if req.Metadata != nil {
			c.Metadata = req.Metadata
		}
		override(&c.TimeoutSec, req.TimeoutSec)
		if c.EnvSealed, err = sealedEnv(s.secret, c.ID.UUID(), env); err != nil {
			return f, err
		}
		f.Children = append(f.Children, NewSandbox{
			Sandbox: c, Want: want,
			Operation: Operation{ID: id.NewOperation(), SandboxID: c.ID, TeamID: c.TeamID, Kind: KindCreate, Incarnation: 1, Params: Params{Together: together}},
		})
	}
	f.Place = s.placer(by, started(want, x.Status == StatusRunning || state.Memory)...)
	f.Begin.Event, f.Begin.EventData = "forking", map[string]any{"copies": together, "by": by.ActorName()}
	f.Audit = func(h id.Host) []audit.Entry {
		entries := []audit.Entry{audit.By(by).SandboxForked(x.TeamID, x.ID, together)}
		for _, c := range together {
			entries = append(entries, audit.By(by).SandboxCreated(x.TeamID, c, x.TemplateName, h))
		}
		return entries
	}
	return f, nil
}

// wanted is what a sandbox like x needs to start from a state: a host that has
// it, or any that fits once it is in the store.
func wanted(x Sandbox, state Snapshot, reach Reach) scheduler.Request {
	want := scheduler.Request{
		CPUMillis: x.CPUMillis, MemoryMB: x.MemoryMB, DiskMB: x.DiskMB, Engine: x.Engine, Arch: state.Arch,
		Holders: state.Copies, Home: x.Host.ID, EngineVersion: state.EngineVersion, CPUFeatures: state.CPUFeatures, EngineArches: reach.EngineArches,
	}
	if !state.Stored {
		want.Hosts = append([]id.Host{}, state.Copies...) // never nil, which would be any
	}
	return want
}

// started are the hosts on which a state is started, best first. Memory needs the
// engine that saved it; a disk is best read by that too, and else in the form in
// which any can, which the host looks for.
func started(want scheduler.Request, memory bool) []scheduler.Request {
	if memory {
		return []scheduler.Request{want}
	}
	loose := want
	loose.EngineVersion, loose.CPUFeatures = "", nil
	return []scheduler.Request{want, loose}
}

// AwaitFork returns all copies once each runs, or why none is left.
func (s *Service) AwaitFork(ctx context.Context, r ForkReceipt) ([]Sandbox, error) {
	out := make([]Sandbox, len(r.Children))
	var failed error
	ended := -1 // a copy that another one ended
	for i, child := range r.Children {
		if _, err := s.Await(ctx, Receipt{Sandbox: child}); errs.CodeOf(err) == errs.CodeCanceled {
			return nil, err
		} else if err != nil && failed == nil {
			failed = err
		}
		var err error
		if out[i], err = s.store.Get(ctx, child); err != nil {
			return nil, err
		}
		if out[i].EndReason == EndForkFailed {
			ended = i
		}
	}
	if failed == nil && ended >= 0 {
		failed = s.whyEnded(ctx, out[ended])
	}
	if failed != nil {
		why := errs.As(failed)
		return nil, errs.Unavailable("fork_failed", "Not all copies could be started, so that none is left: "+why.Message).
			Because(errors.Unwrap(failed)).After(why.RetryAfter)
	}
	return out, nil
}

// whyEnded is what became of a fork whose copies ended each other, so that none
// of them says more: most likely their state could not be saved.
func (s *Service) whyEnded(ctx context.Context, x Sandbox) error {
	if x.FromState != nil {
		if state, err := s.store.State(ctx, *x.FromState); err == nil && state.Error != "" {
			return errs.Unavailable("create_failed", state.Error)
		}
	}
	return errs.Unavailable("create_failed", "A copy could not be started, so that none was made.")
}

// LookupFork reads the copies that a receipt of the caller names.
func (s *Service) LookupFork(ctx context.Context, r ForkReceipt) ([]Sandbox, error) {
	out := make([]Sandbox, len(r.Children))
	for i, child := range r.Children {
		var err error
		if out[i], err = s.store.Get(ctx, child); err != nil {
			return nil, err
		}
	}
	return out, nil
}
