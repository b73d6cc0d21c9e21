package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Rhythm and bounds of the sweep.
const (
	sweepEvery = time.Second
	pruneEvery = 10 * time.Minute
	sweepBatch = 200
	// sweepRounds bounds how many batches one pass takes of a kind.
	sweepRounds = 5
	// sweepHands is how many sandboxes of a batch are seen to at once.
	sweepHands = 16
	pruneBatch = 500
	// idleLease is how long a server that asks a host keeps others from asking.
	idleLease = 4 * time.Second
	statsWait = 3 * time.Second
	// dropLease is when a removal that a host did not confirm is tried again.
	dropLease = 30 * time.Second
	dropWait  = 20 * time.Second
)

// Sweep acts on what time alone brings about: deadlines, idle time, checkpoints
// that are due, saved states to be removed, rows that are old enough. It looks
// at the world and takes no input; several servers may each run one, for
// whatever it begins is begun only if it is still due under the row's lock.
type Sweep struct {
	service *Service
	log     *slog.Logger
	pruned  time.Time
}

// NewSweep makes the loop.
func NewSweep(service *Service, log *slog.Logger) *Sweep { return &Sweep{service: service, log: log} }

// Run sweeps until ctx ends. Deadlines are not held up by hosts that are slow to
// say how idle a sandbox is or to remove a state.
func (w *Sweep) Run(ctx context.Context) error {
	var loops sync.WaitGroup
	for name, pass := range map[string]func(context.Context) error{
		"sandbox_deadlines": w.deadlines, "sandbox_idle": w.idle, "state_removal": w.drop, "sandbox_retention": w.old,
	} {
		loops.Go(func() { w.every(ctx, name, pass) })
	}
	loops.Wait()
	return nil
}

func (w *Sweep) every(ctx context.Context, name string, pass func(context.Context) error) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := observe.Round(ctx, name, pass); err != nil && ctx.Err() == nil {
			w.log.WarnContext(ctx, "sweep failed", "loop", name, "error", err)
		}
	}
}

// Pass is one bounded sweep of everything.
func (w *Sweep) Pass(ctx context.Context) error {
	return errors.Join(w.deadlines(ctx), w.idle(ctx), w.drop(ctx), w.old(ctx))
}

// batches takes batches until one is not full, and does each item of them; one
// that fails holds up no other.
func batches[T any](ctx context.Context, take func(context.Context, int) ([]T, error), do func(context.Context, T) error) error {
	var failed error
	var mu sync.Mutex
	for range sweepRounds {
		items, err := take(ctx, sweepBatch)
		if err != nil {
			return err
		}
		hands := make(chan struct{}, sweepHands)
		var under sync.WaitGroup
		for _, item := range items {
			hands <- struct{}{}
			under.Go(func() {
				defer func() { <-hands }()
				if err := do(ctx, item); err != nil && ctx.Err() == nil && !errs.Is(err, ErrNotFound.Reason) && !errs.Is(err, "invalid_state") {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
				}
			})
		}
		under.Wait()
		if len(items) < sweepBatch || failed != nil || ctx.Err() != nil {
			break
		}
	}
	return failed
}

// deadlines pauses or kills what has run for long enough, and saves what wants
// to be saved from time to time.
func (w *Sweep) deadlines(ctx context.Context) error {
	s := w.service
	by := principal.System("deadline")
	return errors.Join(
		batches(ctx, s.store.Expired, func(ctx context.Context, e Expired) error {
			if e.OnTimeout == OnTimeoutKill {
				_, err := s.end(ctx, by, e.ID, nil, EndTimeout)
				return err
			}
			return s.beginDue(ctx, e.ID, DueDeadline, time.Time{}, func(x Sandbox) (Begin, error) { return s.pausing(x, by, PausedDeadline, true) })
		}),
		batches(ctx, s.store.CheckpointsDue, func(ctx context.Context, x id.Sandbox) error {
			return s.beginDue(ctx, x, DueCheckpoint, time.Time{}, func(x Sandbox) (Begin, error) {
				made, err := s.making(x, principal.System("checkpoint"), StateCheckpoint, true)
				return Begin{
					ID: x.ID, From: StatusRunning, To: StatusSnapshotting, Kind: KindCheckpoint,
					Params: Params{State: made.ID, Memory: true}, Making: &made,
				}, err
			})
		}),
	)
}

