package sandbox

import (
	"context"
	"errors"
	"time"

	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Pace of fetching: below it a transfer has failed.
const (
	fetchBase     = 2 * time.Minute
	fetchMBPerSec = 4
	// refetches is how often an operation has a copy fetched anew that its host
	// could not use.
	refetches = 3
)

// Needs are what a host lacks to start from a state.
type Needs struct {
	// State is nil when it is there.
	State *Carried
	// Stored is the same state in the store, whether it is needed or not; nil when
	// that has it not.
	Stored *Carried
	// Engine is nil when its build is there, or is not needed.
	Engine *Carried
}

// Carried is something that a host is to fetch.
type Carried struct {
	What  string // state, engine, image
	Cargo host.Cargo
	From  id.Artifact
	Size  int64
}

// equip brings to a sandbox's host what it lacks to start from a state. Done
// twice it finds everything there. Its copy is written down before its bytes
// are, so that it is removed with the state.
func (r *Runner) equip(ctx context.Context, op *Operation, x Sandbox, state id.Snapshot) error {
	needs, err := r.store.Needs(ctx, x.Host.ID, state)
	if err != nil {
		return err
	}
	if needs.Engine != nil {
		if err := r.fetch(ctx, op, x, *needs.Engine); err != nil {
			return err
		}
		if err := r.step(StepEngineFetched, *op); err != nil {
			return err
		}
	}
	if needs.State == nil {
		return nil
	}
	if err := r.store.BringCopy(ctx, state, x.Host.ID); err != nil {
		return err
	}
	if err := r.step(StepStateComing, *op); err != nil {
		return err
	}
	if err := r.fetch(ctx, op, x, *needs.State); err != nil {
		return err
	}
	if err := r.step(StepStateFetched, *op); err != nil {
		return err
	}
	if err := r.store.CopyMade(ctx, state, x.Host.ID); err != nil {
		return err
	}
	return r.step(StepStateThere, *op)
}

// bringImage has a host fetch the image that a sandbox is booted from before it is
// started, where that may take a while: who waits sees how far it is, and it has
// time of its own. What goes wrong is said by the start, which fetches for itself
// what is lacking.
func (r *Runner) bringImage(ctx context.Context, op *Operation, x Sandbox, l Launch) {
	t := l.Template
	if t.Artifact.IsZero() || r.cfg.Artifacts == nil {
		return
	}
	c := Carried{What: "image", Cargo: host.ImageCargo{Digest: string(t.ImageDigest), SizeBytes: t.ImageSizeBytes}, From: t.Artifact, Size: t.ImageSizeBytes}
	if err := r.fetch(ctx, op, x, c); err != nil && ctx.Err() == nil {
		r.log.InfoContext(ctx, "an image did not come before the start", "sandbox_id", x.ID.String(), "error", err)
	}
}

// fetch has a host fetch one thing, and tells how far that is.
func (r *Runner) fetch(ctx context.Context, op *Operation, x Sandbox, c Carried) error {
	if r.cfg.Artifacts == nil {
		return errs.FailedPrecondition("no_store", "The host lacks what the sandbox starts from, and there is no store to fetch it from.")
	}
	from, err := r.cfg.Artifacts.Source(ctx, c.From, x.Host.ID, artifact.Read)
	if err != nil {
		return err
	}
	limit := fetchBase + time.Duration(c.Size>>20/fetchMBPerSec)*time.Second
	told := time.Now()
	note := func(ctx context.Context, done, total int64) {
		told = time.Now()
		// What follows has its own time after that.
		deadline := limit + saveLimit(x)
		if err := r.store.Progress(ctx, op.ID, Progress{What: c.What, Done: done, Total: total}, deadline); err != nil && ctx.Err() == nil {
			r.log.InfoContext(ctx, "cannot note how far a transfer is", "error", err)
			return
		}
		if at := told.Add(deadline); at.After(op.DeadlineAt) {
			op.DeadlineAt = at
		}
	}
	note(ctx, 0, c.Size)
	return r.call(x.Host.ID, func() error {
		callCtx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return r.agents.Fetch(callCtx, x.Host, c.Cargo, from, func(done, total int64) {
			if time.Since(told) >= time.Second {
				note(callCtx, done, total)
			}
		})
	})
}

// supply has a host that could not start from a state fetch what may help it;
// false when nothing may.
func (r *Runner) supply(ctx context.Context, op *Operation, x Sandbox, state id.Snapshot, why error) bool {
	if op.Attempts > refetches {
		return false
	}
	return r.lostCopy(ctx, x, state, why) || r.lostDaemon(ctx, op, x, state, why)
}

// lostDaemon has a host fetch the daemon in a state's memory again, which its copy
// has lost and the one in the store may have. That copy is as good as it was for all
// else, so that nothing is noted of it.
func (r *Runner) lostDaemon(ctx context.Context, op *Operation, x Sandbox, state id.Snapshot, why error) bool {
	if errs.As(why).Reason != "guest_build_missing" {
		return false
	}
	needs, err := r.store.Needs(ctx, x.Host.ID, state)
	if err == nil && needs.Stored == nil {
		return false
	}
	if err == nil {
		err = r.fetch(ctx, op, x, *needs.Stored)
	}
	if err != nil && !errors.Is(err, errCrowded) {
		r.log.WarnContext(ctx, "a host lacks the daemon in a saved state, and could not fetch it", "snapshot_id", state.String(), "host_id", x.Host.ID.String(), "error", err)
		return false
	}
	return true
}

// lostCopy takes note that a host does not have, or cannot use, the copy that it
// was said to have, when the store has it: it is fetched again.
func (r *Runner) lostCopy(ctx context.Context, x Sandbox, state id.Snapshot, why error) bool {
	switch errs.As(why).Reason {
	case "unknown_state", "state_not_found", "state_damaged":
	default:
		return false
	}
	s, err := r.store.State(ctx, state)
	if err != nil || !s.Stored {
		return false
	}
	if err := r.store.CopyLost(ctx, state, x.Host.ID); err != nil {
		return false
	}
	r.log.WarnContext(ctx, "a host lacks the copy of a state that it had; it is fetched again", "snapshot_id", state.String(), "host_id", x.Host.ID.String(), "error", why)
	return true
}
