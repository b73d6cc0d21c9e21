package sandboxpg

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// TakeDropping implements sandbox.Store.
func (s *Store) TakeDropping(ctx context.Context, lease time.Duration, limit int) ([]sandbox.Dropping, error) {
	rows, err := s.q.TakeDropping(ctx, s.pool, sqlcgen.TakeDroppingParams{LeaseSecs: lease.Seconds(), MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.Dropping, len(rows))
	for i, r := range rows {
		out[i] = sandbox.Dropping{ID: r.SnapshotID, Host: host.Ref{ID: r.HostID, Address: r.Address, Online: true}}
	}
	return out, nil
}

// Dropped implements sandbox.Store.
func (s *Store) Dropped(ctx context.Context, state id.Snapshot, h id.Host) error {
	return pg.Map(s.q.Dropped(ctx, s.pool, sqlcgen.DroppedParams{SnapshotID: state, HostID: h}))
}

// SettleDropped implements sandbox.Store.
func (s *Store) SettleDropped(ctx context.Context, limit int) error {
	if err := s.q.SettleDropped(ctx, s.pool, int32(limit)); err != nil {
		return pg.Map(err)
	}
	return pg.Map(s.q.AbandonedCopies(ctx, s.pool, int32(limit)))
}

// Redrop implements sandbox.Store.
func (s *Store) Redrop(ctx context.Context, h id.Host, held []sandbox.Held) error {
	p := sqlcgen.RedropParams{HostID: h}
	for _, st := range held {
		p.Ids, p.Digests = append(p.Ids, st.ID.UUID()), append(p.Digests, st.Digest)
	}
	return pg.Map(s.q.Redrop(ctx, s.pool, p))
}

// CopiesOnHost implements sandbox.Store.
func (s *Store) CopiesOnHost(ctx context.Context, h id.Host, older time.Duration) ([]id.Snapshot, error) {
	out, err := s.q.CopiesOnHost(ctx, s.pool, sqlcgen.CopiesOnHostParams{HostID: h, OlderSecs: older.Seconds()})
	return out, pg.Map(err)
}

// LostCopies implements sandbox.Store.
func (s *Store) LostCopies(ctx context.Context, h id.Host, states []id.Snapshot) error {
	return pg.Map(s.q.LostCopies(ctx, s.pool, sqlcgen.LostCopiesParams{HostID: h, Ids: bare(states)}))
}

// Reach implements sandbox.Store.
func (s *Store) Reach(ctx context.Context, state sandbox.Snapshot, team id.Team, x id.Sandbox) (sandbox.Reach, error) {
	var out sandbox.Reach
	var err error
	if state.EngineVersion != "" {
		out.EngineArches, err = s.q.EngineArches(ctx, s.pool, sqlcgen.EngineArchesParams{TeamID: team, Engine: state.Engine, Version: state.EngineVersion})
	}
	if err != nil || x.IsZero() {
		return out, pg.Map(err)
	}
	held, err := s.q.HeldBack(ctx, s.pool, x)
	if err != nil {
		return out, pg.Map(err)
	}
	out.Avoid = hosts(held)
	if out.Later, err = s.q.LaterLives(ctx, s.pool, x); err != nil {
		return out, pg.Map(err)
	}
	out.Awaited, err = s.q.Awaited(ctx, s.pool, x)
	return out, pg.Map(err)
}

// FullHosts implements sandbox.Store.
func (s *Store) FullHosts(ctx context.Context, share float64, limit int) ([]sandbox.FullHost, error) {
	rows, err := s.q.FullHosts(ctx, s.pool, sqlcgen.FullHostsParams{Share: share, MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.FullHost, len(rows))
	for i, r := range rows {
		out[i] = sandbox.FullHost{ID: r.ID, Lacking: r.LackingBytes}
	}
	return out, nil
}

// SpareCopies implements sandbox.Store.
func (s *Store) SpareCopies(ctx context.Context, h id.Host, limit int) ([]sandbox.SpareCopy, error) {
	rows, err := s.q.Spare(ctx, s.pool, sqlcgen.SpareParams{HostID: h, MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.SpareCopy, len(rows))
	for i, r := range rows {
		out[i] = sandbox.SpareCopy{State: r.SnapshotID, SizeBytes: r.SizeBytes}
	}
	return out, nil
}

// GiveUpCopy implements sandbox.Store. The sandbox is locked first: it is paused
// there until this is written, and what is left of it on the host departs.
func (s *Store) GiveUpCopy(ctx context.Context, h id.Host, state id.Snapshot) (bool, error) {
	given := false
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		given = false
		if _, err := s.q.LockLivingFrom(ctx, tx, sqlcgen.LockLivingFromParams{SnapshotID: state.UUID(), HostID: h}); err != nil {
			return err
		}
		if _, err := s.q.LockState(ctx, tx, state); err != nil {
			return err
		}
		n, err := s.q.GiveUpCopy(ctx, tx, sqlcgen.GiveUpCopyParams{SnapshotID: state, HostID: h})
		if err != nil || n == 0 {
			return err
		}
		given = true
		return s.q.DepartFrom(ctx, tx, sqlcgen.DepartFromParams{SnapshotID: state.UUID(), HostID: h})
	})
	return given, err
}

// WarnExpiring implements sandbox.Store.
func (s *Store) WarnExpiring(ctx context.Context, limit int) (int, error) {
	rows, err := s.q.WarnExpiring(ctx, s.pool, sqlcgen.WarnExpiringParams{LimitSecs: int32(sandbox.PausedLimit.Seconds()), MaxRows: int32(limit)})
	return len(rows), pg.Map(err)
}
