package together_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/testkit"
)

// offline runs statements beside the world's database while nobody is connected
// to it; NAME in them is its name.
func (w *world) offline(statements ...string) {
	w.t.Helper()
	ctx := context.Background()
	config := w.db.Pool.Config()
	w.db.Pool.Close()
	admin := config.ConnConfig.Copy()
	name := admin.Database
	admin.Database = "postgres"
	conn, err := pgx.ConnectConfig(ctx, admin)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(ctx)
	quoted := pgx.Identifier{name}.Sanitize()
	backup := pgx.Identifier{name + "_backup"}.Sanitize()
	for _, s := range statements {
		switch s {
		case "backup":
			s = "CREATE DATABASE " + backup + " TEMPLATE " + quoted
		case "drop":
			s = "DROP DATABASE " + quoted
		case "restore":
			s = "ALTER DATABASE " + backup + " RENAME TO " + quoted
		}
		if _, err := conn.Exec(ctx, s); err != nil {
			w.t.Fatalf("%s: %v", s, err)
		}
	}
	if w.db.Pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.db.Pool.Close)
	w.db.Store = sandboxpg.New(w.db.Pool)
}

// remember makes a sandbox whose memory says what it is called.
func (w *world) remember(s *server, name string, change ...func(*sandbox.CreateRequest)) id.Sandbox {
	w.t.Helper()
	before := w.machine.World.Instances()
	x := w.create(s, change...)
	for _, i := range w.machine.World.Instances() {
		if !slices.Contains(before, i) {
			in, _ := w.machine.World.Instance(i)
			in.SetMemory([]byte(name))
		}
	}
	return x.ID
}

// remembered is what all that runs says it is called.
func (w *world) remembered() []string {
	var out []string
	for _, i := range w.machine.World.Instances() {
		if in, ok := w.machine.World.Instance(i); ok {
			out = append(out, string(in.Memory()))
		}
	}
	slices.Sort(out)
	return out
}

// An hour-old database is restored while its sandboxes run on. Whatever became
// of them since, none is destroyed, and each row comes to say what its host
// holds.
func TestH8_AnOlderDatabaseIsBroughtForwardAndDestroysNothing(t *testing.T) {
	w := newWorld(t)
	w.boot("")
	s := w.serve(sandbox.Config{})
	pause := func(x id.Sandbox) {
		t.Helper()
		if _, err := s.Pause(t.Context(), w.by, x, true, true); err != nil {
			t.Fatal(err)
		}
	}
	resume := func(x id.Sandbox) {
		t.Helper()
		if _, err := s.Resume(t.Context(), w.by, x, nil, false, true); err != nil {
			t.Fatal(err)
		}
	}
	same := w.remember(s, "same")
	runsLater := w.remember(s, "runs in a later life")
	resumed := w.remember(s, "was resumed")
	pause(resumed)
	pausedSince := w.remember(s, "was paused")
	pausedAgain := w.remember(s, "was resumed and paused")
	pause(pausedAgain)
	killed := w.remember(s, "was to be killed", func(r *sandbox.CreateRequest) { r.OnTimeout = sandbox.OnTimeoutKill })
	starting := w.remember(s, "was being made")
	deleted := w.remember(s, "was deleted")
	s.stop()
	w.offline("backup")

	s = w.serve(sandbox.Config{})
	pause(runsLater)
	resume(runsLater)
	resume(resumed)
	pause(pausedSince)
	resume(pausedAgain)
	pause(pausedAgain)
	pause(killed)
	resume(killed)
	pause(starting)
	resume(starting)
	if err := s.Delete(t.Context(), w.by, deleted); err != nil {
		t.Fatal(err)
	}
	unknown := w.remember(s, "is younger")
	running := w.remembered()
	s.stop()
	w.offline("drop", "restore")

	w.exec(`UPDATE hosts SET last_heartbeat_at = now() - interval '1 hour', reconciled_at = now() - interval '1 hour'`)
	w.exec(`UPDATE sandboxes SET deadline_at = now() - interval '30 minutes' WHERE id = $1`, killed)
	w.exec(`UPDATE sandboxes SET status = 'starting', started_at = NULL, deadline_at = NULL WHERE id = $1`, starting)
	w.exec(`UPDATE operations SET status = 'open', finished_at = NULL, deadline_at = now() + interval '1 hour', lease_until = NULL, lease_owner = NULL WHERE sandbox_id = $1 AND kind = 'create'`, starting)
	s = w.serve(sandbox.Config{})
	for range 6 {
		_ = s.sweep.Pass(t.Context())
		w.reconcile(s)
	}
	testkit.Eventually(t, soon, "what is younger is in quarantine", func() bool {
		w.reconcile(s)
		all, err := s.Strays(t.Context(), w.host, page.Request{Limit: 10})
		return err == nil && len(all.Items) == 1 && all.Items[0].Sandbox == unknown && all.Items[0].PausedAt != nil
	})
	want := slices.DeleteFunc(running, func(name string) bool { return name == "is younger" })
	if got := w.remembered(); !slices.Equal(got, want) {
		t.Errorf("what runs is %q, want %q", got, want)
	}
	for x, is := range map[id.Sandbox]struct {
		status      sandbox.Status
		incarnation int64
	}{
		same: {sandbox.StatusRunning, 1}, runsLater: {sandbox.StatusRunning, 2}, resumed: {sandbox.StatusRunning, 2}, pausedSince: {sandbox.StatusPaused, 1},
		pausedAgain: {sandbox.StatusPaused, 2}, killed: {sandbox.StatusRunning, 2}, starting: {sandbox.StatusRunning, 2}, deleted: {sandbox.StatusStopped, 1},
	} {
		got := w.row(x)
		if got.Status != is.status || got.Incarnation != is.incarnation {
			t.Errorf("%s is %s/%d, want %s/%d", x, got.Status, got.Incarnation, is.status, is.incarnation)
		}
		if got.Status == sandbox.StatusRunning && (got.DeadlineAt == nil || !got.DeadlineAt.After(time.Now())) {
			t.Errorf("TL-01: %s runs until %v", x, got.DeadlineAt)
		}
	}
	// They are what they were, and all of it works on.
	resume(pausedSince)
	resume(pausedAgain)
	for _, x := range []id.Sandbox{same, runsLater, resumed, killed, starting} {
		pause(x)
		resume(x)
	}
	want = append(want, "was paused", "was resumed and paused")
	slices.Sort(want)
	if got := w.remembered(); !slices.Equal(got, want) {
		t.Errorf("in the end what runs is %q, want %q", got, want)
	}
	if w.wire.count("destroy") > 1 { // that of the one that was deleted
		t.Errorf("%d destroys", w.wire.count("destroy"))
	}
}

