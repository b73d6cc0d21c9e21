// Package eventpg reads the outbox and keeps tickets.
package eventpg

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/event"
	"skerry.dev/skerry/internal/control/event/eventpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// Store implements event.Store and event.TicketStore.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// New uses the pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

// End implements event.Store.
func (s *Store) End(ctx context.Context) (event.Position, error) {
	tx, err := s.q.OutboxEnd(ctx, s.pool)
	return event.Position{Tx: tx}, pg.Map(err)
}

// After implements event.Store.
func (s *Store) After(ctx context.Context, p event.Position, limit int) ([]event.Event, error) {
	rows, err := s.q.OutboxAfter(ctx, s.pool, sqlcgen.OutboxAfterParams{Tx: p.Tx, ID: p.ID, MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	events := make([]event.Event, len(rows))
	for i, r := range rows {
		events[i] = fromRow(r)
	}
	return events, nil
}

// Between implements event.Store.
func (s *Store) Between(ctx context.Context, team id.Team, p, to event.Position, limit int) ([]event.Event, error) {
	rows, err := s.q.OutboxBetween(ctx, s.pool, sqlcgen.OutboxBetweenParams{
		TeamID: team, Tx: p.Tx, ID: p.ID, ToTx: to.Tx, ToID: to.ID, MaxRows: int32(limit),
	})
	if err != nil {
		return nil, pg.Map(err)
	}
	events := make([]event.Event, len(rows))
	for i, r := range rows {
		events[i] = fromRow(sqlcgen.OutboxAfterRow(r))
	}
	return events, nil
}

// BetweenAll implements event.Store.
func (s *Store) BetweenAll(ctx context.Context, p, to event.Position, limit int) ([]event.Event, error) {
	rows, err := s.q.OutboxBetweenAll(ctx, s.pool, sqlcgen.OutboxBetweenAllParams{Tx: p.Tx, ID: p.ID, ToTx: to.Tx, ToID: to.ID, MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	events := make([]event.Event, len(rows))
	for i, r := range rows {
		events[i] = fromRow(sqlcgen.OutboxAfterRow(r))
	}
	return events, nil
}

func fromRow(r sqlcgen.OutboxAfterRow) event.Event {
	return event.Event{
		At: event.Position{Tx: r.Tx, ID: r.ID}, Team: r.TeamID, Kind: r.Kind, Resource: r.Resource, Scope: audit.Scope(r.Scope), Time: r.At,
	}
}

// Kept implements event.Store.
func (s *Store) Kept(ctx context.Context, p event.Position) (bool, error) {
	kept, err := s.q.OutboxKept(ctx, s.pool, sqlcgen.OutboxKeptParams{Tx: p.Tx, ID: p.ID})
	return kept, pg.Map(err)
}

// Prune implements event.Store.
func (s *Store) Prune(ctx context.Context, keep time.Duration) (int64, error) {
	n, err := s.q.PruneOutbox(ctx, s.pool, keep.Seconds())
	return n, pg.Map(err)
}

// Tickets is the part of the store that keeps tickets.
type Tickets struct{ s *Store }

// Tickets returns it.
func (s *Store) Tickets() Tickets { return Tickets{s} }

// Insert implements event.TicketStore.
func (t Tickets) Insert(ctx context.Context, hash []byte, operation, resource string, session *id.Session, key *id.APIKey, lifetime time.Duration) (time.Time, error) {
	expires, err := t.s.q.InsertTicket(ctx, t.s.pool, sqlcgen.InsertTicketParams{
		TicketHash: hash, Operation: operation, Resource: resource, SessionID: session, ApiKeyID: key, LifetimeSecs: lifetime.Seconds(),
	})
	return expires, pg.Map(err)
}

// Spend implements event.TicketStore.
func (t Tickets) Spend(ctx context.Context, hash []byte, operation, resource string) (*id.Session, *id.APIKey, bool, error) {
	row, err := t.s.q.SpendTicket(ctx, t.s.pool, sqlcgen.SpendTicketParams{TicketHash: hash, Operation: operation, Resource: resource})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil, false, nil
	}
	return row.SessionID, row.ApiKeyID, row.Fresh, pg.Map(err)
}

// Prune implements event.TicketStore.
func (t Tickets) Prune(ctx context.Context) error {
	_, err := t.s.q.PruneTickets(ctx, t.s.pool)
	return pg.Map(err)
}
