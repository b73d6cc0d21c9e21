package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/up"
)

// TestO7_FromServersToOneMachine: what servers of one's own are backed up as, one
// machine is restored from, with a PostgreSQL of its own and the same secret.
func TestO7_FromServersToOneMachine(t *testing.T) {
	for _, name := range []string{"DATABASE_URL", "SKERRY_SECRET", "SKERRY_STORE", "SKERRY_STORE_DIR", "SKERRY_DATA", "SKERRY_S3_ACCESS_KEY", "SKERRY_S3_SECRET_KEY"} {
		t.Setenv(name, "")
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(t.TempDir()) // no .env lies there
	address := pgtest.URL(t)
	pool, err := pg.Open(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	team, _ := teamtest.New(t, pool)
	pool.Close()
	_, secret := keyring.NewSecret()
	dir, data := filepath.Join(t.TempDir(), "backup"), t.TempDir()
	call := func(succeeds bool, args ...string) {
		t.Helper()
		if got := run(t.Context(), args); (got == 0) != succeeds {
			t.Fatalf("skerry %s: exit %d", strings.Join(args, " "), got)
		}
	}
	call(false, "backup", dir, "--data", data) // there is nothing
	call(false, "backup", dir, "--data", data, "--database-url", address)
	call(true, "backup", dir, "--data", data, "--database-url", address, "--secret", secret, "--objects")
	cluster := &pg.Cluster{Dir: up.PrivateDatabase(data)}
	t.Cleanup(func() {
		if err := cluster.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	call(true, "restore", dir, "--data", data)
	kept, err := os.ReadFile(up.SecretFile(data))
	if err != nil || strings.TrimSpace(string(kept)) != secret {
		t.Errorf("the secret is %q (%v)", kept, err)
	}
	restored, err := cluster.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool, err = pg.Open(t.Context(), restored)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var there bool
	if err := pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM teams WHERE id = $1)`, team).Scan(&there); err != nil || !there {
		t.Errorf("the team is there: %v (%v)", there, err)
	}
	call(true, "store", "check", "--data", data)
	call(false, "restore", dir, "--data", data) // a second time
	if err := os.WriteFile(up.SecretFile(data), []byte("another\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	call(false, "restore", dir, "--data", data) // another secret is never replaced
}
