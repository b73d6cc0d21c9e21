package sandboxpg_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

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

// crash is an operation whose server dies at a step of it, and what it comes to
// when another server goes on.
type crash struct {
	// prepare brings the sandbox to where the operation begins.
	prepare func(ctx context.Context, s *sandboxtest.Server, x id.Sandbox) error
	begin   func(ctx context.Context, s *sandboxtest.Server, x id.Sandbox) error
	// fails is the agents' call that is refused; lost has it never answered.
	fails string
	lost  bool
	want  sandbox.Status
}

func crashOf(w *sandboxtest.World, step sandbox.Step) crash {
	pause := func(ctx context.Context, s *sandboxtest.Server, x id.Sandbox) error {
		_, err := s.Service.Pause(ctx, w.User(), x, true, true)
		return err
	}
	resume := func(ctx context.Context, s *sandboxtest.Server, x id.Sandbox) error {
		_, err := s.Service.Resume(ctx, w.User(), x, nil, false, true)
		return err
	}
	word, _, _ := strings.Cut(string(step), "_")
	switch step {
	case sandbox.StepCreateRefused, sandbox.StepCreateFailed:
		return crash{fails: "create", want: sandbox.StatusError}
	case sandbox.StepSaveRefused, sandbox.StepSaveFailed:
		return crash{begin: pause, fails: "pause", want: sandbox.StatusRunning}
	case sandbox.StepLost:
		return crash{begin: pause, fails: "pause", lost: true, want: sandbox.StatusMissing}
	case sandbox.StepResumeRefused, sandbox.StepResumeFailed:
		return crash{prepare: pause, begin: resume, fails: "create", want: sandbox.StatusPaused}
	}
	switch word {
	case "delete":
		return crash{begin: func(ctx context.Context, s *sandboxtest.Server, x id.Sandbox) error {
			return s.Service.Delete(ctx, w.User(), x)
		}, want: sandbox.StatusStopped}
	case "pause":
		return crash{begin: pause, want: sandbox.StatusPaused}
	case "resume":
		return crash{prepare: pause, begin: resume, want: sandbox.StatusRunning}
	case "snapshot":
		return crash{want: sandbox.StatusRunning, begin: func(ctx context.Context, s *sandboxtest.Server, x id.Sandbox) error {
			_, err := s.Service.Snapshot(ctx, w.User(), sandbox.SnapshotRequest{Sandbox: x, Name: "kept", Memory: true})
			return err
		}}
	case "fork":
		return crash{want: sandbox.StatusRunning, begin: func(ctx context.Context, s *sandboxtest.Server, x id.Sandbox) error {
			_, err := s.Service.Fork(ctx, w.User(), x, sandbox.ForkRequest{Count: 3})
			return err
		}}
	case "checkpoint":
		return crash{want: sandbox.StatusRunning, begin: func(ctx context.Context, s *sandboxtest.Server, x id.Sandbox) error {
			if _, err := w.Pool.Exec(ctx, `UPDATE sandboxes SET checkpoint_due_at = now() - interval '1 s' WHERE id = $1`, x); err != nil {
				return err
			}
			return s.Sweep.Pass(ctx)
		}}
	}
	return crash{want: sandbox.StatusRunning}
}

// TestS4_AServerMayDieAtEachStep abandons the operation at each registered step,
// as kill -9 would, and lets a second server go on: the sandbox comes to its
// right end, with its newest acknowledged state, and nothing is left over.
func TestS4_AServerMayDieAtEachStep(t *testing.T) {
	var visited sync.Map
	steps := slices.DeleteFunc(sandbox.Steps(), func(s sandbox.Step) bool { return slices.Contains(sandbox.TravelSteps(), s) })
	for _, step := range steps {
		t.Run(string(step), func(t *testing.T) { dieAt(t, step, &visited) })
	}
	n := 0
	for _, s := range steps {
		if _, ok := visited.Load(s); !ok {
			t.Errorf("step %s was never visited", s)
		}
		n++
	}
	t.Logf("%d steps", n)
}

