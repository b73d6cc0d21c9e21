// Package warmpg keeps in PostgreSQL what hosts are to keep ready.
package warmpg

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/warm"
	"skerry.dev/skerry/internal/control/warm/warmpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

const mb = 1 << 20

// Store implements warm.Store.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
	over scheduler.Overcommit
}

var _ warm.Store = (*Store)(nil)

// New uses the pool. over is how many times a host's capacity is promised.
func New(pool *pgxpool.Pool, over scheduler.Overcommit) *Store {
	return &Store{pool: pool, q: sqlcgen.New(), over: over}
}

// Decide implements warm.Store.
func (s *Store) Decide(ctx context.Context, window time.Duration, plan func(warm.World) []warm.Entry) (all []warm.Told, mine bool, err error) {
	err = pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if mine, err = s.q.TryTurn(ctx, tx); err != nil || !mine {
			return err
		}
		w, refs, err := s.world(ctx, tx, window)
		if err != nil {
			return err
		}
		entries := plan(w)
		if err := s.write(ctx, tx, entries); err != nil {
			return err
		}
		all = make([]warm.Told, len(refs))
		at := make(map[id.Host]int, len(refs))
		for i, r := range refs {
			all[i].Ref, at[r.ID] = r, i
		}
		for _, e := range entries {
			i, ok := at[e.Host]
			if !ok {
				return fmt.Errorf("warmpg: an entry for host %s, which there is not", e.Host)
			}
			all[i].Entries = append(all[i].Entries, e)
		}
		lacking, err := s.q.Lacking(ctx, tx)
		for _, h := range lacking {
			if i, ok := at[h]; ok {
				all[i].Lacks = true
			}
		}
		return err
	})
	return all, mine, err
}

func (s *Store) write(ctx context.Context, tx pgx.Tx, entries []warm.Entry) error {
	var p sqlcgen.PutParams
	for _, e := range entries {
		p.Hosts, p.Keys = append(p.Hosts, e.Host.UUID()), append(p.Keys, e.Key())
		p.Templates, p.States = append(p.Templates, e.Template.UUID()), append(p.States, e.State.UUID())
		p.Images, p.Engines = append(p.Images, e.Image), append(p.Engines, e.Engine)
		p.CpuMillis, p.MemoryMb = append(p.CpuMillis, int32(e.CPUMillis)), append(p.MemoryMb, int32(e.MemoryMB))
		p.DiskMb, p.Internet = append(p.DiskMb, int32(e.DiskMB)), append(p.Internet, e.Internet)
		p.Wanted = append(p.Wanted, int32(e.Wanted))
	}
	if err := s.q.Drop(ctx, tx, sqlcgen.DropParams{Hosts: p.Hosts, Keys: p.Keys}); err != nil {
		return err
	}
	return s.q.Put(ctx, tx, p)
}

func (s *Store) world(ctx context.Context, tx pgx.Tx, window time.Duration) (warm.World, []host.Ref, error) {
	var w warm.World
	rows, err := s.q.Hosts(ctx, tx, words(sandbox.ComputeStatuses()))
	if err != nil {
		return w, nil, err
	}
	refs := make([]host.Ref, len(rows))
	index := make(map[id.Host]int, len(rows))
	for i, r := range rows {
		engines, err := host.ParseEngines(r.Engines)
		if err != nil {
			return w, nil, err
		}
		refs[i], index[r.ID] = host.Ref{ID: r.ID, Address: r.Address, Generation: r.Generation, Online: true}, i
		w.Hosts = append(w.Hosts, warm.Host{
			ID: r.ID, Pool: r.TeamID, Takes: r.Status == string(host.StatusOnline), Arch: r.Arch, Engines: engines,
			FreeCPUMillis: int64(float64(r.CpuCount)*1000*s.over.CPU) - r.CpuMillis,
			FreeMemoryMB:  int64(float64(r.MemoryBytes/mb)*s.over.Memory) - r.MemoryMb,
			FreeDiskMB:    r.DiskBytes/mb - r.DiskMb,
		})
	}
	base, err := s.q.Base(ctx, tx, template.BaseName)
	switch {
	case err == nil:
		w.Base = &warm.Kind{
			Template: base.ID, Engine: base.Engine, Image: base.ImageDigest, Arch: base.Arch, CPUMillis: int64(base.CpuMillis),
			MemoryMB: int64(base.MemoryMb), DiskMB: int64(base.DiskMb), Internet: true,
		}
	case !errors.Is(err, pgx.ErrNoRows):
		return w, nil, err
	}
	if err := s.demands(ctx, tx, &w, window); err != nil {
		return w, nil, err
	}
	return w, refs, s.states(ctx, tx, &w, index)
}

func (s *Store) demands(ctx context.Context, tx pgx.Tx, w *warm.World, window time.Duration) error {
	rows, err := s.q.Demands(ctx, tx, since(time.Now().Add(-window)))
	if err != nil {
		return err
	}
	for _, r := range rows {
		d := warm.Demand{Pool: id.Team{}.FromUUID(r.Pool), Count: int(r.Count), Kind: warm.Kind{
			Template: r.TemplateID, Engine: r.Engine, Image: r.ImageDigest, Arch: r.Arch, CPUMillis: int64(r.CpuMillis), MemoryMB: int64(r.MemoryMb),
			DiskMB: int64(r.DiskMb), Internet: r.Internet,
		}}
		if r.StateID != nil {
			d.State = *r.StateID
		}
		w.Demands = append(w.Demands, d)
	}
	return nil
}

// states says which hosts have what is started from.
func (s *Store) states(ctx context.Context, tx pgx.Tx, w *warm.World, index map[id.Host]int) error {
	var states []uuid.UUID
	for _, d := range w.Demands {
		if !d.State.IsZero() {
			states = append(states, d.State.UUID())
		}
	}
	if len(states) == 0 {
		return nil
	}
	copies, err := s.q.Copies(ctx, tx, states)
	if err != nil {
		return err
	}
	for _, c := range copies {
		if i, ok := index[c.HostID]; ok && !slices.Contains(w.Hosts[i].States, c.SnapshotID) {
			w.Hosts[i].States = append(w.Hosts[i].States, c.SnapshotID)
		}
	}
	return nil
}

// Found implements warm.Store.
func (s *Store) Found(ctx context.Context, h id.Host, there map[string]int) error {
	p := sqlcgen.FoundParams{HostID: h}
	for key, n := range there {
		p.Keys, p.There = append(p.Keys, []byte(key)), append(p.There, int32(n))
	}
	if len(p.Keys) == 0 {
		return nil
	}
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error { return s.q.Found(ctx, tx, p) })
}

// since is the least id that was made at that time.
func since(at time.Time) (u uuid.UUID) {
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(max(at.UnixMilli(), 0)))
	copy(u[:6], ms[2:])
	return u
}

func words(statuses []sandbox.Status) []string {
	out := make([]string, len(statuses))
	for i, s := range statuses {
		out[i] = string(s)
	}
	return out
}
