package hostlink

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// followEvery is how late a server hears at most that another one has deleted a
// host, beside the time of a query.
const followEvery = 500 * time.Millisecond

// Standings says how hosts are now, in one query.
type Standings interface {
	Standings(ctx context.Context, hosts []id.Host) ([]host.Standing, error)
}

// Follow keeps the pool as the hosts are until ctx ends: clients of hosts that
// were deleted go for good, those of hosts whose credentials are void or that
// have joined anew are cut, for whoever answers there has to prove anew who it
// is. It needs no hint from where the change was made.
func (p *HostClientPool) Follow(standings Standings, log *slog.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		ticker := time.NewTicker(followEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
			err := observe.Round(ctx, "host_clients", func(ctx context.Context) error { return p.look(ctx, standings) })
			if err != nil && ctx.Err() == nil {
				log.WarnContext(ctx, "cannot see which hosts were deleted", "error", err)
			}
		}
	}
}

// look is one pass over all clients.
func (p *HostClientPool) look(ctx context.Context, standings Standings) error {
	known := p.known()
	if len(known) == 0 {
		return nil
	}
	now, err := standings.Standings(ctx, known)
	if err != nil {
		return err
	}
	for _, s := range now {
		switch {
		case s.Deleted:
			p.Evict(s.ID)
		case s.Revoked || p.rejoined(s):
			p.drop(s.ID)
		}
	}
	return nil
}

func (p *HostClientPool) known() []id.Host {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]id.Host, 0, len(p.clients))
	for h := range p.clients {
		out = append(out, h)
	}
	return out
}

// rejoined notes how a host is, and says whether it has joined anew since it was
// looked at before.
func (p *HostClientPool) rejoined(s host.Standing) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.clients[s.ID]
	if c == nil {
		return false
	}
	before := c.registered
	c.registered = s.RegisteredAt
	return !before.IsZero() && !before.Equal(s.RegisteredAt)
}

// maxGone bounds how many deleted hosts are remembered. Only calls that were
// under way when one was deleted can still name it, so the oldest may go.
const maxGone = 4096

// gone remembers deleted hosts.
type gone struct {
	hosts map[id.Host]bool
	order []id.Host
}

func (g *gone) has(h id.Host) bool { return g.hosts[h] }

func (g *gone) add(h id.Host) {
	if g.hosts[h] {
		return
	}
	if g.hosts == nil {
		g.hosts = make(map[id.Host]bool)
	}
	if len(g.order) == maxGone {
		delete(g.hosts, g.order[0])
		g.order = g.order[1:]
	}
	g.hosts[h] = true
	g.order = append(g.order, h)
}

// errCut is what whoever still holds a client gets that was dropped.
var errCut = errors.New("the host was deleted, or is reached anew")

// dials opens connections and knows those that are open, to cut them.
type dials struct {
	dialer net.Dialer

	mu   sync.Mutex
	cut  bool
	open map[*dialed]struct{}
}

func newDials() *dials {
	return &dials{dialer: net.Dialer{Timeout: dialTimeout}, open: make(map[*dialed]struct{})}
}

// dial has the form of net.Dialer.DialContext.
func (d *dials) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	cut := d.cut
	d.mu.Unlock()
	if cut {
		return nil, errCut
	}
	conn, err := d.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	out := &dialed{Conn: conn, owner: d}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cut { // meanwhile
		conn.Close()
		return nil, errCut
	}
	d.open[out] = struct{}{}
	return out, nil
}

// cutAll cuts what is open; nothing is opened from then on.
func (d *dials) cutAll() {
	d.mu.Lock()
	d.cut = true
	all := make([]*dialed, 0, len(d.open))
	for c := range d.open {
		all = append(all, c)
	}
	d.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

// dialed is an open connection.
type dialed struct {
	net.Conn
	owner *dials
}

// Close implements net.Conn.
func (c *dialed) Close() error {
	c.owner.mu.Lock()
	delete(c.owner.open, c)
	c.owner.mu.Unlock()
	return c.Conn.Close()
}
