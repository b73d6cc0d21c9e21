package manager_test

import (
	"os"
	"path/filepath"
	"testing"

	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// ships has hosts come with a daemon from the next agent on.
func (w *world) ships(t *testing.T, daemon string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.programs == "" {
		w.programs = t.TempDir()
	}
	w.daemon = daemon
	if err := os.WriteFile(filepath.Join(w.programs, daemon), []byte(daemon), 0o555); err != nil {
		t.Fatal(err)
	}
}

// forgets has hosts lose a daemon, but where it lies beside states.
func (w *world) forgets(t *testing.T, daemon string) {
	t.Helper()
	if err := os.Remove(filepath.Join(w.programs, daemon)); err != nil {
		t.Fatal(err)
	}
}

// on fails unless the sandbox runs on that daemon.
func (w *world) on(t *testing.T, r manager.Report, daemon string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := w.images[string(r.Instance)]; got != (manager.Holding{Image: "d1", Daemon: daemon}) {
		t.Errorf("it runs on %+v, want %s", got, daemon)
	}
}

func (a *agent) guestFile(t *testing.T, st state.State) string {
	t.Helper()
	h, err := a.states.Hold(t.Context(), st.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	return h.GuestFile()
}

// What has memory goes on with the daemon in it, whatever the host has come to
// ship meanwhile; what boots has that of the host.
func TestP7_WhatIsSavedGoesOnWithItsOwnDaemon(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	w.ships(t, "old")
	a := boot(t, w, dir)
	runs := mustCreate(t, a, spec(id.NewSandbox(), 1))
	sleeps := mustCreate(t, a, spec(id.NewSandbox(), 1))
	w.work(t, runs, "one")
	w.work(t, sleeps, "one")
	paused := mustPause(t, a, sleeps)
	disk, err := a.Checkpoint(t.Context(), runs.Sandbox, 1, id.NewSnapshot(), false)
	if err != nil {
		t.Fatal(err)
	}
	if paused.GuestDigest != "old" || disk.GuestDigest != "" || a.guestFile(t, paused) == "" || a.guestFile(t, disk) != "" {
		t.Errorf("saved with %q, and the disk alone with %q", paused.GuestDigest, disk.GuestDigest)
	}
	for _, end := range []func(*agent){(*agent).stop, (*agent).die} {
		of(t, a, runs.Sandbox)
		end(a)
		w.ships(t, "new")
		a = boot(t, w, dir)
		w.on(t, runs, "old")
	}
	w.forgets(t, "old")
	w.daemons["old"] = true // as long as somebody has a tree with it
	back, err := a.Create(t.Context(), resume(sleeps, paused.ID))
	if err != nil {
		t.Fatal(err)
	}
	w.worked(t, back, "one")
	w.on(t, back, "old")
	w.ships(t, "old") // the layer is there as long as something runs on it
	w.ships(t, "new")
	again := mustPause(t, a, back)
	snapshot, err := a.Checkpoint(t.Context(), runs.Sandbox, 1, id.NewSnapshot(), true)
	if err != nil {
		t.Fatal(err)
	}
	w.daemons["old"] = false
	w.forgets(t, "old")
	for _, st := range []state.State{again, snapshot} {
		if st.GuestDigest != "old" {
			t.Errorf("saved with %s", st.GuestDigest)
		}
		for range 2 {
			s := spec(id.NewSandbox(), 1)
			s.State = st.ID
			fork, err := a.Create(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			w.worked(t, fork, "one")
			w.on(t, fork, "old")
		}
	}
	s := spec(id.NewSandbox(), 1)
	s.State = disk.ID
	fresh, err := a.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	w.on(t, fresh, "new")
	w.on(t, mustCreate(t, a, spec(id.NewSandbox(), 1)), "new")
}

// Without its daemon a state is refused by that reason before anything is started,
// and stays what it was; it goes on when the daemon is back.
func TestP7_WithoutItsDaemonASandboxStaysPaused(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	w.ships(t, "old")
	a := boot(t, w, dir)
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	w.work(t, r, "one")
	st := mustPause(t, a, r)
	of(t, a, r.Sandbox)
	a.stop()
	w.ships(t, "new")
	w.forgets(t, "old")
	a = boot(t, w, dir)
	if err := os.Remove(a.guestFile(t, st)); err != nil {
		t.Fatal(err)
	}
	restored := w.calls("restore")
	for _, diskOnly := range []bool{false, true} { // the fake engine has no disk of its own
		s := resume(r, st.ID)
		s.DiskOnly = diskOnly
		_, err := a.Create(t.Context(), s)
		if !errs.Is(err, "guest_build_missing") {
			t.Errorf("disk only %v: %v", diskOnly, err)
		}
		if got := of(t, a, r.Sandbox); got.Phase != journal.PhasePaused || got.State != st.ID || w.calls("restore") != restored {
			t.Errorf("it is %+v, restored %d times", got, w.calls("restore")-restored)
		}
		w.empty(t, dir)
	}
	w.daemons["old"] = true
	back, err := a.Create(t.Context(), resume(r, st.ID))
	if err != nil {
		t.Fatal(err)
	}
	w.worked(t, back, "one")
	w.on(t, back, "old")
	// It is saved although its daemon is gone from the disk: it may come back.
	again := mustPause(t, a, back)
	if again.GuestDigest != "old" || a.guestFile(t, again) != "" {
		t.Errorf("saved with %q in %q", again.GuestDigest, a.guestFile(t, again))
	}
	s := resume(back, again.ID)
	if back, err = a.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	w.worked(t, back, "one")
}

// The disk of a state with memory is taken with the daemon that is in there, and
// boots with that of the host.
func TestP7_ADiskBootsWithTheHostsDaemon(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	w.ships(t, "old")
	a := boot(t, w, dir)
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	w.work(t, r, "one")
	st := mustPause(t, a, r)
	of(t, a, r.Sandbox)
	a.stop()
	w.ships(t, "new")
	a = boot(t, w, dir)
	s := resume(r, st.ID)
	s.DiskOnly = true
	back, err := a.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	w.on(t, back, "new")
	in := w.instance(t, back.Instance)
	if file, _ := in.File("/f"); string(file) != "one" || len(in.Memory()) != 0 {
		t.Errorf("file %q, memory %q", file, in.Memory())
	}
	if st := mustPause(t, a, back); st.GuestDigest != "new" {
		t.Errorf("saved with %s", st.GuestDigest)
	}
}

// What waits with an older daemon is let go, and a sandbox that was made of what
// waited is saved with the daemon that it has.
func TestP7_WhatWaitsHasTheDaemonOfItsTime(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	keeping := func(build string) func(*manager.Config) {
		return func(c *manager.Config) { c.MaxWarm, c.GuestBuild, c.WarmRest = 2, build, 1 }
	}
	w.ships(t, "old")
	a := boot(t, w, dir, keeping("old"))
	a.KeepWarm([]manager.WarmTarget{target(1)})
	waiting := a.awaitWarm(t, 1)[0]
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	if r.Instance != waiting {
		t.Fatal("it was not taken")
	}
	w.work(t, r, "one")
	saved, err := a.Checkpoint(t.Context(), r.Sandbox, 1, id.NewSnapshot(), true)
	if err != nil || saved.GuestDigest != "old" {
		t.Fatalf("saved with %s, %v", saved.GuestDigest, err)
	}
	waiting = a.awaitWarm(t, 1)[0]
	a.stop()
	w.ships(t, "new")
	a = boot(t, w, dir, keeping("new"))
	w.on(t, r, "old")
	fromState := target(1)
	fromState.Key, fromState.Spec.State = []byte("saved"), saved.ID
	a.KeepWarm([]manager.WarmTarget{target(1), fromState})
	for _, i := range a.awaitWarm(t, 2) {
		if i == waiting {
			t.Error("what waited with the old daemon does still")
		}
	}
	w.on(t, mustCreate(t, a, spec(id.NewSandbox(), 1)), "new")
	s := spec(id.NewSandbox(), 1)
	s.State = saved.ID
	back := mustCreate(t, a, s)
	w.worked(t, back, "one")
	w.on(t, back, "old")
	if again := mustPause(t, a, back); again.GuestDigest != "old" {
		t.Errorf("saved with %s", again.GuestDigest)
	}
}
