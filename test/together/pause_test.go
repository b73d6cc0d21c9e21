package together_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/engine/fake"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

func TestS5_ALostAnswerIsAskedForAgain(t *testing.T) {
	w := newWorld(t)
	w.boot("")
	s := w.serve(sandbox.Config{})
	x := w.create(s)
	w.write("one")
	w.wire.losing("pause", 1)
	paused, err := s.Pause(t.Context(), w.by, x.ID, true, true)
	if err != nil || paused.Status != sandbox.StatusPaused || paused.Incarnation != 1 {
		t.Fatalf("pause: %+v, %v", paused, err)
	}
	w.agrees(x.ID)
	inv, err := w.wire.Inventory(t.Context(), w.ref())
	if err != nil || len(inv.States) != 1 || inv.States[0].ID != *paused.StateID || len(inv.States[0].CPUFeatures) == 0 {
		t.Fatalf("the host has the states %+v, %v; the row says %v", inv.States, err, paused.StateID)
	}

	w.wire.losing("create", 1)
	running, err := s.Resume(t.Context(), w.by, x.ID, nil, false, true)
	if err != nil || running.Status != sandbox.StatusRunning || running.Incarnation != 2 || running.DeadlineAt == nil {
		t.Fatalf("resume: %+v, %v", running, err)
	}
	w.agrees(x.ID)
	w.holds("one", "one")
	if kinds, _ := w.events(x.ID); slices.Contains(kinds, "resume_failed") || slices.Contains(kinds, "pause_failed") {
		t.Errorf("S10: a lost answer is told as a failure: %v", kinds)
	}
	for _, call := range []string{"pause", "create"} {
		if n := w.wire.count(call); n < 2 {
			t.Errorf("%s was called %d times; no answer was lost", call, n)
		}
	}

	w.write("two")
	w.wire.losing("checkpoint", 1)
	fork, err := s.Fork(t.Context(), w.by, x.ID, sandbox.ForkRequest{Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	children, err := s.AwaitFork(t.Context(), fork)
	if err != nil || len(children) != 1 {
		t.Fatalf("fork: %v, %v", children, err)
	}
	w.wire.losing("destroy", 2)
	for _, gone := range []id.Sandbox{children[0].ID, x.ID} {
		if err := s.Delete(t.Context(), w.by, gone); err != nil {
			t.Fatal(err)
		}
		w.becomes(gone, sandbox.StatusStopped)
	}
	w.clean(s)
}

// clean waits until the host holds nothing any more.
func (w *world) clean(s *server) {
	w.t.Helper()
	testkit.Eventually(w.t, soon, "nothing is left on the host", func() bool {
		_ = s.sweep.Pass(w.t.Context())
		inv, err := w.wire.Inventory(w.t.Context(), w.ref())
		instances, slots, images := w.machine.Held()
		return err == nil && len(inv.Instances)+len(inv.States)+instances+slots+images == 0
	})
}

func TestS4_TheAgentDiesAtEachStepOfPauseAndResume(t *testing.T) {
	for _, op := range []string{"pause", "resume"} {
		t.Run(op, func(t *testing.T) {
			w := newWorld(t)
			w.boot("")
			s := w.serve(sandbox.Config{})
			for _, step := range manager.Operations()[op] {
				t.Log(step)
				w.dieAt(s, step, op == "resume")
			}
		})
	}
}

// dieAt has the agent die after a step of a pause or resume and start again.
func (w *world) dieAt(s *server, step manager.Step, resume bool) {
	t := w.t
	t.Helper()
	x := w.create(s)
	w.write("work")
	if resume {
		if _, err := s.Pause(t.Context(), w.by, x.ID, true, true); err != nil {
			t.Fatal(err)
		}
	}
	w.agent.stop()
	a := w.boot(step)
	answer := make(chan error, 1)
	want := sandbox.StatusPaused
	if resume {
		want = sandbox.StatusRunning
	}
	go func() {
		var err error
		if resume {
			_, err = s.Resume(t.Context(), w.by, x.ID, nil, false, true)
		} else {
			_, err = s.Pause(t.Context(), w.by, x.ID, true, true)
		}
		answer <- err
	}()
	select {
	case <-a.died:
	case <-time.After(soon):
		t.Fatal("the step is not passed")
	}
	a.stop()
	w.boot("")
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	if got := w.row(x.ID); got.Status != want {
		t.Fatalf("it is %s", got.Status)
	}
	w.agrees(x.ID)
	if !resume {
		if _, err := s.Resume(t.Context(), w.by, x.ID, nil, false, true); err != nil {
			t.Fatal(err)
		}
	}
	w.holds("work", "work")
	if err := s.Delete(t.Context(), w.by, x.ID); err != nil {
		t.Fatal(err)
	}
	w.clean(s)
}

func TestS4_TheServerDiesAtEachStepOfPauseAndResume(t *testing.T) {
	for _, step := range []sandbox.Step{
		sandbox.StepPauseAccepted, sandbox.StepPauseSaved, sandbox.StepPausePaused,
		sandbox.StepResumeAccepted, sandbox.StepResumeLaunched, sandbox.StepResumeRunning,
	} {
		t.Run(string(step), func(t *testing.T) {
			w := newWorld(t)
			w.boot("")
			died := make(chan struct{}, 1)
			s := w.serve(sandbox.Config{OnStep: func(at sandbox.Step, _ sandbox.Operation) error {
				if at == step {
					select {
					case died <- struct{}{}:
					default:
					}
					return errors.New("the server dies here")
				}
				return nil
			}})
			x := w.create(s)
			w.write("work")
			if _, err := s.Pause(t.Context(), w.by, x.ID, true, false); err != nil {
				t.Fatal(err)
			}
			resume := slices.Contains([]sandbox.Step{sandbox.StepResumeAccepted, sandbox.StepResumeLaunched, sandbox.StepResumeRunning}, step)
			if resume {
				w.becomes(x.ID, sandbox.StatusPaused)
				if _, err := s.Resume(t.Context(), w.by, x.ID, nil, false, false); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case <-died:
			case <-time.After(soon):
				t.Fatal("the step is not passed")
			}
			s.stop()
			s = w.serve(sandbox.Config{})
			if !resume {
				w.becomes(x.ID, sandbox.StatusPaused)
				w.agrees(x.ID)
				if _, err := s.Resume(t.Context(), w.by, x.ID, nil, false, true); err != nil {
					t.Fatal(err)
				}
			}
			w.becomes(x.ID, sandbox.StatusRunning)
			w.agrees(x.ID)
			w.holds("work", "work")
		})
	}
}

// lose has the host hear nobody until it has paused everything by itself.
func (w *world) lose(x id.Sandbox) sandbox.Instance {
	w.t.Helper()
	w.setSilent(true)
	w.exec(`UPDATE hosts SET status = 'unreachable' WHERE id = $1`, w.host)
	var out sandbox.Instance
	testkit.Eventually(w.t, soon, "the host pauses by itself", func() bool {
		inv, err := w.wire.Inventory(w.t.Context(), w.ref())
		if err != nil || len(inv.Instances) != 1 || inv.Instances[0].Phase != sandbox.PhasePaused {
			return false
		}
		out = inv.Instances[0]
		return out.Sandbox == x
	})
	return out
}

func (w *world) contact() {
	w.setSilent(false)
	w.exec(`UPDATE hosts SET status = 'online' WHERE id = $1`, w.host)
}

func alone(c *app.Config) {
	c.LostContact, c.LostContactPause = 200*time.Millisecond, 400*time.Millisecond
}

func TestST09_WhatItsHostPausedWithoutContactGoesOn(t *testing.T) {
	w := newWorld(t)
	w.boot("", alone)
	s := w.serve(sandbox.Config{})
	x := w.create(s)
	w.write("work")
	held := w.lose(x.ID)
	if held.PausedReason != manager.ReasonLostContact {
		t.Errorf("paused for %q", held.PausedReason)
	}
	w.contact()
	var got sandbox.Sandbox
	testkit.Eventually(t, soon, "it was resumed", func() bool {
		w.reconcile(s)
		got = w.row(x.ID)
		return got.Status == sandbox.StatusRunning && got.Incarnation == 2
	})
	if got.DeadlineAt == nil || got.DeadlineAt.After(x.DeadlineAt.Add(2*time.Second)) || got.DeadlineAt.Before(x.DeadlineAt.Add(-5*time.Second)) {
		t.Errorf("TL-03: its deadline was %v and is %v", x.DeadlineAt, got.DeadlineAt)
	}
	w.agrees(x.ID)
	w.holds("work", "work")
}

// A pause that was asked for finds the sandbox paused by its host already.
func TestTL06_APauseThatItsHostForestalledIsAPause(t *testing.T) {
	for _, c := range []struct {
		name  string
		pause func(w *world, s *server, x id.Sandbox) error
	}{
		{"asked for", func(w *world, s *server, x id.Sandbox) error {
			_, err := s.Pause(w.t.Context(), w.by, x, true, true)
			return err
		}},
		{"at its deadline", func(w *world, s *server, x id.Sandbox) error {
			w.exec(`UPDATE sandboxes SET deadline_at = now() - interval '1 second' WHERE id = $1`, x)
			err := s.sweep.Pass(w.t.Context())
			w.becomes(x, sandbox.StatusPaused)
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.boot("", alone)
			s := w.serve(sandbox.Config{})
			x := w.create(s)
			w.write("work")
			held := w.lose(x.ID)
			w.contact()
			if err := c.pause(w, s, x.ID); err != nil {
				t.Fatalf("the pause: %v", err)
			}
			for range 3 {
				w.reconcile(s)
			}
			got := w.row(x.ID)
			if got.Status != sandbox.StatusPaused || got.StateID == nil || *got.StateID != held.State {
				t.Fatalf("it is %s with %v; the host has %s", got.Status, got.StateID, held.State)
			}
			if kinds, _ := w.events(x.ID); slices.Contains(kinds, "pause_failed") {
				t.Errorf("S10: told as a failure: %v", kinds)
			}
			w.agrees(x.ID)
			if _, err := s.Resume(t.Context(), w.by, x.ID, nil, false, true); err != nil {
				t.Fatal(err)
			}
			w.holds("work", "work")
		})
	}
}

// The answer to a resume is lost for good and the host pauses the sandbox again
// by itself: what it lives from is the newer state.
func TestST04_AResumeThatWasGivenUpDoesNotGoBack(t *testing.T) {
	w := newWorld(t)
	w.boot("", alone)
	s := w.serve(sandbox.Config{})
	x := w.create(s)
	w.write("old")
	paused, err := s.Pause(t.Context(), w.by, x.ID, true, true)
	if err != nil {
		t.Fatal(err)
	}
	running, err := s.Resume(t.Context(), w.by, x.ID, nil, false, true)
	if err != nil {
		t.Fatal(err)
	}
	w.write("new")
	// As after an answer that nobody understood.
	w.exec(`UPDATE sandboxes SET status = 'paused', deadline_at = NULL, paused_at = now() WHERE id = $1`, x.ID)
	held := w.lose(x.ID)
	if held.State == *paused.StateID || held.Incarnation != running.Incarnation {
		t.Fatalf("the host holds %+v", held)
	}
	w.contact()
	testkit.Eventually(t, soon, "the row has the newer state", func() bool {
		w.reconcile(s)
		got := w.row(x.ID)
		return got.Status == sandbox.StatusPaused && *got.StateID == held.State
	})
	if _, err := s.Resume(t.Context(), w.by, x.ID, nil, false, true); err != nil {
		t.Fatal(err)
	}
	w.holds("new", "new")
}

// What its host let run on although nobody heard of it is not immortal.
func TestTL01_FoundAgainItHasADeadline(t *testing.T) {
	w := newWorld(t)
	w.boot("")
	s := w.serve(sandbox.Config{})
	x := w.create(s)
	if _, err := s.Pause(t.Context(), w.by, x.ID, true, true); err != nil {
		t.Fatal(err)
	}
	if got := w.row(x.ID); got.DeadlineAt != nil {
		t.Fatalf("a paused sandbox has the deadline %v", got.DeadlineAt)
	}
	if _, err := s.Resume(t.Context(), w.by, x.ID, nil, false, true); err != nil {
		t.Fatal(err)
	}
	w.exec(`UPDATE sandboxes SET status = 'missing', deadline_at = NULL, paused_at = now() WHERE id = $1`, x.ID)
	got := w.becomes(x.ID, sandbox.StatusRunning, func() { w.reconcile(s) })
	if got.DeadlineAt == nil || time.Until(*got.DeadlineAt) > time.Duration(x.TimeoutSec)*time.Second+time.Second {
		t.Errorf("its deadline is %v", got.DeadlineAt)
	}
}

func TestS2_DeleteSupersedesAPauseAndAResumeInFlight(t *testing.T) {
	for _, at := range []string{fake.Checkpoint, fake.Restore} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t)
			w.boot("")
			s := w.serve(sandbox.Config{})
			x := w.create(s)
			if at == fake.Restore {
				if _, err := s.Pause(t.Context(), w.by, x.ID, true, true); err != nil {
					t.Fatal(err)
				}
			}
			never := make(chan struct{})
			w.machine.World.Script(at, fake.Fault{Block: never})
			before := w.machine.World.Steps(at)
			var err error
			if at == fake.Restore {
				_, err = s.Resume(t.Context(), w.by, x.ID, nil, false, false)
			} else {
				_, err = s.Pause(t.Context(), w.by, x.ID, true, false)
			}
			if err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, soon, "it is under way", func() bool { return w.machine.World.Steps(at) > before })
			began := time.Now()
			if err := s.Delete(t.Context(), w.by, x.ID); err != nil {
				t.Fatal(err)
			}
			if got := w.row(x.ID); got.Status != sandbox.StatusStopped || time.Since(began) > 9*time.Second {
				t.Errorf("RC-04: after %v it is %s", time.Since(began), got.Status)
			}
			w.clean(s)
		})
	}
}

