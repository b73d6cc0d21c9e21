package pg_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// refused reports whether PostgreSQL said that this is not allowed.
func refused(err error) bool {
	pgErr, ok := err.(*pgconn.PgError)
	return ok && pgErr.Code == "42501"
}

const oneEntry = `INSERT INTO audit_heads (team_id, seq, hash) VALUES ('00000000-0000-0000-0000-000000000000', 1, sha256('x'));
	INSERT INTO audit_logs (id, team_id, seq, hash, actor_type, actor_id, actor_name, resource_type, resource_id, action, scope, status)
	VALUES (gen_random_uuid(), '00000000-0000-0000-0000-000000000000', 1, sha256('x'), 'system', '', '', 'team', '', 'create', 'team', 'success')`

var changes = map[string]string{
	"update":          "UPDATE audit_logs SET actor_name = 'nobody'",
	"delete":          "DELETE FROM audit_logs",
	"truncate":        "TRUNCATE audit_logs",
	"truncate others": "TRUNCATE teams CASCADE",
	"upsert": `INSERT INTO audit_logs (id, team_id, seq, hash, actor_type, actor_id, actor_name, resource_type, resource_id, action, scope, status)
		SELECT id, team_id, seq, hash, actor_type, actor_id, actor_name, resource_type, resource_id, action, scope, status FROM audit_logs
		ON CONFLICT (id) DO UPDATE SET actor_name = 'nobody'`,
}

