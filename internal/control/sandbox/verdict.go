package sandbox

import (
	"context"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// rests: no operation moves a sandbox in s.
func rests(s Status) bool { return s == StatusRunning || s == StatusPaused || s == StatusMissing }

// judgeRows makes rows say what their host holds.
func (r *Reconciler) judgeRows(ctx context.Context, h host.Ref, s *suspicions, rows []Sandbox, left map[id.Sandbox]Departure, inv Inventory) error {
	instances := make(map[id.Sandbox]Instance, len(inv.Instances))
	for _, in := range inv.Instances {
		if _, is := departed(in, left); is {
			continue // of a life that is over
		}
		if known, ok := instances[in.Sandbox]; !ok || known.Incarnation < in.Incarnation {
			instances[in.Sandbox] = in
		}
	}
	held := heldByID(inv)
	absent := map[Key]bool{}
	for _, x := range rows {
		in, there := instances[x.ID]
		var err error
		switch x.Status {
		case StatusRunning:
			err = r.judgeRunning(ctx, h, s, x, in, there, held, absent)
		case StatusPaused:
			err = r.judgePaused(ctx, h, s, x, in, there, held, absent)
		case StatusMissing:
			if err = r.judgeMissing(ctx, h, x, in, there, held); err == nil && !there {
				err = r.judgeLost(ctx, h, s, x, absent)
			}
		}
		if err != nil && !errs.Is(err, "invalid_state") {
			return err
		}
	}
	s.absent = absent
	return nil
}

// judgeRunning ends a row whose sandbox is proven gone: at once when the agent
// says that it exited. One that is merely not there is missing after a second
// look.
func (r *Reconciler) judgeRunning(ctx context.Context, h host.Ref, s *suspicions, x Sandbox, in Instance, there bool, held map[id.Snapshot]Held, absent map[Key]bool) error {
	key := Key{x.ID, x.Incarnation}
	switch {
	case there && in.Incarnation == x.Incarnation && in.Phase == PhaseExited:
		return r.stop(ctx, h, x, endReason(in.EndReason))
	case there && in.Incarnation == x.Incarnation && in.Phase == PhasePaused:
		return r.adopt(ctx, x, in, held)
	case there && in.Incarnation >= x.Incarnation:
		return nil
	case s.absent[key]:
		return r.miss(ctx, x, "its host does not know it")
	}
	absent[key] = true
	return nil
}

// judgeLost ends what its host, which can be asked, has not known for long. What
// was paused is waited for as long as what is missing may be: its state may be on
// a disk that is not there now.
func (r *Reconciler) judgeLost(ctx context.Context, h host.Ref, s *suspicions, x Sandbox, absent map[Key]bool) error {
	key := Key{x.ID, x.Incarnation}
	if x.PausedAt == nil && s.absent[key] && r.now().Sub(x.UpdatedAt) >= lostGraces*r.grace {
		return r.stop(ctx, h, x, EndLost)
	}
	absent[key] = true
	return nil
}

// judgePaused: what its host paused by itself goes on when the database's
// deadline has not passed; what runs although it is paused here was started by
// an operation whose answer was lost.
func (r *Reconciler) judgePaused(ctx context.Context, h host.Ref, s *suspicions, x Sandbox, in Instance, there bool, held map[id.Snapshot]Held, absent map[Key]bool) error {
	key := Key{x.ID, x.Incarnation}
	has := false
	if x.StateID != nil {
		_, has = held[*x.StateID]
	}
	switch {
	case there && in.Phase == PhaseRunning && in.Incarnation == x.Incarnation:
		if err := r.miss(ctx, x, "it runs there"); err != nil {
			return err
		}
		return r.found(ctx, x)
	case there && in.Phase == PhasePaused && in.Incarnation == x.Incarnation && x.StateID != nil && in.State != *x.StateID:
		// It ran, unheard of, and was paused by its host again since.
		if _, whole := held[in.State]; !whole {
			return nil
		}
		if err := r.miss(ctx, x, "it ran there"); err != nil {
			return err
		}
		x.Status = StatusMissing
		return r.adopt(ctx, x, in, held)
	case x.DeadlineAt != nil && x.DeadlineAt.After(r.now()) && has:
		return r.goOn(ctx, x)
	case there || has || x.KeptBeside(h.ID):
		return nil
	case s.absent[key]:
		r.log.ErrorContext(ctx, "a paused sandbox is not on its host any more", "sandbox_id", x.ID.String(), "host_id", h.ID.String())
		return r.miss(ctx, x, "its saved state is not there")
	}
	absent[key] = true
	return nil
}

// judgeMissing takes back what its host shows again.
func (r *Reconciler) judgeMissing(ctx context.Context, h host.Ref, x Sandbox, in Instance, there bool, held map[id.Snapshot]Held) error {
	switch {
	case there && in.Phase == PhasePaused && in.Incarnation <= x.Incarnation:
		return r.adopt(ctx, x, in, held)
	case !there || in.Incarnation != x.Incarnation:
		return nil // it stays missing until its time is over
	case in.Phase == PhaseRunning:
		return r.found(ctx, x)
	case in.Phase == PhaseExited:
		return r.stop(ctx, h, x, endReason(in.EndReason))
	}
	return nil
}

// mostAhead is how many lives a host may be ahead of an older database.
const mostAhead = 1_000_000

// bringForward corrects rows that are older than what their host holds, as after
// an older database was restored: an incarnation is written down before a host
// hears of it, so that a host can never be ahead otherwise. The rows are changed
// in the map too.
func (r *Reconciler) bringForward(ctx context.Context, h host.Ref, rows map[id.Sandbox]Sandbox, inv Inventory) error {
	held := heldByID(inv)
	for _, in := range inv.Instances {
		x, known := rows[in.Sandbox]
		settled := in.Phase == PhaseRunning || in.Phase == PhasePaused || in.Phase == PhaseExited
		if in.Incarnation-x.Incarnation > mostAhead {
			r.log.WarnContext(ctx, "a host claims an incarnation that cannot be", "sandbox_id", in.Sandbox.String(), "host_id", h.ID.String(), "incarnation", in.Incarnation)
			continue
		}
		if !known || in.Unknown || x.Host.ID != h.ID || !x.Status.Live() || x.Status == StatusStopping || in.Incarnation <= x.Incarnation || !settled {
			continue
		}
		moved, err := r.store.BringForward(ctx, x, in.Incarnation)
		if errs.Is(err, "invalid_state") {
			continue
		}
		if err != nil {
			return err
		}
		r.log.WarnContext(ctx, "a host is ahead of the database; its sandbox is brought forward", "sandbox_id", x.ID.String(), "host_id", h.ID.String(),
			"status", string(x.Status), "incarnation", x.Incarnation, "to", in.Incarnation)
		r.watch.Publish(moved)
		moved.Host = x.Host
		rows[x.ID] = moved
		if err := r.judgeMissing(ctx, h, moved, in, true, held); err != nil && !errs.Is(err, "invalid_state") {
			return err
		}
	}
	return nil
}

// lost says that a row ended because its host did not show it for long. Nobody
// has seen that it is gone.
func lost(x Sandbox) bool { return !x.Status.Live() && x.EndReason == EndLost }

// recoverable says that an instance is what is left to recover from of a row that
// has ended.
func recoverable(in Instance, x Sandbox, h id.Host) bool {
	return x.Host.ID == h && in.Phase == PhasePaused && x.StateID != nil && *x.StateID == in.State && x.StateStatus == StateReady
}

// recover takes note of the state in which what was given up came back: it is
// what its owner can recover from. What still runs is paused first, as a stray.
func (r *Reconciler) recover(ctx context.Context, h host.Ref, x Sandbox, in Instance, held map[id.Snapshot]Held) error {
	state, whole := held[in.State]
	if x.Host.ID != h.ID || in.Phase != PhasePaused || !whole || state.Sandbox != x.ID {
		return nil
	}
	sealed, err := resealedEnv(r.service.secret, x, state.ID)
	if err != nil {
		return err
	}
	recovered, err := r.store.Recover(ctx, x, state, sealed)
	if errs.Is(err, "invalid_state") || errs.Is(err, "foreign_state") {
		return nil // it was not given up, or the host names another's state
	}
	if err != nil || !recovered {
		return err // what is not recovered is an orphan at the next look
	}
	r.log.InfoContext(ctx, "what was given up is back and can be recovered from", "sandbox_id", x.ID.String(), "host_id", h.ID.String(), "snapshot_id", state.ID.String())
	return nil
}

func heldByID(inv Inventory) map[id.Snapshot]Held {
	held := make(map[id.Snapshot]Held, len(inv.States))
	for _, st := range inv.States {
		held[st.ID] = st
	}
	return held
}

func (r *Reconciler) miss(ctx context.Context, x Sandbox, why string) error {
	return r.move(ctx, Transition{
		ID: x.ID, From: x.Status, To: StatusMissing, Incarnation: x.Incarnation, Event: "missing", EventData: map[string]any{"reason": why},
	})
}

func (r *Reconciler) found(ctx context.Context, x Sandbox) error {
	return r.move(ctx, Transition{
		ID: x.ID, From: StatusMissing, To: StatusRunning, Incarnation: x.Incarnation, Message: "The host let it run on.",
		Event: "running", EventData: map[string]any{"seen_by": "inventory"},
	})
}

func (r *Reconciler) move(ctx context.Context, t Transition) error {
	x, err := r.store.Apply(ctx, t)
	if err == nil {
		r.watch.Publish(x)
	}
	return err
}

// adopt makes a row paused whose sandbox its host holds paused.
func (r *Reconciler) adopt(ctx context.Context, x Sandbox, in Instance, held map[id.Snapshot]Held) error {
	state, ok := held[in.State]
	if !ok || state.Sandbox != x.ID {
		return nil // not seen whole; the next inventory has it
	}
	sealed, err := resealedEnv(r.service.secret, x, state.ID)
	if err != nil {
		return err
	}
	a := Adopt{Row: x, Held: state, Reason: in.PausedReason, EnvSealed: sealed, KeepDeadline: in.PausedReason != ""}
	if a.Reason == "" {
		a.Reason = PausedRequested
	} else {
		entry := audit.By(principal.System("host")).SandboxAutoPaused(x.TeamID, x.ID, a.Reason)
		a.Audit = &entry
	}
	paused, err := r.store.Adopt(ctx, a)
	if err != nil {
		return err
	}
	r.log.InfoContext(ctx, "a host paused a sandbox without being heard", "sandbox_id", x.ID.String(), "reason", a.Reason)
	r.watch.Publish(paused)
	r.agents.Forget(x.Host, x.ID, x.Incarnation)
	if paused.DeadlineAt != nil && paused.DeadlineAt.After(r.now()) {
		// What was just written lacks the host.
		if x, err = r.store.Get(ctx, x.ID); err != nil {
			return err
		}
		return r.goOn(ctx, x)
	}
	return nil
}

// goOn resumes what its host paused wrongly. Without room it stays paused, and
// the next pass tries again.
func (r *Reconciler) goOn(ctx context.Context, x Sandbox) error {
	if !x.Host.Online {
		return nil
	}
	b, err := r.service.resuming(ctx, x, principal.System("reconcile"), false)
	if errs.Is(err, "later_life") {
		return nil // it is for people to judge
	}
	if err != nil {
		return err
	}
	b.Params.TimeoutSec, b.Params.Reason = max(int64(x.DeadlineAt.Sub(r.now()).Seconds()), 1), x.PausedReason
	if _, _, _, err = r.service.open(ctx, b); errs.CodeOf(err) == errs.CodeUnavailable || errs.CodeOf(err) == errs.CodeFailedPrecondition {
		r.log.WarnContext(ctx, "cannot resume what its host paused by itself", "sandbox_id", x.ID.String(), "error", err)
		return nil
	}
	return err
}

func (r *Reconciler) stop(ctx context.Context, h host.Ref, x Sandbox, reason string) error {
	stopped, err := r.store.Died(ctx, x.ID, x.Incarnation, reason, map[string]any{"seen_by": "inventory"})
	if err != nil {
		return err
	}
	r.log.InfoContext(ctx, "sandbox is gone from its host", "sandbox_id", x.ID.String(), "incarnation", x.Incarnation, "host_id", h.ID.String(), "reason", reason)
	r.watch.Publish(stopped)
	r.agents.Forget(h, x.ID, x.Incarnation)
	return nil
}
