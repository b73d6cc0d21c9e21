package artifact

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Rhythm and bounds of collecting.
const (
	collectEvery = 30 * time.Second
	// grace is how long a ready artifact is left alone that nothing points at:
	// whoever had it made may be about to.
	grace = 10 * time.Minute
	// removing is how long a server that died with blobs in hand keeps others from
	// removing them.
	removing = 2 * time.Minute
	// Of each kind of work one turn does so much, so many times over.
	someArtifacts = 100
	someChunks    = 1000
	someBlobs     = 256
	turns         = 50
	atOnce        = 8
)

// Step is a point of collecting at which a process may die. The crash test walks
// all of them.
type Step string

// The steps, each named by what has just been done.
const (
	StepExpired  Step = "expired"  // uploads that nobody goes on with are given up
	StepAgain    Step = "again"    // what the store has lost of is to be brought again
	StepMarked   Step = "marked"   // what nothing points at is to be deleted
	StepReleased Step = "released" // one of those lost some of its chunks, or is gone
	StepTaken    Step = "taken"    // blobs are about to be removed
	StepRemoved  Step = "removed"  // one blob was
	StepCleared  Step = "cleared"  // and is forgotten
)

// Steps are all of them.
func Steps() []Step {
	return []Step{StepExpired, StepAgain, StepMarked, StepReleased, StepTaken, StepRemoved, StepCleared}
}

// Shelf is what the collector needs of the room's store. Each verb is one
// transaction; several servers share the work.
type Shelf interface {
	// ExpireUploads gives up to n uploads up whose lease has run out.
	ExpireUploads(ctx context.Context, n int) (int, error)
	// BringAgain has up to n states and engines uploaded anew of which the store has
	// lost something, and hosts in reach have them.
	BringAgain(ctx context.Context, n int) (int, error)
	// MarkUnreferenced has up to n ready artifacts deleted that nothing points at
	// and that are older than grace.
	MarkUnreferenced(ctx context.Context, grace time.Duration, n int) (int, error)
	// Release takes up to n chunks away from one artifact that is being deleted,
	// and ends it when it has none left. false: there is none to be had.
	Release(ctx context.Context, n int) (bool, error)
	// PruneKeys forgets the keys of up to n deleted teams of which nothing is left.
	PruneKeys(ctx context.Context, n int) (int, error)
	// TakeDoomed gives the caller up to n blobs to remove, and nobody else for so
	// long. It may return some together with an error.
	TakeDoomed(ctx context.Context, lease time.Duration, n int) ([]artifact.Key, error)
	// Forget is told which are gone.
	Forget(ctx context.Context, keys []artifact.Key) error
}

// Blobs is the store, as far as it removes.
type Blobs interface {
	Delete(ctx context.Context, key artifact.Key) error
}

// Collector removes what nothing points at: rows first, then bytes. It looks at
// the world and takes no input; several servers may each run one.
type Collector struct {
	shelf Shelf
	blobs Blobs
	log   *slog.Logger
	// Grace is how old a ready artifact is that is collected; for tests.
	Grace time.Duration
	// OnStep is called after each step; an error abandons the pass there, as the
	// death of the process would. For tests.
	OnStep func(Step) error
}

// NewCollector makes the loop.
func NewCollector(shelf Shelf, blobs Blobs, log *slog.Logger) *Collector {
	return &Collector{shelf: shelf, blobs: blobs, log: log, Grace: grace, OnStep: func(Step) error { return nil }}
}

// Run collects until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	ticker := time.NewTicker(collectEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := observe.Round(ctx, "artifact_collector", c.Pass); err != nil && ctx.Err() == nil {
			c.log.WarnContext(ctx, "cannot remove what nothing needs any more", "error", err)
		}
	}
}

// Pass is one bounded look.
func (c *Collector) Pass(ctx context.Context) error {
	return errors.Join(
		repeat(ctx, func(ctx context.Context) (bool, error) {
			n, err := c.shelf.ExpireUploads(ctx, someArtifacts)
			return n == someArtifacts, c.after(err, n, StepExpired)
		}),
		repeat(ctx, func(ctx context.Context) (bool, error) {
			n, err := c.shelf.BringAgain(ctx, someArtifacts)
			if n > 0 {
				c.log.WarnContext(ctx, "the store has lost something of what hosts still have; it is brought there again", "artifacts", n)
			}
			return n >= someArtifacts, c.after(err, n, StepAgain)
		}),
		repeat(ctx, func(ctx context.Context) (bool, error) {
			n, err := c.shelf.MarkUnreferenced(ctx, c.Grace, someArtifacts)
			return n == someArtifacts, c.after(err, n, StepMarked)
		}),
		repeat(ctx, func(ctx context.Context) (bool, error) {
			some, err := c.shelf.Release(ctx, someChunks)
			n := 0
			if some {
				n = 1
			}
			return some, c.after(err, n, StepReleased)
		}),
		repeat(ctx, func(ctx context.Context) (bool, error) {
			n, err := c.shelf.PruneKeys(ctx, someArtifacts)
			return n == someArtifacts, err
		}),
		repeat(ctx, c.remove),
	)
}

func (c *Collector) after(err error, n int, step Step) error {
	if err != nil || n == 0 {
		return err
	}
	return c.OnStep(step)
}

// repeat calls turn while it has more to do, so often and no more.
func repeat(ctx context.Context, turn func(context.Context) (more bool, err error)) error {
	for range turns {
		if more, err := turn(ctx); err != nil || !more {
			return err
		}
	}
	return nil
}

// remove takes some blobs out of the store. What fails is tried again in a
// while, and holds up nothing else.
func (c *Collector) remove(ctx context.Context) (bool, error) {
	keys, broken := c.shelf.TakeDoomed(ctx, removing, someBlobs)
	if len(keys) == 0 {
		return false, broken
	}
	if err := c.OnStep(StepTaken); err != nil {
		return false, err
	}
	gone := make([]bool, len(keys))
	failed := make([]error, len(keys))
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i, k := range keys {
		group.Go(func() error {
			if failed[i] = c.blobs.Delete(ctx, k); failed[i] != nil {
				return nil // the others go on
			}
			gone[i] = true
			return c.OnStep(StepRemoved)
		})
	}
	if err := group.Wait(); err != nil {
		return false, err
	}
	removed := keys[:0]
	for i, k := range keys {
		if gone[i] {
			removed = append(removed, k)
		}
	}
	all := len(removed) == len(keys)
	if err := c.after(c.shelf.Forget(ctx, removed), len(removed), StepCleared); err != nil {
		return false, err
	}
	return all && len(keys) == someBlobs, errors.Join(append(failed, broken)...)
}
