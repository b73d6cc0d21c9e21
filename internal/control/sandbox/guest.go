package sandbox

import (
	"context"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Guest is one incarnation of a running sandbox as seen by whoever wants to
// speak to its guest daemon: where it is, and what opens it.
type Guest struct {
	Sandbox     id.Sandbox
	Host        host.Ref
	Incarnation int64
	AccessToken string
	DefaultUser string
	// Ended is closed when this incarnation has ended, for whatever reason.
	Ended <-chan struct{}
}

// Guest finds the guest daemon of a sandbox for a caller. In a transition that
// leads to running it waits, bounded; Ended is watched until ctx is over. That
// the caller's key may do more than read is checked for each operation before.
// Errors: ErrNotFound (also for another team's), InvalidState.
func (s *Service) Guest(ctx context.Context, by principal.Principal, sandbox id.Sandbox) (Guest, error) {
	team, err := reader(by)
	if err != nil {
		return Guest{}, err
	}
	return s.guest(ctx, ctx, team, by.Kind == principal.KindSystem, sandbox)
}

// Reach is Guest for whoever was let in by another proof than a caller's; Ended
// is watched until watch is over. With wake a paused sandbox that asked for it is
// resumed first, unless it has no memory to go on with: nothing would answer.
func (s *Service) Reach(ctx, watch context.Context, team id.Team, sandbox id.Sandbox, wake bool) (Guest, error) {
	g, err := s.guest(ctx, watch, team, false, sandbox)
	if !wake || !errs.Is(err, "invalid_state") {
		return g, err
	}
	x, readErr := s.store.Get(ctx, sandbox)
	if readErr != nil || x.Status != StatusPaused || !x.AutoResume || x.StateID == nil {
		return g, err
	}
	if state, readErr := s.store.State(ctx, *x.StateID); readErr != nil || !state.Memory {
		return g, err
	}
	by := principal.System("traffic")
	by.HasTeam, by.TeamID = true, team
	if _, err := s.Resume(ctx, by, sandbox, nil, false, true); err != nil && !errs.Is(err, "invalid_state") {
		return Guest{}, err
	}
	return s.guest(ctx, watch, team, false, sandbox) // somebody else may have been faster
}

func (s *Service) guest(ctx, watch context.Context, team id.Team, system bool, sandbox id.Sandbox) (Guest, error) {
	x, user, err := s.store.WithUser(ctx, sandbox)
	if err != nil {
		return Guest{}, err
	}
	if x.TeamID != team || x.BuildID != nil && !system {
		return Guest{}, ErrNotFound
	}
	if comes(x.Status) {
		wctx, cancel := context.WithTimeout(ctx, s.wait)
		defer cancel()
		reached, err := s.until(wctx, sandbox, func(x Sandbox) bool { return !comes(x.Status) })
		if err != nil {
			if ctx.Err() == nil && wctx.Err() != nil {
				return Guest{}, InvalidState(x)
			}
			return Guest{}, err
		}
		// What the watch tells lacks the host's address.
		reached.Host = x.Host
		x = reached
	}
	if !usable(x.Status) {
		return Guest{}, InvalidState(x)
	}
	return Guest{
		Sandbox: x.ID, Host: x.Host, Incarnation: x.Incarnation, AccessToken: AccessToken(s.secret, x.ID),
		DefaultUser: user, Ended: s.watch.ended(watch, x.ID, x.Incarnation),
	}, nil
}

// comes: a sandbox in s will run by itself, or not at all. One that is being
// paused runs on when that fails.
func comes(s Status) bool {
	return s == StatusPending || s == StatusStarting || s == StatusResuming || s == StatusPausing
}
