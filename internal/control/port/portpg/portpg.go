// Package portpg keeps the accesses to ports, by their tokens' hashes.
package portpg

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/port"
	"skerry.dev/skerry/internal/control/port/portpg/sqlcgen"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

// Store implements port.Store.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// New returns the store on a pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

// Open implements port.Store.
func (s *Store) Open(ctx context.Context, a port.Access, by principal.Principal, lastsSec *int64, hash []byte, token string, entry audit.Entry) (port.Access, error) {
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return idempotencypg.Once(ctx, tx, func() (any, error) {
			if err := s.room(ctx, tx, a); err != nil {
				return nil, err
			}
			row, err := s.q.InsertAccess(ctx, tx, sqlcgen.InsertAccessParams{
				ID: a.ID, TeamID: a.TeamID, SandboxID: a.SandboxID, Port: int32(a.Port), TokenHash: hash, Name: a.Name,
				CreatedByType: string(by.Kind), CreatedByID: by.ActorID(), CreatedByName: by.ActorName(), Lasts: lastsSec,
			})
			if err != nil {
				return nil, err
			}
			a.CreatedAt, a.ExpiresAt = row.CreatedAt, row.ExpiresAt
			return port.Opened{Access: a, Token: token}, auditpg.Append(ctx, tx, entry)
		})
	})
	return a, err
}

// room holds the sandbox, and refuses when it ends or has enough.
func (s *Store) room(ctx context.Context, tx pgx.Tx, a port.Access) error {
	row, err := s.q.LockSandbox(ctx, tx, sqlcgen.LockSandboxParams{ID: a.SandboxID, TeamID: a.TeamID})
	if errors.Is(err, pgx.ErrNoRows) {
		return sandbox.ErrNotFound
	}
	if err != nil {
		return err
	}
	if status := sandbox.Status(row.Status); !status.Live() || status == sandbox.StatusStopping {
		return sandbox.InvalidState(sandbox.Sandbox{Status: status})
	}
	if err := s.q.DropExpired(ctx, tx, a.SandboxID); err != nil {
		return err
	}
	n, err := s.q.CountAccess(ctx, tx, a.SandboxID)
	if err != nil {
		return err
	}
	if n >= port.MaxPerSandbox {
		return errs.Exhausted("too_many_ports", fmt.Sprintf("The sandbox has %d accesses to its ports, as many as it may. Take one back first.", n))
	}
	return nil
}

// position is where a page ends.
type position struct {
	At time.Time     `json:"at"`
	ID id.PortAccess `json:"id"`
}

// first is before every access.
func first() position {
	return position{At: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), ID: id.PortAccess{}.FromUUID(uuid.Max)}
}

// List implements port.Store.
func (s *Store) List(ctx context.Context, x id.Sandbox, p page.Request) (page.Page[port.Access], error) {
	from := first()
	if p.Cursor != "" {
		var after position
		if err := page.Decode(p.Cursor, &after); err != nil {
			return page.Page[port.Access]{}, err
		}
		if after.At.IsZero() {
			return page.Page[port.Access]{}, errs.Invalid("invalid_cursor", "Use the next_cursor of the previous page as it was given, or leave cursor out.")
		}
		from = after
	}
	rows, err := s.q.ListAccess(ctx, s.pool, sqlcgen.ListAccessParams{SandboxID: x, BeforeAt: from.At, BeforeID: from.ID.UUID(), MaxRows: int32(p.Limit + 1)})
	if err != nil {
		return page.Page[port.Access]{}, pg.Map(err)
	}
	all := make([]port.Access, len(rows))
	for i, row := range rows {
		all[i] = port.Access{
			ID: row.ID, SandboxID: x, Port: int(row.Port), Public: row.Public, Name: row.Name, CreatedBy: row.CreatedByName, CreatedAt: row.CreatedAt, ExpiresAt: row.ExpiresAt,
		}
	}
	return page.Of(all, p.Limit, func(a port.Access) any { return position{At: a.CreatedAt, ID: a.ID} })
}

// Revoke implements port.Store.
func (s *Store) Revoke(ctx context.Context, team id.Team, x id.Sandbox, access id.PortAccess, entry func(port int, name string) audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		row, err := s.q.Revoke(ctx, tx, sqlcgen.RevokeParams{ID: access, SandboxID: x, TeamID: team})
		if errors.Is(err, pgx.ErrNoRows) {
			return port.ErrNotFound
		}
		if err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry(int(row.Port), row.Name))
	})
}

// Admit implements port.Store.
func (s *Store) Admit(ctx context.Context, x id.Sandbox, number int, hash []byte) (port.Admission, bool, error) {
	row, err := s.q.Admit(ctx, s.pool, sqlcgen.AdmitParams{SandboxID: x, Port: int32(number), TokenHash: hash})
	if errors.Is(err, pgx.ErrNoRows) {
		return port.Admission{}, false, nil
	}
	if err != nil {
		return port.Admission{}, false, pg.Map(err)
	}
	return port.Admission{Access: row.ID, TeamID: row.TeamID, Public: row.Public, ExpiresAt: row.ExpiresAt}, true, nil
}

// TeamOf implements port.Store.
func (s *Store) TeamOf(ctx context.Context, x id.Sandbox) (id.Team, bool, error) {
	team, err := s.q.TeamOf(ctx, s.pool, x)
	if errors.Is(err, pgx.ErrNoRows) {
		return id.Team{}, false, nil
	}
	return team, err == nil, pg.Map(err)
}

// Living implements port.Store.
func (s *Store) Living(ctx context.Context, accesses []id.PortAccess) ([]id.PortAccess, error) {
	ids := make([]uuid.UUID, len(accesses))
	for i, a := range accesses {
		ids[i] = a.UUID()
	}
	living, err := s.q.Living(ctx, s.pool, ids)
	return living, pg.Map(err)
}
