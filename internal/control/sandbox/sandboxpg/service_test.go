package sandboxpg_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

func p[T any](v T) *T { return &v }

func request() sandbox.CreateRequest { return sandbox.CreateRequest{Template: "base"} }

// create makes a sandbox and waits for it.
func create(t testing.TB, w *sandboxtest.World, s *sandboxtest.Server, req sandbox.CreateRequest) sandbox.Sandbox {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	receipt, err := s.Service.Create(ctx, w.User(), req)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	x, err := s.Service.Await(ctx, receipt)
	if err != nil {
		t.Fatalf("await: %v", err)
	}
	return x
}

func get(t testing.TB, w *sandboxtest.World, x id.Sandbox) sandbox.Sandbox {
	t.Helper()
	got, err := w.Store.Get(context.Background(), x)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	return got
}

func TestS1_CreateRunsAndDeleteEnds(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	req := request()
	req.Env = map[string]string{"TOKEN": "very-secret"}
	req.Metadata = map[string]string{"k": "v"}
	req.VCPUs, req.MemoryMB, req.TimeoutSec, req.OnTimeout, req.Internet = p(0.5), p(int64(256)), p(int64(60)), sandbox.OnTimeoutKill, p(false)
	x := create(t, w, s, req)
	if x.Status != sandbox.StatusRunning || x.StartedAt == nil || x.DeadlineAt == nil || x.CPUMillis != 500 || x.EngineVersion != "fake-1" {
		t.Fatalf("created %+v", x)
	}
	if got := x.DeadlineAt.Sub(*x.StartedAt); got != time.Minute {
		t.Errorf("deadline %s after the start, want 1m", got)
	}
	l, _ := w.Agents.Launch(x.ID)
	if l.Env["TOKEN"] != "very-secret" || l.AccessToken != sandbox.AccessToken(w.Secret, x.ID) || len(l.AccessToken) < 32 || l.Sandbox.Internet {
		t.Errorf("launched with %+v", l)
	}
	var leaks int
	if err := w.Pool.QueryRow(ctx, `SELECT count(*) FROM (SELECT to_jsonb(s)::text AS row FROM sandboxes s UNION ALL SELECT to_jsonb(e)::text FROM sandbox_events e
		UNION ALL SELECT to_jsonb(a)::text FROM audit_logs a) x WHERE row LIKE '%very-secret%'`).Scan(&leaks); err != nil || leaks != 0 {
		t.Errorf("env lies open in %d rows (%v)", leaks, err)
	}
	for range 2 { // idempotent
		if err := s.Service.Delete(ctx, w.User(), x.ID); err != nil {
			t.Fatalf("delete: %v", err)
		}
	}
	got := get(t, w, x.ID)
	if got.Status != sandbox.StatusStopped || got.EndReason != sandbox.EndDeleted || got.EndedAt == nil || got.Incarnation != 2 {
		t.Errorf("deleted: %+v", got)
	}
	if w.Agents.Count() != 0 {
		t.Error("an instance is left")
	}
	events, err := s.Service.Events(ctx, w.User(), x.ID, page.Request{Limit: 50})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, e := range events.Items {
		kinds = append(kinds, e.Kind)
	}
	if want := "[stopped stopping running starting created]"; fmt.Sprint(kinds) != want {
		t.Errorf("events %v, want %s", kinds, want)
	}
	var audited int
	if err := w.Pool.QueryRow(ctx, `SELECT count(*) FROM audit_logs WHERE resource_id = $1`, x.ID.String()).Scan(&audited); err != nil || audited != 2 {
		t.Errorf("%d audit entries, want 2 (%v)", audited, err)
	}
}

func TestC8_AnotherTeamSeesNothing(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	x := create(t, w, s, request())
	other := w.UserOf(w.NewTeam())
	ctx := context.Background()
	_, errGet := s.Service.Get(ctx, other, x.ID)
	_, errEvents := s.Service.Events(ctx, other, x.ID, page.Request{Limit: 1})
	_, errGuest := s.Service.Guest(ctx, other, x.ID)
	for name, err := range map[string]error{"get": errGet, "events": errEvents, "target": errGuest, "delete": s.Service.Delete(ctx, other, x.ID)} {
		if !errs.Is(err, "sandbox_not_found") {
			t.Errorf("%s by another team: %v", name, err)
		}
	}
	list, err := s.Service.List(ctx, other, sandbox.Filter{}, page.Request{Limit: 50})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("another team lists %d (%v)", len(list.Items), err)
	}
	if got := get(t, w, x.ID); got.Status != sandbox.StatusRunning {
		t.Errorf("status %s", got.Status)
	}
}

