package sandboxpg

import (
	"context"
	"errors"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

// Reconciled implements sandbox.Store.
func (s *Store) Reconciled(ctx context.Context, h id.Host, held []id.Sandbox, settled bool) error {
	return pg.Map(s.q.Reconciled(ctx, s.pool, sqlcgen.ReconciledParams{HostID: h, Held: bare(held), Settled: settled}))
}

// MarkMissing implements sandbox.Store.
func (s *Store) MarkMissing(ctx context.Context, silence time.Duration, limit int) ([]sandbox.Sandbox, error) {
	rows, err := s.q.MarkMissing(ctx, s.pool, sqlcgen.MarkMissingParams{AfterSecs: silence.Seconds(), MaxRows: int32(limit), Reason: "host_unreachable"})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.Sandbox, len(rows))
	for i, r := range rows {
		if out[i], err = fromRow(moved(sqlcgen.TransitionRow(r)), "", string(host.StatusUnreachable)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// BringForward implements sandbox.Store.
func (s *Store) BringForward(ctx context.Context, x sandbox.Sandbox, incarnation int64) (sandbox.Sandbox, error) {
	data, err := object(map[string]any{"status": string(x.Status), "incarnation": x.Incarnation, "to": incarnation})
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	var out sandbox.Sandbox
	err = pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := s.q.LockSandbox(ctx, tx, x.ID); errors.Is(err, pgx.ErrNoRows) {
			return sandbox.ErrNotFound
		} else if err != nil {
			return err
		}
		row, err := s.q.BringForward(ctx, tx, sqlcgen.BringForwardParams{
			ID: x.ID, FromStatus: string(x.Status), Incarnation: x.Incarnation, ToIncarnation: incarnation, EventData: data,
			Message: "Its host had gone on already; the database was older.",
		})
		if errors.Is(err, pgx.ErrNoRows) {
			actual, err := s.get(ctx, tx, x.ID)
			if err != nil {
				return err
			}
			return sandbox.InvalidState(actual)
		}
		if err != nil {
			return err
		}
		out, err = fromRow(moved(sqlcgen.TransitionRow(row)), "", "")
		return err
	})
	return out, err
}

// NoteStrays implements sandbox.Store.
func (s *Store) NoteStrays(ctx context.Context, h id.Host, strays []sandbox.Stray) ([]sandbox.Stray, error) {
	var out []sandbox.Stray
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) (err error) {
		out, err = s.noteStrays(ctx, tx, h, strays)
		return err
	})
	return out, err
}

func (s *Store) noteStrays(ctx context.Context, tx pgx.Tx, h id.Host, strays []sandbox.Stray) ([]sandbox.Stray, error) {
	p := sqlcgen.NoteStraysParams{HostID: h, KeepSecs: sandbox.StrayLimit.Seconds(), Most: sandbox.MostStrays}
	// In the order of ids, so that two never wait for each other, and each once.
	strays = slices.Clone(strays)
	slices.SortFunc(strays, func(a, b sandbox.Stray) int { return strings.Compare(a.Sandbox.String(), b.Sandbox.String()) })
	strays = slices.CompactFunc(strays, func(a, b sandbox.Stray) bool { return a.Sandbox == b.Sandbox })
	for _, x := range strays {
		p.Sandboxes, p.Incarnations, p.Kinds = append(p.Sandboxes, x.Sandbox.UUID()), append(p.Incarnations, x.Incarnation), append(p.Kinds, string(x.Kind))
		p.Phases, p.States = append(p.Phases, string(x.Phase)), append(p.States, x.State.UUID())
	}
	rows, err := s.q.NoteStrays(ctx, tx, p)
	if err != nil {
		return nil, err
	}
	team, err := s.q.TeamOfHost(ctx, tx, h)
	if err != nil {
		return nil, err
	}
	by := audit.By(principal.System("reconcile"))
	var entries []audit.Entry
	var fresh []int
	out := make([]sandbox.Stray, len(rows))
	for i, r := range rows {
		x := strayOf(r.HostStray)
		out[i] = x
		if !r.New {
			continue
		}
		fresh = append(fresh, i)
		if x.Kind == sandbox.StrayForeign {
			entries = append(entries, by.HostClaimedForeign(team, h, x.Sandbox))
		} else {
			entries = append(entries, by.HostStrayFound(team, h, x.Sandbox))
		}
	}
	told, err := s.tell(ctx, tx, team, h, entries...)
	for _, i := range fresh[:told] {
		out[i].New = true
	}
	return out, err
}

// tell gives the trail entries about what a host claims, as many as it takes
// today, and returns how many those are: the first ones. The rest it hears of as a
// number.
func (s *Store) tell(ctx context.Context, tx pgx.Tx, team id.Team, h id.Host, entries ...audit.Entry) (told int, err error) {
	if len(entries) == 0 {
		return 0, nil
	}
	after, err := s.q.CountTales(ctx, tx, sqlcgen.CountTalesParams{HostID: h, More: int64(len(entries))})
	if err != nil {
		return 0, err
	}
	before := after - int64(len(entries))
	told = int(min(max(sandbox.MostTales-before, 0), int64(len(entries))))
	entries = slices.Clone(entries[:told])
	times := func(n int64) int { return bits.Len64(uint64(max(n-1, 0) / sandbox.MostTales)) }
	if times(after) > times(before) {
		entries = append(entries, audit.By(principal.System("reconcile")).HostClaimsMore(team, h, after))
	}
	return told, auditpg.Append(ctx, tx, entries...)
}

