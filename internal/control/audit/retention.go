package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Retention is how long entries are kept; zero is for ever.
type Retention time.Duration

// MinRetention is the least; the database refuses to remove what is younger.
const MinRetention = Retention(24 * time.Hour)

// maxRetention keeps days far inside what a time can hold.
const maxRetention = Retention(100 * 365 * 24 * time.Hour)

// ParseRetention reads SKERRY_AUDIT_RETENTION: whole days, with or without a d;
// empty or "forever" keeps everything.
func ParseRetention(s string) (Retention, error) {
	if s == "" || s == "forever" {
		return 0, nil
	}
	days, err := strconv.Atoi(strings.TrimSuffix(s, "d"))
	if err != nil || days < 1 || days > int(maxRetention/MinRetention) {
		return 0, fmt.Errorf("must be a number of days such as 365d, at least 1d, or forever, not %q", s)
	}
	return Retention(days) * MinRetention, nil
}

// Rhythm and bounds of the pruner.
const (
	pruneEvery   = time.Hour
	pruneBatch   = 5000 // entries a transaction
	pruneTeams   = 100  // teams a look
	keepRefusals = 90 * 24 * time.Hour
)

// Pruner removes what retention lets go, and records that it did. Several
// servers may each run one.
type Pruner struct {
	store Store
	keep  Retention
	log   *slog.Logger
}

// NewPruner returns a pruner.
func NewPruner(store Store, keep Retention, log *slog.Logger) *Pruner {
	return &Pruner{store: store, keep: keep, log: log}
}

// Run prunes now and then until ctx ends.
func (p *Pruner) Run(ctx context.Context) error {
	ticker := time.NewTicker(pruneEvery)
	defer ticker.Stop()
	for {
		if err := observe.Round(ctx, "audit_retention", p.Prune); err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "cannot remove old audit entries", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Prune removes all that is old now. A team that fails does not hold up the
// others.
func (p *Pruner) Prune(ctx context.Context) error {
	failed := p.forgetRefusals(ctx)
	if p.keep == 0 {
		return failed
	}
	var after *id.Team
	for {
		teams, err := p.store.Prunable(ctx, time.Duration(p.keep), after, pruneTeams)
		if err != nil {
			return errors.Join(failed, err)
		}
		for _, team := range teams {
			if err := p.pruneTeam(ctx, team); err != nil {
				failed = errors.Join(failed, fmt.Errorf("of %s: %w", team, err))
			}
			after = &team
		}
		if len(teams) < pruneTeams || ctx.Err() != nil {
			return failed
		}
	}
}

func (p *Pruner) pruneTeam(ctx context.Context, team id.Team) error {
	for {
		removed, err := p.store.Prune(ctx, team, time.Duration(p.keep), pruneBatch, func(removed, upTo int64) Entry {
			return By(principal.System("audit retention")).Pruned(team, removed, upTo)
		})
		if err != nil || removed < pruneBatch {
			return err
		}
	}
}

func (p *Pruner) forgetRefusals(ctx context.Context) error {
	for {
		n, err := p.store.DeleteOldRefusals(ctx, keepRefusals)
		if err != nil || n == 0 {
			return err
		}
	}
}
