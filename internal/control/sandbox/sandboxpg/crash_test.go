package sandboxpg_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
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

// openOperations is how many operations nobody has brought to an end.
func openOperations(t testing.TB, w *sandboxtest.World) int {
	t.Helper()
	var n int
	if err := w.Pool.QueryRow(context.Background(), `SELECT count(*) FROM operations WHERE status = 'open'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestS4_AServerMayDieAtEachStep abandons the operation at each registered step,
// as kill -9 would, and lets a second server go on.
func TestS4_AServerMayDieAtEachStep(t *testing.T) {
	var visited sync.Map
	for _, step := range sandbox.Steps() {
		t.Run(string(step), func(t *testing.T) {
			w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
			fails := step == sandbox.StepCreateRefused || step == sandbox.StepCreateFailed
			w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
				if call == "create" && fails {
					return errs.New(errs.CodeInternal, "engine_failed", "The engine failed.")
				}
				return ctx.Err()
			}
			died := make(chan struct{}, 1)
			first := w.Serve(sandbox.Config{Lease: 200 * time.Millisecond, OnStep: func(s sandbox.Step, _ sandbox.Operation) error {
				visited.Store(s, true)
				if s != step {
					return nil
				}
				select {
				case died <- struct{}{}:
				default:
				}
				return errors.New("killed")
			}})
			r, err := first.Service.Create(context.Background(), w.User(), request())
			if err != nil {
				t.Fatal(err)
			}
			deleting := slices.Contains([]sandbox.Step{sandbox.StepDeleteAccepted, sandbox.StepDeleteDestroyed, sandbox.StepDeleteStopped}, step)
			if deleting {
				if _, err := first.Service.Await(context.Background(), r); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
				defer cancel()
				if err := first.Service.Delete(ctx, w.User(), r.Sandbox); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case <-died:
			case <-time.After(30 * time.Second):
				t.Fatal("the step was never reached")
			}
			first.Stop()
			w.Serve(sandbox.Config{Lease: 200 * time.Millisecond})
			want := sandbox.StatusRunning
			switch {
			case deleting:
				want = sandbox.StatusStopped
			case fails:
				want = sandbox.StatusError
			}
			testkit.Eventually(t, 30*time.Second, fmt.Sprintf("the second server brings it to %s", want), func() bool {
				return get(t, w, r.Sandbox).Status == want && openOperations(t, w) == 0
			})
			if has := w.Agents.Has(r.Sandbox); has != (want == sandbox.StatusRunning) {
				t.Errorf("%s, and an instance exists: %v", want, has)
			}
		})
	}
	for _, s := range sandbox.Steps() {
		if _, ok := visited.Load(s); !ok {
			t.Errorf("step %s was never visited", s)
		}
	}
}

// TestST07_OnlyTransitionsOfTheTable lets two servers, exits, losses and
// inventories work on the same few sandboxes at random, and reads the history
// that the database itself recorded.
func TestST07_OnlyTransitionsOfTheTable(t *testing.T) {
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
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
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call != "inventory" && draw(10) == 0 {
			return errs.Unavailable("host_unavailable", "A link that breaks.")
		}
		return ctx.Err()
	}
	w.Agents.After = w.Agents.Before // the effect is there, the answer is lost
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
		switch draw(6) {
		case 0, 1:
			r, err := s.Service.Create(ctx, w.User(), request())
			if err != nil {
				if !errs.Is(err, "no_capacity") {
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
				w.Agents.Exit(x, "out_of_memory")
				mu.Lock()
				seq++
				n := seq
				mu.Unlock()
				report := sandbox.Report{Seq: n, Kind: sandbox.ReportExited, Sandbox: x, Incarnation: 1, At: time.Now(), Data: map[string]any{"reason": "out_of_memory"}}
				if err := s.Service.Report(ctx, w.Hosts[0], 1, []sandbox.Report{report}); err != nil {
					t.Errorf("report: %v", err)
				}
			}
		case 4:
			if ok {
				w.Agents.Lose(x)
			}
		default:
			if err := s.Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])); err != nil && errs.CodeOf(err) != errs.CodeUnavailable {
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
	w.Agents.Before, w.Agents.After = nil, nil
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
		return w.Agents.Count() == 0
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
		if !was.May(now) || inc < wasInc || (now == sandbox.StatusStopping) != (inc == wasInc+1) {
			t.Errorf("%s/%d became %s/%d", was, wasInc, now, inc)
		}
	}
	if n < len(made) {
		t.Errorf("only %d transitions for %d sandboxes", n, len(made))
	}
	t.Logf("%d sandboxes, %d transitions", len(made), n)
}

func TestRC02_AnInventoryTakenDuringACreateKillsNothing(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	ctx := context.Background()
	taken, release := make(chan struct{}), make(chan struct{})
	hold := true
	w.Agents.After = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "inventory" && hold {
			close(taken)
			<-release
		}
		return ctx.Err()
	}
	s := w.Serve(sandbox.Config{})
	done := make(chan error, 1)
	go func() { done <- s.Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])) }()
	<-taken // an inventory that knows nothing of what is made now
	x := create(t, w, s, request())
	hold = false
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := s.Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])); err != nil {
			t.Fatal(err)
		}
	}
	if got := get(t, w, x.ID); got.Status != sandbox.StatusRunning || !w.Agents.Has(x.ID) {
		t.Errorf("a healthy new sandbox is %s", got.Status)
	}
}

func TestH8_WhatIsGoneIsStoppedAtTheSecondLook(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	x, y := create(t, w, s, request()), create(t, w, s, request())
	w.Agents.Lose(x.ID)
	w.Agents.Exit(y.ID, "engine_crashed")
	if err := s.Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])); err != nil {
		t.Fatal(err)
	}
	if got := get(t, w, x.ID); got.Status != sandbox.StatusRunning {
		t.Errorf("judged at the first look: %s", got.Status)
	}
	if got := get(t, w, y.ID); got.Status != sandbox.StatusStopped || got.EndReason != "engine_crashed" {
		t.Errorf("one that the agent says has exited: %s %q", got.Status, got.EndReason)
	}
	if err := s.Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])); err != nil {
		t.Fatal(err)
	}
	if got := get(t, w, x.ID); got.Status != sandbox.StatusStopped || got.EndReason != sandbox.EndLost {
		t.Errorf("after the second look: %s %q", got.Status, got.EndReason)
	}
	if w.Agents.Count() != 0 {
		t.Error("the remains of the exited one are left")
	}
}

func TestRC03_OrphansGoAndStrangersStay(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	other := w.AddHost(8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	x := create(t, w, s, request())
	if err := s.Service.Delete(ctx, w.User(), x.ID); err != nil {
		t.Fatal(err)
	}
	y := create(t, w, s, request())
	for y.Host.ID == x.Host.ID {
		y = create(t, w, s, request())
	}
	stranger := id.NewSandbox()
	w.Agents.Put(x.Host.ID, sandbox.Instance{Sandbox: x.ID, Incarnation: 1, Phase: sandbox.PhaseRunning})     // its row has ended
	w.Agents.Put(x.Host.ID, sandbox.Instance{Sandbox: stranger, Incarnation: 1, Phase: sandbox.PhaseRunning}) // no row at all
	w.Agents.Put(x.Host.ID, sandbox.Instance{Sandbox: y.ID, Incarnation: 1, Phase: sandbox.PhaseRunning})     // another host's
	if err := s.Reconciler.ReconcileHost(ctx, w.Ref(x.Host.ID)); err != nil {
		t.Fatal(err)
	}
	if !w.Agents.Has(x.ID) {
		t.Error("an orphan was destroyed at the first look")
	}
	for range 3 {
		if err := s.Reconciler.ReconcileHost(ctx, w.Ref(x.Host.ID)); err != nil {
			t.Fatal(err)
		}
	}
	if w.Agents.Has(x.ID) {
		t.Error("the orphan is left")
	}
	if !w.Agents.Has(stranger) || !w.Agents.Has(y.ID) || get(t, w, y.ID).Status != sandbox.StatusRunning {
		t.Error("something was destroyed that the host does not hold by this database")
	}
	events, err := w.Store.Events(ctx, x.ID, page.Request{Limit: 1})
	if err != nil || len(events.Items) != 1 || events.Items[0].Kind != "orphan_destroyed" {
		t.Errorf("events %+v (%v)", events.Items, err)
	}
	_ = other
}

func TestH5_ReportsCountOnceAndOnlyForTheirHost(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	x := create(t, w, s, request())
	other := w.AddHost(8, 8192)
	exited := sandbox.Report{Seq: 2, Kind: sandbox.ReportExited, Sandbox: x.ID, Incarnation: 1, At: time.Now(), Data: map[string]any{"reason": "out_of_memory"}}
	oom := sandbox.Report{Seq: 1, Kind: "oom_kill", Sandbox: x.ID, Incarnation: 1, At: time.Now(), Data: map[string]any{"pid": 7}}
	stale := exited
	stale.Seq, stale.Incarnation = 3, 9
	report := func(from id.Host, r ...sandbox.Report) {
		t.Helper()
		if err := s.Service.Report(ctx, from, 1, r); err != nil {
			t.Fatal(err)
		}
	}
	report(other, exited)
	report(w.Hosts[0], oom, stale)
	if got := get(t, w, x.ID); got.Status != sandbox.StatusRunning {
		t.Fatalf("another host's or a stale report ended it: %s", got.Status)
	}
	guest, err := s.Service.Guest(ctx, w.User(), x.ID)
	if err != nil {
		t.Fatal(err)
	}
	report(w.Hosts[0], oom, exited)
	report(w.Hosts[0], oom, exited)
	if got := get(t, w, x.ID); got.Status != sandbox.StatusStopped || got.EndReason != "out_of_memory" {
		t.Fatalf("%s %q", got.Status, got.EndReason)
	}
	select {
	case <-guest.Ended:
	case <-time.After(30 * time.Second):
		t.Error("those inside were not told")
	}
	var n int
	if err := w.Pool.QueryRow(ctx, `SELECT count(*) FROM sandbox_events WHERE sandbox_id = $1 AND kind IN ('oom_kill', 'exited', 'stopped')`, x.ID).Scan(&n); err != nil || n != 4 {
		t.Errorf("%d events, want oom_kill, two exited, stopped (%v)", n, err)
	}
}

func TestS8_ThoseInsideAreToldOfTheEndWithinASecond(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	seq := int64(0)
	testkit.Promise(t, time.Second, "telling of the end", func() time.Duration {
		x := create(t, w, s, request())
		guest, err := s.Service.Guest(ctx, w.User(), x.ID)
		if err != nil {
			t.Fatal(err)
		}
		seq++
		exited := sandbox.Report{Seq: seq, Kind: sandbox.ReportExited, Sandbox: x.ID, Incarnation: 1, At: time.Now(), Data: map[string]any{"reason": "exited"}}
		start := time.Now()
		if err := s.Service.Report(ctx, w.Hosts[0], 1, []sandbox.Report{exited}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-guest.Ended:
		case <-time.After(30 * time.Second):
			t.Error("those inside were not told")
		}
		return time.Since(start)
	})
}
