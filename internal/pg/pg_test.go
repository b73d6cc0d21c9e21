package pg_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/pg/pgtest"
)

func TestTypedIDsTravelAloneInArraysAndAsNull(t *testing.T) {
	ctx := context.Background()
	pool := pgtest.New(t)
	want := []id.User{id.NewUser(), id.NewUser()}
	var one id.User
	var many []id.User
	var null, notNull *id.User
	err := pool.QueryRow(ctx, "SELECT $1::uuid, $2::uuid[], $3::uuid, $4::uuid, $1::uuid = ANY($2)", want[0], want, (*id.User)(nil), &want[1]).
		Scan(&one, &many, &null, &notNull, new(bool))
	if err != nil {
		t.Fatal(err)
	}
	if one != want[0] || !cmp.Equal(many, want, cmp.Comparer(func(a, b id.User) bool { return a == b })) || null != nil || *notNull != want[1] {
		t.Errorf("came back as %v %v %v %v", one, many, null, notNull)
	}
	rows, err := pool.Query(ctx, "SELECT u FROM unnest($1::uuid[]) u WHERE u = ANY($2)", want, want[1:])
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[id.User])
	if err != nil || len(got) != 1 || got[0] != want[1] {
		t.Errorf("filtered by ANY: %v, %v", got, err)
	}
}

func TestInTxRunsAgainAfterSerializationFailure(t *testing.T) {
	ctx := context.Background()
	pool := pgtest.New(t)
	if _, err := pgtest.Owner(t, pool).Exec(ctx, "CREATE TABLE counter (n int); INSERT INTO counter VALUES (0); GRANT SELECT, UPDATE ON counter TO skerry_app"); err != nil {
		t.Fatal(err)
	}
	const workers = 4
	var wg sync.WaitGroup
	failures := make(chan error, workers)
	for range workers {
		wg.Go(func() {
			failures <- pg.InTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
				if _, err := tx.Exec(ctx, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"); err != nil {
					return err
				}
				var n int
				if err := tx.QueryRow(ctx, "SELECT n FROM counter").Scan(&n); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, "UPDATE counter SET n = $1", n+1)
				return err
			})
		})
	}
	wg.Wait()
	close(failures)
	succeeded := 0
	for err := range failures {
		switch {
		case err == nil:
			succeeded++
		case errs.CodeOf(err) != errs.CodeUnavailable:
			t.Errorf("a lost race is %v, want unavailable", err)
		}
	}
	var n int
	if err := pool.QueryRow(ctx, "SELECT n FROM counter").Scan(&n); err != nil || n != succeeded || n < 2 {
		t.Errorf("counter is %d after %d successes (%v)", n, succeeded, err)
	}
}

func TestInTxRollsBackAndKeepsTypedErrors(t *testing.T) {
	ctx := context.Background()
	pool := pgtest.New(t)
	want := errs.Conflict("taken", "Take another.")
	err := pg.InTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO teams (id, name, slug) VALUES ($1, 'x', 'aaaaaa-bbbbbb')", id.NewTeam()); err != nil {
			return err
		}
		return want
	})
	if !errors.Is(err, want) {
		t.Errorf("error is %v", err)
	}
	var n int
	if err := pool.QueryRow(ctx, "SELECT count(*) FROM teams WHERE name = 'x'").Scan(&n); err != nil || n != 0 {
		t.Errorf("%d rows stayed (%v)", n, err)
	}
}

func TestMapGivesSQLStatesTheirClass(t *testing.T) {
	ctx := context.Background()
	pool := pgtest.New(t)
	for _, tt := range []struct {
		name, sql string
		want      errs.Code
	}{
		{"unique", "INSERT INTO teams (id, name, slug) SELECT gen_random_uuid(), 'x', slug FROM teams", errs.CodeConflict},
		{"check", "INSERT INTO teams (id, name, slug) VALUES (gen_random_uuid(), '', 'aaaaaa-bbbbbb')", errs.CodeInvalid},
		{"text", "SELECT 'x'::uuid", errs.CodeInvalid},
		{"timeout", "SET statement_timeout = 1; SELECT pg_sleep(5)", errs.CodeUnavailable},
		{"bug", "SELECT nothing_like_this", errs.CodeInternal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := pool.Exec(ctx, tt.sql)
			if got := errs.CodeOf(pg.Map(err)); got != tt.want {
				t.Errorf("%v is %s, want %s", err, got, tt.want)
			}
		})
	}
	var none int
	if err := pg.Map(pool.QueryRow(ctx, "SELECT 1 WHERE false").Scan(&none)); errs.CodeOf(err) != errs.CodeNotFound {
		t.Errorf("no rows is %v", err)
	}
	pool.Close()
	dead, err := pg.Open(ctx, "postgres://skerry@/x?host=/nonexistent")
	if err == nil {
		dead.Close()
	}
	if got := errs.CodeOf(pg.Map(err)); got != errs.CodeUnavailable {
		t.Errorf("no server is %v: %s", err, got)
	}
}

func TestMigrateByManyAtOnce(t *testing.T) {
	ctx := context.Background()
	url := pgtest.Empty(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := pg.Migrate(ctx, url); err != nil {
				t.Errorf("migrate: %v", err)
			}
		})
	}
	wg.Wait()
}

func TestAP08_NewerSchemaIsRefusedByName(t *testing.T) {
	ctx := context.Background()
	url := pgtest.URL(t)
	pool, err := pg.Open(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := pgtest.Owner(t, pool).Exec(ctx, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (90001, true)"); err != nil {
		t.Fatal(err)
	}
	err = pg.Migrate(ctx, url)
	if !errs.Is(err, "schema_too_new") || !strings.Contains(err.Error(), "90001") {
		t.Errorf("a newer schema: %v", err)
	}
}
