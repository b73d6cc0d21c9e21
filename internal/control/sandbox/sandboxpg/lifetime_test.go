package sandboxpg_test

import (
	"context"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// populate writes running sandboxes and their instances without starting each.
func populate(t testing.TB, w *sandboxtest.World, model sandbox.Sandbox, n int) []id.Sandbox {
	t.Helper()
	out := make([]id.Sandbox, n)
	for i := range out {
		out[i] = id.NewSandbox()
		if _, err := w.Pool.Exec(context.Background(), `INSERT INTO sandboxes (id, team_id, host_id, template_id, template_name, image_digest, status, engine,
			engine_version, cpu_millis, memory_mb, disk_mb, timeout_sec, on_timeout, created_by_type, created_by_id, created_by_name, started_at)
			SELECT $1, team_id, host_id, template_id, template_name, image_digest, status, engine, engine_version, 100, 64, 64, timeout_sec, on_timeout,
			created_by_type, created_by_id, created_by_name, now() FROM sandboxes WHERE id = $2`, out[i], model.ID); err != nil {
			t.Fatal(err)
		}
		w.Agents.Put(model.Host.ID, sandbox.Instance{Sandbox: out[i], Incarnation: 1, Phase: sandbox.PhaseRunning})
	}
	return out
}

// sweep runs a server's sweep as it runs in production, until stop.
func sweep(t testing.TB, s *sandboxtest.Server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Sweep.Run(ctx) })
	return func() { cancel(); wg.Wait() }
}

// TestTL02_DeadlinesOutliveTheServer has 300 sandboxes whose deadlines lie before,
// during and after an outage of the only server. Each is handled within 5 s of
// its time, or of the restart; none twice; none early; none for idleness in
// which a command runs.
func TestTL02_DeadlinesOutliveTheServer(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 512, 1<<20)
	ctx := context.Background()
	first := w.Serve(sandbox.Config{Lease: time.Second})
	model := create(t, w, first, request())
	all := populate(t, w, model, 300)
	if _, err := w.Pool.Exec(ctx, `UPDATE sandboxes SET deadline_at = now() + make_interval(secs => 1 + (random() * 11)),
		on_timeout = CASE WHEN random() < 0.5 THEN 'pause' ELSE 'kill' END WHERE id <> $1`, model.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := pgtest.Owner(t, w.Pool).Exec(ctx, `CREATE TABLE due AS SELECT id, deadline_at FROM sandboxes; GRANT SELECT ON due TO skerry_app`); err != nil {
		t.Fatal(err)
	}
	// Of ten more nothing but idle time decides, and something runs in each.
	busy := populate(t, w, model, 10)
	for _, x := range busy {
		w.Agents.Busy(x, true)
		if _, err := w.Pool.Exec(ctx, `UPDATE sandboxes SET idle_timeout_sec = 1, idle_check_at = now(), deadline_at = now() + interval '1 h' WHERE id = $1`, x); err != nil {
			t.Fatal(err)
		}
	}
	stop := sweep(t, first)
	testkit.Eventually(t, 30*time.Second, "the first deadlines", func() bool { return count(t, w, `ended_at IS NOT NULL OR status = 'paused'`) > 20 })
	stop()
	first.Stop()
	var down time.Time
	if err := w.Pool.QueryRow(ctx, `SELECT now() FROM pg_sleep(3)`).Scan(&down); err != nil { // an outage
		t.Fatal(err)
	}
	second, third := w.Serve(sandbox.Config{Lease: time.Second}), w.Serve(sandbox.Config{Lease: time.Second})
	var up time.Time
	if err := w.Pool.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&up); err != nil {
		t.Fatal(err)
	}
	defer sweep(t, second)()
	defer sweep(t, third)()
	testkit.Eventually(t, time.Minute, "all are handled", func() bool {
		return count(t, w, `status IN ('paused', 'stopped')`) == len(all)
	})
	// What was due while nobody was there is due from the restart on.
	const delays = `SELECT coalesce(max(extract(epoch FROM o.created_at - from_at)), 0)::float8, coalesce(max(extract(epoch FROM o.finished_at - from_at)), 0)::float8,
		count(*) FILTER (WHERE o.created_at < d.deadline_at) FROM operations o JOIN due d ON d.id = o.sandbox_id,
		LATERAL (SELECT CASE WHEN o.created_at >= $1 THEN greatest(d.deadline_at, $1) ELSE d.deadline_at END AS from_at) f WHERE o.kind IN ('pause', 'delete')`
	var begun, done float64
	var n int
	if err := w.Pool.QueryRow(ctx, delays, up).Scan(&begun, &done, &n); err != nil {
		t.Fatal(err)
	}
	t.Logf("begun at most %.2f s and done at most %.2f s after their time", begun, done)
	if begun > 5 || n != 0 {
		t.Errorf("one was begun %.2f s late, %d early", begun, n)
	}
	if err := w.Pool.QueryRow(ctx, `SELECT count(*) FROM (SELECT sandbox_id FROM operations WHERE kind IN ('pause', 'delete') GROUP BY 1 HAVING count(*) > 1) x`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d were handled twice (%v)", n, err)
	}
	for _, x := range all {
		got := get(t, w, x)
		if got.OnTimeout == sandbox.OnTimeoutPause && (got.Status != sandbox.StatusPaused || w.Agents.Pauses(x) != 1) ||
			got.OnTimeout == sandbox.OnTimeoutKill && (got.Status != sandbox.StatusStopped || got.EndReason != sandbox.EndTimeout) {
			t.Errorf("%s for %s, %q, paused %d times", got.Status, got.OnTimeout, got.EndReason, w.Agents.Pauses(x))
		}
	}
	for _, x := range busy {
		if got := get(t, w, x); got.Status != sandbox.StatusRunning {
			t.Errorf("one with a running command is %s", got.Status)
		}
		w.Agents.Busy(x, false)
	}
	testkit.Eventually(t, 30*time.Second, "they are idle now", func() bool { return count(t, w, `paused_reason = 'idle'`) == len(busy) })
}

