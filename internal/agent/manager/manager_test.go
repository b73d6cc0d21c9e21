package manager_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mustCreate(t *testing.T, a *agent, s journal.Spec) manager.Report {
	t.Helper()
	r, err := a.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if r.Phase != journal.PhaseRunning {
		t.Fatalf("created in phase %s", r.Phase)
	}
	if r.Engine != "fake" || r.EngineVersion != "fake-1" {
		t.Fatalf("created by %s %s", r.Engine, r.EngineVersion)
	}
	return r
}

func wantReason(t *testing.T, err error, reason string) {
	t.Helper()
	if !errs.Is(err, reason) {
		t.Errorf("got %v, want %s", err, reason)
	}
}

func (a *agent) kinds(t *testing.T) (out []string) {
	t.Helper()
	events, err := a.journal.Events(1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		out = append(out, e.Kind)
	}
	return out
}

func inventory(t *testing.T, a *agent) []manager.Report {
	t.Helper()
	inv, err := a.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return inv.Sandboxes
}

func TestCreateIsIdempotentAndDestroyLeavesNothing(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	s := spec(id.NewSandbox(), 2)
	r := mustCreate(t, a, s)
	again := s
	again.Image.From.URL = "signed-anew"
	if r2 := mustCreate(t, a, again); r2.Instance != r.Instance {
		t.Error("a repeated create made another instance")
	}
	other := s
	other.Env = map[string]string{"A": "c"}
	_, err := a.Create(t.Context(), other)
	wantReason(t, err, "create_mismatch")
	_, err = a.Create(t.Context(), spec(s.Sandbox, 1))
	wantReason(t, err, "stale_incarnation")
	wantReason(t, a.Destroy(t.Context(), s.Sandbox, 1, "x"), "stale_incarnation")
	if l := a.Load(); l.Sandboxes != 1 || l.CPUMillis != 1000 {
		t.Errorf("load is %+v", l)
	}
	if st, err := a.Stats(t.Context(), s.Sandbox, 2); err != nil || st.Processes != 1 || st.Limits != s.Resources {
		t.Errorf("stats are %+v, %v", st, err)
	}
	for range 2 {
		if err := a.Destroy(t.Context(), s.Sandbox, 2, "deleted"); err != nil {
			t.Fatal(err)
		}
	}
	w.empty(t, dir)
	_, err = a.Create(t.Context(), s)
	wantReason(t, err, "stale_incarnation")
	_, err = a.Dial(t.Context(), s.Sandbox, 2, 80)
	wantReason(t, err, "stale_incarnation")
	_, err = a.Dial(t.Context(), id.NewSandbox(), 2, 80)
	wantReason(t, err, "unknown_sandbox")
	mustCreate(t, a, spec(s.Sandbox, 3))
}

func TestDestroyOfNothingLeavesATombstone(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	sandbox := id.NewSandbox()
	if err := a.Destroy(t.Context(), sandbox, 5, "deleted"); err != nil {
		t.Fatal(err)
	}
	a.stop()
	a = boot(t, w, dir)
	_, err := a.Create(t.Context(), spec(sandbox, 5))
	wantReason(t, err, "stale_incarnation")
	mustCreate(t, a, spec(sandbox, 6))
}

func TestParallelEqualCreatesAreOne(t *testing.T) {
	w := newWorld()
	a := boot(t, w, t.TempDir())
	release := w.hold("acquire_image")
	s := spec(id.NewSandbox(), 1)
	var wg sync.WaitGroup
	got := make([]engine.InstanceID, 10)
	for n := range got {
		wg.Go(func() {
			r, err := a.Create(t.Context(), s)
			if err != nil {
				t.Error(err)
			}
			got[n] = r.Instance
		})
	}
	testkit.Eventually(t, 30*time.Second, "a create in flight", func() bool { return w.calls("acquire_image") > 0 })
	release()
	wg.Wait()
	for _, i := range got {
		if i != got[0] {
			t.Fatal("two instances of one incarnation")
		}
	}
	if n := w.calls("prepare"); n != 1 {
		t.Errorf("%d prepares", n)
	}
}

func TestEachFailingStepIsUndone(t *testing.T) {
	for _, c := range []struct{ call, reason string }{
		{"acquire_slot", "network_unavailable"},
		{"acquire_image", "image_unavailable"},
		{"prepare", "engine_failed"},
		{"start", "engine_failed"},
		{"await", "guest_unresponsive"},
		{"init", "guest_unresponsive"},
	} {
		t.Run(c.call, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			a := boot(t, w, dir)
			w.set(c.call, errors.New("broken"))
			s := spec(id.NewSandbox(), 1)
			_, err := a.Create(t.Context(), s)
			wantReason(t, err, c.reason)
			w.empty(t, dir)
			if len(inventory(t, a)) != 0 {
				t.Error("a failed create stays in the inventory")
			}
			w.set(c.call, nil)
			mustCreate(t, a, s) // the same command may be tried again
		})
	}
}