func TestH13_FortyCreatesOnRoomForFour(t *testing.T) {
	rounds := testkit.Scaled(50, 3)
	w := sandboxtest.NewWorld(t, pgtest.New(t), 64, 4096)
	s := w.Serve(sandbox.Config{})
	users := several(w)
	req := request()
	req.MemoryMB = p(int64(1024))
	for round := range rounds {
		var placed, refused atomic.Int64
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				_, err := s.Service.Create(context.Background(), users[i], req)
				switch {
				case err == nil:
					placed.Add(1)
				case errs.Is(err, "no_capacity") && errs.As(err).RetryAfter > 0 && errs.As(err).Details["hosts"] != nil:
					refused.Add(1)
				default:
					t.Errorf("create: %v", err)
				}
			})
		}
		wg.Wait()
		if placed.Load() != 4 || refused.Load() != 36 {
			t.Fatalf("round %d: %d placed, %d refused, want 4 and 36", round, placed.Load(), refused.Load())
		}
		gone(t, w, s)
	}
}

func TestH13_RoundRobinOverTheDatabase(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	w.AddHost(8, 8192)
	w.AddHost(8, 8192)
	s := w.Serve(sandbox.Config{})
	count := map[id.Host]int{}
	for range 9 {
		x := create(t, w, s, request())
		count[x.Host.ID]++
		if err := s.Service.Delete(context.Background(), w.User(), x.ID); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range w.Hosts {
		if count[h] != 3 {
			t.Errorf("host %s got %d of 9", h, count[h])
		}
	}
}

func TestAP02_OneKeyOneSandbox(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 64, 65536)
	s := w.Serve(sandbox.Config{})
	replays := idempotency.NewService(idempotencypg.New(w.Pool))
	user := w.User()
	once := func(body string) (sandbox.Receipt, error) {
		ctx := idempotency.With(context.Background(), idempotency.NewRequest(w.Secret, user.Caller(), "key-1", "createSandbox", []byte(body)))
		return idempotency.Do(ctx, replays, func(ctx context.Context) (sandbox.Receipt, error) { return s.Service.Create(ctx, user, request()) })
	}
	var mu sync.Mutex
	seen := map[id.Sandbox]int{}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			r, err := once("a")
			if err == nil {
				_, err = s.Service.Await(context.Background(), r)
			}
			if err != nil {
				t.Errorf("create: %v", err)
				return
			}
			mu.Lock()
			seen[r.Sandbox]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(seen) != 1 || w.Agents.Count() != 1 {
		t.Errorf("%d sandboxes for one key, %d instances", len(seen), w.Agents.Count())
	}
	if _, err := once("b"); !errs.Is(err, "idempotency_conflict") {
		t.Errorf("the same key with another body: %v", err)
	}
}

func TestSC02_FailedCreatesHoldNothing(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 1, 1024)
	fail := true
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "create" && fail {
			return errs.Unavailable("image_unavailable", "The image cannot be fetched.")
		}
		return ctx.Err()
	}
	s := w.Serve(sandbox.Config{})
	req := request()
	req.MemoryMB = p(int64(1024))
	for range 5 {
		r, err := s.Service.Create(context.Background(), w.User(), req)
		if err != nil {
			t.Fatalf("create: %v", err)
		}
		x, err := s.Service.Await(context.Background(), r)
		if !errs.Is(err, "create_failed") || x.Status != sandbox.StatusError || x.EndReason != sandbox.EndCreateFailed || x.Error == "" || x.EndedAt == nil {
			t.Fatalf("failed create: %v, %+v", err, x)
		}
	}
	fail = false
	x := create(t, w, s, req)
	failed, err := s.Service.List(context.Background(), w.User(), sandbox.Filter{Statuses: []sandbox.Status{sandbox.StatusError}}, page.Request{Limit: 50})
	if err != nil || len(failed.Items) != 5 {
		t.Fatalf("%d failed rows (%v)", len(failed.Items), err)
	}
	if err := s.Service.Delete(context.Background(), w.User(), failed.Items[0].ID); err != nil {
		t.Fatalf("delete of a failed one: %v", err)
	}
	if got := get(t, w, failed.Items[0].ID); got.Status != sandbox.StatusStopped {
		t.Errorf("deleted after an error: %s", got.Status)
	}
	if got := get(t, w, x.ID); got.Status != sandbox.StatusRunning {
		t.Errorf("status %s", got.Status)
	}
}

