package manager_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

func TestS10_ForksLeaveTheirSourceAlone(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	w.work(t, r, "one")
	which := id.NewSnapshot()
	st, err := a.Checkpoint(t.Context(), r.Sandbox, 1, which, true)
	if err != nil {
		t.Fatal(err)
	}
	w.work(t, r, "two")
	if again, err := a.Checkpoint(t.Context(), r.Sandbox, 1, which, true); err != nil || again.Digest != st.Digest {
		t.Errorf("repeated: %+v, %v", again, err)
	}
	w.worked(t, of(t, a, r.Sandbox), "two")
	var wg sync.WaitGroup
	children := make([]manager.Report, 8)
	for i := range children {
		wg.Go(func() {
			s := spec(id.NewSandbox(), 1)
			s.State = which
			var err error
			if children[i], err = a.Create(context.Background(), s); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	secrets := map[string]bool{}
	for _, c := range children {
		w.worked(t, c, "one")
	}
	w.mu.Lock()
	for _, i := range w.inits[1:] {
		secrets[i.in.NewInitSecret] = true
	}
	w.mu.Unlock()
	if len(secrets) != len(children) {
		t.Errorf("RS-06: %d secrets for %d copies", len(secrets), len(children))
	}
	_, err = a.Create(t.Context(), resume(r, which))
	wantReason(t, err, "sandbox_running")
	if err := a.DeleteState(t.Context(), which); err != nil {
		t.Error(err)
	}
	missing := spec(id.NewSandbox(), 1)
	missing.State = which
	_, err = a.Create(t.Context(), missing)
	wantReason(t, err, "unknown_state")
	for _, c := range append(children, r) {
		if err := a.Destroy(t.Context(), c.Sandbox, 1, "x"); err != nil {
			t.Error(err)
		}
	}
	w.empty(t, dir)
	noStates(t, dir)
}

func TestRS04_WhatDoesNotFitIsRefusedAndStaysPaused(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	w.work(t, r, "one")
	st := mustPause(t, a, r)
	for name, change := range map[string]func(*journal.Spec){
		"disk":  func(s *journal.Spec) { s.Resources.DiskBytes *= 2 },
		"image": func(s *journal.Spec) { s.Image.Digest = "other" },
	} {
		s := resume(r, st.ID)
		change(&s)
		_, err := a.Create(t.Context(), s)
		if !errs.Is(err, "state_incompatible") {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.sim.SetVersion("fake-2")
	_, err := a.Create(t.Context(), resume(r, st.ID))
	wantReason(t, err, "state_incompatible")
	w.sim.SetVersion("fake-1")
	w.bare(t)
	if p := of(t, a, r.Sandbox); p.Phase != journal.PhasePaused || p.Incarnation != 1 || p.State != st.ID {
		t.Errorf("it is %+v", p)
	}
	// More memory and CPU are welcome.
	s := resume(r, st.ID)
	s.Resources.MemoryBytes *= 2
	w.worked(t, mustCreate(t, a, s), "one")
}

func TestEachFailureOfAResumeIsPausedAgain(t *testing.T) {
	for _, c := range []struct{ call, reason string }{
		{"acquire_slot", "network_unavailable"},
		{"acquire_image", "image_unavailable"},
		{"prepare", "engine_failed"},
		{"restore", "engine_failed"},
		{"await", "guest_unresponsive"},
		{"init", "guest_unresponsive"},
	} {
		for _, cleanup := range []string{"", "destroy", "release_slot"} {
			t.Run(c.call+" "+cleanup, func(t *testing.T) {
				w, dir := newWorld(), t.TempDir()
				a := boot(t, w, dir)
				r := mustCreate(t, a, spec(id.NewSandbox(), 1))
				w.work(t, r, "one")
				st := mustPause(t, a, r)
				w.bare(t)
				w.set(c.call, errors.New("broken"))
				if cleanup != "" {
					w.set(cleanup, errors.New("busy"))
				}
				_, err := a.Create(t.Context(), resume(r, st.ID))
				wantReason(t, err, c.reason)
				w.set(c.call, nil)
				w.set(cleanup, nil)
				if p := of(t, a, r.Sandbox); p.Phase != journal.PhasePaused || p.Incarnation != 1 || p.State != st.ID {
					t.Errorf("it is %+v", p)
				}
				w.bare(t)
				wantReason(t, a.DeleteState(t.Context(), st.ID), "state_in_use")
				w.worked(t, mustCreate(t, a, resume(r, st.ID)), "one")
			})
		}
	}
}

func TestACleanupBehindAPauseIsTriedAgain(t *testing.T) {
	for _, call := range []string{"destroy", "release_image", "release_slot"} {
		w := newWorld()
		a := boot(t, w, t.TempDir())
		r := mustCreate(t, a, spec(id.NewSandbox(), 1))
		w.work(t, r, "one")
		w.set(call, errors.New("busy"))
		st := mustPause(t, a, r) // acknowledged all the same
		resumed := make(chan manager.Report, 1)
		go func() {
			next, err := a.Create(context.Background(), resume(r, st.ID))
			if err != nil {
				t.Error(err)
			}
			resumed <- next
		}()
		testkit.Eventually(t, 5*time.Second, "several tries", func() bool { return w.calls(call) > 2 })
		w.set(call, nil)
		w.worked(t, <-resumed, "one")
	}
}

func TestDestroySupersedesPausesAndResumes(t *testing.T) {
	for _, c := range []struct {
		call string
		run  func(a *agent, r manager.Report) error
	}{
		{"checkpoint", func(a *agent, r manager.Report) error {
			_, err := a.Pause(context.Background(), pause(r, id.NewSnapshot()))
			return err
		}},
		{"checkpoint", func(a *agent, r manager.Report) error {
			_, err := a.Checkpoint(context.Background(), r.Sandbox, r.Incarnation, id.NewSnapshot(), true)
			return err
		}},
		{"restore", nil},
		{"await", nil},
	} {
		w, dir := newWorld(), t.TempDir()
		a := boot(t, w, dir)
		r := mustCreate(t, a, spec(id.NewSandbox(), 1))
		var from []id.Snapshot
		if c.run == nil {
			st := mustPause(t, a, r)
			from = append(from, st.ID)
			c.run = func(a *agent, r manager.Report) error {
				_, err := a.Create(context.Background(), resume(r, st.ID))
				return err
			}
			w.bare(t)
		}
		before := w.calls(c.call)
		release := w.hold(c.call)
		result := make(chan error, 1)
		go func() { result <- c.run(a, r) }()
		testkit.Eventually(t, 5*time.Second, "the operation", func() bool { return w.calls(c.call) > before })
		if err := a.Destroy(t.Context(), r.Sandbox, 2, "deleted"); err != nil {
			t.Fatal(err)
		}
		wantReason(t, <-result, "superseded")
		release()
		for _, s := range from {
			if err := a.DeleteState(t.Context(), s); err != nil {
				t.Error(err)
			}
		}
		w.empty(t, dir)
		noStates(t, dir)
	}
}

func TestS15_AnExitIsRecoveredFrom(t *testing.T) {
	w := newWorld()
	a := boot(t, w, t.TempDir())
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	w.work(t, r, "one")
	st, err := a.Checkpoint(t.Context(), r.Sandbox, 1, id.NewSnapshot(), true)
	if err != nil {
		t.Fatal(err)
	}
	w.kill(r.Instance, engine.ExitCrashed)
	testkit.Eventually(t, 5*time.Second, "the exit", func() bool { return of(t, a, r.Sandbox).Phase == journal.PhaseExited })
	if p := of(t, a, r.Sandbox); p.State != st.ID {
		t.Errorf("its newest state is reported as %v", p.State)
	}
	w.worked(t, mustCreate(t, a, resume(r, st.ID)), "one")
}
