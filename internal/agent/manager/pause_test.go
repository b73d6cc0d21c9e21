package manager_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/fake"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/agent/state/statetest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

// diskBelow lets the world forget what is not synced below dir's states.
func (w *world) diskBelow(t testing.TB, dir string) *statetest.Disk {
	t.Helper()
	root := filepath.Join(dir, "states")
	if err := os.MkdirAll(root, 0o700); err != nil {
		t.Fatal(err)
	}
	d := statetest.New(root)
	t.Cleanup(d.Close)
	w.disk = d
	return d
}

func (w *world) instance(t testing.TB, i engine.InstanceID) *fake.Instance {
	t.Helper()
	in, ok := w.sim.Instance(i)
	if !ok {
		t.Fatalf("there is no instance %s", i)
	}
	return in
}

// work changes what is in the guest.
func (w *world) work(t testing.TB, r manager.Report, text string) {
	t.Helper()
	in := w.instance(t, r.Instance)
	in.SetMemory([]byte(text))
	in.SetFile("/f", []byte(text))
}

// worked fails unless the sandbox runs, unfrozen, with that text inside.
func (w *world) worked(t testing.TB, r manager.Report, text string) {
	t.Helper()
	in := w.instance(t, r.Instance)
	file, _ := in.File("/f")
	if r.Phase != journal.PhaseRunning || !in.Running() || in.Frozen() || string(in.Memory()) != text || string(file) != text {
		t.Errorf("phase %s, running %v, frozen %v, memory %q, file %q; want %q", r.Phase, in.Running(), in.Frozen(), in.Memory(), file, text)
	}
}

func pause(r manager.Report, which id.Snapshot) manager.PauseRequest {
	return manager.PauseRequest{Sandbox: r.Sandbox, Incarnation: r.Incarnation, State: which, Memory: true, Reason: "requested"}
}

func mustPause(t testing.TB, a *agent, r manager.Report) state.State {
	t.Helper()
	st, err := a.Pause(t.Context(), pause(r, id.NewSnapshot()))
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// resume is the spec of a sandbox's next life.
func resume(r manager.Report, from id.Snapshot) journal.Spec {
	s := spec(r.Sandbox, r.Incarnation+1)
	s.State, s.Hostname = from, "box"
	return s
}

// of returns the one report of a sandbox, once nothing is under way.
func of(t testing.TB, a *agent, sandbox id.Sandbox) manager.Report {
	t.Helper()
	var out manager.Report
	testkit.Eventually(t, 10*time.Second, "a quiet sandbox", func() bool {
		inv, err := a.Inventory(context.Background())
		if err != nil {
			return a.view.dead.Load()
		}
		out = manager.Report{}
		for _, r := range inv.Sandboxes {
			if r.Sandbox == sandbox {
				out = r
			}
		}
		switch out.Phase {
		case journal.PhaseCreating, journal.PhaseDestroying, journal.PhasePausing:
			return a.view.dead.Load() // then nothing moves any more
		}
		return true
	})
	return out
}

// bare waits until nothing of any instance is left, paused ones included.
func (w *world) bare(t testing.TB) {
	t.Helper()
	testkit.Eventually(t, 10*time.Second, "LL-01: nothing of an instance", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.sim.Instances())+len(w.slots)+len(w.images) == 0
	})
}

// noStates fails when there is anything among the saved states.
func noStates(t testing.TB, dir string) {
	t.Helper()
	if left, _ := os.ReadDir(filepath.Join(dir, "states")); len(left) != 0 {
		t.Errorf("LL-01: saved states are left behind: %v", left)
	}
}

