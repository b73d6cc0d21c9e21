package sandboxpg

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg/sqlcgen"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// viewAge is how old the figures may be that a decision begins with. It holds
// only once the host was locked and its own figures were read anew.
const viewAge = 500 * time.Millisecond

// tries bounds how many hosts a create asks for one after the other, each of
// which somebody else is deciding on, before it waits for its turn.
const tries = 8

// errCrowded: the quick way found no host; all of them are looked at, locked.
var errCrowded = errors.New("sandboxpg: all hosts must be looked at")

// candidates are hosts with what is reserved on them.
type candidates struct {
	views     []scheduler.HostView
	addresses map[id.Host]string
}

// pools remembers for a moment what the hosts of a pool look like, so that a
// burst of creates does not sum up all sandboxes each time.
type pools struct {
	turn chan struct{} // held while they are read or changed
	mu   sync.Mutex    // guards known
	// known by whose hosts they are.
	known map[id.Team]*pool
}

type pool struct {
	candidates
	at time.Time
}

func newPools() *pools { return &pools{turn: make(chan struct{}, 1), known: map[id.Team]*pool{}} }

// view returns a copy of how a pool looked not long ago.
func (s *Store) view(ctx context.Context, team id.Team) (candidates, error) {
	p := s.pools
	if c, ok := p.fresh(team); ok {
		return c, nil
	}
	select { // one reads for all
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return candidates{}, pg.Map(ctx.Err())
	}
	if c, ok := p.fresh(team); ok {
		return c, nil
	}
	at := time.Now()
	c, err := s.read(ctx, s.pool, team)
	if err != nil {
		return candidates{}, pg.Map(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for other, old := range p.known {
		if at.Sub(old.at) > time.Minute {
			delete(p.known, other)
		}
	}
	p.known[team] = &pool{candidates: c, at: at}
	return c.copy(), nil
}

func (s *Store) read(ctx context.Context, db sqlcgen.DBTX, team id.Team) (candidates, error) {
	rows, err := s.q.ViewPool(ctx, db, team)
	if err != nil {
		return candidates{}, err
	}
	return s.views(ctx, db, convert(rows, func(r sqlcgen.ViewPoolRow) hostRow { return hostRow(r) }))
}

func (p *pools) fresh(team id.Team) (candidates, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.known[team]
	if known == nil || time.Since(known.at) > viewAge {
		return candidates{}, false
	}
	return known.copy(), true
}

// took counts what was just placed, so that the next decision takes turns.
func (p *pools) took(team id.Team, h id.Host, n sandbox.NewSandbox) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.known[team]
	if known == nil {
		return
	}
	var last time.Time
	var v *scheduler.HostView
	for i := range known.views {
		if at := known.views[i].LastPlacedAt; at.After(last) {
			last = at
		}
		if known.views[i].ID == h {
			v = &known.views[i]
		}
	}
	if v == nil {
		return
	}
	v.LastPlacedAt = last.Add(1)
	v.ReservedCPUMillis += n.Sandbox.CPUMillis
	v.ReservedMemoryMB += n.Sandbox.MemoryMB
	v.ReservedDiskMB += n.Sandbox.DiskMB
	v.Warm = slices.Clone(v.Warm)
	for i := range v.Warm {
		if v.Warm[i].Fits(n.Want, v.Warm[i].Engine) {
			v.Warm[i].Ready--
			break
		}
	}
	if !slices.Contains(v.Images, n.Sandbox.ImageDigest) {
		v.Images = append(slices.Clone(v.Images), n.Sandbox.ImageDigest)
	}
}

// copy shares what is never changed in place.
func (c candidates) copy() candidates { return candidates{slices.Clone(c.views), c.addresses} }

// without leaves out a host that cannot be had.
func (c candidates) without(h id.Host) candidates {
	c.views = slices.DeleteFunc(c.views, func(v scheduler.HostView) bool { return v.ID == h })
	return c
}

// ground is what a placement begins with, read before its transaction: whoever
// waits for it holds no connection.
type ground struct {
	pool id.Team // whose hosts
	candidates
	all bool // lock every host first, in the order of ids
}

// survey reads the ground for a team's sandbox. What it says of a team that is
// gone does not matter.
func (s *Store) survey(ctx context.Context, team id.Team) (ground, error) {
	owner, err := s.q.PoolOf(ctx, s.pool, team)
	if errors.Is(err, pgx.ErrNoRows) {
		return ground{}, nil
	}
	if err != nil {
		return ground{}, pg.Map(err)
	}
	g := ground{pool: id.Team{}.FromUUID(owner)}
	g.candidates, err = s.view(ctx, g.pool)
	return g, err
}

// placed decides where a sandbox goes; the host is locked when it returns. held
// says that the transaction has locked another one before.
func (s *Store) placed(ctx context.Context, tx pgx.Tx, n sandbox.NewSandbox, place sandbox.Placer, g ground, held bool) (scheduler.Decision, string, error) {
	switch {
	case len(n.Want.Hosts) == 1 && !held:
		found, err := s.q.LockHost(ctx, tx, sqlcgen.LockHostParams{ID: n.Want.Hosts[0], TeamID: n.Sandbox.TeamID})
		if err == nil && len(found) == 0 && n.Sandbox.FromState != nil {
			state, err := s.q.GetState(ctx, tx, *n.Sandbox.FromState)
			if err == nil && state.HostStatus == string(host.StatusDraining) {
				return scheduler.Decision{}, "", sandbox.ErrDraining
			}
		}
		return s.decide(ctx, tx, convert(found, func(r sqlcgen.LockHostRow) hostRow { return hostRow(r) }), err, place)
	case g.all:
		// Most of the time there is simply no room, which no lock makes truer.
		c, err := s.read(ctx, tx, g.pool)
		if err != nil {
			return scheduler.Decision{}, "", err
		}
		if d, err := place(c.views); err != nil {
			return d, "", err
		}
		found, err := s.q.LockCandidateHosts(ctx, tx, n.Sandbox.TeamID)
		return s.decide(ctx, tx, convert(found, func(r sqlcgen.LockCandidateHostsRow) hostRow { return hostRow(r) }), err, place)
	}
	d, address, err := s.quickly(ctx, tx, n, place, g.copy(), held)
	if err == nil {
		s.pools.took(g.pool, d.HostID, n)
	}
	return d, address, err
}

// quickly takes the first host in the policy's order that nobody else is deciding
// on. Hosts are locked without waiting while one is held already, so that no two
// creates ever wait for each other.
func (s *Store) quickly(ctx context.Context, tx pgx.Tx, n sandbox.NewSandbox, place sandbox.Placer, c candidates, held bool) (scheduler.Decision, string, error) {
	var first id.Host // the best of those that others hold
	for range tries {
		d, err := place(c.views)
		if err != nil {
			break
		}
		found, err := s.q.TryHost(ctx, tx, sqlcgen.TryHostParams{ID: d.HostID, TeamID: n.Sandbox.TeamID})
		if err != nil {
			return d, "", err
		}
		c = c.without(d.HostID)
		if len(found) == 0 {
			if first.IsZero() {
				first = d.HostID
			}
			continue
		}
		held = true
		if d, address, err := s.decide(ctx, tx, convert(found, func(r sqlcgen.TryHostRow) hostRow { return hostRow(r) }), nil, place); err == nil {
			return d, address, nil
		}
	}
	if held || first.IsZero() {
		return scheduler.Decision{}, "", errCrowded
	}
	found, err := s.q.LockHost(ctx, tx, sqlcgen.LockHostParams{ID: first, TeamID: n.Sandbox.TeamID})
	d, address, err := s.decide(ctx, tx, convert(found, func(r sqlcgen.LockHostRow) hostRow { return hostRow(r) }), err, place)
	if err != nil {
		return d, "", errCrowded
	}
	return d, address, nil
}

// decide asks for a decision on hosts that are locked.
func (s *Store) decide(ctx context.Context, tx pgx.Tx, rows []hostRow, err error, place sandbox.Placer) (scheduler.Decision, string, error) {
	if err != nil {
		return scheduler.Decision{}, "", err
	}
	c, err := s.views(ctx, tx, rows)
	if err != nil {
		return scheduler.Decision{}, "", err
	}
	d, err := place(c.views)
	return d, c.addresses[d.HostID], err
}

// own is for what can only be on one host; none while that takes nothing.
func (s *Store) own(ctx context.Context, tx pgx.Tx, h id.Host) ([]scheduler.HostView, map[id.Host]string, error) {
	found, err := s.q.HostView(ctx, tx, h)
	if err != nil {
		return nil, nil, err
	}
	c, err := s.views(ctx, tx, convert(found, func(r sqlcgen.HostViewRow) hostRow { return hostRow(r) }))
	return c.views, c.addresses, err
}

// hostRow is what each of the queries for hosts returns.
type hostRow sqlcgen.LockCandidateHostsRow

func convert[R any](rows []R, one func(R) hostRow) []hostRow {
	out := make([]hostRow, len(rows))
	for i, r := range rows {
		out[i] = one(r)
	}
	return out
}

// views adds what is reserved, in a statement of its own: after hosts were locked
// it sees what those who held them have written.
func (s *Store) views(ctx context.Context, db sqlcgen.DBTX, rows []hostRow) (candidates, error) {
	ids := make([]uuid.UUID, len(rows))
	for i, r := range rows {
		ids[i] = r.ID.UUID()
	}
	reserved, err := s.q.ReservedByHost(ctx, db, sqlcgen.ReservedByHostParams{Compute: words(sandbox.ComputeStatuses()), Hosts: ids})
	if err != nil {
		return candidates{}, err
	}
	byHost := make(map[id.Host]sqlcgen.ReservedByHostRow, len(reserved))
	for _, r := range reserved {
		byHost[id.Host{}.FromUUID(r.HostID)] = r
	}
	c := candidates{views: make([]scheduler.HostView, len(rows)), addresses: make(map[id.Host]string, len(rows))}
	for i, r := range rows {
		engines, err := host.ParseEngines(r.Engines)
		if err != nil {
			return candidates{}, err
		}
		var labels map[string]string
		if err := json.Unmarshal(r.Labels, &labels); err != nil {
			return candidates{}, fmt.Errorf("labels of %s: %w", r.ID, err)
		}
		held := byHost[r.ID]
		c.views[i] = scheduler.HostView{
			ID: r.ID, Name: r.Name, Engines: engines, Arch: r.Arch, Labels: labels, Images: r.Images,
			CPUCount: int64(r.CpuCount), MemoryBytes: r.MemoryBytes, DiskBytes: r.DiskBytes,
			ReservedCPUMillis: held.CpuMillis, ReservedMemoryMB: held.MemoryMb, ReservedDiskMB: held.DiskMb,
		}
		if c.views[i].Warm, err = ready(held.Warm); err != nil {
			return candidates{}, err
		}
		c.views[i].WarmCPUMillis, c.views[i].WarmMemoryMB = held.WarmCpuMillis, held.WarmMemoryMb
		if r.LastPlacedAt != nil {
			c.views[i].LastPlacedAt = *r.LastPlacedAt
		}
		c.addresses[r.ID] = r.Address
	}
	return c, nil
}

// ready reads what a host keeps ready.
func ready(raw json.RawMessage) ([]scheduler.Warm, error) {
	if len(raw) == 0 || string(raw) == "[]" {
		return nil, nil
	}
	var lines []struct {
		Template          uuid.UUID
		Engine            string
		CPU, Memory, Disk int64
		Internet          bool
		State             *uuid.UUID
		Ready             int64
	}
	if err := json.Unmarshal(raw, &lines); err != nil {
		return nil, fmt.Errorf("sandboxpg: what a host keeps ready: %w", err)
	}
	out := make([]scheduler.Warm, len(lines))
	for i, l := range lines {
		out[i] = scheduler.Warm{
			Template: id.Template{}.FromUUID(l.Template), Engine: l.Engine, CPUMillis: l.CPU, MemoryMB: l.Memory, DiskMB: l.Disk, Internet: l.Internet, Ready: l.Ready,
		}
		if l.State != nil {
			out[i].State = id.Snapshot{}.FromUUID(*l.State)
		}
	}
	return out, nil
}
