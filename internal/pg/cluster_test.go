package pg_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/testkit"
)

// newCluster is a cluster that the test removes.
func newCluster(t *testing.T, dir string) *pg.Cluster {
	t.Helper()
	if err := pg.Installed(); err != nil {
		testkit.Missing(t, "postgres", err.Error())
	}
	c := &pg.Cluster{Dir: filepath.Join(dir, "pg")}
	t.Cleanup(func() {
		if err := c.Remove(context.Background()); err != nil {
			t.Errorf("remove the cluster: %v", err)
		}
	})
	return c
}

// openDir is a directory that another user can pass through.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "skerry-cluster-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func start(t *testing.T, c *pg.Cluster) *pgx.Conn {
	t.Helper()
	ctx := context.Background()
	url, err := c.Start(ctx)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close(ctx) })
	return conn
}

func postmaster(t *testing.T, dir string) int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "pg", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestClusterLivesThroughStopAdoptionAndKill(t *testing.T) {
	ctx := context.Background()
	dir := openDir(t)
	c := newCluster(t, dir)
	conn := start(t, c)
	if _, err := conn.Exec(ctx, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	count := func(conn *pgx.Conn) int {
		t.Helper()
		var n int
		if err := conn.QueryRow(ctx, "SELECT count(*) FROM kept").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}

	first := postmaster(t, dir)
	adopted := &pg.Cluster{Dir: c.Dir}
	start(t, adopted)
	if again := postmaster(t, dir); again != first {
		t.Errorf("a second start made process %d beside %d", again, first)
	}

	var tcp string
	if err := conn.QueryRow(ctx, "SHOW listen_addresses").Scan(&tcp); err != nil || tcp != "" {
		t.Errorf("listens on %q (%v)", tcp, err)
	}

	// A backend that is busy while its postmaster dies keeps the shared memory.
	busy := start(t, c)
	go func() { _, _ = busy.Exec(ctx, "SELECT pg_sleep(600)") }()
	testkit.Eventually(t, 30*time.Second, "the busy backend sleeps", func() bool {
		var n int
		err := conn.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'").Scan(&n)
		return err == nil && n == 1
	})
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "the postmaster is dead", func() bool { return syscall.Kill(first, 0) != nil })
	if n := count(start(t, c)); n != 1 {
		t.Errorf("%d rows after kill -9", n)
	}

	if err := c.Stop(ctx); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if err := c.Stop(ctx); err != nil {
		t.Fatalf("stop again: %v", err)
	}
	// A pid file that names a living process which is not a server of ours.
	if err := os.WriteFile(filepath.Join(dir, "pg", "postmaster.pid"), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(ctx); err != nil {
		t.Fatalf("stop with a foreign pid: %v", err)
	}
	if n := count(start(t, c)); n != 1 {
		t.Errorf("%d rows after stop", n)
	}
}

func TestClusterUnderUnreachableDirectory(t *testing.T) {
	testkit.Root(t)
	dir, err := os.MkdirTemp("/root", "skerry-cluster-") // mode 0700
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := newCluster(t, dir)
	start(t, c)
	target, err := os.Readlink(c.Dir)
	if err != nil || !strings.HasPrefix(target, "/var/lib/skerry/") {
		t.Errorf("the data lies at %q (%v)", target, err)
	}
}

func TestClusterRefusesWhatItDidNotMake(t *testing.T) {
	dir := openDir(t)
	foreign := filepath.Join(dir, "pg")
	if err := os.MkdirAll(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(foreign, "PG_VERSION"), []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, dir)
	if _, err := c.Start(context.Background()); !errs.Is(err, "foreign_cluster") {
		t.Errorf("start on a foreign cluster: %v", err)
	}
	if err := c.Remove(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(foreign, "PG_VERSION")); err != nil {
		t.Errorf("a foreign cluster was touched: %v", err)
	}
}
