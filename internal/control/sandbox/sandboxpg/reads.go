package sandboxpg

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

// errJunkCursor is a cursor that decodes and names no position.
var errJunkCursor = errs.Invalid("invalid_cursor", "Use the next_cursor of the previous page as it was given, or leave cursor out.")

type position struct {
	At time.Time `json:"at"`
	ID uuid.UUID `json:"id"`
}

// List implements sandbox.Store.
func (s *Store) List(ctx context.Context, f sandbox.Filter, p page.Request) (page.Page[sandbox.Sandbox], error) {
	metadata, err := object(f.Metadata)
	if err != nil {
		return page.Page[sandbox.Sandbox]{}, err
	}
	params := sqlcgen.ListSandboxesParams{
		TeamID: f.TeamID, LiveOnly: len(f.Statuses) == 0, Statuses: words(f.Statuses), Metadata: metadata, MaxRows: int32(p.Limit + 1),
	}
	if tpl, err := id.ParseTemplate(f.Template); err == nil {
		u := tpl.UUID()
		params.TemplateID = &u
	} else {
		params.TemplateName = f.Template
	}
	if p.Cursor != "" {
		var after position
		if err := page.Decode(p.Cursor, &after); err != nil {
			return page.Page[sandbox.Sandbox]{}, err
		}
		if after.At.IsZero() {
			return page.Page[sandbox.Sandbox]{}, errJunkCursor
		}
		params.AfterAt, params.AfterID = &after.At, &after.ID
	}
	if !f.Since.IsZero() {
		params.Since = &f.Since
	}
	var out []sandbox.Sandbox
	add := func(row sqlcgen.GetSandboxRow) error {
		x, err := joined(row)
		out = append(out, x)
		return err
	}
	if f.OldestFirst {
		rows, err := s.q.ListSandboxesOldestFirst(ctx, s.pool, sqlcgen.ListSandboxesOldestFirstParams(params))
		if err != nil {
			return page.Page[sandbox.Sandbox]{}, pg.Map(err)
		}
		for _, r := range rows {
			if err := add(sqlcgen.GetSandboxRow(r)); err != nil {
				return page.Page[sandbox.Sandbox]{}, err
			}
		}
	} else {
		rows, err := s.q.ListSandboxes(ctx, s.pool, params)
		if err != nil {
			return page.Page[sandbox.Sandbox]{}, pg.Map(err)
		}
		for _, r := range rows {
			if err := add(sqlcgen.GetSandboxRow(r)); err != nil {
				return page.Page[sandbox.Sandbox]{}, err
			}
		}
	}
	return page.Of(out, p.Limit, func(x sandbox.Sandbox) any { return position{x.CreatedAt, x.ID.UUID()} })
}

// Events implements sandbox.Store.
func (s *Store) Events(ctx context.Context, x id.Sandbox, p page.Request) (page.Page[sandbox.Event], error) {
	var before int64
	if p.Cursor != "" {
		if err := page.Decode(p.Cursor, &before); err != nil {
			return page.Page[sandbox.Event]{}, err
		}
		if before <= 0 {
			return page.Page[sandbox.Event]{}, errJunkCursor
		}
	}
	rows, err := s.q.ListEvents(ctx, s.pool, sqlcgen.ListEventsParams{SandboxID: x, Before: before, MaxRows: int32(p.Limit + 1)})
	if err != nil {
		return page.Page[sandbox.Event]{}, pg.Map(err)
	}
	out := make([]sandbox.Event, len(rows))
	for i, r := range rows {
		out[i] = sandbox.Event{ID: r.ID, Kind: r.Kind, At: r.At}
		if err := json.Unmarshal(r.Data, &out[i].Data); err != nil {
			return page.Page[sandbox.Event]{}, err
		}
	}
	return page.Of(out, p.Limit, func(e sandbox.Event) any { return e.ID })
}