func TestS1_AClientThatLeavesUndoesNothing(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	hold := make(chan struct{})
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "create" {
			select {
			case <-hold:
			case <-ctx.Done():
			}
		}
		return ctx.Err()
	}
	s := w.Serve(sandbox.Config{})
	ctx, leave := context.WithCancel(context.Background())
	r, err := s.Service.Create(ctx, w.User(), request())
	if err != nil {
		t.Fatal(err)
	}
	leave()
	if _, err := s.Service.Await(ctx, r); errs.CodeOf(err) != errs.CodeCanceled {
		t.Fatalf("await of one who left: %v", err)
	}
	close(hold)
	if x, err := s.Service.Await(context.Background(), r); err != nil || x.Status != sandbox.StatusRunning {
		t.Fatalf("%v %v", x.Status, err)
	}
}

func TestS2_DeleteSupersedesACreate(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	entered := make(chan id.Sandbox, 1)
	w.Agents.Before = func(ctx context.Context, call string, x id.Sandbox) error {
		if call == "create" {
			entered <- x
			<-ctx.Done() // an agent that never comes to an end
		}
		return ctx.Err()
	}
	s := w.Serve(sandbox.Config{Lease: 300 * time.Millisecond})
	r, err := s.Service.Create(context.Background(), w.User(), request())
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	start := time.Now()
	if err := s.Service.Delete(context.Background(), w.User(), r.Sandbox); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("delete took %s", took)
	}
	x, err := s.Service.Await(context.Background(), r)
	if err != nil || x.Status != sandbox.StatusStopped || x.Incarnation != 2 {
		t.Errorf("%+v %v", x, err)
	}
	var outcome string
	if err := w.Pool.QueryRow(context.Background(), `SELECT status FROM operations WHERE id = $1`, r.Operation).Scan(&outcome); err != nil || outcome != "superseded" {
		t.Errorf("the create's operation is %q (%v)", outcome, err)
	}
}

func TestS2_DeleteAnswersWhenTheHostIsAway(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	var away atomic.Bool
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if away.Load() {
			return errs.Unavailable("host_unavailable", "The host is away.")
		}
		return ctx.Err()
	}
	s := w.Serve(sandbox.Config{})
	var x sandbox.Sandbox
	testkit.Promise(t, 10*time.Second, "the answer", func() time.Duration {
		away.Store(false)
		x = create(t, w, s, request())
		away.Store(true)
		start := time.Now()
		if err := s.Service.Delete(context.Background(), w.User(), x.ID); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	})
	if got := get(t, w, x.ID); got.Status != sandbox.StatusStopping {
		t.Fatalf("status %s", got.Status)
	}
	if _, err := s.Service.Guest(context.Background(), w.User(), x.ID); !errs.Is(err, "invalid_state") || errs.As(err).Details["status"] != "stopping" {
		t.Errorf("target of one being deleted: %v", err)
	}
	away.Store(false)
	testkit.Eventually(t, 90*time.Second, "the delete is finished when the host is back", func() bool { return get(t, w, x.ID).Status == sandbox.StatusStopped })
	if w.Agents.Has(x.ID) {
		t.Error("the instance is left")
	}
}