// Agent, control plane and database restart in every order, again and again:
// what runs runs on, what is paused stays so.
func TestH9_RestartsInAnyOrderLoseNothing(t *testing.T) {
	orders := [][]string{{"agent", "server", "database"}, {"database", "agent", "server"}}
	if testkit.Scaled(1, 0) == 1 {
		orders = append(orders, []string{"agent", "database", "server"}, []string{"server", "agent", "database"}, []string{"server", "database", "agent"},
			[]string{"database", "server", "agent"})
	}
	w := newWorld(t)
	a := w.boot("")
	s := w.serve(sandbox.Config{})
	running, paused := w.remember(s, "runs"), w.remember(s, "sleeps")
	if _, err := s.Pause(t.Context(), w.by, paused, true, true); err != nil {
		t.Fatal(err)
	}
	for _, order := range orders {
		for _, what := range order {
			switch what {
			case "agent":
				a.stop()
				w.reconcile(s)
				a = w.boot("")
			case "server":
				s.stop()
				s = w.serve(sandbox.Config{})
			case "database":
				w.sever()
			}
			for range 3 {
				w.reconcile(s)
				_ = s.sweep.Pass(t.Context())
			}
		}
		if got := w.remembered(); !slices.Equal(got, []string{"runs"}) {
			t.Fatalf("%v: what runs is %q", order, got)
		}
		testkit.Eventually(t, soon, "rows say what is", func() bool {
			w.reconcile(s)
			return w.row(running).Status == sandbox.StatusRunning && w.row(paused).Status == sandbox.StatusPaused
		})
		if r, p := w.row(running), w.row(paused); r.Incarnation != 1 || p.Incarnation != 1 {
			t.Fatalf("%v: incarnations %d and %d", order, r.Incarnation, p.Incarnation)
		}
	}
	if _, err := s.Resume(t.Context(), w.by, paused, nil, false, true); err != nil {
		t.Fatal(err)
	}
	if got := w.remembered(); !slices.Equal(got, []string{"runs", "sleeps"}) {
		t.Errorf("in the end what runs is %q", got)
	}
}

// sever ends all connections to the database, as its restart does.
func (w *world) sever() {
	w.t.Helper()
	ctx := context.Background()
	config := w.db.Pool.Config().ConnConfig.Copy()
	name := config.Database
	config.Database = "postgres"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1`, name); err != nil {
		w.t.Fatal(err)
	}
	testkit.Eventually(w.t, soon, "the database answers", func() bool { return w.db.Pool.Ping(ctx) == nil })
}