func TestS6_PauseAndResume(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	w.work(t, r, "one")
	which := id.NewSnapshot()
	st, err := a.Pause(t.Context(), pause(r, which))
	if err != nil {
		t.Fatal(err)
	}
	if st.ID != which || st.Sandbox != r.Sandbox || st.Engine != "fake" || st.EngineVersion != "fake-1" || !st.Memory || st.SizeBytes == 0 ||
		len(st.CPUFeatures) == 0 || st.ImageDigest != "d1" || st.Digest == "" {
		t.Errorf("the state is %+v", st)
	}
	w.bare(t)
	if again, err := a.Pause(t.Context(), pause(r, which)); err != nil || again.Digest != st.Digest {
		t.Errorf("repeated: %+v, %v", again, err)
	}
	_, err = a.Pause(t.Context(), pause(r, id.NewSnapshot()))
	wantReason(t, err, "already_paused")
	_, err = a.Dial(t.Context(), r.Sandbox, 1, 80)
	wantReason(t, err, "sandbox_not_running")
	wantReason(t, a.DeleteState(t.Context(), which), "state_in_use")
	if p := of(t, a, r.Sandbox); p.Phase != journal.PhasePaused || p.State != which || p.PausedReason != "" {
		t.Errorf("paused it is reported as %+v", p)
	}
	if l := a.Load(); l.Sandboxes != 0 {
		t.Errorf("a paused sandbox counts as load: %+v", l)
	}
	// It goes on from nothing but its own state.
	_, err = a.Create(t.Context(), spec(r.Sandbox, 2))
	wantReason(t, err, "state_mismatch")
	next := mustCreate(t, a, resume(r, which))
	w.worked(t, next, "one")
	if next.Instance == r.Instance || next.Incarnation != 2 {
		t.Errorf("resumed as %+v", next)
	}
	if again := mustCreate(t, a, resume(r, which)); again.Instance != next.Instance {
		t.Error("a repeated resume made another instance")
	}
	// The daemon woke up with the old secret and was given a new one.
	w.mu.Lock()
	first, last := w.inits[0], w.inits[len(w.inits)-1]
	w.mu.Unlock()
	if last.secret != first.secret || last.in.NewInitSecret == "" || last.in.NewInitSecret == first.secret || last.in.Hostname != "box" ||
		last.in.LifecycleID == first.in.LifecycleID || first.in.NewInitSecret != "" {
		t.Errorf("RS-06: the daemon was told %+v, after %+v", last, first)
	}
	_, err = a.Pause(t.Context(), pause(r, which))
	wantReason(t, err, "stale_incarnation")
	// What is done now is in the next state, and the one before may go.
	w.work(t, next, "two")
	second := mustPause(t, a, next)
	if err := a.DeleteState(t.Context(), which); err != nil {
		t.Error(err)
	}
	third := mustCreate(t, a, resume(next, second.ID))
	w.worked(t, third, "two")
	if p := of(t, a, r.Sandbox); p.State != second.ID {
		t.Errorf("its newest state is reported as %v", p.State)
	}
	if err := a.Destroy(t.Context(), r.Sandbox, 3, "deleted"); err != nil {
		t.Fatal(err)
	}
	// States are nobody's but the control plane's.
	if _, ok := a.states.Get(second.ID); !ok {
		t.Error("a destroy took a saved state with it")
	}
	if err := a.DeleteState(t.Context(), second.ID); err != nil {
		t.Error(err)
	}
	w.empty(t, dir)
	noStates(t, dir)
}

