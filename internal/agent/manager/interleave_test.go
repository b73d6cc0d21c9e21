package manager_test

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
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

// model is what is known for certain of one sandbox, which one goroutine drives.
type model struct {
	sandbox id.Sandbox
	next    uint64 // incarnation of the next life
	did     int    // what was done in it last
	acked   int    // what an acknowledged state holds at the least
	ended   bool   // its instance may have been ended
	gone    bool   // a destroy was tried
	known   []id.Snapshot
}

// look takes in what the host says, and checks it.
func (m *model) look(t *testing.T, w *world, a *agent) manager.Report {
	t.Helper()
	var r manager.Report
	testkit.Eventually(t, 10*time.Second, "an exit that was noticed", func() bool {
		r = of(t, a, m.sandbox)
		in, ok := w.sim.Instance(r.Instance)
		return r.Phase != journal.PhaseRunning || !m.ended || ok && in.Running() || a.view.dead.Load()
	})
	if a.view.dead.Load() {
		return manager.Report{Phase: journal.PhaseDestroying} // the next one will tell
	}
	switch r.Phase {
	case "":
		if !m.gone {
			t.Errorf("ST-05: %s is gone", m.sandbox)
		}
	case journal.PhaseRunning:
		in := w.instance(t, r.Instance)
		if got, _ := strconv.Atoi(string(in.Memory())); got != m.did || in.Frozen() {
			t.Errorf("S5: it runs with %d, %d was done; frozen %v", got, m.did, in.Frozen())
		}
	case journal.PhasePaused:
		if got, _ := strconv.Atoi(a.content(t, r.State)); got != m.did {
			t.Errorf("S5: it is paused with %d, %d was done", got, m.did)
		}
	case journal.PhaseExited:
		if !m.ended {
			t.Errorf("it ended: %+v", r)
		}
		if m.acked > 0 {
			if got, _ := strconv.Atoi(a.content(t, r.State)); got < m.acked {
				t.Errorf("S5: it is recoverable from %d, %d was acknowledged", got, m.acked)
			}
		}
	}
	return r
}

// act does one or two things at once to the sandbox, and learns.
func (m *model) act(t *testing.T, w *world, a *agent, rng *rand.Rand) {
	ctx := context.Background()
	r := m.look(t, w, a)
	sp := spec(m.sandbox, m.next)
	switch r.Phase {
	case "":
		m.gone, m.ended, m.did, m.acked = true, false, 0, 0
		m.known = nil
		if _, err := a.Create(ctx, sp); err == nil {
			m.gone = false
		}
		m.next++
	case journal.PhaseRunning:
		m.did++
		w.work(t, r, strconv.Itoa(m.did))
		which := id.NewSnapshot()
		var do []func()
		save := func(f func() error) func() {
			return func() {
				if f() == nil {
					m.acked = m.did
					m.known = append(m.known, which)
				}
			}
		}
		switch rng.IntN(5) {
		case 0, 1:
			do = append(do, save(func() error { _, err := a.Pause(ctx, pause(r, which)); return err }))
		case 2:
			do = append(do, save(func() error { _, err := a.Checkpoint(ctx, m.sandbox, r.Incarnation, which, true); return err }))
		case 3:
			m.ended = true
			do = append(do, func() { w.kill(r.Instance, engine.ExitKilled) })
		}
		do = append(do, m.beside(a, w, r, rng)...)
		together(do)
	case journal.PhasePaused, journal.PhaseExited:
		m.ended = m.ended || r.Phase == journal.PhaseExited
		from := r.State
		if from.IsZero() { // nothing was ever saved
			m.gone = true
			_ = a.Destroy(ctx, m.sandbox, m.next, "x")
			m.next++
			return
		}
		if r.Phase == journal.PhasePaused && a.DeleteState(ctx, from) == nil {
			t.Error("S5: what a paused sandbox consists of could be deleted")
		}
		content, _ := strconv.Atoi(a.content(t, from))
		sp.State = from
		m.next++
		if r.Phase == journal.PhaseExited {
			m.did = content // by command, not by itself
			m.gone = true   // an ended record is replaced
		}
		var ok atomic.Bool
		do := []func(){func() {
			if _, err := a.Create(ctx, sp); err == nil {
				ok.Store(true)
			}
		}}
		if rng.IntN(4) == 0 {
			do = append(do, do[0])
		}
		together(append(do, m.beside(a, w, r, rng)...))
		if ok.Load() && r.Phase == journal.PhaseExited {
			m.ended = false
		}
	}
	for len(m.known) > 3 { // the control plane deletes what was replaced
		if of(t, a, m.sandbox).State == m.known[0] {
			break
		}
		_ = a.DeleteState(ctx, m.known[0])
		m.known = m.known[1:]
	}
}

