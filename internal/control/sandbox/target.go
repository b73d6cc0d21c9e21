package sandbox

import (
	"context"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/kernel/id"
)

// Target implements sandboxio.Targets. Ended is watched until ctx is over. That
// the caller's key may do more than read is checked for each operation before.
func (s *Service) Target(ctx context.Context, by principal.Principal, sandbox id.Sandbox) (sandboxio.Target, error) {
	team, err := reader(by)
	if err != nil {
		return sandboxio.Target{}, err
	}
	x, user, err := s.store.WithUser(ctx, sandbox)
	if err != nil {
		return sandboxio.Target{}, err
	}
	if x.TeamID != team {
		return sandboxio.Target{}, ErrNotFound
	}
	if comes(x.Status) {
		wctx, cancel := context.WithTimeout(ctx, s.wait)
		defer cancel()
		reached, err := s.until(wctx, sandbox, func(x Sandbox) bool { return !comes(x.Status) })
		if err != nil {
			if ctx.Err() == nil && wctx.Err() != nil {
				return sandboxio.Target{}, InvalidState(x)
			}
			return sandboxio.Target{}, err
		}
		// What the watch tells lacks the host's address.
		reached.Host = x.Host
		x = reached
	}
	if !usable(x.Status) {
		return sandboxio.Target{}, InvalidState(x)
	}
	ended := s.watch.ended(ctx, x.ID, x.Incarnation)
	return sandboxio.Target{
		Sandbox: x.ID, Transport: s.agents.Guest(x.Host, x.ID, x.Incarnation), AccessToken: AccessToken(s.secret, x.ID),
		DefaultUser: user, Ended: ended,
	}, nil
}

// comes: a sandbox in s will run by itself, or not at all.
func comes(s Status) bool { return s == StatusPending || s == StatusStarting || s == StatusResuming }

var _ sandboxio.Targets = (*Service)(nil)