func dieAt(t *testing.T, step sandbox.Step, visited *sync.Map) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	c := crashOf(w, step)
	var begun atomic.Bool
	refuse := func(ctx context.Context, call string, _ id.Sandbox) error {
		switch {
		case call != c.fails || !begun.Load() && c.begin != nil:
			return ctx.Err()
		case c.lost:
			return errs.Unavailable("host_unavailable", "The host is away.")
		}
		return errs.New(errs.CodeInternal, "engine_failed", "The engine failed.")
	}
	w.Agents.Before = refuse
	died := make(chan struct{}, 1)
	first := w.Serve(sandbox.Config{Lease: time.Minute, OnStep: func(s sandbox.Step, _ sandbox.Operation) error {
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
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, err := first.Service.Create(ctx, w.User(), request())
	if err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	if c.begin != nil {
		if _, err := first.Service.Await(ctx, r); err != nil {
			t.Fatal(err)
		}
		if c.prepare != nil {
			if err := c.prepare(ctx, first, r.Sandbox); err != nil {
				t.Fatal(err)
			}
		}
		begun.Store(true)
		calls.Go(func() { _ = c.begin(ctx, first, r.Sandbox) }) // its server dies; whoever asked hears nothing
		if c.lost {
			testkit.Eventually(t, 10*time.Second, "the operation is open", func() bool { return openOperations(t, w) == 1 })
			if _, err := w.Pool.Exec(ctx, `UPDATE operations SET deadline_at = now() - interval '1 s' WHERE status = 'open'`); err != nil {
				t.Fatal(err)
			}
		}
	}
	select {
	case <-died:
	case <-time.After(time.Minute):
		t.Fatal("the step was never reached")
	}
	first.Stop()
	// A lease that a busy machine keeps; nobody waits for its end.
	if _, err := w.Pool.Exec(ctx, `UPDATE operations SET lease_until = now() WHERE status = 'open'`); err != nil {
		t.Fatal(err)
	}
	second := w.Serve(sandbox.Config{Lease: 2 * time.Second})
	testkit.Eventually(t, time.Minute, fmt.Sprintf("the second server brings it to %s", c.want), func() bool {
		return get(t, w, r.Sandbox).Status == c.want && openOperations(t, w) == 0
	})
	whole(t, w, second)
}

// whole checks what must hold whenever no operation is under way: each row says
// what its host holds, its newest state is there and ready, and no state is on
// a host that no row needs.
func whole(t *testing.T, w *sandboxtest.World, s *sandboxtest.Server) {
	t.Helper()
	ctx := context.Background()
	testkit.Eventually(t, time.Minute, "what nobody needs is removed", func() bool {
		if err := s.Sweep.Pass(ctx); err != nil {
			t.Fatal(err)
		}
		var left int
		if err := w.Pool.QueryRow(ctx, `SELECT count(*) FROM snapshots WHERE status NOT IN ('ready', 'deleted') AND NOT EXISTS
			(SELECT FROM sandboxes s WHERE s.id = snapshots.sandbox_id AND s.status = 'missing')`).Scan(&left); err != nil {
			t.Fatal(err)
		}
		if left > 0 || openOperations(t, w) > 0 {
			return false
		}
		if err := s.Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])); err != nil {
			t.Fatal(err)
		}
		return openOperations(t, w) == 0
	})
	for range 3 { // what is judged at the second look
		if err := s.Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])); err != nil {
			t.Fatal(err)
		}
		if err := s.Sweep.Pass(ctx); err != nil {
			t.Fatal(err)
		}
	}
	statesFit(t, w)
	rows, err := w.Pool.Query(ctx, `SELECT id, status, incarnation, state_id FROM sandboxes`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var x id.Sandbox
		var status sandbox.Status
		var incarnation int64
		var state *uuid.UUID
		if err := rows.Scan(&x, &status, &incarnation, &state); err != nil {
			t.Fatal(err)
		}
		phase, at := w.Agents.Phase(x)
		fits := false
		switch status {
		case sandbox.StatusRunning:
			fits = phase == sandbox.PhaseRunning && at == incarnation
		case sandbox.StatusPaused:
			// A host that lost its record still has what it needs to go on.
			fits = (phase == sandbox.PhasePaused || phase == "") && state != nil && w.Agents.HasState(id.Snapshot{}.FromUUID(*state))
		case sandbox.StatusStopped, sandbox.StatusError:
			fits = phase == ""
		case sandbox.StatusMissing:
			fits = true // its host decides
		}
		if !fits {
			t.Errorf("%s is %s/%d here and %q/%d on its host", x, status, incarnation, phase, at)
		}
	}
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

func TestH8_WhatIsGoneIsMissingAndThenStopped(t *testing.T) {
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
	if got := get(t, w, x.ID); got.Status != sandbox.StatusMissing {
		t.Errorf("after the second look: %s", got.Status)
	}
	for range 2 {
		if err := s.Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])); err != nil {
			t.Fatal(err)
		}
	}
	if got := get(t, w, x.ID); got.Status != sandbox.StatusStopped || got.EndReason != sandbox.EndLost {
		t.Errorf("when its time was over: %s %q", got.Status, got.EndReason)
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

// statesFit checks that hosts hold the states whose rows are ready and no others,
// but for those that a host made by itself of a living sandbox and nobody knew:
// they go with it.
func statesFit(t *testing.T, w *sandboxtest.World) {
	t.Helper()
	ctx := context.Background()
	inv, err := w.Agents.Inventory(ctx, w.Ref(w.Hosts[0]))
	if err != nil {
		t.Fatal(err)
	}
	ready := 0
	for _, st := range inv.States {
		var status, row string
		var living bool
		if err := w.Pool.QueryRow(ctx, `SELECT s.ended_at IS NULL, coalesce(p.status, ''), concat_ws(' ', s.status, s.incarnation, s.state_id, p.kind, p.status)
			FROM sandboxes s LEFT JOIN snapshots p ON p.id = $1 WHERE s.id = $2`, st.ID, st.Sandbox).Scan(&living, &status, &row); err != nil {
			t.Fatal(err)
		}
		switch {
		case status == string(sandbox.StateReady):
			ready++
		case living && status == "":
		default:
			phase, at := w.Agents.Phase(st.Sandbox)
			t.Errorf("%s of %s is held: %s; on its host %q/%d", st.ID, st.Sandbox, row, phase, at)
		}
	}
	if n := tally(t, w, `snapshots WHERE status = 'ready'`); n != ready {
		t.Errorf("%d rows are ready, hosts hold %d of them", n, ready)
	}
}
