package sandboxpg_test

import (
	"context"
	"log/slog"
	"math"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// givenUp is a sandbox whose host stayed away until its time was over.
func givenUp(t *testing.T, w *sandboxtest.World, s *sandboxtest.Server) sandbox.Sandbox {
	t.Helper()
	x := create(t, w, s, request())
	exec(t, w, `UPDATE sandboxes SET status = 'missing', updated_at = now() - interval '8 days' WHERE id = $1`, x.ID)
	if err := s.Sweep.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := get(t, w, x.ID); got.Status != sandbox.StatusStopped || got.EndReason != sandbox.EndLost {
		t.Fatalf("after its time: %s %q", got.Status, got.EndReason)
	}
	return x
}

func TestH8_WhatWasGivenUpAndComesBackCanBeRecoveredFrom(t *testing.T) {
	for _, c := range []struct {
		name string
		back func(w *sandboxtest.World, x sandbox.Sandbox)
	}{
		{"paused by its host meanwhile", func(w *sandboxtest.World, x sandbox.Sandbox) { w.Agents.PauseAlone(x.ID, "lost_contact") }},
		{"running all the time", func(*sandboxtest.World, sandbox.Sandbox) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
			s := w.Serve(sandbox.Config{})
			x := givenUp(t, w, s)
			c.back(w, x)
			for range 5 {
				look(t, w, s, x.Host.ID)
			}
			got := get(t, w, x.ID)
			if got.Status != sandbox.StatusStopped || got.StateID == nil || got.StateStatus != sandbox.StateReady || !w.Agents.HasState(*got.StateID) {
				t.Fatalf("%s with the state %v (%s); the host has %d", got.Status, got.StateID, got.StateStatus, w.Agents.States())
			}
			if phase, _ := w.Agents.Phase(x.ID); phase != sandbox.PhasePaused {
				t.Errorf("it is %q", phase)
			}
			if left := strays(t, s, x.Host.ID); len(left) != 0 {
				t.Errorf("still in quarantine: %+v", left)
			}
			if n := tally(t, w, `sandbox_events WHERE sandbox_id = $1 AND kind = 'recoverable'`, x.ID); n != 1 {
				t.Errorf("told %d times", n)
			}
			if err := s.Service.Delete(t.Context(), w.User(), x.ID); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, 30*time.Second, "nothing of what was deleted is left", func() bool {
				look(t, w, s, x.Host.ID)
				if w.Agents.Has(x.ID) {
					return false // a state goes after what consists of it
				}
				if err := s.Sweep.Pass(t.Context()); err != nil {
					t.Fatal(err)
				}
				return w.Agents.States() == 0
			})
		})
	}
}

func TestH8_WhatIsNotWantedAnyMoreIsNotRecovered(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name string
		// back is how its host comes back, unwanted how it is given up before or
		// after that.
		back     func(w *sandboxtest.World, x sandbox.Sandbox)
		unwanted func(t *testing.T, w *sandboxtest.World, s *sandboxtest.Server, x sandbox.Sandbox)
	}{
		{"its team was deleted while it was away", func(w *sandboxtest.World, x sandbox.Sandbox) { w.Agents.PauseAlone(x.ID, "lost_contact") }, deleteTeam},
		{"it runs, and its team was deleted", func(*sandboxtest.World, sandbox.Sandbox) {}, deleteTeam},
		{
			"its team was deleted once it was back", func(w *sandboxtest.World, x sandbox.Sandbox) { w.Agents.PauseAlone(x.ID, "lost_contact") },
			func(t *testing.T, w *sandboxtest.World, s *sandboxtest.Server, x sandbox.Sandbox) {
				recovered(t, w, s, x)
				deleteTeam(t, w, s, x)
			},
		},
		{
			"its state was deleted once it was back", func(w *sandboxtest.World, x sandbox.Sandbox) { w.Agents.PauseAlone(x.ID, "lost_contact") },
			func(t *testing.T, w *sandboxtest.World, s *sandboxtest.Server, x sandbox.Sandbox) {
				if err := s.Service.DeleteSnapshot(ctx, w.User(), recovered(t, w, s, x).String()); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
			s := w.Serve(sandbox.Config{})
			x := givenUp(t, w, s)
			c.back(w, x)
			c.unwanted(t, w, s, x)
			told := tally(t, w, `sandbox_events WHERE sandbox_id = $1 AND kind = 'recoverable'`, x.ID)
			testkit.Eventually(t, 30*time.Second, "nothing of it is left", func() bool {
				look(t, w, s, x.Host.ID)
				exec(t, w, `UPDATE state_copies SET drop_at = now() WHERE drop_at IS NOT NULL`) // what the host refused is tried again
				if err := sandbox.NewSweep(s.Service, slog.New(slog.DiscardHandler)).Pass(ctx); err != nil {
					t.Fatal(err)
				}
				return !w.Agents.Has(x.ID) && w.Agents.States() == 0
			})
			if got := get(t, w, x.ID); got.Status != sandbox.StatusStopped || got.EndReason != sandbox.EndDeleted {
				t.Errorf("its row is %s %q", got.Status, got.EndReason)
			}
			if n := tally(t, w, `sandbox_events WHERE sandbox_id = $1 AND kind = 'recoverable'`, x.ID); n != told {
				t.Errorf("told to be recoverable %d times more", n-told)
			}
			if left := strays(t, s, x.Host.ID); len(left) != 0 {
				t.Errorf("still in quarantine: %+v", left)
			}
		})
	}
}

func deleteTeam(t *testing.T, w *sandboxtest.World, _ *sandboxtest.Server, _ sandbox.Sandbox) {
	t.Helper()
	exec(t, w, `UPDATE teams SET deleted_at = now() WHERE id = $1`, w.Team)
}

// recovered waits until a state is known to recover from.
func recovered(t *testing.T, w *sandboxtest.World, s *sandboxtest.Server, x sandbox.Sandbox) (state id.Snapshot) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, "it can be recovered from", func() bool {
		look(t, w, s, x.Host.ID)
		got := get(t, w, x.ID)
		if got.StateID == nil || got.StateStatus != sandbox.StateReady {
			return false
		}
		state = *got.StateID
		return true
	})
	return state
}

func TestH11_WhatHasEndedIsDestroyedUnderTheMachinesNewNameToo(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	x := create(t, w, s, request())
	if err := s.Service.Delete(t.Context(), w.User(), x.ID); err != nil {
		t.Fatal(err)
	}
	events := tally(t, w, `sandbox_events WHERE sandbox_id = $1`, x.ID)
	again := w.AddHost(8, 8192)
	w.Agents.Put(again, sandbox.Instance{Sandbox: x.ID, Incarnation: x.Incarnation, Phase: sandbox.PhaseRunning})
	for range 3 {
		look(t, w, s, again)
	}
	if w.Agents.Has(x.ID) {
		t.Error("it goes on under the new host")
	}
	if n := tally(t, w, `sandbox_events WHERE sandbox_id = $1`, x.ID); n != events {
		t.Error("a host wrote events of another's sandbox")
	}
}

func TestH8_AHostCannotMakeItsSandboxUndeletable(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	x := create(t, w, s, request())
	w.Agents.Put(x.Host.ID, sandbox.Instance{Sandbox: x.ID, Incarnation: math.MaxInt64, Phase: sandbox.PhaseRunning})
	for range 3 {
		look(t, w, s, x.Host.ID)
	}
	if got := get(t, w, x.ID); got.Incarnation > 1000 {
		t.Fatalf("the row believes incarnation %d", got.Incarnation)
	}
}
