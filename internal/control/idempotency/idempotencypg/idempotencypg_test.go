package idempotencypg_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/pg/pgtest"
)

type receipt struct{ N int64 }

// Several servers: nothing is shared but the database and the secret.
func TestC6_DuplicatesOnSeveralServersMakeOne(t *testing.T) {
	pool := pgtest.New(t)
	secret, _ := keyring.NewSecret()
	var made atomic.Int64
	answers := make([]receipt, 12)
	var wg sync.WaitGroup
	for i := range answers {
		server := idempotency.NewService(idempotencypg.New(pool))
		wg.Go(func() {
			ctx := idempotency.With(t.Context(), idempotency.NewRequest(secret, "user:1", "key", "create", []byte("body")))
			var err error
			answers[i], err = idempotency.Do(ctx, server, func(ctx context.Context) (receipt, error) {
				var r receipt
				err := pg.InTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
					return idempotencypg.Once(ctx, tx, func() (any, error) {
						r = receipt{N: made.Add(1)}
						return r, nil
					})
				})
				return r, err
			})
			if err != nil {
				t.Errorf("create: %v", err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 1 {
		t.Errorf("made %d", made.Load())
	}
	for _, a := range answers {
		if a.N != 1 {
			t.Errorf("answers %v", answers)
			break
		}
	}
}

func TestC6_DeathBeforeCommitLeavesTheKeyFree(t *testing.T) {
	pool := pgtest.New(t)
	secret, _ := keyring.NewSecret()
	server := idempotency.NewService(idempotencypg.New(pool))
	ctx := idempotency.With(t.Context(), idempotency.NewRequest(secret, "user:1", "key", "create", nil))
	run := func(fail error) (receipt, error) {
		return idempotency.Do(ctx, server, func(ctx context.Context) (receipt, error) {
			err := pg.InTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
				if err := idempotencypg.Once(ctx, tx, func() (any, error) { return receipt{N: 7}, nil }); err != nil {
					return err
				}
				return fail // as if the process had died before the commit
			})
			return receipt{N: 7}, err
		})
	}
	if _, err := run(errors.New("killed")); err == nil {
		t.Fatal("the failure is lost")
	}
	if r, err := run(nil); err != nil || r.N != 7 {
		t.Errorf("again: %v, %v", r, err)
	}
	other := idempotency.With(t.Context(), idempotency.NewRequest(secret, "user:1", "key", "create", []byte("different")))
	_, err := idempotency.Do(other, server, func(context.Context) (receipt, error) { t.Error("ran"); return receipt{}, nil })
	if !errs.Is(err, "idempotency_conflict") {
		t.Errorf("another body: %v", err)
	}
}

func TestC6_OldKeysAreForgotten(t *testing.T) {
	pool := pgtest.New(t)
	if _, err := pool.Exec(t.Context(), `INSERT INTO idempotency_keys (caller, key_hash, request_hash, receipt, created_at)
		SELECT 'x', sha256(n::text::bytea), sha256(''), '', now() - n * interval '1 minute' FROM generate_series(1, 3000) n`); err != nil {
		t.Fatal(err)
	}
	if err := idempotency.NewService(idempotencypg.New(pool)).Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	var left int
	if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM idempotency_keys").Scan(&left); err != nil || left != 1439 {
		t.Errorf("%d keys left (%v), want the 1439 of the last 24 hours", left, err)
	}
}
