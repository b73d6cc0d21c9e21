package manager_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/state/statetest"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

// powerCut takes the machine down: what ran is gone, and so is what was not
// synced, or with rng some of it.
func (w *world) powerCut(t testing.TB, disk *statetest.Disk, rng *rand.Rand) {
	t.Helper()
	w.sim.Reboot()
	w.mu.Lock()
	w.slots, w.images = map[int]engine.InstanceID{}, map[string]manager.Holding{}
	w.mu.Unlock()
	if err := disk.PowerCut(rng); err != nil {
		t.Fatal(err)
	}
}

// content is what a saved state holds.
func (a *agent) content(t testing.TB, which id.Snapshot) string {
	t.Helper()
	h, err := a.states.Hold(context.Background(), which)
	if err != nil {
		t.Errorf("S5: state %s: %v", which, err)
		return ""
	}
	defer h.Release()
	b, err := os.ReadFile(filepath.Join(h.Dir, "memory.img"))
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// scene is a sandbox that was paused with "one" inside and resumed, in which
// "two" was done since, and what is to happen to it.
type scene struct {
	*world
	a      *agent
	r      manager.Report
	first  id.Snapshot // acknowledged, holds "one"
	second id.Snapshot // what a pause or checkpoint makes
	child  id.Sandbox
}

// acts are the operations of manager.Operations on a scene, but for those of a
// plain create. Paused ones begin with the sandbox paused with `first`.
type act struct {
	name   string
	paused bool
	run    func(s *scene) error
}

func acts() []act {
	resumed := func(s *scene) error {
		_, err := s.a.Create(context.Background(), resume(s.r, s.first))
		return err
	}
	return []act{
		{"pause", false, func(s *scene) error {
			_, err := s.a.Pause(context.Background(), pause(s.r, s.second))
			return err
		}},
		{"failed_pause", false, func(s *scene) error {
			s.set("checkpoint", errors.New("I/O error"))
			_, err := s.a.Pause(context.Background(), pause(s.r, s.second))
			return err
		}},
		{"checkpoint", false, func(s *scene) error {
			_, err := s.a.Checkpoint(context.Background(), s.r.Sandbox, s.r.Incarnation, s.second, true)
			return err
		}},
		{"resume", true, resumed},
		{"failed_resume", true, func(s *scene) error {
			s.set("init", errors.New("no answer"))
			return resumed(s)
		}},
		{"fork", true, func(s *scene) error {
			child := spec(s.child, 1)
			child.State = s.first
			_, err := s.a.Create(context.Background(), child)
			return err
		}},
		{"destroy", true, func(s *scene) error {
			return s.a.Destroy(context.Background(), s.r.Sandbox, 5, "deleted")
		}},
	}
}

// TestS4_ST04_DeathAtEachStep ends the agent after each step of each operation:
// killed, with the machine living on; and by a power cut, with what was not
// synced lost, or partly lost. The sandbox is what it was or what was asked
// for, with everything that was done in it, and nothing is left behind.
func TestS4_ST04_DeathAtEachStep(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	deaths, visited := 0, map[manager.Step]bool{}
	for _, act := range acts() {
		for _, step := range manager.Operations()[act.name] {
			for _, how := range []string{"killed", "unsynced", "lucky"} {
				t.Run(fmt.Sprint(act.name, " ", step, " ", how), func(t *testing.T) {
					dieAt(t, act, step, how, rand.New(rand.NewPCG(seed, uint64(deaths))))
					deaths++
					visited[step] = true
				})
			}
		}
	}
	for _, s := range manager.Steps() {
		if !visited[s] && !slices.Contains(manager.Operations()["create"], s) && !slices.Contains(warmSteps(), s) {
			t.Errorf("step %s was never visited", s)
		}
	}
	t.Logf("%d deaths at %d steps", deaths, len(visited))
}

func dieAt(t *testing.T, act act, step manager.Step, how string, rng *rand.Rand) {
	w, dir := newWorld(), t.TempDir()
	disk := w.diskBelow(t, dir)
	s := &scene{world: w, a: boot(t, w, dir), second: id.NewSnapshot(), child: id.NewSandbox()}
	s.r = mustCreate(t, s.a, spec(id.NewSandbox(), 1))
	w.work(t, s.r, "one")
	s.first = mustPause(t, s.a, s.r).ID
	w.bare(t)
	inside := "one"
	if !act.paused {
		s.r = mustCreate(t, s.a, resume(s.r, s.first))
		w.work(t, s.r, "two")
		inside = "two"
	}
	var hit atomic.Bool
	kill := func(now manager.Step) {
		if now == step && hit.CompareAndSwap(false, true) {
			s.a.die()
		}
	}
	s.a.step.Store(&kill)
	result := act.run(s)
	if step == manager.StepKeepDisk { // the end of the agent would end what leads to it
		testkit.Eventually(t, 10*time.Second, "what comes behind the answer", hit.Load)
	}
	s.a.Close()
	if !hit.Load() {
		t.Fatal("the step was never reached")
	}
	w.set("checkpoint", nil)
	w.set("init", nil)
	power := how != "killed"
	if power {
		if how == "unsynced" {
			rng = nil
		}
		w.powerCut(t, disk, rng)
	}
	b := boot(t, w, dir, func(c *manager.Config) {
		if power {
			c.BootID = "boot-2"
		}
	})
	s.a = b
	if got := b.content(t, s.first); got != "one" {
		t.Errorf("the acknowledged state holds %q", got)
	}
	now := of(t, b, s.r.Sandbox)
	switch now.Phase {
	case journal.PhaseRunning:
		w.worked(t, now, inside)
		if act.name == "pause" && result == nil {
			t.Error("S5: an acknowledged pause came undone")
		}
	case journal.PhasePaused:
		if got := b.content(t, now.State); got != inside {
			t.Errorf("S5: it is paused with %q, %q was in it", got, inside)
		}
	case journal.PhaseExited:
		if act.name == "pause" && slices.Contains([]manager.Step{manager.StepSealState, manager.StepJournalPaused}, step) {
			t.Error("the state was whole, and what it stood for was given up")
		}
		if !power || now.EndReason != engine.ExitHostRestart {
			t.Errorf("it ended: %+v", now)
		}
		want := "one"
		if result == nil && act.name == "checkpoint" {
			want = "two"
		}
		if got := b.content(t, now.State); got != want && got != inside {
			t.Errorf("S15: it is recoverable from %q", got)
		}
	default:
		if act.name != "destroy" {
			t.Errorf("ST-05: the sandbox is gone: %+v", now)
		}
	}
	goOn(t, s, act, now, inside)
	// And then nothing is left.
	for _, sandbox := range []id.Sandbox{s.r.Sandbox, s.child} {
		if err := b.Destroy(t.Context(), sandbox, 50, "deleted"); err != nil {
			t.Error(err)
		}
	}
	for _, st := range b.states.List() {
		if err := b.DeleteState(t.Context(), st.ID); err != nil {
			t.Error(err)
		}
	}
	w.empty(t, dir)
	b.states.Tidy()
	noStates(t, dir)
}

// goOn repeats the command, or does what comes next: it reaches the right end.
func goOn(t *testing.T, s *scene, act act, now manager.Report, inside string) {
	switch now.Phase {
	case journal.PhaseRunning:
		if act.name == "pause" || act.name == "checkpoint" {
			if err := act.run(s); err != nil {
				t.Errorf("the repeated command: %v", err)
			}
		}
		if of(t, s.a, s.r.Sandbox).Phase == journal.PhaseRunning {
			now.State = mustPause(t, s.a, now).ID
		} else {
			now.State = s.second
		}
		s.worked(t, mustCreate(t, s.a, resume(now, now.State)), inside)
	case journal.PhasePaused, journal.PhaseExited:
		want := s.a.content(t, now.State)
		s.worked(t, mustCreate(t, s.a, resume(now, now.State)), want)
	}
	if act.name == "fork" {
		child := spec(s.child, 1)
		if old := of(t, s.a, s.child); old.Phase == journal.PhaseExited {
			child.Incarnation++
		}
		child.State = s.first
		s.worked(t, mustCreate(t, s.a, child), "one")
	}
}

// TestAPauseWithoutItsStateIsTakenBack: whatever the journal says, an instance
// that runs is not given up for a state that is not there.
func TestAPauseWithoutItsStateIsTakenBack(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	w.work(t, r, "one")
	kill := func(now manager.Step) {
		if now == manager.StepJournalPaused {
			a.die()
		}
	}
	a.step.Store(&kill)
	which := id.NewSnapshot()
	_, _ = a.Pause(t.Context(), pause(r, which))
	a.Close()
	if err := os.RemoveAll(filepath.Join(dir, "states")); err != nil {
		t.Fatal(err)
	}
	b := boot(t, w, dir)
	w.worked(t, of(t, b, r.Sandbox), "one")
	st, err := b.Pause(t.Context(), pause(r, which))
	if err != nil {
		t.Fatal(err)
	}
	w.worked(t, mustCreate(t, b, resume(r, st.ID)), "one")
}