// idle asks the hosts of those that may have been idle for long enough, and
// pauses where nothing has gone on. The host has the last word.
func (w *Sweep) idle(ctx context.Context) error {
	s := w.service
	take := func(ctx context.Context, n int) ([]Sandbox, error) { return s.store.TakeIdle(ctx, idleLease, n) }
	return batches(ctx, take, func(ctx context.Context, x Sandbox) error {
		if x.IdleTimeoutSec == nil || x.IdleCheckAt == nil {
			return nil
		}
		limit := time.Duration(*x.IdleTimeoutSec) * time.Second
		sctx, cancel := context.WithTimeout(ctx, statsWait)
		defer cancel()
		stats, err := s.agents.Stats(sctx, x.Host, x.ID, x.Incarnation)
		if err != nil {
			// The lease brings it back; a host that is away is not asked at all.
			w.log.InfoContext(ctx, "cannot ask how idle a sandbox is", "sandbox_id", x.ID.String(), "error", err)
			return nil
		}
		if stats.Idle < limit {
			return s.store.PostponeIdle(ctx, x.ID, *x.IdleCheckAt, limit-stats.Idle)
		}
		return s.beginDue(ctx, x.ID, DueIdle, *x.IdleCheckAt, func(x Sandbox) (Begin, error) {
			b, err := s.pausing(x, principal.System("idle"), PausedIdle, true)
			b.Params.IfIdleSec = *x.IdleTimeoutSec
			b.Event = "" // none unless it is done
			return b, err
		})
	})
}

// beginDue opens an operation that the sweep found due, if it still is.
func (s *Service) beginDue(ctx context.Context, sandbox id.Sandbox, due Due, ref time.Time, plan func(Sandbox) (Begin, error)) error {
	x, err := s.store.Get(ctx, sandbox)
	if err != nil {
		return err
	}
	b, err := plan(x)
	if err != nil {
		return err
	}
	b.Operation, b.Due, b.IdleRef = id.NewOperation(), due, ref
	_, _, _, err = s.open(ctx, b)
	return err
}

// drop has hosts remove copies of states that nothing needs any more, all that
// are in reach at once.
func (w *Sweep) drop(ctx context.Context) error {
	s := w.service
	if err := s.store.DropForks(ctx); err != nil {
		return err
	}
	if err := s.store.SettleDropped(ctx, sweepBatch); err != nil {
		return err
	}
	take := func(ctx context.Context, n int) ([]Dropping, error) { return s.store.TakeDropping(ctx, dropLease, n) }
	err := batches(ctx, take, func(ctx context.Context, d Dropping) error {
		dctx, cancel := context.WithTimeout(ctx, dropWait)
		defer cancel()
		if err := s.agents.DeleteState(dctx, d.Host, d.ID); err != nil {
			w.log.InfoContext(ctx, "cannot remove a saved state now; it is tried again", "snapshot_id", d.ID.String(), "host_id", d.Host.ID.String(), "error", err)
			return nil
		}
		return s.store.Dropped(ctx, d.ID, d.Host.ID)
	})
	return errors.Join(err, s.store.SettleDropped(ctx, sweepBatch))
}

// old ends what has waited for too long and removes what is old, in bounded
// steps and not more often than it makes sense.
func (w *Sweep) old(ctx context.Context) error {
	if time.Since(w.pruned) < pruneEvery {
		return nil
	}
	s := w.service
	err := errors.Join(
		batches(ctx, s.store.PausedTooLong, func(ctx context.Context, x id.Sandbox) error {
			_, err := s.end(ctx, principal.System("retention"), x, nil, EndPausedLong)
			return err
		}),
		batches(ctx, s.store.MissingTooLong, func(ctx context.Context, k Key) error {
			x, err := s.store.Died(ctx, k.Sandbox, k.Incarnation, EndLost, map[string]any{"seen_by": "sweep"})
			if err == nil {
				s.watch.Publish(x)
			}
			return err
		}),
		batches(ctx, s.store.LeftStates, s.dropLeft),
	)
	left := false
	for _, prune := range []func() (int, error){
		func() (int, error) { return s.store.WarnExpiring(ctx, pruneBatch) },
		func() (int, error) { return s.store.Prune(ctx, Retention, pruneBatch) },
		func() (int, error) { return s.store.PruneStates(ctx, Retention, pruneBatch) },
		func() (int, error) { return s.store.PruneSamples(ctx, 20*pruneBatch) },
		func() (int, error) { return s.store.PruneHosts(ctx, pruneBatch) },
	} {
		n, perr := prune()
		err = errors.Join(err, perr)
		left = left || n >= pruneBatch
	}
	if err == nil && !left {
		w.pruned = time.Now() // else go on in the next pass
	}
	return err
}
