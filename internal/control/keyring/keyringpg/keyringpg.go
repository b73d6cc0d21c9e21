// Package keyringpg keeps the platform's keys, sealed.
package keyringpg

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg/sqlcgen"
	"skerry.dev/skerry/internal/pg"
)

// Store implements keyring.Store.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// New returns the store on a pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

// Keys implements keyring.Store.
func (s *Store) Keys(ctx context.Context) ([]keyring.StoredKey, error) {
	keys, err := s.list(ctx, s.pool)
	return keys, pg.Map(err)
}

// PublicKeys implements keyring.Store.
func (s *Store) PublicKeys(ctx context.Context, kind keyring.Kind) ([]keyring.PublicKey, error) {
	rows, err := s.q.ListPublic(ctx, s.pool, string(kind))
	if err != nil {
		return nil, pg.Map(err)
	}
	keys := make([]keyring.PublicKey, len(rows))
	for i, row := range rows {
		keys[i] = keyring.PublicKey{KID: row.Kid, Public: row.Public}
	}
	return keys, nil
}

// Ensure implements keyring.Store.
func (s *Store) Ensure(ctx context.Context, kinds []keyring.Kind, create func([]keyring.Kind) ([]keyring.StoredKey, error)) ([]keyring.StoredKey, error) {
	var keys []keyring.StoredKey
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.q.LockKeys(ctx, tx); err != nil {
			return err
		}
		var err error
		if keys, err = s.list(ctx, tx); err != nil {
			return err
		}
		var missing []keyring.Kind
		for _, kind := range kinds {
			if !slices.ContainsFunc(keys, func(k keyring.StoredKey) bool { return k.Kind == kind }) {
				missing = append(missing, kind)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		made, err := create(missing)
		if err != nil {
			return err
		}
		for _, key := range made {
			if err := s.q.InsertKey(ctx, tx, sqlcgen.InsertKeyParams{Kid: key.KID, Kind: string(key.Kind), Sealed: key.Sealed, Public: key.Public}); err != nil {
				return err
			}
		}
		keys, err = s.list(ctx, tx)
		return err
	})
	return keys, err
}

func (s *Store) list(ctx context.Context, db sqlcgen.DBTX) ([]keyring.StoredKey, error) {
	rows, err := s.q.ListKeys(ctx, db)
	if err != nil {
		return nil, err
	}
	keys := make([]keyring.StoredKey, len(rows))
	for i, row := range rows {
		keys[i] = keyring.StoredKey{KID: row.Kid, Kind: keyring.Kind(row.Kind), Sealed: row.Sealed, Public: row.Public, CreatedAt: row.CreatedAt}
	}
	return keys, nil
}
