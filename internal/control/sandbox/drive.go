package sandbox

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// cleanupLimit bounds the call that ends what a failed create may have left. The
// inventory finds what it misses.
const cleanupLimit = 10 * time.Second

// driveCreate takes a sandbox from pending to running, or to error. An error
// that it returns leaves the operation open, to be tried again.
func (r *Runner) driveCreate(ctx context.Context, op Operation) error {
	if err := r.step(StepCreateAccepted, op); err != nil {
		return err
	}
	x, err := r.opened(ctx, op)
	if err != nil {
		return err
	}
	if x.Incarnation != op.Incarnation || (x.Status != StatusPending && x.Status != StatusStarting) {
		return InvalidState(x)
	}
	// What the host is told is put together while the row moves on.
	var launch Launch
	var unready error
	var preparing sync.WaitGroup
	as := x
	preparing.Go(func() { launch, unready = r.launch(ctx, as) })
	defer preparing.Wait()
	if x.Status == StatusPending {
		ref := x.Host
		if x, err = r.apply(ctx, Transition{ID: x.ID, From: StatusPending, To: StatusStarting, Incarnation: x.Incarnation, Event: "starting"}); err != nil {
			return err
		}
		x.Host = ref
	}
	if err := r.step(StepCreateStarting, op); err != nil {
		return err
	}
	if err := r.startable(ctx, x); errs.CodeOf(err) == errs.CodeFailedPrecondition || errors.Is(err, errNotSaved) && !time.Now().Before(op.DeadlineAt) {
		return r.refuse(ctx, op, x, err)
	} else if err != nil {
		return err
	}
	if x.FromState != nil {
		if err := r.equip(ctx, &op, x, *x.FromState); err != nil {
			if r.unsure(ctx, err) || errors.Is(err, errAbandoned) || errs.Is(err, "deadline_exceeded") && time.Now().Before(op.DeadlineAt) {
				return err
			}
			return r.refuse(ctx, op, x, err)
		}
	}
	if preparing.Wait(); unready != nil {
		return r.refuse(ctx, op, x, unready)
	}
	if op.Params.ImageNew {
		r.bringImage(ctx, &op, x, launch)
	}
	callCtx, cancel := context.WithDeadline(ctx, op.DeadlineAt)
	defer cancel()
	var launched Launched
	err = r.call(x.Host.ID, func() (err error) {
		launched, err = r.agents.CreateSandbox(callCtx, x.Host, launch)
		return err
	})
	if err != nil {
		// A host that knows a later life of it is asked again: this operation was
		// overtaken, or the database is an older one and about to be brought forward.
		if errors.Is(err, errCrowded) && callCtx.Err() == nil || ctx.Err() != nil ||
			(errs.Is(err, "stale_incarnation") || again(err) && time.Since(op.CreatedAt) < r.cfg.Patience) && callCtx.Err() == nil {
			return err
		}
		if x.FromState != nil && callCtx.Err() == nil && r.supply(ctx, &op, x, *x.FromState, err) {
			return err
		}
		if callCtx.Err() != nil {
			err = errs.Unavailable("deadline_exceeded", "The sandbox did not start in time. Create another.").Because(err)
		}
		return r.refuse(ctx, op, x, err)
	}
	if err := r.step(StepCreateLaunched, op); err != nil {
		return err
	}
	if _, err = r.apply(ctx, Transition{
		ID: x.ID, From: StatusStarting, To: StatusRunning, Incarnation: x.Incarnation,
		EngineVersion: launched.EngineVersion, Outcome: OutcomeSucceeded, Event: "running",
	}); err != nil {
		return err
	}
	return r.step(StepCreateRunning, op)
}

// opened is the sandbox of an operation, as whoever opened it just now left it.
func (r *Runner) opened(ctx context.Context, op Operation) (Sandbox, error) {
	if op.row != nil && op.Attempts == 1 {
		return *op.row, nil
	}
	return r.store.Get(ctx, op.SandboxID)
}

// unsure reports whether a step before the launch is to be tried again: nothing
// of the sandbox is anywhere yet.
func (r *Runner) unsure(ctx context.Context, err error) bool {
	return errors.Is(err, errCrowded) || ctx.Err() != nil || again(err)
}

