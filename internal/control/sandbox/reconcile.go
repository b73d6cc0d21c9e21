package sandbox

import (
	"context"
	"log/slog"
	"time"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Rhythm and bounds of the sweep.
const (
	sweepEvery   = time.Second
	pruneEvery   = 10 * time.Minute
	expiredBatch = 100
	pruneBatch   = 500
)

// Sweep ends sandboxes whose deadline has passed and removes rows that ended
// long ago. It looks at the world and takes no input; several servers may each
// run one.
type Sweep struct {
	service *Service
	log     *slog.Logger
	pruned  time.Time
}

// NewSweep makes the loop.
func NewSweep(service *Service, log *slog.Logger) *Sweep { return &Sweep{service: service, log: log} }

// Run sweeps until ctx ends.
func (w *Sweep) Run(ctx context.Context) error {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := w.Pass(ctx); err != nil && ctx.Err() == nil {
			w.log.WarnContext(ctx, "sweep failed", "error", err)
		}
	}
}

// Pass is one bounded sweep.
func (w *Sweep) Pass(ctx context.Context) error {
	if err := w.expire(ctx); err != nil {
		return err
	}
	if time.Since(w.pruned) < pruneEvery {
		return nil
	}
	n, err := w.service.store.Prune(ctx, Retention, pruneBatch)
	if err == nil && n < pruneBatch {
		w.pruned = time.Now() // nothing is left; else go on in the next pass
	}
	return err
}

// expire ends what is to be killed at its deadline. What is to be paused is
// left alone in this release.
func (w *Sweep) expire(ctx context.Context) error {
	expired, err := w.service.store.Expired(ctx, expiredBatch)
	if err != nil {
		return err
	}
	for _, x := range expired {
		if _, err := w.service.end(ctx, principal.System("deadline"), x, nil, EndTimeout); err != nil && !errs.Is(err, ErrNotFound.Reason) {
			return err
		}
	}
	return nil
}