// The pool acts as a role that may not, although the URL names a superuser and
// the tables' owner.
func TestL2_ApplicationCannotChangeWhatIsWritten(t *testing.T) {
	ctx := context.Background()
	pool := pgtest.New(t)
	if _, err := pool.Exec(ctx, oneEntry); err != nil {
		t.Fatal(err)
	}
	more := map[string]string{
		"anchor":      "UPDATE audit_heads SET anchor_seq = 1",
		"head":        "DELETE FROM audit_heads",
		"no trigger":  "ALTER TABLE audit_logs DISABLE TRIGGER ALL",
		"no triggers": "SET session_replication_role = replica",
		"no table":    "DROP TABLE audit_logs",
		"function":    "CREATE OR REPLACE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
	}
	for name, sql := range changes {
		more[name] = sql
	}
	for name, sql := range more {
		if _, err := pool.Exec(ctx, sql); !refused(err) {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
	var user, session, name string
	if err := pool.QueryRow(ctx, "SELECT current_user, session_user, actor_name FROM audit_logs").Scan(&user, &session, &name); err != nil {
		t.Fatal(err)
	}
	if user != pg.AppRole || session == pg.AppRole || name != "" {
		t.Errorf("acts as %s (logged in as %s), the entry's actor is %q", user, session, name)
	}
}

// Without the role the triggers still refuse.
func TestL2_OwnerIsRefusedByTriggers(t *testing.T) {
	ctx := context.Background()
	owner := pgtest.Owner(t, pgtest.New(t))
	if _, err := owner.Exec(ctx, oneEntry); err != nil {
		t.Fatal(err)
	}
	tries := map[string]string{
		"replica": "SET session_replication_role = replica; DELETE FROM audit_logs",
		"shadow":  "CREATE TEMP TABLE audit_heads AS SELECT team_id, 9 AS anchor_seq FROM audit_heads; DELETE FROM audit_logs",
	}
	for name, sql := range changes {
		tries[name] = sql
	}
	for name, sql := range tries {
		if _, err := owner.Exec(ctx, sql); !refused(err) {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
	var n int
	if err := owner.QueryRow(ctx, "SELECT count(*) FROM audit_logs WHERE actor_name = ''").Scan(&n); err != nil || n != 1 {
		t.Errorf("%d entries as they were (%v)", n, err)
	}
}

// freshServer starts a server of the test's own, where the role does not exist
// yet, and lets every local user in.
func freshServer(t *testing.T) string {
	t.Helper()
	c := newCluster(t, openDir(t))
	c.Disposable = true
	address, err := c.Start(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "pg_hba.conf"), []byte("local all all trust\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, address, "SELECT pg_reload_conf()")
	return address
}

func databaseOf(t *testing.T, address, name string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

func run(t *testing.T, address string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, sql := range statements {
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

func tag() string {
	var b [4]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func TestL2_OneRoleForManyDatabasesAtOnce(t *testing.T) {
	ctx := context.Background()
	address := freshServer(t)
	const databases = 6
	urls := make([]string, databases)
	for i := range urls {
		name := "d" + tag()
		run(t, address, "CREATE DATABASE "+name)
		urls[i] = databaseOf(t, address, name)
	}
	var wg sync.WaitGroup
	for _, u := range urls {
		for range 2 {
			wg.Go(func() {
				if err := pg.Migrate(ctx, u); err != nil {
					t.Errorf("migrate: %v", err)
				}
			})
		}
	}
	wg.Wait()
	for _, u := range urls {
		pool, err := pg.Open(ctx, u)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(ctx, oneEntry); err != nil {
			t.Error(err)
		}
		if _, err := pool.Exec(ctx, "DELETE FROM audit_logs"); !refused(err) {
			t.Errorf("delete: %v", err)
		}
		pool.Close()
	}
}

// An ordinary user owns the database: with CREATEROLE all goes by itself;
// without, the error says what an administrator has to run, and running it helps.
func TestL2_OrdinaryOwnerAndItsRemedy(t *testing.T) {
	ctx := context.Background()
	for _, may := range []string{"CREATEROLE", "NOCREATEROLE"} {
		t.Run(may, func(t *testing.T) {
			admin := freshServer(t)
			user, database := "Owner "+tag(), "d"+tag()
			quoted := pgx.Identifier{user}.Sanitize()
			run(t, admin, "CREATE ROLE "+quoted+" LOGIN "+may, "CREATE DATABASE "+database+" OWNER "+quoted)
			u, err := url.Parse(databaseOf(t, admin, database))
			if err != nil {
				t.Fatal(err)
			}
			u.User = url.User(user)
			err = pg.Migrate(ctx, u.String())
			if may == "NOCREATEROLE" {
				if !errs.Is(err, "database_role_missing") {
					t.Fatalf("migrate: %v", err)
				}
				_, remedy, _ := strings.Cut(err.Error(), "run: ")
				remedy, _, _ = strings.Cut(remedy, " (leave")
				run(t, admin, remedy)
				err = pg.Migrate(ctx, u.String())
			}
			if err != nil {
				t.Fatal(err)
			}
			pool, err := pg.Open(ctx, u.String())
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			if _, err := pool.Exec(ctx, oneEntry); err != nil {
				t.Error(err)
			}
			for name, sql := range changes {
				if _, err := pool.Exec(ctx, sql); !refused(err) {
					t.Errorf("%s: %v", name, err)
				}
			}
			run(t, admin, "REVOKE skerry_app FROM "+quoted)
			if lost, err := pg.Open(ctx, u.String()); !errs.Is(err, "database_role_missing") || !strings.Contains(err.Error(), "GRANT skerry_app TO "+quoted) {
				t.Errorf("open without membership: %v", err)
				if err == nil {
					lost.Close()
				}
			}
		})
	}
}

// Another database's migration makes the role between our look and our own
// attempt.
func TestL2_RoleMadeByAnotherMeanwhile(t *testing.T) {
	ctx := context.Background()
	address := freshServer(t)
	run(t, address, "CREATE DATABASE other")
	other, err := pgx.Connect(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(ctx)
	tx, err := other.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "CREATE ROLE skerry_app NOLOGIN"); err != nil {
		t.Fatal(err)
	}
	migrated := make(chan error, 1)
	go func() { migrated <- pg.Migrate(ctx, databaseOf(t, address, "other")) }()
	testkit.Eventually(t, 30*time.Second, "the migration waits for the role", func() bool {
		var waiting bool
		err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)").Scan(&waiting)
		return err == nil && waiting
	})
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-migrated; err != nil {
		t.Errorf("migrate: %v", err)
	}
}
