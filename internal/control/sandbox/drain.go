package sandbox

import (
	"context"
	"log/slog"
	"time"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Bounds of emptying hosts.
const (
	// drainAtOnce is how many sandboxes of one host are being paused at a time.
	drainAtOnce = 8
	// drainLease is how long a server that is about to pause one keeps others from
	// trying.
	drainLease = 4 * time.Second
	// drainDoublings bounds how often the pause after a failure doubles.
	drainDoublings = 2
)

// ErrDraining is what who wants to start something gets from the one host that
// could: it can be reached, and takes nothing.
var ErrDraining = errs.Unavailable("host_draining", "The host that holds this is being emptied and starts nothing now. Try again when it takes sandboxes again.").
	After(30 * time.Second)

// Draining is a sandbox that is to leave its host.
type Draining struct {
	ID id.Sandbox
	// Failed is how often that was tried in vain since it was asked for.
	Failed int64
}

// Drainer pauses what runs on hosts that are to be emptied. It looks at the
// world and takes no input; several servers may each run one. What it has begun
// is never taken back: neither the deadline of the drain nor its end stops a
// pause that is under way.
type Drainer struct {
	service *Service
	log     *slog.Logger
}

// NewDrainer makes the loop.
func NewDrainer(service *Service, log *slog.Logger) *Drainer { return &Drainer{service, log} }

// Run drains until ctx ends.
func (d *Drainer) Run(ctx context.Context) error {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := observe.Round(ctx, "host_drain", d.Pass); err != nil && ctx.Err() == nil {
			d.log.WarnContext(ctx, "cannot empty hosts", "error", err)
		}
	}
}

// Pass is one bounded look.
func (d *Drainer) Pass(ctx context.Context) error {
	s := d.service
	take := func(ctx context.Context, n int) ([]Draining, error) {
		return s.store.TakeDraining(ctx, drainLease, drainAtOnce, n)
	}
	return batches(ctx, take, func(ctx context.Context, x Draining) error {
		return s.beginDue(ctx, x.ID, DueDrain, time.Time{}, func(row Sandbox) (Begin, error) {
			b, err := s.pausing(row, principal.System("drain"), PausedDrain, true)
			b.Params.Failed = x.Failed
			return b, err
		})
	})
}