func count(t testing.TB, w *sandboxtest.World, where string) int {
	t.Helper()
	var n int
	if err := w.Pool.QueryRow(context.Background(), `SELECT count(*) FROM sandboxes WHERE `+where).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestTL01_ARenewalThatWasAcknowledgedHolds renews at the moment of the deadline:
// whoever was told yes is not paused before the new one, whoever was told no is
// paused, and nobody lives for ever.
func TestTL01_ARenewalThatWasAcknowledgedHolds(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 512, 1<<20)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	model := create(t, w, s, request())
	all := populate(t, w, model, 100)
	if _, err := w.Pool.Exec(ctx, `UPDATE sandboxes SET deadline_at = clock_timestamp() + interval '1 s' + random() * interval '1 s' WHERE id <> $1`, model.ID); err != nil {
		t.Fatal(err)
	}
	defer sweep(t, s)()
	var wg sync.WaitGroup
	kept := make([]bool, len(all))
	for i, x := range all {
		deadline := *get(t, w, x).DeadlineAt
		wg.Go(func() {
			timer := time.NewTimer(time.Until(deadline) + time.Duration(i%11-5)*100*time.Millisecond)
			defer timer.Stop()
			<-timer.C
			_, err := s.Service.SetTimeout(ctx, w.User(), x, 3600)
			if kept[i] = err == nil; err != nil && !errs.Is(err, "invalid_state") {
				t.Errorf("renew: %v", err)
			}
		})
	}
	wg.Wait()
	testkit.Eventually(t, 30*time.Second, "nobody is in between", func() bool { return openOperations(t, w) == 0 && count(t, w, `deadline_at < now()`) == 0 })
	yes := 0
	for i, x := range all {
		got := get(t, w, x)
		if kept[i] != (got.Status == sandbox.StatusRunning) {
			t.Errorf("renewed: %v, and it is %s", kept[i], got.Status)
		}
		if kept[i] {
			yes++
			if at := w.Agents.Deadline(x); !at.Equal(*got.DeadlineAt) {
				t.Errorf("its host believes %s, the row says %s", at, got.DeadlineAt)
			}
		}
	}
	t.Logf("%d of %d renewals came in time", yes, len(all))
}

