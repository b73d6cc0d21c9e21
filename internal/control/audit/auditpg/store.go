package auditpg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/audittrail"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

// Store implements audit.Store.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// New returns the store on a pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

var (
	errJunkCursor = errs.Invalid("invalid_cursor", "Use the next_cursor of the previous page as it was given, or leave cursor out.")
	errNoTeam     = errs.NotFound("team_not_found", "There is no such team.")
)

// ListTeam implements audit.Store.
func (s *Store) ListTeam(ctx context.Context, team id.Team, adminToo bool, f audit.Filter, p page.Request) (page.Page[audit.Record], error) {
	before := int64(math.MaxInt64)
	if p.Cursor != "" {
		before = 0
		if err := page.Decode(p.Cursor, &before); err != nil {
			return page.Page[audit.Record]{}, err
		}
		if before < 1 {
			return page.Page[audit.Record]{}, errJunkCursor
		}
	}
	rows, err := s.q.ListTeam(ctx, s.pool, sqlcgen.ListTeamParams{
		TeamID: team, BeforeSeq: before, AdminToo: adminToo, ResourceTypes: some(f.ResourceTypes), Actions: some(f.Actions), MaxRows: int32(p.Limit + 1),
	})
	if err != nil {
		return page.Page[audit.Record]{}, pg.Map(err)
	}
	return page.Of(records(rows), p.Limit, func(r audit.Record) any { return r.Seq })
}

// position is where a page of all teams' entries ends.
type position struct {
	At time.Time     `json:"at"`
	ID id.AuditEntry `json:"id"`
}

// ListAll implements audit.Store.
func (s *Store) ListAll(ctx context.Context, f audit.Filter, p page.Request) (page.Page[audit.Record], error) {
	before := position{At: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), ID: id.AuditEntry{}.FromUUID(uuid.Max)}
	if p.Cursor != "" {
		before = position{}
		if err := page.Decode(p.Cursor, &before); err != nil {
			return page.Page[audit.Record]{}, err
		}
		if before.At.IsZero() {
			return page.Page[audit.Record]{}, errJunkCursor
		}
	}
	rows, err := s.q.ListAll(ctx, s.pool, sqlcgen.ListAllParams{
		BeforeAt: before.At, BeforeID: before.ID.UUID(), ResourceTypes: some(f.ResourceTypes), Actions: some(f.Actions), MaxRows: int32(p.Limit + 1),
	})
	if err != nil {
		return page.Page[audit.Record]{}, pg.Map(err)
	}
	return page.Of(records(rows), p.Limit, func(r audit.Record) any { return position{At: r.At, ID: r.ID} })
}

// some is never nil: NULL would match nothing.
func some(values []string) []string {
	if values == nil {
		return []string{}
	}
	return values
}

func records(rows []sqlcgen.AuditLog) []audit.Record {
	out := make([]audit.Record, len(rows))
	for i, row := range rows {
		out[i] = recordOf(row)
	}
	return out
}

func recordOf(row sqlcgen.AuditLog) audit.Record {
	r := audit.Record{
		ID: row.ID, TeamID: row.TeamID, Seq: row.Seq, ActorType: row.ActorType, ActorID: row.ActorID, ActorName: row.ActorName,
		ResourceType: row.ResourceType, ResourceID: row.ResourceID, Action: row.Action, Scope: row.Scope, Status: row.Status,
		Metadata: row.Metadata, RequestID: row.RequestID, At: row.CreatedAt,
	}
	copy(r.Hash[:], row.Hash)
	if row.Ip != nil {
		r.IP = *row.Ip
	}
	return r
}

// exportBatch is how many entries an export holds in memory.
const exportBatch = 500

// Export implements audit.Store, in one snapshot of the database.
func (s *Store) Export(ctx context.Context, team id.Team, begin func(anchor audittrail.Point) error, add func(audit.Record) error) (end audittrail.Point, err error) {
	tx, err := s.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return end, pg.Map(fmt.Errorf("begin: %w", err))
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // nothing was written
	chain, err := s.q.GetChain(ctx, tx, team)
	if errors.Is(err, pgx.ErrNoRows) {
		return end, errNoTeam
	}
	if err != nil {
		return end, pg.Map(err)
	}
	var anchor audittrail.Point
	if chain.AnchorSeq != nil && chain.Seq != nil {
		anchor.Seq, end.Seq = *chain.AnchorSeq, *chain.Seq
		copy(anchor.Hash[:], chain.AnchorHash)
		copy(end.Hash[:], chain.Hash)
	}
	if err := begin(anchor); err != nil {
		return end, err
	}
	for after := anchor.Seq; ; {
		rows, err := s.q.ListFrom(ctx, tx, sqlcgen.ListFromParams{TeamID: team, AfterSeq: after, MaxRows: exportBatch})
		if err != nil {
			return end, pg.Map(err)
		}
		for _, row := range rows {
			if err := add(recordOf(row)); err != nil {
				return end, err
			}
			after = row.Seq
		}
		if len(rows) < exportBatch {
			return end, nil
		}
	}
}

// Prunable implements audit.Store.
func (s *Store) Prunable(ctx context.Context, keep time.Duration, after *id.Team, limit int) ([]id.Team, error) {
	params := sqlcgen.ListPrunableParams{KeepSecs: keep.Seconds(), MaxRows: int32(limit)}
	if after != nil {
		u := after.UUID()
		params.AfterTeam = &u
	}
	teams, err := s.q.ListPrunable(ctx, s.pool, params)
	return teams, pg.Map(err)
}

// Prune implements audit.Store.
func (s *Store) Prune(ctx context.Context, team id.Team, keep time.Duration, limit int, entry func(removed, upTo int64) audit.Entry) (removed int64, err error) {
	err = pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		gone, err := s.q.Prune(ctx, tx, sqlcgen.PruneParams{Team: team.UUID(), KeepSecs: keep.Seconds(), MaxRows: int32(limit)})
		removed = gone.Removed
		if err != nil || removed == 0 {
			return err
		}
		return Append(ctx, tx, entry(removed, gone.UpTo))
	})
	return removed, err
}

// Record implements audit.Store.
func (s *Store) Record(ctx context.Context, e audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error { return Append(ctx, tx, e) })
}

// AddRefusals implements audit.Store.
func (s *Store) AddRefusals(ctx context.Context, counts []audit.RefusalCount) error {
	rows := make([]sqlcgen.AddRefusalsParams, len(counts))
	for i, c := range counts {
		rows[i] = sqlcgen.AddRefusalsParams{Ip: c.IP, Minute: c.Minute, Reason: c.Reason, Count: c.Count}
	}
	// In one order, so that servers that count the same do not deadlock.
	slices.SortFunc(rows, func(a, b sqlcgen.AddRefusalsParams) int {
		return cmp.Or(a.Minute.Compare(b.Minute), a.Ip.Compare(b.Ip), cmp.Compare(a.Reason, b.Reason))
	})
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		var failed error
		s.q.AddRefusals(ctx, tx, rows).Exec(func(_ int, err error) {
			if failed == nil {
				failed = err
			}
		})
		return failed
	})
}

// DeleteOldRefusals implements audit.Store.
func (s *Store) DeleteOldRefusals(ctx context.Context, keep time.Duration) (int64, error) {
	n, err := s.q.DeleteOldRefusals(ctx, s.pool, keep.Seconds())
	return n, pg.Map(err)
}