func TestS6_DiskOnly(t *testing.T) {
	w := newWorld()
	a := boot(t, w, t.TempDir())
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	w.work(t, r, "one")
	req := pause(r, id.NewSnapshot())
	req.Memory = false
	st, err := a.Pause(t.Context(), req)
	if err != nil || st.Memory || st.InitSecret != "" || len(st.CPUFeatures) != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	next := mustCreate(t, a, resume(r, st.ID))
	in := w.instance(t, next.Instance)
	if file, _ := in.File("/f"); string(file) != "one" || len(in.Memory()) != 0 {
		t.Errorf("file %q, memory %q", file, in.Memory())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if last := w.inits[len(w.inits)-1]; last.in.NewInitSecret != "" || last.secret == w.inits[0].secret {
		t.Error("a sandbox that booted was treated as one that woke up")
	}
}

// TestS5_EachFailureOfAPauseRunsOn fails each thing a pause does: the sandbox
// runs as before, nothing is left of the try, and the next one succeeds.
func TestS5_EachFailureOfAPauseRunsOn(t *testing.T) {
	fails := 0
	for at := -1; ; at++ {
		w, dir := newWorld(), t.TempDir()
		disk := w.diskBelow(t, dir)
		a := boot(t, w, dir)
		r := mustCreate(t, a, spec(id.NewSandbox(), 1))
		w.work(t, r, "one")
		open, err := a.Dial(t.Context(), r.Sandbox, 1, 80)
		if err != nil {
			t.Fatal(err)
		}
		want := "disk_full"
		if at < 0 {
			w.set("checkpoint", errors.New("sentry: I/O error"))
			want = "pause_failed"
		} else {
			disk.Fail(func(n int, _, _ string) error {
				if n != at {
					return nil
				}
				return syscall.ENOSPC
			})
		}
		which := id.NewSnapshot()
		_, err = a.Pause(t.Context(), pause(r, which))
		_ = open.Close()
		if err == nil { // what comes behind the answer fails nothing
			break
		}
		fails++
		wantReason(t, err, want)
		w.set("checkpoint", nil)
		disk.Fail(nil)
		now := of(t, a, r.Sandbox)
		w.worked(t, now, "one")
		if now.Instance != r.Instance || now.Incarnation != 1 || !now.State.IsZero() {
			t.Errorf("it goes on as %+v", now)
		}
		if c, err := a.Dial(t.Context(), r.Sandbox, 1, 80); err != nil {
			t.Errorf("after a failed pause: %v", err)
		} else {
			_ = c.Close()
		}
		a.states.Tidy()
		noStates(t, dir)
		w.work(t, r, "two")
		if _, err := a.Pause(t.Context(), pause(r, which)); err != nil {
			t.Fatalf("ST-05: once the fault is gone: %v", err)
		}
		w.worked(t, mustCreate(t, a, resume(r, which)), "two")
	}
	t.Logf("%d failures", fails)
	if fails < 10 {
		t.Error("too few")
	}
}

func TestST05_AFullDiskIsSaidBeforeAnythingIsTouched(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	disk := w.diskBelow(t, dir)
	a := boot(t, w, dir)
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	disk.SetFree(state.Reserve)
	_, err := a.Pause(t.Context(), pause(r, id.NewSnapshot()))
	wantReason(t, err, "disk_full")
	if d := errs.As(err).Details; d["free_bytes"] != int64(state.Reserve) || d["needed_bytes"].(int64) <= state.Reserve {
		t.Errorf("details %v", d)
	}
	if a.links[0].closed.Load() || w.calls("checkpoint") != 0 {
		t.Error("connections were cut for nothing")
	}
	_, err = a.Checkpoint(t.Context(), r.Sandbox, 1, id.NewSnapshot(), true)
	wantReason(t, err, "disk_full")
	for _, o := range a.PauseAll(t.Context(), "drain") {
		wantReason(t, o.Err, "disk_full")
	}
}

func TestST05_AThawThatFailsIsTriedAgain(t *testing.T) {
	w := newWorld()
	a := boot(t, w, t.TempDir())
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	w.work(t, r, "one")
	dead := func(s manager.Step) { // behind the checkpoint: it is frozen
		if s == manager.StepCheckpoint {
			w.set("thaw", errors.New("busy"))
			a.Manager.Destroy(t.Context(), id.NewSandbox(), 1, "x") //nolint:errcheck // a bystander
		}
	}
	a.step.Store(&dead)
	w.disk = failing{state.Disk{}}
	_, err := a.Pause(t.Context(), pause(r, id.NewSnapshot()))
	wantReason(t, err, "disk_full")
	if !w.instance(t, r.Instance).Frozen() {
		t.Fatal("it is not frozen")
	}
	_, err = a.Pause(t.Context(), pause(r, id.NewSnapshot()))
	wantReason(t, err, "sandbox_recovering")
	w.set("thaw", nil)
	w.worked(t, of(t, a, r.Sandbox), "one")
}

// failing is a disk on which nothing can be made safe.
type failing struct{ state.Disk }

func (failing) Sync(string) error { return syscall.ENOSPC }

func TestS7_IdleIsAskedWhenNobodyCanComeIn(t *testing.T) {
	w := newWorld()
	a := boot(t, w, t.TempDir())
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	w.idle.Store(int64(59 * time.Second))
	req := pause(r, id.NewSnapshot())
	req.IfIdleFor = time.Minute
	_, err := a.Pause(t.Context(), req)
	wantReason(t, err, "not_idle")
	if errs.As(err).Details["idle_ms"] != int64(59000) {
		t.Errorf("details %v", errs.As(err).Details)
	}
	if st, err := a.Stats(t.Context(), r.Sandbox, 1); err != nil || st.Idle != 59*time.Second {
		t.Errorf("stats %+v, %v", st, err)
	}
	if k := a.kinds(t); len(k) != 1 || a.links[0].closed.Load() {
		t.Errorf("S7: a refused pause left traces: %v", k)
	}
	w.set("idle", errors.New("no answer"))
	_, err = a.Pause(t.Context(), req)
	wantReason(t, err, "idle_unknown")
	w.set("idle", nil)

	// TL-06: who comes while it is being asked waits, and comes in when it is not
	// paused.
	release := w.hold("idle")
	refused := make(chan error, 1)
	asked := w.calls("idle")
	go func() { _, err := a.Pause(context.Background(), req); refused <- err }()
	testkit.Eventually(t, 5*time.Second, "the question", func() bool { return w.calls("idle") > asked })
	dialed := make(chan error, 1)
	go func() {
		c, err := a.Dial(context.Background(), r.Sandbox, 1, 80)
		if err == nil {
			err = c.Close()
		}
		dialed <- err
	}()
	select {
	case err := <-dialed:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	release()
	wantReason(t, <-refused, "not_idle")
	if err := <-dialed; err != nil {
		t.Errorf("TL-06: %v", err)
	}
	w.idle.Store(int64(time.Minute))
	if _, err := a.Pause(t.Context(), req); err != nil {
		t.Error(err)
	}
}

func TestACallerThatLeavesLeavesThePauseAlone(t *testing.T) {
	w := newWorld()
	a := boot(t, w, t.TempDir())
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	release := w.hold("checkpoint")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	which := id.NewSnapshot()
	if _, err := a.Pause(ctx, pause(r, which)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	release()
	if st, err := a.Pause(t.Context(), pause(r, which)); err != nil || st.ID != which {
		t.Errorf("ST-05: %+v, %v", st, err)
	}
	if n := w.calls("checkpoint"); n != 1 {
		t.Errorf("%d checkpoints", n)
	}
}

func TestAnEngineThatDiesDuringAPauseIsAnExit(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	w.sim.Script(fake.Checkpoint, fake.Fault{Exit: &engine.Exit{Reason: engine.ExitCrashed, Code: -1}, Times: 1})
	_, err := a.Pause(t.Context(), pause(r, id.NewSnapshot()))
	wantReason(t, err, "sandbox_exited")
	if p := of(t, a, r.Sandbox); p.Phase != journal.PhaseExited || p.EndReason != engine.ExitCrashed {
		t.Errorf("it is %+v", p)
	}
	noStates(t, dir)

	// Once the state is whole its end does not matter any more.
	s := mustCreate(t, a, spec(id.NewSandbox(), 1))
	w.work(t, s, "one")
	kill := func(step manager.Step) {
		if step == manager.StepSealState {
			w.kill(s.Instance, engine.ExitCrashed)
		}
	}
	a.step.Store(&kill)
	st := mustPause(t, a, s)
	w.worked(t, mustCreate(t, a, resume(s, st.ID)), "one")
}