// Seen implements sandbox.Store.
func (s *Store) Seen(ctx context.Context, seen map[id.Sandbox]time.Time) ([]sandbox.Sandbox, error) {
	params := sqlcgen.SeenSandboxesParams{Ids: make([]uuid.UUID, 0, len(seen)), Seen: make([]time.Time, 0, len(seen))}
	for x, at := range seen {
		params.Ids, params.Seen = append(params.Ids, x.UUID()), append(params.Seen, at)
	}
	rows, err := s.q.SeenSandboxes(ctx, s.pool, params)
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.Sandbox, len(rows))
	for i, r := range rows {
		if out[i], err = joined(sqlcgen.GetSandboxRow(r)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// MarksOnHost implements sandbox.Store.
func (s *Store) MarksOnHost(ctx context.Context, h id.Host) ([]sandbox.Mark, error) {
	rows, err := s.q.MarksOnHost(ctx, s.pool, h)
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.Mark, len(rows))
	for i, r := range rows {
		out[i] = sandbox.Mark{ID: r.ID, Status: sandbox.Status(r.Status), Incarnation: r.Incarnation, UpdatedAt: r.UpdatedAt}
	}
	return out, nil
}

// OnHost implements sandbox.Store.
func (s *Store) OnHost(ctx context.Context, h id.Host, named []id.Sandbox) ([]sandbox.Sandbox, error) {
	rows, err := s.q.OnHost(ctx, s.pool, sqlcgen.OnHostParams{HostID: h, Named: bare(named)})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.Sandbox, len(rows))
	for i, r := range rows {
		if out[i], err = joined(sqlcgen.GetSandboxRow(r)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func bare[I interface{ UUID() uuid.UUID }](ids []I) []uuid.UUID {
	out := make([]uuid.UUID, len(ids))
	for i, v := range ids {
		out[i] = v.UUID()
	}
	return out
}

// TakeDue implements sandbox.Store.
func (s *Store) TakeDue(ctx context.Context, lease sandbox.Lease, limit int) ([]sandbox.Operation, error) {
	rows, err := s.q.TakeDue(ctx, s.pool, sqlcgen.TakeDueParams{Owner: lease.Owner, LeaseSecs: lease.For.Seconds(), MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.Operation, len(rows))
	for i, r := range rows {
		if out[i], err = operation(r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Renew implements sandbox.Store.
func (s *Store) Renew(ctx context.Context, lease sandbox.Lease, held []id.Operation) ([]id.Operation, error) {
	out, err := s.q.RenewLeases(ctx, s.pool, sqlcgen.RenewLeasesParams{Owner: lease.Owner, LeaseSecs: lease.For.Seconds(), Ids: bare(held)})
	return out, pg.Map(err)
}

// Yield implements sandbox.Store.
func (s *Store) Yield(ctx context.Context, lease sandbox.Lease, op id.Operation, pause time.Duration) error {
	return pg.Map(s.q.YieldLease(ctx, s.pool, sqlcgen.YieldLeaseParams{ID: op, Owner: lease.Owner, PauseSecs: pause.Seconds()}))
}

// Prune implements sandbox.Store.
func (s *Store) Prune(ctx context.Context, retention time.Duration, limit int) (int, error) {
	n := 0
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		ids, err := s.q.PruneEnded(ctx, tx, sqlcgen.PruneEndedParams{RetentionSecs: retention.Seconds(), MaxRows: int32(limit)})
		if err != nil || len(ids) == 0 {
			n = 0
			return err
		}
		n = len(ids)
		for _, remove := range []func(context.Context, sqlcgen.DBTX, []uuid.UUID) error{s.q.DropStatesOf, s.q.DeleteEvents, s.q.DeleteOperations, s.q.DeleteSandboxes} {
			if err := remove(ctx, tx, bare(ids)); err != nil {
				return err
			}
		}
		return nil
	})
	return n, err
}

// Report implements sandbox.Store.
func (s *Store) Report(ctx context.Context, from id.Host, generation int64, reports []sandbox.Report) ([]sandbox.Sandbox, error) {
	var ended []sandbox.Sandbox
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		ended = ended[:0]
		others := map[id.Sandbox]int64{} // not of this host, or told before
		for _, r := range reports {
			data, err := object(r.Data)
			if err != nil {
				return err
			}
			seq := r.Seq
			n, err := s.q.InsertReport(ctx, tx, sqlcgen.InsertReportParams{
				SandboxID: r.Sandbox, HostID: &from, Generation: &generation, Seq: &seq, Kind: r.Kind, At: r.At, Data: data,
			})
			if err != nil {
				return err
			}
			if n == 0 {
				others[r.Sandbox] = r.Incarnation
			}
			if n == 0 || r.Kind != sandbox.ReportExited {
				continue // told before, or not of this host; or nothing that changes the status
			}
			moved, err := s.died(ctx, tx, r.Sandbox, r.Incarnation, r.EndReason(), nil)
			if errs.Is(err, "invalid_state") || errs.Is(err, sandbox.ErrNotFound.Reason) {
				continue // it ended otherwise, or another incarnation runs
			}
			if err != nil {
				return err
			}
			ended = append(ended, moved)
		}
		return s.claimed(ctx, tx, from, others)
	})
	return ended, err
}

// Note implements sandbox.Store.
func (s *Store) Note(ctx context.Context, x id.Sandbox, kind string, data map[string]any) error {
	raw, err := object(data)
	if err != nil {
		return err
	}
	return pg.Map(s.q.InsertEvent(ctx, s.pool, sqlcgen.InsertEventParams{SandboxID: x, Kind: kind, Data: raw}))
}
