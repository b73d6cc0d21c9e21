package build

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"skerry.dev/skerry/internal/kernel/observe"
)

// Rhythm and bounds of the sweep.
const (
	sweepEvery = 15 * time.Second
	sweepBatch = 100
	// layerShare is how many layers a team keeps, and layerAge for how long without
	// a use.
	layerShare = 50
	layerAge   = 14 * 24 * time.Hour
	// leftAge is how long a state is left alone that nothing names: whoever made it
	// may be about to.
	leftAge = 10 * time.Minute
	// Retention is how long builds and their logs are kept.
	Retention = 30 * 24 * time.Hour
)

// Sweep removes what builds have left: sandboxes, states, layers, archives,
// rows. It looks at the world and takes no input; several servers may run one.
type Sweep struct {
	store     Store
	sandboxes Sandboxes
	leftAge   time.Duration
	log       *slog.Logger
}

// NewSweep makes the loop.
func NewSweep(store Store, sandboxes Sandboxes, log *slog.Logger) *Sweep {
	return &Sweep{store: store, sandboxes: sandboxes, leftAge: leftAge, log: log}
}

// SetLeftAge is for tests, which have no ten minutes.
func (w *Sweep) SetLeftAge(d time.Duration) { w.leftAge = d }

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
		if err := observe.Round(ctx, "build_sweep", w.Pass); err != nil && ctx.Err() == nil {
			w.log.WarnContext(ctx, "cannot sweep after builds", "error", err)
		}
	}
}

// Pass is one bounded sweep.
func (w *Sweep) Pass(ctx context.Context) error {
	var failed error
	left, err := w.store.LeftSandboxes(ctx, sweepBatch)
	failed = errors.Join(failed, err)
	for _, x := range left {
		failed = errors.Join(failed, w.sandboxes.EndForBuild(ctx, x))
	}
	_, err = w.store.ForgetLayers(ctx, layerShare, layerAge)
	failed = errors.Join(failed, err)
	states, err := w.store.LeftStates(ctx, w.leftAge, sweepBatch)
	failed = errors.Join(failed, err)
	for _, s := range states {
		failed = errors.Join(failed, w.sandboxes.DropForBuild(ctx, s.Team, s.State))
	}
	_, err = w.store.Prune(ctx, Retention, sweepBatch)
	return errors.Join(failed, err)
}
