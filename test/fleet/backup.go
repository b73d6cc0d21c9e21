package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/kernel/id"
)

// Backup keeps the database as it is now, in place of an earlier backup. The
// servers lose their connections for a moment.
func (f *Fleet) Backup(ctx context.Context) error {
	return f.aside(ctx, func(do func(sql string, args ...any) error, name, backup string) (err error) {
		if err := do("DROP DATABASE IF EXISTS " + backup); err != nil {
			return err
		}
		// Nobody may be connected to what is copied.
		if err := do("ALTER DATABASE " + name + " ALLOW_CONNECTIONS false"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, do("ALTER DATABASE "+name+" ALLOW_CONNECTIONS true")) }()
		if err := do("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", f.database()); err != nil {
			return err
		}
		return do("CREATE DATABASE " + backup + " TEMPLATE " + name)
	})
}

// Restore puts the backup in place of the database, as if all since then had
// never been written. No server may run.
func (f *Fleet) Restore(ctx context.Context) error {
	return f.aside(ctx, func(do func(sql string, args ...any) error, name, backup string) error {
		if err := do("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			return err
		}
		return do("ALTER DATABASE " + backup + " RENAME TO " + name)
	})
}

func (f *Fleet) database() string { return f.pool.Config().ConnConfig.Database }

// aside works on the fleet's database from another one, with both names quoted.
func (f *Fleet) aside(ctx context.Context, work func(do func(sql string, args ...any) error, name, backup string) error) error {
	config := f.pool.Config().ConnConfig.Copy()
	name := config.Database
	config.Database = "postgres"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	do := func(sql string, args ...any) error {
		if _, err := conn.Exec(ctx, sql, args...); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
		return nil
	}
	err = work(do, pgx.Identifier{name}.Sanitize(), pgx.Identifier{name + "_backup"}.Sanitize())
	f.pool.Reset() // its connections were to what was there before
	return err
}

// Forget removes what the database knows of a sandbox without a saved state, as
// if it were older than the sandbox. The returned function has it know the
// sandbox again.
func (f *Fleet) Forget(ctx context.Context, sandbox string) (recall func(context.Context) error, err error) {
	x, err := id.ParseSandbox(sandbox)
	if err != nil {
		return nil, err
	}
	var row json.RawMessage
	err = pgx.BeginFunc(ctx, f.pool, func(tx pgx.Tx) error {
		for _, table := range []string{"operations", "sandbox_events", "sandbox_samples"} {
			if _, err := tx.Exec(ctx, "DELETE FROM "+table+" WHERE sandbox_id = $1", x); err != nil {
				return err
			}
		}
		return tx.QueryRow(ctx, "DELETE FROM sandboxes WHERE id = $1 RETURNING to_jsonb(sandboxes)", x).Scan(&row)
	})
	return func(ctx context.Context) error {
		_, err := f.pool.Exec(ctx, "INSERT INTO sandboxes SELECT * FROM jsonb_populate_record(NULL::sandboxes, $1)", row)
		return err
	}, err
}
