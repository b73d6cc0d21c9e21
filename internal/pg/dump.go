package pg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strings"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/kernel/errs"
)

// Dump writes the whole database as it is at one moment, as pg_dump's custom
// format, and lets look read the same moment. The URL's user must be able to
// read all tables.
func Dump(ctx context.Context, address string, w io.Writer, look func(ctx context.Context, tx pgx.Tx) error) error {
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return Map(fmt.Errorf("connect to the database: %w", err))
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return Map(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	var snapshot string
	if err := tx.QueryRow(ctx, "SELECT pg_export_snapshot()").Scan(&snapshot); err != nil {
		return Map(err)
	}
	dump, err := client(ctx, "pg_dump", address, "--format=custom", "--no-owner", "--snapshot="+snapshot)
	if err != nil {
		return err
	}
	dump.Stdout = w
	if err := dump.run(); err != nil {
		return err
	}
	return look(ctx, tx)
}

// Load fills an empty database with what Dump wrote into file, and runs after in
// the same transaction: all of it is there, or nothing is. A database that has
// anything in it is refused with database_not_empty.
func Load(ctx context.Context, address, file string, after ...string) error {
	config, err := pgx.ParseConfig(address)
	if err != nil {
		return errs.Invalid("invalid_database_url", "DATABASE_URL is not a PostgreSQL URL such as postgres://user@host/database.")
	}
	if err := IsEmpty(ctx, address); err != nil {
		return err
	}
	if err := ensureAppRole(ctx, config); err != nil {
		return err
	}
	unpack, err := client(ctx, "pg_restore", "", "--no-owner", "--file=-", file)
	if err != nil {
		return err
	}
	fill, err := client(ctx, "psql", address, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-")
	if err != nil {
		return err
	}
	script, feed := io.Pipe()
	fill.Stdin = script
	unpack.Stdout = feed
	unpacked := make(chan error, 1)
	go func() {
		unpacked <- func() error {
			if _, err := io.WriteString(feed, "BEGIN;\n"); err != nil {
				return err
			}
			// Without the last word, whatever breaks off is rolled back.
			if err := unpack.run(); err != nil {
				return errors.Join(err, feed.Close())
			}
			_, err := io.WriteString(feed, strings.Join(append(after, "COMMIT"), ";\n")+";\n")
			return errors.Join(err, feed.Close())
		}()
	}()
	filled := fill.run()
	_ = script.CloseWithError(io.ErrClosedPipe) // who still writes is let go
	return errors.Join(filled, <-unpacked)
}

// IsEmpty refuses, with database_not_empty, a database that has anything in it.
func IsEmpty(ctx context.Context, address string) error {
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return Map(fmt.Errorf("connect to the database: %w", err))
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var there int
	err = conn.QueryRow(ctx, `SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema'`).Scan(&there)
	if err != nil {
		return Map(err)
	}
	if there > 0 {
		return errs.FailedPrecondition("database_not_empty", "The database is not empty. Give one that is: nothing is ever restored over what is there.")
	}
	return nil
}

// tool is a program of PostgreSQL's, with the end of what it complains about.
type tool struct {
	*exec.Cmd

	name   string
	stderr bytes.Buffer
}

// client makes a call of such a program. The password goes into its environment,
// where nobody else reads it.
func client(ctx context.Context, name, address string, args ...string) (*tool, error) {
	path, err := binary(name)
	if err != nil {
		return nil, err
	}
	t := &tool{name: name}
	env := append(os.Environ(), "LC_ALL=C")
	if address != "" {
		u, err := url.Parse(address)
		if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
			return nil, errs.Invalid("invalid_database_url", "DATABASE_URL is not a PostgreSQL URL such as postgres://user@host/database.")
		}
		if password, ok := u.User.Password(); ok {
			env = append(env, "PGPASSWORD="+password)
			u.User = url.User(u.User.Username())
		}
		q := u.Query()
		if q.Has("password") {
			env = append(env, "PGPASSWORD="+q.Get("password"))
		}
		for key := range q {
			if key == "password" || strings.HasPrefix(key, "pool_") || strings.HasPrefix(key, "default_query_") { // ours
				q.Del(key)
			}
		}
		u.RawQuery = q.Encode()
		args = append([]string{"--dbname=" + u.String()}, args...)
	}
	t.Cmd = exec.CommandContext(ctx, path, args...)
	t.Env, t.Stderr = env, &t.stderr
	return t, nil
}

func (t *tool) run() error {
	if err := t.Run(); err != nil {
		said := strings.TrimSpace(t.stderr.String())
		return fmt.Errorf("%s: %w: %s", t.name, err, said[max(0, len(said)-1000):])
	}
	return nil
}
