package sandboxpg_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// TestST07_OnlyTransitionsOfTheTable lets two servers, exits, losses and
// inventories work on the same few sandboxes at random, and reads the history
// that the database itself recorded.
func TestST07_OnlyTransitionsOfTheTable(t *testing.T) {
	rounds := testkit.Scaled(10_000, 1_000)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	pool := pgtest.New(t)
	w := sandboxtest.NewWorld(t, pool, 64, 1<<17)
	ctx := context.Background()
	for _, sql := range []string{
		`CREATE TABLE history (n bigserial, id uuid, was text, now text, was_inc bigint, inc bigint)`,
		`GRANT SELECT ON history TO skerry_app`,
		`CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
			IF OLD.status <> NEW.status OR OLD.incarnation <> NEW.incarnation THEN
				INSERT INTO history (id, was, now, was_inc, inc) VALUES (NEW.id, OLD.status, NEW.status, OLD.incarnation, NEW.incarnation);
			END IF; RETURN NEW; END $$`,
		`CREATE TRIGGER record AFTER UPDATE ON sandboxes FOR EACH ROW EXECUTE FUNCTION record()`,
	} {
		if _, err := pgtest.Owner(t, pool).Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	// Seeded anew for each call: the generator is not for several goroutines.
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 1))
	draw := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rng.IntN(n)
	}
	var quiet atomic.Bool
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if quiet.Load() {
			return ctx.Err()
		}
		if call != "inventory" && draw(20) == 0 {
			return errs.New(errs.CodeInternal, "engine_failed", "The engine failed.")
		}
		if call != "inventory" && draw(10) == 0 {
			return errs.Unavailable("host_unavailable", "A link that breaks.")
		}
		return ctx.Err()
	}
	w.Agents.After = func(ctx context.Context, call string, _ id.Sandbox) error {
		if !quiet.Load() && call != "inventory" && draw(10) == 0 {
			return errs.Unavailable("host_unavailable", "The effect is there, the answer is lost.")
		}
		return ctx.Err()
	}
	servers := []*sandboxtest.Server{
		w.Serve(sandbox.Config{Lease: 200 * time.Millisecond}), w.Serve(sandbox.Config{Lease: 200 * time.Millisecond}),
	}
	var made []id.Sandbox
	pick := func() (id.Sandbox, bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(made) == 0 {
			return id.Sandbox{}, false
		}
		return made[max(0, len(made)-1-rng.IntN(8))], true
	}
	var seq int64
	act := func() {
		s := servers[draw(2)]
		x, ok := pick()
		if n := draw(14); n >= 6 {
			if ok {
				mix(t, w, s, x, n, draw(40))
			}
			return
		}
		switch draw(6) {
		case 0, 1:
			r, err := s.Service.Create(ctx, w.User(), request())
			if err != nil {
				if !errs.Is(err, "no_capacity") && !errs.Is(err, "quota_exceeded") {
					t.Errorf("create: %v", err)
				}
				return
			}
			mu.Lock()
			made = append(made, r.Sandbox)
			mu.Unlock()
		case 2:
			if ok {
				short, cancel := context.WithTimeout(ctx, time.Duration(draw(20))*time.Millisecond)
				defer cancel()
				if err := s.Service.Delete(short, w.User(), x); err != nil && short.Err() == nil {
					t.Errorf("delete: %v", err)
				}
			}
		case 3:
			if ok {
				incarnation := w.Agents.Exit(x, "out_of_memory")
				if incarnation == 0 {
					return
				}
				mu.Lock()
				seq++
				n := seq
				mu.Unlock()
				report := sandbox.Report{Seq: n, Kind: sandbox.ReportExited, Sandbox: x, Incarnation: incarnation, At: time.Now(), Data: map[string]any{"reason": "out_of_memory"}}
				if err := s.Service.Report(ctx, w.Hosts[0], 1, []sandbox.Report{report}); err != nil {
					t.Errorf("report: %v", err)
				}
			}
		case 4:
			if ok && draw(4) == 0 {
				w.Agents.Lose(x)
			}
		default:
			if err := s.Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])); err != nil && errs.CodeOf(err) != errs.CodeUnavailable && !errs.Is(err, "engine_failed") {
				t.Errorf("reconcile: %v", err)
			}
		}
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range rounds / 8 {
				act()
			}
		})
	}
	wg.Wait()
	quiet.Store(true)
	defer func() {
		if t.Failed() {
			unrest(t, w)
		}
	}()
	// When nothing is asked any more each row comes to say what its host holds.
	testkit.Eventually(t, 2*time.Minute, "rest", func() bool {
		var moving int
		if err := pool.QueryRow(ctx, `SELECT count(*) FROM sandboxes WHERE status NOT IN ('running', 'paused', 'stopped', 'error')`).Scan(&moving); err != nil {
			t.Fatal(err)
		}
		if err := servers[0].Sweep.Pass(ctx); err != nil {
			t.Fatal(err)
		}
		if err := servers[0].Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])); err != nil {
			t.Fatal(err)
		}
		return moving == 0 && openOperations(t, w) == 0
	})
	for range 3 { // what is judged at the second look
		if err := servers[0].Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])); err != nil {
			t.Fatal(err)
		}
	}
	whole(t, w, servers[0])
	rest, err := pool.Query(ctx, `SELECT id FROM sandboxes WHERE ended_at IS NULL OR state_id IS NOT NULL`)
	if err != nil {
		t.Fatal(err)
	}
	made, err = pgx.CollectRows(rest, pgx.RowTo[id.Sandbox])
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range made {
		if err := servers[0].Service.Delete(ctx, w.User(), x); err != nil {
			t.Fatalf("delete: %v", err)
		}
	}
	testkit.Eventually(t, 90*time.Second, "everything has ended", func() bool {
		var live int
		if err := pool.QueryRow(ctx, `SELECT count(*) FROM sandboxes WHERE ended_at IS NULL`).Scan(&live); err != nil {
			t.Fatal(err)
		}
		if live > 0 || openOperations(t, w) > 0 {
			return false
		}
		if err := servers[0].Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])); err != nil {
			t.Fatal(err)
		}
		if err := servers[0].Sweep.Pass(ctx); err != nil {
			t.Fatal(err)
		}
		return w.Agents.Count() == 0 && w.Agents.States() == 0
	})
	rows, err := pool.Query(ctx, `SELECT was, now, was_inc, inc FROM history ORDER BY n`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var was, now sandbox.Status
		var wasInc, inc int64
		if err := rows.Scan(&was, &now, &wasInc, &inc); err != nil {
			t.Fatal(err)
		}
		n++
		if !legal(was, now, wasInc, inc) {
			t.Errorf("%s/%d became %s/%d", was, wasInc, now, inc)
		}
	}
	if n < rounds/10 {
		t.Errorf("only %d transitions in %d rounds", n, rounds)
	}
	t.Logf("%d rounds, %d transitions", rounds, n)
}

