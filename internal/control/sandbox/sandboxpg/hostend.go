package sandboxpg

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

// EndOnHost ends all that lives on a host, within the transaction that deletes
// the host and has locked it, and gives up every state that is kept there alone:
// what is paused with one that is elsewhere too stays paused. It returns what ended, in the order of ids, and the entries that record it; the
// caller appends those with its own, last.
func EndOnHost(ctx context.Context, tx pgx.Tx, h id.Host, by audit.AuditLogger) ([]host.Ended, []audit.Entry, error) {
	q := sqlcgen.New()
	// First the locks: an operation that began while the statement waited for a
	// row would be invisible to the statement, and stay open.
	if _, err := q.LockOnHost(ctx, tx, h); err != nil {
		return nil, nil, err
	}
	states, err := q.StatesOnHost(ctx, tx, h)
	if err != nil {
		return nil, nil, err
	}
	if _, err := q.PutBackOnHost(ctx, tx, sqlcgen.PutBackOnHostParams{HostID: h, Reason: sandbox.EndHostDeleted, Message: sandbox.LostWithHost}); err != nil {
		return nil, nil, err
	}
	rows, err := q.EndOnHost(ctx, tx, sqlcgen.EndOnHostParams{HostID: h, Reason: sandbox.EndHostDeleted, Message: sandbox.LostWithHost})
	if err != nil {
		return nil, nil, err
	}
	ended := make([]host.Ended, len(rows))
	entries := make([]audit.Entry, 0, len(rows))
	for i, r := range rows {
		ended[i] = host.Ended{ID: id.Sandbox{}.FromUUID(r.ID), Team: r.TeamID, Incarnation: r.Incarnation}
		entries = append(entries, by.SandboxDestroyed(r.TeamID, ended[i].ID, sandbox.EndHostDeleted))
	}
	if err := q.DropCopiesOnHost(ctx, tx, h); err != nil {
		return nil, nil, err
	}
	lost, err := q.DropStatesOnHost(ctx, tx, sqlcgen.DropStatesOnHostParams{Ids: states, Message: sandbox.LostWithHost})
	if err != nil {
		return nil, nil, err
	}
	for _, st := range lost {
		if st.Kind == string(sandbox.StateSnapshot) && st.Name != nil {
			entries = append(entries, by.SnapshotDeleted(st.TeamID, st.ID, *st.Name))
		}
	}
	return ended, entries, nil
}

// LostWithHost pages through what would be lost with a host, oldest first, and
// counts all of it.
func LostWithHost(ctx context.Context, db sqlcgen.DBTX, h id.Host, p page.Request) (host.Losses, error) {
	q := sqlcgen.New()
	params := sqlcgen.LostWithHostParams{HostID: h, MaxRows: int32(p.Limit + 1)}
	if p.Cursor != "" {
		var after uuid.UUID
		if err := page.Decode(p.Cursor, &after); err != nil {
			return host.Losses{}, err
		}
		params.After = &after
	}
	all, err := q.CountLostWithHost(ctx, db, h)
	if err != nil {
		return host.Losses{}, err
	}
	rows, err := q.LostWithHost(ctx, db, params)
	if err != nil {
		return host.Losses{}, err
	}
	items := make([]host.Loss, len(rows))
	for i, r := range rows {
		items[i] = host.Loss{Kind: r.Kind, ID: r.ID, Team: r.TeamID, TeamName: r.TeamName, Name: r.Name, Status: r.Status, CreatedAt: r.CreatedAt}
	}
	out := host.Losses{Sandboxes: all.Sandboxes, Snapshots: all.Snapshots}
	out.Page, err = page.Of(items, p.Limit, func(l host.Loss) any { return l.ID })
	return out, err
}

// TakeDraining implements sandbox.Store.
func (s *Store) TakeDraining(ctx context.Context, lease time.Duration, atOnce, limit int) ([]sandbox.Draining, error) {
	rows, err := s.q.TakeDraining(ctx, s.pool, sqlcgen.TakeDrainingParams{
		LeaseSecs: lease.Seconds(), AtOnce: int64(atOnce), MaxRows: int32(limit), Reason: sandbox.PausedDrain,
	})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.Draining, len(rows))
	for i, r := range rows {
		out[i] = sandbox.Draining{ID: r.ID, Failed: r.Failed}
	}
	return out, nil
}