func TestACleanupThatFailsIsTriedAgain(t *testing.T) {
	for _, call := range []string{"destroy", "release_image", "release_slot"} {
		w, dir := newWorld(), t.TempDir()
		a := boot(t, w, dir)
		w.set("init", errors.New("broken"))
		w.set(call, errors.New("busy"))
		s := spec(id.NewSandbox(), 1)
		_, err := a.Create(t.Context(), s)
		wantReason(t, err, "guest_unresponsive")
		if inv := inventory(t, a); len(inv) != 1 || inv[0].Phase != journal.PhaseDestroying {
			t.Errorf("%s: the inventory is %v", call, inv)
		}
		wantReason(t, a.Destroy(t.Context(), s.Sandbox, 1, "deleted"), "destroy_unfinished")
		w.set(call, nil)
		testkit.Eventually(t, 30*time.Second, "the cleanup's end", func() bool { return len(inventory(t, a)) == 0 })
		w.empty(t, dir)
	}
}

func TestDeadlineAbortsAndLeavingDoesNot(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	release := w.hold("acquire_image")
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := a.Create(ctx, spec(id.NewSandbox(), 1))
	wantReason(t, err, "deadline_exceeded")
	testkit.Eventually(t, 30*time.Second, "the undo", func() bool { return len(inventory(t, a)) == 0 })
	w.empty(t, dir)

	left, leave := context.WithCancel(t.Context())
	s := spec(id.NewSandbox(), 1)
	before := w.calls("acquire_image")
	done := make(chan error, 1)
	go func() {
		_, err := a.Create(left, s)
		done <- err
	}()
	testkit.Eventually(t, 30*time.Second, "a create in flight", func() bool { return w.calls("acquire_image") > before })
	leave()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	release()
	mustCreate(t, a, s)
	if n := w.calls("prepare"); n != 1 {
		t.Errorf("S1: %d prepares: the client that left undid the create", n)
	}
}

func TestS2_DestroySupersedesACreateInFlight(t *testing.T) {
	for _, call := range []string{"acquire_image", "prepare", "start", "await"} {
		w, dir := newWorld(), t.TempDir()
		a := boot(t, w, dir)
		release := w.hold(call)
		s := spec(id.NewSandbox(), 1)
		created := make(chan error, 1)
		go func() {
			_, err := a.Create(t.Context(), s)
			created <- err
		}()
		testkit.Eventually(t, 30*time.Second, "a create in flight", func() bool { return w.calls(call) > 0 })
		if err := a.Destroy(t.Context(), s.Sandbox, 2, "deleted"); err != nil {
			t.Fatal(err)
		}
		wantReason(t, <-created, "superseded")
		release()
		w.empty(t, dir)
		_, err := a.Create(t.Context(), spec(s.Sandbox, 2))
		wantReason(t, err, "stale_incarnation")
	}
}

func TestS15_AnExitIsNoticedAndCutsConnections(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	s := spec(id.NewSandbox(), 1)
	r := mustCreate(t, a, s)
	w.kill(r.Instance, engine.ExitOutOfMemory)
	testkit.Eventually(t, 30*time.Second, "the exit", func() bool {
		inv := inventory(t, a)
		return len(inv) == 1 && inv[0].Phase == journal.PhaseExited && inv[0].EndReason == engine.ExitOutOfMemory
	})
	testkit.Eventually(t, 30*time.Second, "cut connections", func() bool { return a.links[0].closed.Load() })
	// Nobody has to come by: the record alone is left.
	testkit.Eventually(t, 30*time.Second, "nothing left on the host", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		entries, err := os.ReadDir(filepath.Join(dir, "instances"))
		return err == nil && len(entries) == 0 && len(w.slots) == 0 && len(w.images) == 0
	})
	_, err := a.Dial(t.Context(), s.Sandbox, 1, 80)
	wantReason(t, err, "sandbox_not_running")
	if again, err := a.Create(t.Context(), s); err != nil || again.Phase != journal.PhaseExited {
		t.Errorf("a repeated create after the exit: %v, %v", again.Phase, err)
	}
	if err := a.Destroy(t.Context(), s.Sandbox, 1, "deleted"); err != nil {
		t.Fatal(err)
	}
	w.empty(t, dir)
	testkit.Eventually(t, 30*time.Second, "the events", func() bool {
		k := a.kinds(t)
		return len(k) == 3 && k[0] == "started" && k[1] == "exited" && k[2] == "destroyed"
	})
}

func TestAGuestThatEndsAtOnceFailsItsCreate(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	defer w.hold("await")()
	killed := func(s manager.Step) {
		if s == manager.StepStart {
			for _, i := range w.sim.Instances() {
				w.kill(i, engine.ExitExited)
			}
		}
	}
	a.step.Store(&killed)
	_, err := a.Create(t.Context(), spec(id.NewSandbox(), 1))
	wantReason(t, err, "sandbox_exited")
	w.empty(t, dir)
}