// A restart of the machine: what was paused is paused, what ran has stopped, and
// something to go on from is named where there is something.
func TestS15_TheMachineRestarts(t *testing.T) {
	w := newWorld(t)
	a := w.boot("")
	s := w.serve(sandbox.Config{})
	paused, saved, bare := w.create(s), w.create(s), w.create(s)
	for _, x := range []sandbox.Sandbox{paused, saved} {
		if _, err := s.Pause(t.Context(), w.by, x.ID, true, true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Resume(t.Context(), w.by, saved.ID, nil, false, true); err != nil {
		t.Fatal(err)
	}
	a.stop()
	w.machine.World.Reboot()
	w.boot("")
	for _, x := range []sandbox.Sandbox{saved, bare} {
		got := w.becomes(x.ID, sandbox.StatusStopped, func() { w.reconcile(s) })
		if got.EndReason != "host_restarted" || (got.StateID != nil) != (x.ID == saved.ID) {
			t.Errorf("ended for %q with state %v", got.EndReason, got.StateID)
		}
	}
	w.reconcile(s)
	_ = s.sweep.Pass(t.Context())
	if got := w.row(paused.ID); got.Status != sandbox.StatusPaused {
		t.Fatalf("the paused one is %s", got.Status)
	}
	if _, err := s.Resume(t.Context(), w.by, paused.ID, nil, false, true); err != nil {
		t.Fatal(err)
	}
	from, err := s.Create(t.Context(), w.by, sandbox.CreateRequest{Snapshot: w.row(saved.ID).StateID.String()})
	if err != nil {
		t.Fatalf("recover: %v", err)
	}
	if _, err := s.Await(t.Context(), from); err != nil {
		t.Fatalf("recover: %v", err)
	}
}

func TestS6_ResumeFromTheDiskAlone(t *testing.T) {
	for _, memory := range []bool{true, false} {
		w := newWorld(t)
		w.boot("")
		s := w.serve(sandbox.Config{})
		x := w.create(s)
		w.write("work")
		if _, err := s.Pause(t.Context(), w.by, x.ID, memory, true); err != nil {
			t.Fatal(err)
		}
		w.wire.losing("create", 1)
		if _, err := s.Resume(t.Context(), w.by, x.ID, nil, true, true); err != nil {
			t.Fatalf("saved with memory %v: %v", memory, err)
		}
		w.agrees(x.ID)
		w.holds("", "work")
		w.write("more")
		if _, err := s.Pause(t.Context(), w.by, x.ID, true, true); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Resume(t.Context(), w.by, x.ID, nil, false, true); err != nil {
			t.Fatal(err)
		}
		w.holds("more", "more")
	}
}

// An engine of another version takes no memory: it is refused where the sandbox
// would be placed, with the reason. Whether it can boot from what there is of a
// disk its host says. The sandbox stays paused.
func TestRS04_AnotherEngineIsRefusedAtPlacement(t *testing.T) {
	for _, memory := range []bool{true, false} {
		w := newWorld(t)
		a := w.boot("")
		s := w.serve(sandbox.Config{})
		x := w.create(s)
		if _, err := s.Pause(t.Context(), w.by, x.ID, memory, true); err != nil {
			t.Fatal(err)
		}
		a.stop()
		w.machine.World.SetVersion("fake-2")
		w.boot("")
		w.exec(`UPDATE hosts SET engines = $1 WHERE id = $2`, w.offered("fake-2"), w.host)
		calls := w.wire.count("create")
		for _, boot := range []bool{false, true} {
			_, err := s.Resume(t.Context(), w.by, x.ID, nil, boot, true)
			if memory && !boot {
				if !errs.Is(err, "state_incompatible") || w.wire.count("create") != calls {
					t.Errorf("resumed with memory: %v, after %d calls", err, w.wire.count("create")-calls)
				}
			} else if !errs.Is(err, "resume_failed") || errs.As(err).Details["reason"] != "state_incompatible" {
				t.Errorf("saved with memory %v, resumed with %v: %v", memory, !boot, err)
			}
		}
		if got := w.row(x.ID); got.Status != sandbox.StatusPaused {
			t.Errorf("it is %s", got.Status)
		}
	}
}
