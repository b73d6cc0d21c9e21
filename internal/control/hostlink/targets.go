package hostlink

import (
	"context"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/kernel/id"
)

// Guests finds guest daemons for callers; sandbox.Service does.
type Guests interface {
	Guest(ctx context.Context, by principal.Principal, sandbox id.Sandbox) (sandbox.Guest, error)
}

// Targets leads what goes in and out of sandboxes to their guest daemons: the
// room says who may and where they are, the pool how to get there.
type Targets struct {
	guests Guests
	pool   *HostClientPool
}

// NewTargets reaches what guests finds through the pool.
func NewTargets(guests Guests, pool *HostClientPool) *Targets {
	return &Targets{guests: guests, pool: pool}
}

var _ sandboxio.Targets = (*Targets)(nil)

// Target implements sandboxio.Targets.
func (t *Targets) Target(ctx context.Context, by principal.Principal, x id.Sandbox) (sandboxio.Target, error) {
	g, err := t.guests.Guest(ctx, by, x)
	if err != nil {
		return sandboxio.Target{}, err
	}
	c, err := t.pool.Client(g.Host)
	if err != nil {
		return sandboxio.Target{}, err
	}
	return sandboxio.Target{
		Sandbox: g.Sandbox, Incarnation: g.Incarnation, Transport: c.Guest(g.Sandbox, g.Incarnation), AccessToken: g.AccessToken,
		DefaultUser: g.DefaultUser, Ended: g.Ended,
	}, nil
}