// errNotSaved: what a copy starts from is still being saved.
var errNotSaved = errors.New("the state to start from is not complete yet")

// startable checks what a sandbox is to be started from. A state about to be
// removed waits for those who start from it.
func (r *Runner) startable(ctx context.Context, x Sandbox) error {
	if x.FromState == nil {
		return nil
	}
	state, err := r.store.State(ctx, *x.FromState)
	switch {
	case err != nil:
		return err
	case state.Status == StateCreating:
		return errNotSaved
	case state.Status == StateFailed:
		return errs.FailedPrecondition("state_failed", "What it was to be a copy of could not be saved: "+state.Error)
	case state.Status == StateDeleted:
		return StateGone(state)
	}
	return nil
}

// again reports whether it is unknown what became of a call, so that it is to
// be repeated. What the agent says itself has failed has failed.
func again(err error) bool {
	e := errs.As(err)
	if e.Code == errs.CodeCanceled {
		return true
	}
	switch e.Reason {
	case "host_unavailable", "host_busy", "host_refused", "deadline_exceeded", "agent_stopping":
		return true
	}
	return false
}

// refuse ends a create that failed: the row first, which frees its capacity,
// then whatever the host may still hold.
func (r *Runner) refuse(ctx context.Context, op Operation, x Sandbox, why error) error {
	if err := r.step(StepCreateRefused, op); err != nil {
		return err
	}
	e := errs.As(why)
	// A fork is all or none: the others go first, so that a death in between is
	// made up for when this operation is driven again.
	for _, other := range op.Params.Together {
		if other == x.ID {
			continue
		}
		if _, err := r.end(ctx, other, x.TeamID, EndForkFailed, e.Message); err != nil && !errs.Is(err, ErrNotFound.Reason) {
			return err
		}
	}
	r.log.WarnContext(ctx, "create failed", "sandbox_id", x.ID.String(), "host_id", x.Host.ID.String(), "error", why)
	_, err := r.apply(ctx, Transition{
		ID: x.ID, From: StatusStarting, To: StatusError, Incarnation: x.Incarnation, EndReason: EndCreateFailed, Error: e.Message,
		Outcome: OutcomeFailed, Reason: e.Reason, Message: e.Message,
		Event: "error", EventData: map[string]any{"reason": e.Reason, "message": e.Message},
	})
	if err != nil {
		return err
	}
	if err := r.step(StepCreateFailed, op); err != nil {
		return err
	}
	cctx, cancel := context.WithTimeout(ctx, cleanupLimit)
	defer cancel()
	if err := r.agents.DestroySandbox(cctx, x.Host, x.ID, x.Incarnation, EndCreateFailed); err != nil {
		r.log.WarnContext(ctx, "cannot clean up after a failed create now; the inventory will", "sandbox_id", x.ID.String(), "error", err)
	}
	return nil
}

// end begins the delete of a living sandbox, for whoever looks next to drive.
func (r *Runner) end(ctx context.Context, sandbox id.Sandbox, team id.Team, reason, detail string) (Sandbox, error) {
	x, op, err := r.store.BeginDelete(ctx, Delete{
		ID: sandbox, Operation: id.NewOperation(), EndReason: reason, Detail: detail, Living: true,
		Audit: audit.By(principal.System("fork")).SandboxDestroyed(team, sandbox, reason),
	})
	if err == nil && !op.ID.IsZero() {
		r.watch.Publish(x)
		r.Wake()
	}
	return x, err
}

func (r *Runner) launch(ctx context.Context, x Sandbox) (Launch, error) {
	tpl, err := r.templates.ByID(ctx, x.TemplateID)
	if err != nil {
		return Launch{}, err
	}
	env, err := openEnv(r.secret, x.ID.UUID(), x.EnvSealed)
	if err != nil {
		return Launch{}, err
	}
	image, err := r.templates.ImageSource(ctx, tpl, x.Host.ID)
	if err != nil {
		return Launch{}, err
	}
	return Launch{
		State: x.FromState, Deadline: time.Now().Add(time.Duration(x.TimeoutSec) * time.Second),
		Sandbox: x, Template: tpl, Env: env, AccessToken: AccessToken(r.secret, x.ID),
		ImageFrom: image, MaxProcesses: MaxProcesses(x.MemoryMB),
	}, nil
}