// claimed notes which of the sandboxes that a host tells of are another host's.
func (s *Store) claimed(ctx context.Context, tx pgx.Tx, from id.Host, told map[id.Sandbox]int64) error {
	if len(told) == 0 {
		return nil
	}
	ids := make([]uuid.UUID, 0, len(told))
	for x := range told {
		ids = append(ids, x.UUID())
	}
	foreign, err := s.q.NotOfHost(ctx, tx, sqlcgen.NotOfHostParams{Ids: ids, HostID: from})
	if err != nil || len(foreign) == 0 {
		return err
	}
	strays := make([]sandbox.Stray, len(foreign))
	for i, x := range foreign {
		strays[i] = sandbox.Stray{Sandbox: x, Incarnation: told[x], Kind: sandbox.StrayForeign, State: id.NewSnapshot()}
	}
	_, err = s.noteStrays(ctx, tx, from, strays)
	return err
}

// DueStrays implements sandbox.Store.
func (s *Store) DueStrays(ctx context.Context, h id.Host, limit int) ([]sandbox.Stray, error) {
	rows, err := s.q.DueStrays(ctx, s.pool, sqlcgen.DueStraysParams{HostID: h, MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	return straysOf(rows), nil
}

func straysOf(rows []sqlcgen.HostStray) []sandbox.Stray {
	out := make([]sandbox.Stray, len(rows))
	for i, r := range rows {
		out[i] = strayOf(r)
	}
	return out
}

func strayOf(r sqlcgen.HostStray) sandbox.Stray {
	return sandbox.Stray{
		Sandbox: r.SandboxID, Incarnation: r.Incarnation, Kind: sandbox.StrayKind(r.Kind), Phase: sandbox.Phase(r.Phase), State: r.StateID,
		FirstSeenAt: r.FirstSeenAt, LastSeenAt: r.LastSeenAt, PausedAt: r.PausedAt, DestroyAt: r.DestroyAt,
	}
}

// ListStrays implements sandbox.Store.
func (s *Store) ListStrays(ctx context.Context, h id.Host, p page.Request) (page.Page[sandbox.Stray], error) {
	params := sqlcgen.ListStraysParams{HostID: h, MaxRows: int32(p.Limit + 1)}
	if p.Cursor != "" {
		var after uuid.UUID
		if err := page.Decode(p.Cursor, &after); err != nil {
			return page.Page[sandbox.Stray]{}, err
		}
		params.After = &after
	}
	rows, err := s.q.ListStrays(ctx, s.pool, params)
	if err != nil {
		return page.Page[sandbox.Stray]{}, pg.Map(err)
	}
	return page.Of(straysOf(rows), p.Limit, func(x sandbox.Stray) any { return x.Sandbox.UUID() })
}

// AskStrayGone implements sandbox.Store.
func (s *Store) AskStrayGone(ctx context.Context, h id.Host, x id.Sandbox, entry func(id.Team) audit.Entry) error {
	return s.onStray(ctx, h, entry, sandbox.ErrStrayNotFound, func(ctx context.Context, tx pgx.Tx) (int64, error) {
		return s.q.AskStrayGone(ctx, tx, sqlcgen.AskStrayGoneParams{HostID: h, SandboxID: x})
	})
}

// StrayPaused implements sandbox.Store.
func (s *Store) StrayPaused(ctx context.Context, h id.Host, x id.Sandbox, entry func(id.Team) audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		n, err := s.q.StrayPaused(ctx, tx, sqlcgen.StrayPausedParams{HostID: h, SandboxID: x})
		if err != nil || n == 0 {
			return err
		}
		team, err := s.q.TeamOfHost(ctx, tx, h)
		if err != nil {
			return err
		}
		_, err = s.tell(ctx, tx, team, h, entry(team)) // a host says what it likes to a pause, too
		return err
	})
}

// DropStray implements sandbox.Store.
func (s *Store) DropStray(ctx context.Context, h id.Host, x id.Sandbox, entry func(id.Team) audit.Entry) error {
	return s.onStray(ctx, h, entry, nil, func(ctx context.Context, tx pgx.Tx) (int64, error) {
		return s.q.DropStray(ctx, tx, sqlcgen.DropStrayParams{HostID: h, SandboxID: x})
	})
}

// onStray changes one and records it, once.
func (s *Store) onStray(ctx context.Context, h id.Host, entry func(id.Team) audit.Entry, none error, change func(context.Context, pgx.Tx) (int64, error)) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		n, err := change(ctx, tx)
		if err != nil {
			return err
		}
		if n == 0 {
			return none
		}
		team, err := s.q.TeamOfHost(ctx, tx, h)
		if err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry(team))
	})
}

// UnnamedStates implements sandbox.Store.
func (s *Store) UnnamedStates(ctx context.Context, h id.Host, states []id.Snapshot) ([]id.Snapshot, error) {
	rows, err := s.q.UnnamedStates(ctx, s.pool, sqlcgen.UnnamedStatesParams{States: bare(states), HostID: h})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]id.Snapshot, len(rows))
	for i, u := range rows {
		out[i] = id.Snapshot{}.FromUUID(u)
	}
	return out, nil
}

// PruneHosts implements sandbox.Store.
func (s *Store) PruneHosts(ctx context.Context, limit int) (int, error) {
	images, err := s.q.PruneImages(ctx, s.pool, int32(limit))
	if err != nil {
		return 0, pg.Map(err)
	}
	strays, err := s.q.PruneStrays(ctx, s.pool, int32(limit))
	if err != nil {
		return 0, pg.Map(err)
	}
	departures, err := s.q.PruneDepartures(ctx, s.pool, int32(limit))
	if err != nil {
		return 0, pg.Map(err)
	}
	tokens, err := s.q.PruneTokens(ctx, s.pool, int32(limit))
	if err != nil {
		return 0, pg.Map(err)
	}
	families, err := s.q.PruneFamilies(ctx, s.pool, int32(limit))
	return int(max(images, strays, departures, tokens, families)), pg.Map(err)
}
