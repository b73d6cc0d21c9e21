package pg

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"skerry.dev/skerry/db/migrations"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Migrate brings the schema to this program's version. Several servers may
// call it at once: one works, the others wait and find nothing to do. Each
// migration is one transaction, so a process that dies in the middle is
// followed by one that goes on. A schema newer than the program is refused.
// The URL's user owns the schema and must be able to make AppRole, unless
// somebody made it and granted it to that user.
func Migrate(ctx context.Context, url string) error {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return errs.Invalid("invalid_database_url", "DATABASE_URL is not a PostgreSQL URL such as postgres://user@host/database.")
	}
	db := stdlib.OpenDB(*config)
	defer db.Close()
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 120))
	if err != nil {
		return fmt.Errorf("make migration lock: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, migrations.FS, goose.WithSessionLocker(locker))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	current, target, err := provider.GetVersions(ctx)
	if err != nil {
		return Map(fmt.Errorf("read the schema's version: %w", err))
	}
	if current > target {
		return errs.FailedPrecondition("schema_too_new", fmt.Sprintf(
			"The database has schema version %d, this program knows only %d. Start the newer program, or restore a backup made by this one.", current, target)).
			With("schema_version", current).With("program_version", target)
	}
	if err := ensureAppRole(ctx, config); err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return Map(fmt.Errorf("migrate: %w", err))
	}
	return nil
}