// MaxProcesses is how many processes a guest with so much memory may have. Each
// costs its host memory that the guest does not see.
func MaxProcesses(memoryMB int64) int { return int(min(max(memoryMB/4, 64), 1024)) }

// driveDelete ends a sandbox on its host. It is tried until the host confirms
// or the operation's deadline has passed; then the row ends, and the inventory
// ends the rest when the host is back.
func (r *Runner) driveDelete(ctx context.Context, op Operation) error {
	if err := r.step(StepDeleteAccepted, op); err != nil {
		return err
	}
	x, err := r.store.Get(ctx, op.SandboxID)
	if err != nil {
		return err
	}
	if x.Incarnation != op.Incarnation || x.Status != StatusStopping {
		return InvalidState(x)
	}
	t := Transition{
		ID: x.ID, From: StatusStopping, To: StatusStopped, Incarnation: x.Incarnation, Outcome: OutcomeSucceeded, DropStates: true,
		Event: "stopped", EventData: map[string]any{"reason": x.EndReason},
	}
	if time.Now().Before(op.DeadlineAt) && !x.HostDeleted {
		err := r.call(x.Host.ID, func() error {
			callCtx, cancel := context.WithTimeout(ctx, r.cfg.Destroy)
			defer cancel()
			return r.agents.DestroySandbox(callCtx, x.Host, x.ID, x.Incarnation, x.EndReason)
		})
		if err != nil {
			return err
		}
		if err := r.step(StepDeleteDestroyed, op); err != nil {
			return err
		}
	} else if !x.HostDeleted {
		t.Outcome, t.Reason, t.Message = OutcomeFailed, "host_unavailable", "The host was not reached in time."
	}
	if _, err := r.apply(ctx, t); err != nil {
		return err
	}
	r.agents.Forget(x.Host, x.ID, x.Incarnation-1)
	return r.step(StepDeleteStopped, op)
}

func (r *Runner) apply(ctx context.Context, t Transition) (Sandbox, error) {
	x, err := r.store.Apply(ctx, t)
	if err == nil {
		r.watch.Publish(x)
	}
	return x, err
}

const sealEnv = "sandbox-env"

// sealedEnv seals an environment for its owner, a sandbox or a saved state.
func sealedEnv(secret keyring.Secret, owner uuid.UUID, env map[string]string) ([]byte, error) {
	if len(env) == 0 {
		return nil, nil
	}
	plain, err := json.Marshal(env)
	if err != nil {
		return nil, fmt.Errorf("env: %w", err)
	}
	return secret.Seal(sealEnv, plain, owner[:]), nil
}

// resealedEnv is x's environment sealed for a state of it.
func resealedEnv(secret keyring.Secret, x Sandbox, state id.Snapshot) ([]byte, error) {
	env, err := openEnv(secret, x.ID.UUID(), x.EnvSealed)
	if err != nil {
		return nil, err
	}
	return sealedEnv(secret, state.UUID(), env)
}

func openEnv(secret keyring.Secret, owner uuid.UUID, sealed []byte) (map[string]string, error) {
	if len(sealed) == 0 {
		return nil, nil
	}
	plain, err := secret.Open(sealEnv, sealed, owner[:])
	if err != nil {
		return nil, fmt.Errorf("open env of %s: %w", owner, err)
	}
	var env map[string]string
	if err := json.Unmarshal(plain, &env); err != nil {
		return nil, fmt.Errorf("env of %s: %w", owner, err)
	}
	return env, nil
}

// AccessToken is what the guest daemon of a sandbox demands, derived so that no
// row holds it.
func AccessToken(secret keyring.Secret, sandbox id.Sandbox) string {
	u := sandbox.UUID()
	return hex.EncodeToString(secret.Derive("sandbox-access", u[:]))
}