// beside is what may happen at the same time.
func (m *model) beside(a *agent, w *world, r manager.Report, rng *rand.Rand) []func() {
	ctx := context.Background()
	switch rng.IntN(8) {
	case 0:
		m.gone = true
		next := m.next
		m.next++
		return []func(){func() { _ = a.Destroy(ctx, m.sandbox, next, "x") }}
	case 1:
		return []func(){func() { _, _ = a.Inventory(ctx); a.Samples(ctx) }}
	case 2:
		return []func(){func() {
			if c, err := a.Dial(ctx, m.sandbox, r.Incarnation, 1); err == nil {
				_ = c.Close()
			}
		}}
	case 3:
		return []func(){func() { _, _ = a.Pause(ctx, pause(r, id.NewSnapshot())) }}
	}
	return nil
}

func together(do []func()) {
	var wg sync.WaitGroup
	for _, f := range do {
		wg.Go(f)
	}
	wg.Wait()
}

// TestST07_PausesInRandomOrder drives sandboxes through pauses, checkpoints,
// resumes, exits and destroys, two things at a time, while the agent is killed
// after a random step or loses power, again and again: each sandbox runs, or is
// paused, with all that was done in it; after an exit nothing acknowledged is
// missing; and in the end nothing is left.
func TestST07_PausesInRandomOrder(t *testing.T) {
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("SKERRY_TEST_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	rounds, each := 8, 15
	if os.Getenv("SKERRY_TEST_LONG") != "" {
		rounds, each = 400, 60
	}
	w, dir := newWorld(), t.TempDir()
	disk := w.diskBelow(t, dir)
	models := make([]*model, 4)
	for i := range models {
		models[i] = &model{sandbox: id.NewSandbox(), next: 1, gone: true}
	}
	boots, acted := 0, atomic.Int64{}
	reboot := func() *agent {
		boots++
		return boot(t, w, dir, func(c *manager.Config) { c.BootID = "boot-" + strconv.Itoa(boots) })
	}
	a := reboot()
	for range rounds {
		var left atomic.Int64
		left.Store(int64(1 + rng.IntN(800)))
		kill := func(manager.Step) {
			if left.Add(-1) == 0 {
				a.die()
			}
		}
		a.step.Store(&kill)
		var wg sync.WaitGroup
		for i, m := range models {
			mine := rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
			wg.Go(func() {
				for range each {
					if a.view.dead.Load() {
						return
					}
					acted.Add(1)
					m.act(t, w, a, mine)
				}
			})
		}
		wg.Wait()
		a.die() // between two steps, where it was not before
		a.Close()
		if rng.IntN(3) == 0 {
			for _, m := range models {
				m.ended = true
			}
			w.powerCut(t, disk, rng)
		}
		a = reboot()
		for _, m := range models {
			m.look(t, w, a)
		}
		if t.Failed() {
			t.Fatalf("after %d starts of the agent", boots)
		}
	}
	for _, m := range models {
		if err := a.Destroy(t.Context(), m.sandbox, 1<<40, "x"); err != nil {
			t.Error(err)
		}
	}
	for _, st := range a.states.List() {
		if err := a.DeleteState(t.Context(), st.ID); err != nil {
			t.Error(err)
		}
	}
	w.empty(t, dir)
	noStates(t, dir)
	t.Logf("%d acts, %d starts of the agent", acted.Load(), boots)
}
