package team

import (
	"context"
	"errors"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/logkey"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Rhythm and bounds of the sweep.
const (
	sweepEvery = 2 * time.Second
	leftBatch  = 100
)

// Run ends what deleted teams have left, until ctx ends. It looks at the world
// and takes no input: a server that died right after a deletion is made up for
// by any other. Several may run at once.
func (s *Service) Run(ctx context.Context) error {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := observe.Round(ctx, "team_ends", s.Pass); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "cannot end all sandboxes of deleted teams", logkey.Error, err)
		}
	}
}

// Pass is one sweep.
func (s *Service) Pass(ctx context.Context) error { return s.endLeft(ctx, nil) }

// endLeft begins to end what deleted teams, or one, have left. One sandbox that
// cannot be ended holds up no other.
func (s *Service) endLeft(ctx context.Context, only *id.Team) error {
	var failed error
	var last id.Sandbox
	for {
		left, err := s.store.LeftSandboxes(ctx, only, last, leftBatch)
		if err != nil {
			return errors.Join(failed, err)
		}
		for _, x := range left {
			if err := s.sandboxes.EndOfTeam(ctx, x); err != nil {
				failed = err // the last one stands for all
			}
			last = x
		}
		if len(left) < leftBatch || ctx.Err() != nil {
			return failed
		}
	}
}