// A host that takes calls and never answers keeps no other host's sandboxes
// waiting, and an end that it swallowed is asked for again.
func TestS4_AHostThatNeverAnswersHoldsUpOnlyItsOwn(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 64, 65536)
	var mute sync.Map // sandboxes whose host does not answer
	var asked atomic.Int64
	w.Agents.Before = func(ctx context.Context, call string, x id.Sandbox) error {
		if _, ok := mute.Load(x); ok && call == "destroy" {
			asked.Add(1)
			<-ctx.Done()
		}
		return ctx.Err()
	}
	s := w.Serve(sandbox.Config{Parallel: 4, PerHost: 2, Destroy: 200 * time.Millisecond})
	var stuck []id.Sandbox
	for range 6 {
		x := create(t, w, s, request())
		mute.Store(x.ID, true)
		stuck = append(stuck, x.ID)
	}
	good := w.AddHost(64, 65536)
	if _, err := w.Pool.Exec(context.Background(), `UPDATE hosts SET status = 'unreachable' WHERE id <> $1`, good); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var deletes sync.WaitGroup
	defer deletes.Wait()
	defer cancel()
	for _, x := range stuck {
		deletes.Go(func() { _ = s.Service.Delete(ctx, w.User(), x) })
	}
	testkit.Eventually(t, 30*time.Second, "ends that are asked for more than once", func() bool { return asked.Load() > 4 })
	for range 3 {
		if x := create(t, w, s, request()); x.Host.ID != good || x.Status != sandbox.StatusRunning {
			t.Errorf("created %+v", x)
		}
	}
	mute.Clear()
	for _, x := range stuck {
		testkit.Eventually(t, 30*time.Second, "the end", func() bool { return get(t, w, x).Status == sandbox.StatusStopped })
	}
}

func TestS7_TheDeadlineKillsOrWaits(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	kill, pause := request(), request()
	kill.TimeoutSec, kill.OnTimeout = p(int64(1)), sandbox.OnTimeoutKill
	pause.TimeoutSec = p(int64(1))
	k, ps := create(t, w, s, kill), create(t, w, s, pause)
	testkit.Eventually(t, 30*time.Second, "the one to kill is stopped", func() bool {
		if err := s.Sweep.Pass(context.Background()); err != nil {
			t.Fatal(err)
		}
		return get(t, w, k.ID).Status == sandbox.StatusStopped
	})
	if got := get(t, w, k.ID); got.EndReason != sandbox.EndTimeout {
		t.Errorf("end reason %q", got.EndReason)
	}
	testkit.Eventually(t, 10*time.Second, "the one to pause is paused", func() bool {
		if err := s.Sweep.Pass(context.Background()); err != nil {
			t.Fatal(err)
		}
		return get(t, w, ps.ID).Status == sandbox.StatusPaused
	})
	if got := get(t, w, ps.ID); got.PausedReason != sandbox.PausedDeadline || got.StateID == nil || got.DeadlineAt != nil || got.StateStatus != sandbox.StateReady {
		t.Errorf("paused as %+v", got)
	}
}

func TestS2_RowsGoAfterTheRetention(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	x, kept := create(t, w, s, request()), create(t, w, s, request())
	ctx := context.Background()
	for _, y := range []id.Sandbox{x.ID, kept.ID} {
		if err := s.Service.Delete(ctx, w.User(), y); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Pool.Exec(ctx, `UPDATE sandboxes SET ended_at = now() - interval '31 days' WHERE id = $1`, x.ID); err != nil {
		t.Fatal(err)
	}
	if n, err := w.Store.Prune(ctx, sandbox.Retention, 100); err != nil || n != 1 {
		t.Fatalf("pruned %d (%v)", n, err)
	}
	if _, err := w.Store.Get(ctx, x.ID); !errors.Is(err, error(sandbox.ErrNotFound)) && !errs.Is(err, "sandbox_not_found") {
		t.Errorf("the old row: %v", err)
	}
	get(t, w, kept.ID)
}

func TestS3_LosersAreToldTheActualStatus(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	x := create(t, w, s, request())
	ctx := context.Background()
	_, err := w.Store.Apply(ctx, sandbox.Transition{ID: x.ID, From: sandbox.StatusRunning, To: sandbox.StatusStopped, Incarnation: 7, Event: "stopped"})
	if !errs.Is(err, "invalid_state") || errs.As(err).Details["status"] != "running" {
		t.Errorf("a stale incarnation: %v", err)
	}
	if _, err := w.Store.Apply(ctx, sandbox.Transition{ID: x.ID, From: sandbox.StatusStopped, To: sandbox.StatusRunning, Incarnation: 1}); err == nil {
		t.Error("a transition that the table forbids was tried")
	}
	if got := get(t, w, x.ID); got.Status != sandbox.StatusRunning || !got.UpdatedAt.Equal(x.UpdatedAt) {
		t.Error("losing changed the row")
	}
	events, err := w.Store.Events(ctx, x.ID, page.Request{Limit: 50})
	if err != nil || len(events.Items) != 3 {
		raw, _ := json.Marshal(events.Items)
		t.Errorf("losing left events: %s (%v)", raw, err)
	}
}
