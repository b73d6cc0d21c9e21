package quota

import (
	"context"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// ErrTeamNotFound is a team that does not exist or was deleted.
var ErrTeamNotFound = errs.NotFound("team_not_found", "There is no such team, or you are not in it.")

// Store keeps limits. Each verb is one transaction.
type Store interface {
	// Limits reads a living team's limits and use; ErrTeamNotFound for none.
	Limits(ctx context.Context, team id.Team) (Limits, error)
	// SetLimits replaces a living team's overrides. Setting what is set already
	// writes no entry. entry is given what was set before.
	SetLimits(ctx context.Context, team id.Team, to Override, entry func(from Override) audit.Entry) (Limits, error)
}

// Service is the use cases of limits.
type Service struct{ store Store }

// NewService makes the room.
func NewService(store Store) *Service { return &Service{store: store} }

// Mine are the limits of the caller's team.
func (s *Service) Mine(ctx context.Context, by principal.Principal) (Limits, error) {
	team, err := by.Team()
	if err != nil {
		return Limits{}, err
	}
	return s.store.Limits(ctx, team)
}

// OfTeam are the limits of any team, for platform admins.
func (s *Service) OfTeam(ctx context.Context, team id.Team) (Limits, error) {
	if team == id.PlatformTeamID {
		return Limits{}, ErrTeamNotFound // the platform has none
	}
	return s.store.Limits(ctx, team)
}

// Set replaces a team's limits, for platform admins. What is above a new limit
// stays; nothing more is made until it is below.
func (s *Service) Set(ctx context.Context, by principal.Principal, team id.Team, to Override) (Limits, error) {
	if team == id.PlatformTeamID {
		return Limits{}, ErrTeamNotFound
	}
	if err := to.Validate(); err != nil {
		return Limits{}, err
	}
	return s.store.SetLimits(ctx, team, to, func(from Override) audit.Entry {
		return audit.By(by).TeamLimitsSet(team, from.facts(), to.facts())
	})
}
