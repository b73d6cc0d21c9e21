// Package apikeypg keeps API keys, by their hashes.
package apikeypg

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/apikey"
	"skerry.dev/skerry/internal/control/apikey/apikeypg/sqlcgen"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/quota"
	"skerry.dev/skerry/internal/control/quota/quotapg"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

// Store implements apikey.Store.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// New returns the store on a pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

// Create implements apikey.Store.
func (s *Store) Create(ctx context.Context, key apikey.Key, hash []byte, secret string, entry audit.Entry) (apikey.Key, error) {
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return idempotencypg.Once(ctx, tx, func() (any, error) {
			if err := quotapg.Check(ctx, tx, key.TeamID, quota.Want{APIKeys: 1}); err != nil {
				return nil, err
			}
			_, err := s.role(ctx, tx, key.TeamID, key.CreatedBy)
			if err != nil {
				return nil, err
			}
			key.CreatedAt, err = s.q.InsertKey(ctx, tx, sqlcgen.InsertKeyParams{
				ID: key.ID, TeamID: key.TeamID, Name: key.Name, KeyHash: hash, KeyPrefix: key.Prefix,
				Scopes: texts(key.Scopes), CreatedBy: &key.CreatedBy, ExpiresAt: key.ExpiresAt,
			})
			if err != nil {
				return nil, err
			}
			return apikey.Created{Key: key, Secret: secret}, auditpg.Append(ctx, tx, entry)
		})
	})
	return key, err
}

// errJunkCursor is a cursor that decodes and names no position.
var errJunkCursor = errs.Invalid("invalid_cursor", "Use the next_cursor of the previous page as it was given, or leave cursor out.")

// position is where a page ends.
type position struct {
	At time.Time `json:"at"`
	ID id.APIKey `json:"id"`
}

// first is before every key.
func first() position {
	return position{At: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), ID: id.APIKey{}.FromUUID(uuid.Max)}
}

// List implements apikey.Store.
func (s *Store) List(ctx context.Context, team id.Team, p page.Request) (page.Page[apikey.Key], error) {
	from := first()
	if p.Cursor != "" {
		var after position
		if err := page.Decode(p.Cursor, &after); err != nil {
			return page.Page[apikey.Key]{}, err
		}
		if after.At.IsZero() {
			return page.Page[apikey.Key]{}, errJunkCursor
		}
		from = after
	}
	rows, err := s.q.ListKeys(ctx, s.pool, sqlcgen.ListKeysParams{
		TeamID: team, BeforeAt: from.At, BeforeID: from.ID.UUID(), MaxRows: int32(p.Limit + 1),
	})
	if err != nil {
		return page.Page[apikey.Key]{}, pg.Map(err)
	}
	keys := make([]apikey.Key, len(rows))
	for i, row := range rows {
		keys[i] = apikey.Key{
			ID: row.ID, TeamID: row.TeamID, Name: row.Name, Prefix: row.KeyPrefix, Scopes: scopes(row.Scopes), Creator: row.Creator,
			CreatedAt: row.CreatedAt, ExpiresAt: row.ExpiresAt, LastUsedAt: row.LastUsedAt,
		}
		if row.CreatedBy != nil {
			keys[i].CreatedBy = *row.CreatedBy
		}
	}
	return page.Of(keys, p.Limit, func(k apikey.Key) any { return position{At: k.CreatedAt, ID: k.ID} })
}

// role holds on to a membership until the end of the transaction.
func (s *Store) role(ctx context.Context, tx pgx.Tx, team id.Team, user id.User) (principal.Role, error) {
	role, err := s.q.HoldRole(ctx, tx, sqlcgen.HoldRoleParams{TeamID: team, UserID: user})
	if errors.Is(err, pgx.ErrNoRows) {
		return "", principal.ErrNoTeam
	}
	return principal.Role(role), err
}

// Revoke implements apikey.Store.
func (s *Store) Revoke(ctx context.Context, team id.Team, by id.User, key id.APIKey, may func(principal.Role, apikey.Key) error, entry func(apikey.Key) audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		role, err := s.role(ctx, tx, team, by)
		if err != nil {
			return err
		}
		row, err := s.q.LockKey(ctx, tx, sqlcgen.LockKeyParams{ID: key, TeamID: team})
		if errors.Is(err, pgx.ErrNoRows) {
			return apikey.ErrNotFound
		}
		if err != nil {
			return err
		}
		found := apikey.Key{ID: key, TeamID: team, Name: row.Name}
		if row.CreatedBy != nil {
			found.CreatedBy = *row.CreatedBy
		}
		if err := may(role, found); err != nil {
			return err
		}
		if err := s.q.RevokeKey(ctx, tx, key); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry(found))
	})
}

// Authenticate implements apikey.Store.
func (s *Store) Authenticate(ctx context.Context, hash []byte) (key apikey.Key, stale, found bool, err error) {
	row, err := s.q.Authenticate(ctx, s.pool, hash)
	if errors.Is(err, pgx.ErrNoRows) {
		return apikey.Key{}, false, false, nil
	}
	if err != nil {
		return apikey.Key{}, false, false, pg.Map(err)
	}
	return apikey.Key{ID: row.ID, TeamID: row.TeamID, Name: row.Name, Scopes: scopes(row.Scopes)}, row.Stale, true, nil
}

// Living implements apikey.Store.
func (s *Store) Living(ctx context.Context, key id.APIKey) (apikey.Key, bool, error) {
	row, err := s.q.ByID(ctx, s.pool, key)
	if errors.Is(err, pgx.ErrNoRows) {
		return apikey.Key{}, false, nil
	}
	if err != nil {
		return apikey.Key{}, false, pg.Map(err)
	}
	return apikey.Key{ID: row.ID, TeamID: row.TeamID, Name: row.Name, Scopes: scopes(row.Scopes)}, true, nil
}

// LivingKeys implements apikey.Store.
func (s *Store) LivingKeys(ctx context.Context, keys []id.APIKey) ([]id.APIKey, error) {
	ids := make([]uuid.UUID, len(keys))
	for i, key := range keys {
		ids[i] = key.UUID()
	}
	living, err := s.q.LivingKeys(ctx, s.pool, ids)
	return living, pg.Map(err)
}

// Touch implements apikey.Store.
func (s *Store) Touch(ctx context.Context, key id.APIKey) error {
	return pg.Map(s.q.Touch(ctx, s.pool, key))
}

func texts(scopes []principal.Scope) []string {
	out := make([]string, len(scopes))
	for i, scope := range scopes {
		out[i] = string(scope)
	}
	return out
}

func scopes(texts []string) []principal.Scope {
	out := make([]principal.Scope, len(texts))
	for i, text := range texts {
		out[i] = principal.Scope(text)
	}
	return out
}