// TestST09_WhatAHostPausedAloneGoesOn: the database's deadline decides.
func TestST09_WhatAHostPausedAloneGoesOn(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 64, 65536)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	kill := request()
	kill.OnTimeout = sandbox.OnTimeoutKill
	renewed, late, killed := create(t, w, s, request()), create(t, w, s, request()), create(t, w, s, kill)
	for _, x := range []id.Sandbox{renewed.ID, late.ID, killed.ID} {
		w.Agents.PauseAlone(x, "lost_contact")
	}
	if _, err := s.Service.SetTimeout(ctx, w.User(), renewed.ID, 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Pool.Exec(ctx, `UPDATE sandboxes SET deadline_at = now() - interval '1 s', updated_at = now() WHERE id <> $1`, renewed.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, "each as its deadline says", func() bool {
		if err := s.Sweep.Pass(ctx); err != nil {
			t.Fatal(err)
		}
		return get(t, w, renewed.ID).Status == sandbox.StatusRunning && get(t, w, late.ID).Status == sandbox.StatusPaused &&
			get(t, w, killed.ID).Status == sandbox.StatusStopped
	})
	if got := get(t, w, renewed.ID); got.Incarnation != 2 || time.Until(*got.DeadlineAt) < 900*time.Second {
		t.Errorf("resumed as incarnation %d until %s", got.Incarnation, got.DeadlineAt)
	}
	if got := get(t, w, late.ID); got.PausedReason != "lost_contact" {
		t.Errorf("paused for %q", got.PausedReason)
	}
	whole(t, w, s)
}

// TestTL03_ReadingNeverShortensADeadline walks every operation of a sandbox that
// reads or attaches, as the public document lists them.
func TestTL03_ReadingNeverShortensADeadline(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	req := request()
	req.TimeoutSec = p(int64(1800))
	x := create(t, w, s, req)
	guest := func() error { _, err := s.Service.Guest(ctx, w.User(), x.ID); return err } // all that goes in passes through it
	reads := map[string]func() error{
		"listSandboxes": func() error {
			_, err := s.Service.List(ctx, w.User(), sandbox.Filter{}, page.Request{Limit: 10})
			return err
		},
		"getSandbox": func() error { _, err := s.Service.Get(ctx, w.User(), x.ID); return err },
		"listSandboxEvents": func() error {
			_, err := s.Service.Events(ctx, w.User(), x.ID, page.Request{Limit: 10})
			return err
		},
		"getSandboxMetrics": func() error { _, err := s.Service.Metrics(ctx, w.User(), x.ID, time.Time{}); return err },
		"getSandboxLogs":    func() error { _, err := s.Service.Logs(ctx, w.User(), x.ID); return err },
		"streamExec":        guest, "openPTY": guest, "downloadFile": guest, "listFiles": guest, "statFile": guest,
	}
	raw, err := os.ReadFile("../../../../api/openapi/sandbox.yaml")
	if err != nil {
		t.Fatal(err)
	}
	paths, _, _ := strings.Cut(string(raw), "\ncomponents:")
	gets := regexp.MustCompile(`\n    get:\n      operationId: (\w+)`).FindAllStringSubmatch(paths, -1)
	if len(gets) != len(reads) {
		t.Errorf("the document has %d, this test %d", len(gets), len(reads))
	}
	for _, m := range gets {
		read, ok := reads[m[1]]
		if !ok {
			t.Errorf("%s is not tried", m[1])
			continue
		}
		if err := read(); err != nil {
			t.Errorf("%s: %v", m[1], err)
		}
		if got := get(t, w, x.ID); got.DeadlineAt.Before(*x.DeadlineAt) {
			t.Errorf("after %s the deadline is %s, was %s", m[1], got.DeadlineAt, x.DeadlineAt)
		}
	}
}

// TestTL05_TheHostHasTheLastWordOnIdleness: something begins between the question
// and the pause. Nothing is ended, and nothing is told of it.
func TestTL05_TheHostHasTheLastWordOnIdleness(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	req := request()
	req.IdleTimeoutSec = p(int64(1))
	x := create(t, w, s, req)
	var refused atomic.Int64
	w.Agents.Before = func(ctx context.Context, call string, y id.Sandbox) error {
		if call == "pause" && refused.Add(1) <= 2 {
			w.Agents.Busy(y, true)
		}
		return ctx.Err()
	}
	defer sweep(t, s)()
	testkit.Eventually(t, 30*time.Second, "the host refused", func() bool { return refused.Load() == 1 && get(t, w, x.ID).Status == sandbox.StatusRunning })
	events, err := s.Service.Events(ctx, w.User(), x.ID, page.Request{Limit: 50})
	if err != nil || len(events.Items) != 3 {
		t.Errorf("events %+v (%v)", events.Items, err)
	}
	if err := s.Service.Ping(ctx, w.User(), x.ID); err != nil {
		t.Errorf("ping: %v", err)
	}
	refused.Store(2)
	w.Agents.Busy(x.ID, false)
	testkit.Eventually(t, 30*time.Second, "it is paused when idle", func() bool { return get(t, w, x.ID).PausedReason == sandbox.PausedIdle })
}
