package manager_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

func warmSteps() (out []manager.Step) {
	for _, op := range []string{"warm", "failed_warm", "claim", "failed_claim", "let_go"} {
		out = append(out, manager.Operations()[op]...)
	}
	return out
}

func keeping(n int) func(*manager.Config) {
	return func(c *manager.Config) { c.MaxWarm, c.GuestBuild, c.WarmRest = n, "guest-1", 1 }
}

// target is instances just as spec makes them.
func target(n int) manager.WarmTarget {
	return manager.WarmTarget{Key: []byte("key"), Spec: spec(id.Sandbox{}, 0), Count: n}
}

func (a *agent) warm(t *testing.T) (ready []engine.InstanceID) {
	t.Helper()
	inv, err := a.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range inv.Warm {
		if w.Ready {
			ready = append(ready, w.Instance)
		}
	}
	for _, r := range inv.Sandboxes {
		if r.Unknown || slices.Contains(ready, r.Instance) {
			t.Errorf("among the sandboxes: %+v", r)
		}
	}
	return ready
}

func (a *agent) awaitWarm(t *testing.T, n int) []engine.InstanceID {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, "warm instances", func() bool { return len(a.warm(t)) == n })
	return a.warm(t)
}

// cools lets go of all that waits.
func (a *agent) cools(t *testing.T, w *world, dir string) {
	t.Helper()
	a.KeepWarm(nil)
	testkit.Eventually(t, 30*time.Second, "nothing waits", func() bool {
		inv, err := a.Inventory(t.Context())
		return err == nil && len(inv.Warm) == 0
	})
	w.empty(t, dir)
}

func TestAWarmInstanceBecomesASandbox(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	marks := filepath.Join(dir, "warm")
	a := boot(t, w, dir, keeping(2), func(c *manager.Config) { c.WarmDir = marks })
	marked := func(i engine.InstanceID) bool {
		_, err := os.Stat(filepath.Join(marks, string(i)))
		return err == nil
	}
	if kept := a.KeepWarm([]manager.WarmTarget{target(1)}); len(kept) != 1 || kept[0].Ready != 0 || kept[0].Reason != manager.WarmFilling {
		t.Errorf("at first: %+v", kept)
	}
	waiting := a.awaitWarm(t, 1)[0]
	if w.calls("run") != 1 || w.calls("hold") != 1 {
		t.Error("it did not run a command, or was not held")
	}
	if !marked(waiting) {
		t.Error("nobody sees that it waits")
	}
	other := spec(id.NewSandbox(), 1)
	other.Internet = true
	if r := mustCreate(t, a, other); r.Instance == waiting {
		t.Error("an instance without the internet was taken for one with it")
	}
	s := spec(id.NewSandbox(), 1)
	s.Hostname, s.AccessToken = "sb-1", "tok"
	r := mustCreate(t, a, s)
	if r.Instance != waiting || r.Sandbox != s.Sandbox || marked(waiting) {
		t.Errorf("it is %+v, %s waited", r, waiting)
	}
	w.mu.Lock()
	first, last := w.inits[0], w.inits[len(w.inits)-1]
	w.mu.Unlock()
	if last.secret != first.secret || last.in.NewInitSecret == "" || last.in.NewInitSecret == first.secret || last.in.Hostname != "sb-1" ||
		last.in.AccessToken != "tok" || first.in.AccessToken == "" || first.in.EnvVars != nil || first.in.LifecycleID == last.in.LifecycleID || last.in.EnvVars["A"] != "b" {
		t.Errorf("it was told %+v and then %+v", first, last)
	}
	events, err := a.journal.Events(10)
	if err != nil || len(events) != 2 || string(events[0].Data) != "" || string(events[1].Data) != `{"warm":true}` {
		t.Errorf("%v, %v", events, err)
	}
	if again := a.awaitWarm(t, 1); again[0] == waiting {
		t.Error("it waits still")
	}
	for _, x := range []id.Sandbox{s.Sandbox, other.Sandbox} {
		if err := a.Destroy(t.Context(), x, 1, "deleted"); err != nil {
			t.Error(err)
		}
	}
	a.cools(t, w, dir)
	if left, err := os.ReadDir(marks); err != nil || len(left) != 0 {
		t.Errorf("marks are left: %v, %v", left, err)
	}
}