// TestST07_RandomInterleavings lets commands of all incarnations meet on a few
// sandboxes: what the manager says is what exists, and nothing comes back.
func TestST07_RandomInterleavings(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	sandboxes := []id.Sandbox{id.NewSandbox(), id.NewSandbox(), id.NewSandbox()}
	var mu sync.Mutex
	highest := map[id.Sandbox]uint64{} // destroyed for certain
	var wg sync.WaitGroup
	for worker := range 8 {
		rng := rand.New(rand.NewPCG(seed, uint64(worker)))
		wg.Go(func() {
			for range 125 {
				sandbox, inc := sandboxes[rng.IntN(len(sandboxes))], uint64(rng.IntN(40)+1)
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(2000)+1)*time.Microsecond)
				switch rng.IntN(10) {
				case 0, 1, 2:
					mu.Lock()
					dead := highest[sandbox]
					mu.Unlock()
					if _, err := a.Create(context.Background(), spec(sandbox, inc)); err == nil && inc <= dead {
						t.Errorf("incarnation %d was created after %d was destroyed", inc, dead)
					}
				case 3, 4:
					_, _ = a.Create(ctx, spec(sandbox, inc))
				case 5, 6:
					if err := a.Destroy(context.Background(), sandbox, inc, "x"); err == nil {
						mu.Lock()
						highest[sandbox] = max(highest[sandbox], inc)
						mu.Unlock()
					}
				case 7:
					if all := w.sim.Instances(); len(all) > 0 {
						w.kill(all[rng.IntN(len(all))], engine.ExitKilled)
					}
				case 8:
					_, _ = a.Inventory(ctx)
				case 9:
					if c, err := a.Dial(ctx, sandbox, inc, 1); err == nil {
						_ = c.Close()
					}
				}
				cancel()
			}
		})
	}
	wg.Wait()
	for _, s := range sandboxes {
		for {
			err := a.Destroy(t.Context(), s, 1000, "x")
			if err == nil {
				break
			}
			t.Fatal(err)
		}
	}
	w.empty(t, dir)
	if inv := inventory(t, a); len(inv) != 0 {
		t.Errorf("left in the inventory: %v", inv)
	}
}

func TestCloseUndoesWhatIsInFlight(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	keep := mustCreate(t, a, spec(id.NewSandbox(), 1))
	defer w.hold("await")()
	created := make(chan error, 1)
	go func() {
		_, err := a.Create(t.Context(), spec(id.NewSandbox(), 1))
		created <- err
	}()
	testkit.Eventually(t, 30*time.Second, "a create in flight", func() bool { return w.calls("await") > 1 })
	a.stop()
	wantReason(t, <-created, "agent_stopping")
	if in, ok := w.sim.Instance(keep.Instance); len(w.sim.Instances()) != 1 || !ok || !in.Running() {
		t.Error("stopping the agent touched a running sandbox, or left a half-made one")
	}
	_, err := a.Create(t.Context(), spec(id.NewSandbox(), 1))
	wantReason(t, err, "agent_stopping")
}

func TestTooManyCreatesAreRefused(t *testing.T) {
	w := newWorld()
	a := boot(t, w, t.TempDir(), func(c *manager.Config) { c.MaxCreates = 1 })
	release := w.hold("await")
	done := make(chan error, 1)
	go func() {
		_, err := a.Create(t.Context(), spec(id.NewSandbox(), 1))
		done <- err
	}()
	testkit.Eventually(t, 30*time.Second, "a create in flight", func() bool { return w.calls("await") > 0 })
	_, err := a.Create(t.Context(), spec(id.NewSandbox(), 1))
	wantReason(t, err, "host_busy")
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestBadSpecs(t *testing.T) {
	a := boot(t, newWorld(), t.TempDir())
	for reason, change := range map[string]func(*journal.Spec){
		"invalid_request":    func(s *journal.Spec) { s.Incarnation = 0 },
		"engine_unavailable": func(s *journal.Spec) { s.Engine = "microvm" },
	} {
		s := spec(id.NewSandbox(), 1)
		change(&s)
		_, err := a.Create(t.Context(), s)
		wantReason(t, err, reason)
	}
	wantReason(t, a.Destroy(t.Context(), id.NewSandbox(), 0, "x"), "invalid_request")
}

func BenchmarkCreateDestroy(b *testing.B) {
	a := boot(b, newWorld(), b.TempDir())
	for b.Loop() {
		s := spec(id.NewSandbox(), 1)
		if _, err := a.Create(b.Context(), s); err != nil {
			b.Fatal(err)
		}
		if err := a.Destroy(b.Context(), s.Sandbox, 1, "x"); err != nil {
			b.Fatal(err)
		}
	}
}
