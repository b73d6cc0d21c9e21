// Package pgtest gives each test a database of its own: a clone of a migrated
// template in a private cluster that lives as long as the test binary.
package pgtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/testkit"
)

// sharedVar names a server to use instead of one's own, as
// postgres://user@/postgres?host=/dir. Its user may create databases. A run
// over many packages sets it, to start one server instead of one a package.
const sharedVar = "SKERRY_TEST_POSTGRES"

// The one server of this test binary. State of the package, because tests of a
// package have no other common owner; it exists in test binaries only.
var shared struct {
	once     sync.Once
	admin    string // URL of the maintenance database
	template string
	guard    io.Closer // held open until the binary ends, see startGuard
	err      error
}

// New returns a pool on a fresh, migrated database, dropped when the test ends.
func New(t testing.TB) *pgxpool.Pool {
	t.Helper()
	ctx := context.Background()
	pool, err := pg.Open(ctx, URL(t))
	if err != nil {
		t.Fatalf("open the test's database: %v", err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// Owner returns a pool on the same database that acts as its owner: to break
// or to look at what the application's role may not touch.
func Owner(t testing.TB, pool *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	config := pool.Config()
	config.AfterConnect = nil
	config.MaxConns = 2
	owner, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatalf("open the test's database as its owner: %v", err)
	}
	t.Cleanup(owner.Close)
	return owner
}

// URL returns the address of a fresh, migrated database, dropped when the test
// ends.
func URL(t testing.TB) string {
	t.Helper()
	return clone(t, server(t).template)
}

// Empty returns the address of a fresh database without any schema.
func Empty(t testing.TB) string {
	t.Helper()
	server(t)
	return clone(t, "template0")
}

type serverState struct{ template string }

func server(t testing.TB) serverState {
	t.Helper()
	if os.Getenv(sharedVar) == "" {
		if err := pg.Installed(); err != nil {
			testkit.Missing(t, "postgres", err.Error())
		}
	}
	shared.once.Do(func() { shared.err = start() })
	if shared.err != nil {
		t.Fatalf("start the tests' PostgreSQL: %v", shared.err)
	}
	return serverState{template: shared.template}
}

func start() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	shared.admin = os.Getenv(sharedVar)
	if shared.admin == "" {
		dir, err := os.MkdirTemp("", "skerry-pgtest-")
		if err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o711); err != nil { // the server's user passes through
			return err
		}
		cluster := pg.Cluster{Dir: filepath.Join(dir, "pg"), SocketDir: filepath.Join(dir, "s"), Disposable: true}
		if shared.guard, err = startGuard(dir); err != nil {
			return err
		}
		if shared.admin, err = cluster.Start(ctx); err != nil {
			return err
		}
	}
	shared.template = "template_" + random()
	admin, err := pgx.Connect(ctx, shared.admin)
	if err != nil {
		return err
	}
	defer admin.Close(ctx)
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+shared.template); err != nil {
		return err
	}
	target, err := withDatabase(shared.admin, shared.template)
	if err != nil {
		return err
	}
	return pg.Migrate(ctx, target)
}

// startGuard starts a shell that outlives this process by a moment: when the
// pipe to it closes, by exit, panic or kill, it stops the server and removes
// the directory.
func startGuard(dir string) (io.Closer, error) {
	const script = `trap '' INT TERM HUP
read -r _
pid=$(head -n 1 "$1/pg/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null
i=0
while [ -e "$1/pg/postmaster.pid" ] && [ $i -lt 100 ]; do sleep 0.05; i=$((i+1)); done
rm -rf "$1"`
	guard := exec.Command("/bin/sh", "-c", script, "sh", dir)
	guard.Dir = "/"
	pipe, err := guard.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := guard.Start(); err != nil {
		return nil, fmt.Errorf("start the server's guard: %w", err)
	}
	return pipe, nil
}

func clone(t testing.TB, template string) string {
	t.Helper()
	ctx := context.Background()
	name := "test_" + random()
	admin, err := pgx.Connect(ctx, shared.admin)
	if err != nil {
		t.Fatalf("connect to the tests' PostgreSQL: %v", err)
	}
	defer admin.Close(ctx)
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		t.Fatalf("clone the template: %v", err)
	}
	t.Cleanup(func() {
		admin, err := pgx.Connect(ctx, shared.admin)
		if err != nil {
			t.Errorf("connect to drop %s: %v", name, err)
			return
		}
		defer admin.Close(ctx)
		if _, err := admin.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("drop %s: %v", name, err)
		}
	})
	target, err := withDatabase(shared.admin, name)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func withDatabase(address, database string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	u.Path = "/" + database
	return u.String(), nil
}

func random() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}
