package sandbox

import (
	"context"
	"errors"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// EndBuild is why a build's sandbox ended: its build needs it no more.
const EndBuild = "build_ended"

// BuildStart is what a build asks for: a sandbox in which its steps run.
type BuildStart struct {
	Build    id.Build
	Team     id.Team
	Template template.Template
	// From is what a former build left of the same steps; nil boots the template.
	From      *id.Snapshot
	CPUMillis int64
	MemoryMB  int64
	DiskMB    int64
	// Limit is after how long it is ended, whatever its build does.
	Limit time.Duration
}

// StartForBuild makes a sandbox for a build and returns when it runs. It is like
// any other but that its team does not see it.
func (s *Service) StartForBuild(ctx context.Context, b BuildStart) (Sandbox, error) {
	by := builder(b.Team)
	cpus, limit := float64(b.CPUMillis)/1000, int64(b.Limit/time.Second)
	req := CreateRequest{Template: b.Template.Name, VCPUs: &cpus, MemoryMB: &b.MemoryMB, DiskMB: &b.DiskMB, TimeoutSec: &limit, OnTimeout: OnTimeoutKill}
	if err := req.Validate(); err != nil {
		return Sandbox{}, err
	}
	var n NewSandbox
	var err error
	if b.From != nil {
		state, err := s.store.State(ctx, *b.From)
		if err != nil {
			return Sandbox{}, err
		}
		if state.TeamID != b.Team || state.Status != StateReady {
			return Sandbox{}, StateGone(state)
		}
		n, err = s.planFrom(ctx, by, b.Team, req, state)
		if err != nil {
			return Sandbox{}, err
		}
	} else if n, err = s.plan(by, b.Team, req, b.Template); err != nil {
		return Sandbox{}, err
	}
	n.Sandbox.BuildID = &b.Build
	r, err := s.placed(ctx, by, n)
	if err != nil {
		return Sandbox{}, err
	}
	if x, err := s.Await(ctx, r); err != nil {
		return x, err
	}
	return s.store.Get(ctx, r.Sandbox) // what the watch tells lacks where the host is
}

// SaveForBuild saves a build's running sandbox, which goes on, and returns when
// the state is complete.
func (s *Service) SaveForBuild(ctx context.Context, sandbox id.Sandbox, kind StateKind, memory bool) (Snapshot, error) {
	x, err := s.store.Get(ctx, sandbox)
	if err != nil {
		return Snapshot{}, err
	}
	if x.BuildID == nil {
		return Snapshot{}, errs.Internal(errors.New("sandbox: not a build's"))
	}
	made, err := s.making(x, builder(x.TeamID), kind, memory)
	if err != nil {
		return Snapshot{}, err
	}
	moved, op, _, err := s.open(ctx, Begin{
		ID: x.ID, From: StatusRunning, To: StatusSnapshotting, Operation: id.NewOperation(), Kind: KindSnapshot,
		Params: Params{State: made.ID, Memory: memory}, Making: &made,
	})
	if err != nil {
		return Snapshot{}, err
	}
	if _, err := s.finish(ctx, pending{sandbox: moved, operation: op.ID}); err != nil {
		return Snapshot{}, err
	}
	return s.store.State(ctx, made.ID)
}

// EndForBuild ends a sandbox of a build and returns when that is recorded; from
// then on it will be done. Repeats, and one that is gone, are harmless.
func (s *Service) EndForBuild(ctx context.Context, sandbox id.Sandbox) error {
	x, err := s.store.Get(ctx, sandbox)
	if errs.Is(err, ErrNotFound.Reason) {
		return nil
	}
	if err != nil {
		return err
	}
	if x.BuildID == nil {
		return errs.Internal(errors.New("sandbox: not a build's"))
	}
	_, err = s.end(ctx, builder(x.TeamID), sandbox, nil, EndBuild)
	return err
}

// StateForBuild reads a state that a build made.
func (s *Service) StateForBuild(ctx context.Context, state id.Snapshot) (Snapshot, error) {
	return s.store.State(ctx, state)
}

// DropForBuild gives up a state that a build made and nothing needs any more.
func (s *Service) DropForBuild(ctx context.Context, team id.Team, state id.Snapshot) error {
	err := s.store.DeleteState(ctx, team, state, audit.By(builder(team)).SnapshotDeleted(team, state, ""))
	if errs.Is(err, ErrStateNotFound.Reason) {
		return nil
	}
	return err
}

// builder acts for a team's builds.
func builder(team id.Team) principal.Principal {
	by := principal.System("build")
	by.HasTeam, by.TeamID = true, team
	return by
}