func TestWarmInstancesAreBoundedAndLetGo(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	var short atomic.Bool
	a := boot(t, w, dir, keeping(2), func(c *manager.Config) { c.MemoryShort = short.Load })
	a.KeepWarm([]manager.WarmTarget{target(5)})
	a.awaitWarm(t, 2)
	if kept := a.KeepWarm([]manager.WarmTarget{target(5)}); kept[0].Ready != 2 || kept[0].Reason != manager.WarmLimit {
		t.Errorf("%+v", kept)
	}
	// One ends by itself.
	w.kill(a.warm(t)[0], engine.ExitCrashed)
	testkit.Eventually(t, 30*time.Second, "another", func() bool { return w.calls("run") == 3 && len(a.warm(t)) == 2 })
	// The target is about something else now.
	changed := target(1)
	changed.Spec.Image.Digest = "d2"
	before := a.warm(t)
	a.KeepWarm([]manager.WarmTarget{changed})
	testkit.Eventually(t, 30*time.Second, "what is wanted now", func() bool {
		now := a.warm(t)
		return len(now) == 1 && !slices.Contains(before, now[0])
	})
	short.Store(true)
	testkit.Eventually(t, 30*time.Second, "none while memory is short", func() bool { return len(a.warm(t)) == 0 })
	if kept := a.KeepWarm([]manager.WarmTarget{changed}); kept[0].Reason != manager.WarmMemory {
		t.Errorf("%+v", kept)
	}
	short.Store(false)
	a.awaitWarm(t, 1)
	// The agent restarts: what waits is found again, or let go with another daemon.
	waits := a.warm(t)[0]
	a.die()
	a.Close()
	b := boot(t, w, dir, keeping(2))
	if now := b.warm(t); len(now) != 1 || now[0] != waits {
		t.Errorf("after the restart: %v, not %s", now, waits)
	}
	b.die()
	b.Close()
	c := boot(t, w, dir, keeping(2), func(c *manager.Config) { c.GuestBuild = "guest-2" })
	if now := c.warm(t); len(now) != 0 {
		t.Errorf("with another daemon: %v", now)
	}
	w.empty(t, dir)
	off := boot(t, w, t.TempDir(), keeping(0))
	if kept := off.KeepWarm([]manager.WarmTarget{target(1)}); kept[0].Reason != manager.WarmOff {
		t.Errorf("%+v", kept)
	}
}

// A claim that fails in any way is a cold start within the same call.
func TestAFailedClaimIsAColdStart(t *testing.T) {
	for _, call := range []string{"thaw", "init", "dead"} {
		t.Run(call, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			a := boot(t, w, dir, keeping(1))
			a.KeepWarm([]manager.WarmTarget{target(1)})
			waiting := a.awaitWarm(t, 1)[0]
			w.set(call, errors.New("broken"))
			heal := func(s manager.Step) {
				if s == manager.StepUndoInstance {
					w.set(call, nil)
				}
			}
			a.step.Store(&heal)
			s := spec(id.NewSandbox(), 1)
			if call == "dead" { // and nobody has noticed
				w.kill(waiting, engine.ExitCrashed)
			}
			r := mustCreate(t, a, s)
			if r.Instance == waiting {
				t.Error("the broken instance was taken")
			}
			if err := a.Destroy(t.Context(), s.Sandbox, 1, "deleted"); err != nil {
				t.Error(err)
			}
			a.cools(t, w, dir)
		})
	}
}

func TestADestroyDuringAClaimLeavesNothing(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir, keeping(1))
	a.KeepWarm([]manager.WarmTarget{target(1)})
	a.awaitWarm(t, 1)
	inits := w.calls("init")
	release := w.hold("init")
	defer release()
	s := spec(id.NewSandbox(), 1)
	created := make(chan error, 1)
	go func() {
		_, err := a.Create(t.Context(), s)
		created <- err
	}()
	testkit.Eventually(t, 30*time.Second, "the claim", func() bool { return w.calls("init") > inits })
	if err := a.Destroy(t.Context(), s.Sandbox, 1, "deleted"); err != nil {
		t.Error(err)
	}
	wantReason(t, <-created, "superseded")
	release()
	a.cools(t, w, dir)
}

