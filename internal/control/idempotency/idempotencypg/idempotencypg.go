// Package idempotencypg keeps the receipts of creates, in the transactions that
// made the objects.
package idempotencypg

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg/sqlcgen"
	"skerry.dev/skerry/internal/pg"
)

// Store implements idempotency.Store.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// New returns the store on a pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

// Find implements idempotency.Store.
func (s *Store) Find(ctx context.Context, caller string, keyHash []byte) (idempotency.Stored, bool, error) {
	return find(ctx, s.pool, caller, keyHash)
}

// DeleteExpired implements idempotency.Store.
func (s *Store) DeleteExpired(ctx context.Context) (int64, error) {
	n, err := s.q.DeleteExpired(ctx, s.pool)
	return n, pg.Map(err)
}

// Once runs work, the making of one object inside tx, and stores the receipt
// that it returns (as JSON) beside it. When the request carries an
// Idempotency-Key that has made its object already, work is not run and the
// error is an *idempotency.Replay, which must end the transaction; a duplicate
// in flight on any server is waited for. Without a key it only runs work.
// Call it first thing in the transaction, before anything that locks.
func Once(ctx context.Context, tx pgx.Tx, work func() (receipt any, err error)) error {
	r, ok := idempotency.From(ctx)
	if !ok {
		_, err := work()
		return err
	}
	q := sqlcgen.New()
	if err := q.LockKey(ctx, tx, r.LockID()); err != nil {
		return fmt.Errorf("wait for an identical request: %w", err)
	}
	stored, found, err := find(ctx, tx, r.Caller, r.KeyHash)
	if err != nil {
		return err
	}
	if found {
		receipt, err := r.Open(stored)
		if err != nil {
			return err
		}
		return &idempotency.Replay{Receipt: receipt}
	}
	receipt, err := work()
	if err != nil {
		return err
	}
	raw, err := json.Marshal(receipt)
	if err != nil {
		return fmt.Errorf("write the receipt: %w", err)
	}
	if err := q.SaveReceipt(ctx, tx, sqlcgen.SaveReceiptParams{
		Caller: r.Caller, KeyHash: r.KeyHash, RequestHash: r.BodyHash, Receipt: r.Seal(raw),
	}); err != nil {
		return fmt.Errorf("store the receipt: %w", err)
	}
	return nil
}

func find(ctx context.Context, db sqlcgen.DBTX, caller string, keyHash []byte) (idempotency.Stored, bool, error) {
	row, err := sqlcgen.New().FindReceipt(ctx, db, sqlcgen.FindReceiptParams{Caller: caller, KeyHash: keyHash})
	if errors.Is(err, pgx.ErrNoRows) {
		return idempotency.Stored{}, false, nil
	}
	if err != nil {
		return idempotency.Stored{}, false, pg.Map(err)
	}
	return idempotency.Stored{BodyHash: row.RequestHash, Receipt: row.Receipt}, true, nil
}
