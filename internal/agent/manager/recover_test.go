package manager_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/fake"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

func TestH15_RestartReadoptsAndNoticesExits(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	var runs []manager.Report
	for range 20 {
		runs = append(runs, mustCreate(t, a, spec(id.NewSandbox(), 1)))
	}
	a.die()
	a.Close()
	w.kill(runs[0].Instance, engine.ExitCrashed)
	// And one is gone without a trace.
	w.sim.Script(fake.Recover, fake.Fault{ID: runs[1].Instance, Err: engine.ErrNotFound})
	w.sim.Script(fake.Wait, fake.Fault{ID: runs[1].Instance, Err: engine.ErrNotFound})
	w.mu.Lock()
	w.slots[99] = "0000000000000000000000000000dead"
	w.images["0000000000000000000000000000dead"] = manager.Holding{Image: "d"}
	w.mu.Unlock()

	b := boot(t, w, dir, func(c *manager.Config) { c.BootID = "boot-2" })
	byInstance := map[engine.InstanceID]manager.Report{}
	for _, r := range inventory(t, b) {
		byInstance[r.Instance] = r
	}
	for n, r := range runs {
		got := byInstance[r.Instance]
		want, reason := journal.PhaseRunning, ""
		switch n {
		case 0:
			want, reason = journal.PhaseExited, engine.ExitCrashed
		case 1:
			want, reason = journal.PhaseExited, engine.ExitHostRestart
		}
		if got.Phase != want || got.EndReason != reason || got.Incarnation != 1 || got.StartedAt.IsZero() {
			t.Errorf("sandbox %d: %+v", n, got)
		}
	}
	testkit.Eventually(t, 30*time.Second, "what the living have, and no more", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		_, ok := w.slots[99]
		return !ok && len(w.slots) == 18 && len(w.images) == 18
	})
	if c, err := b.Dial(t.Context(), runs[5].Sandbox, 1, 80); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	w.kill(runs[5].Instance, engine.ExitKilled) // the watch is on again
	testkit.Eventually(t, 30*time.Second, "an exit after the restart", func() bool {
		_, err := b.Dial(t.Context(), runs[5].Sandbox, 1, 80)
		return errs.Is(err, "sandbox_not_running")
	})
	for _, r := range runs {
		if err := b.Destroy(t.Context(), r.Sandbox, 1, "deleted"); err != nil {
			t.Error(err)
		}
	}
	w.empty(t, dir)
}

func TestH15_AnEngineThatGivesNoVerdictLosesNothing(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	a.die()
	a.Close()
	release := w.hold("recover")
	b := boot(t, w, dir, func(c *manager.Config) { c.RecoverTimeout = 10 * time.Millisecond })
	if inv := inventory(t, b); len(inv) != 1 || inv[0].Phase != journal.PhaseRunning {
		t.Fatalf("the inventory is %v", inv)
	}
	release()
	testkit.Eventually(t, 30*time.Second, "the sandbox", func() bool {
		c, err := b.Dial(t.Context(), r.Sandbox, 1, 80)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// TestRC03_DeathAtEachStep kills the agent after each registered step of a
// create and of a destroy, and lets the next one clean up.
func TestRC03_DeathAtEachStep(t *testing.T) {
	visited := map[manager.Step]bool{}
	operations := manager.Operations()
	for _, step := range slices.Concat(operations["create"], operations["destroy"]) {
		t.Run(string(step), func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			a := boot(t, w, dir)
			bystander := mustCreate(t, a, spec(id.NewSandbox(), 1))
			s := spec(id.NewSandbox(), 1)
			var hit sync.Once
			kill := func(now manager.Step) {
				if now == step {
					hit.Do(func() {
						visited[step] = true
						a.die()
					})
				}
			}
			a.step.Store(&kill)
			_, err := a.Create(t.Context(), s)
			destroyed := false
			if err == nil && !visited[step] {
				destroyed = true
				_ = a.Destroy(t.Context(), s.Sandbox, 1, "deleted")
			}
			a.Close()
			if !visited[step] {
				t.Fatal("the step was never reached")
			}
			b := boot(t, w, dir)
			inv := inventory(t, b)
			want := 1
			if step == manager.StepJournalRunning {
				want = 2 // it was acknowledged, so it lives
			}
			if len(inv) != want {
				t.Errorf("%d sandboxes after the restart, want %d: %v", len(inv), want, inv)
			}
			for _, r := range inv {
				if r.Phase != journal.PhaseRunning || r.Unknown {
					t.Errorf("after the restart: %+v", r)
				}
			}
			w.mu.Lock()
			if len(w.sim.Instances()) != want || len(w.slots) != want || len(w.images) != want {
				t.Errorf("%d instances, %d slots, %d images exist, want %d each", len(w.sim.Instances()), len(w.slots), len(w.images), want)
			}
			w.mu.Unlock()
			// The repeated command goes on to the right end.
			if destroyed {
				if err := b.Destroy(t.Context(), s.Sandbox, 1, "deleted"); err != nil {
					t.Error(err)
				}
				_, err := b.Create(t.Context(), s)
				wantReason(t, err, "stale_incarnation")
			} else {
				mustCreate(t, b, s)
				if err := b.Destroy(t.Context(), s.Sandbox, 1, "deleted"); err != nil {
					t.Error(err)
				}
			}
			if err := b.Destroy(t.Context(), bystander.Sandbox, 1, "deleted"); err != nil {
				t.Error(err)
			}
			w.empty(t, dir)
		})
	}
}

func TestRC02_InventoryTellsStrangersFromNewcomers(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	stranger := engine.InstanceID("0000000000000000000000000000beef")
	other := fake.New(w.sim)
	h, err := other.Prepare(t.Context(), engine.Spec{
		ID: stranger, WorkDir: t.TempDir(), Args: []string{"/x"},
		Resources: engine.Resources{CPUMillis: 1, MemoryBytes: 1, DiskBytes: 1, MaxProcesses: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Start(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := spec(id.NewSandbox(), 1)
				if _, err := a.Create(context.Background(), s); err != nil {
					t.Error(err)
				}
				if err := a.Destroy(context.Background(), s.Sandbox, 1, "x"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 200 {
		before := time.Now()
		inv, err := a.Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if inv.TakenAt.Before(before.Add(-time.Millisecond)) || inv.TakenAt.After(time.Now()) {
			t.Error("taken_at is not when the look began")
		}
		unknown := 0
		for _, r := range inv.Sandboxes {
			if r.Unknown {
				unknown++
			}
		}
		if unknown != 1 {
			t.Fatalf("%d unknown instances, want the one stranger", unknown)
		}
	}
	close(stop)
	wg.Wait()
	if in, ok := w.sim.Instance(stranger); !ok || !in.Running() {
		t.Error("the agent killed what it does not know")
	}
	if err := other.Destroy(t.Context(), stranger); err != nil {
		t.Fatal(err)
	}
}

func TestAPartialInventoryIsAnError(t *testing.T) {
	w := newWorld()
	a := boot(t, w, t.TempDir())
	w.set("inventory", errors.New("half of it"))
	if _, err := a.Inventory(t.Context()); !errs.Is(err, "inventory_failed") {
		t.Errorf("got %v", err)
	}
}