// mix does one of what moves a sandbox, as a caller who does not wait for long.
func mix(t *testing.T, w *sandboxtest.World, s *sandboxtest.Server, x id.Sandbox, what, patience int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(50+10*patience)*time.Millisecond)
	defer cancel()
	var err error
	switch what {
	case 6, 7:
		_, err = s.Service.Pause(ctx, w.User(), x, patience%2 == 0, patience%3 == 0)
	case 8, 9:
		_, err = s.Service.Resume(ctx, w.User(), x, nil, false, patience%3 == 0)
	case 10:
		_, err = s.Service.Fork(ctx, w.User(), x, sandbox.ForkRequest{Count: 1})
	case 11:
		_, err = s.Service.SetTimeout(ctx, w.User(), x, 300)
	case 12:
		_, err = w.Pool.Exec(ctx, `UPDATE sandboxes SET deadline_at = now() - interval '1 s', updated_at = now() WHERE id = $1 AND status = 'running'`, x)
		if err == nil {
			err = s.Sweep.Pass(ctx)
		}
	default:
		if patience%4 == 0 {
			w.Agents.PauseAlone(x, "lost_contact")
		}
	}
	switch {
	case err == nil, ctx.Err() != nil:
	case errs.Is(err, "invalid_state"), errs.Is(err, "no_capacity"), errs.Is(err, "quota_exceeded"), errs.Is(err, "pause_failed"),
		errs.Is(err, "resume_failed"), errs.Is(err, "snapshot_not_ready"):
	default:
		t.Errorf("%d: %v", what, err)
	}
}

// legal: only what the table allows, and a new incarnation exactly where one
// begins or is told to end.
func legal(was, now sandbox.Status, wasInc, inc int64) bool {
	grows := now == sandbox.StatusStopping || now == sandbox.StatusResuming
	return was.May(now) && (grows && inc == wasInc+1 || !grows && inc == wasInc)
}

// unrest tells what keeps moving.
func unrest(t *testing.T, w *sandboxtest.World) {
	t.Helper()
	rows, err := w.Pool.Query(context.Background(), `SELECT s.id::text || ' ' || s.status || '/' || s.incarnation || ' ' || s.end_reason || ' ' || coalesce(s.state_id::text, '-')
		|| ' op ' || coalesce(o.kind || ' ' || o.attempts || ' ' || coalesce((o.lease_until - now())::text, '-') || ' ' || coalesce(o.lease_owner::text, '-'), '-')
		FROM sandboxes s LEFT JOIN operations o ON o.sandbox_id = s.id AND o.status = 'open'
		WHERE s.status NOT IN ('running', 'paused', 'stopped', 'error') OR o.id IS NOT NULL LIMIT 20`)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		x, err := id.Sandbox{}.ParseBare(line[:36])
		if err != nil {
			t.Fatal(err)
		}
		phase, at := w.Agents.Phase(x)
		t.Logf("%s, on its host %q/%d", line, phase, at)
	}
}