func TestH5_DestroyAllLeavesNothingThatWaits(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir, keeping(3))
	a.KeepWarm([]manager.WarmTarget{target(3)})
	testkit.Eventually(t, 30*time.Second, "a warm instance", func() bool { return len(a.warm(t)) > 0 }) // and the next is being made, or waits too
	if err := a.DestroyAll(t.Context(), "host_deleted"); err != nil {
		t.Fatal(err)
	}
	w.empty(t, dir)
}

// The end of an agent in order leaves nothing that is nobody's, and what was
// started as it was.
func TestCoolLeavesNothingThatWaits(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir, keeping(2))
	a.KeepWarm([]manager.WarmTarget{target(2)})
	a.awaitWarm(t, 2)
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	if err := a.Cool(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.KeepWarm([]manager.WarmTarget{target(2)})
	if all := w.sim.Instances(); len(all) != 1 || all[0] != r.Instance {
		t.Errorf("there are %v, want %s", all, r.Instance)
	}
	a.stop()
	if in, ok := w.sim.Instance(r.Instance); !ok || !in.Running() {
		t.Error("the sandbox ended with the agent")
	}
}

// TestRC03_DeathAtEachStepOfWarmStarts kills the agent after each step of what
// becomes of an instance that waits.
func TestRC03_DeathAtEachStepOfWarmStarts(t *testing.T) {
	deaths := 0
	for _, op := range []string{"warm", "failed_warm", "claim", "failed_claim", "let_go"} {
		for _, step := range manager.Operations()[op] {
			t.Run(op+" "+string(step), func(t *testing.T) {
				deaths++
				w, dir := newWorld(), t.TempDir()
				a := boot(t, w, dir, keeping(1))
				bystander := mustCreate(t, a, spec(id.NewSandbox(), 1))
				s := spec(id.NewSandbox(), 1)
				prepared := op != "warm" && op != "failed_warm"
				if prepared {
					a.KeepWarm([]manager.WarmTarget{target(1)})
					a.awaitWarm(t, 1)
				}
				died := make(chan struct{})
				var once sync.Once
				kill := func(now manager.Step) {
					if now == manager.StepUndoInstance {
						w.set("init", nil)
					}
					if now == step {
						once.Do(func() { a.die(); close(died) })
					}
				}
				a.step.Store(&kill)
				var err error
				switch op {
				case "warm":
					a.KeepWarm([]manager.WarmTarget{target(1)})
				case "failed_warm":
					w.set("run", errors.New("broken"))
					a.KeepWarm([]manager.WarmTarget{target(1)})
				case "failed_claim":
					w.set("init", errors.New("broken"))
					_, err = a.Create(t.Context(), s)
				case "claim":
					_, err = a.Create(t.Context(), s)
				case "let_go":
					a.KeepWarm(nil)
				}
				select {
				case <-died:
				case <-time.After(30 * time.Second):
					t.Fatalf("the step was never reached: %v", err)
				}
				a.Close()
				w.set("run", nil)
				w.set("init", nil)
				b := boot(t, w, dir, keeping(1))
				lives := 0
				for _, r := range inventory(t, b) {
					if r.Unknown || r.Phase != journal.PhaseRunning {
						t.Errorf("after the restart: %+v", r)
					}
					if r.Sandbox == s.Sandbox {
						lives++
					}
				}
				if want := step == manager.StepJournalRunning; (lives == 1) != want {
					t.Errorf("the sandbox lives %d times", lives)
				}
				waiting := b.warm(t)
				if all := len(w.sim.Instances()); all != 1+lives+len(waiting) {
					t.Errorf("%d instances: a bystander, %d of the sandbox, %d wait", all, lives, len(waiting))
				}
				mustCreate(t, b, s)
				for _, x := range []id.Sandbox{s.Sandbox, bystander.Sandbox} {
					if err := b.Destroy(t.Context(), x, 1, "deleted"); err != nil {
						t.Error(err)
					}
				}
				b.cools(t, w, dir)
				if left, err := b.journal.Warm(); err != nil || len(left) != 0 {
					t.Errorf("the journal holds %v, %v", left, err)
				}
			})
		}
	}
	t.Logf("%d deaths", deaths)
}
