package manager_test

import (
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"skerry.dev/skerry/internal/agent/engine/fake"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// silence is a control plane that was last heard at the beginning.
type silence struct {
	mu      sync.Mutex
	heard   time.Time
	refused bool
}

// hear is contact, now; refuse is an answer that turns the host away.
func (s *silence) hear()   { s.say(false) }
func (s *silence) refuse() { s.say(true) }

func (s *silence) say(refused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard, s.refused = time.Now(), refused
}

func (s *silence) config(c *manager.Config) {
	c.Contact = func() time.Time {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.heard
	}
	c.Refused = func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.refused
	}
	c.RetryInterval = time.Hour
}

func phase(t *testing.T, a *agent, sandbox id.Sandbox) manager.Report {
	t.Helper()
	synctest.Wait()
	for _, r := range inventory(t, a) {
		if r.Sandbox == sandbox {
			return r
		}
	}
	t.Fatal("the sandbox is gone")
	return manager.Report{}
}

// pass lets time pass and what is due then be done.
func pass(d time.Duration) {
	time.Sleep(d) // inside a bubble
	synctest.Wait()
}

func TestS7_WithoutContactDeadlinesAreKeptByPausing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, dir, s := newWorld(), t.TempDir(), &silence{heard: time.Now()}
		a := boot(t, w, dir, s.config, func(c *manager.Config) { c.LostContactPause = -1 })
		soon, late, never := spec(id.NewSandbox(), 1), spec(id.NewSandbox(), 1), spec(id.NewSandbox(), 1)
		soon.Deadline, late.Deadline = time.Now().Add(10*time.Second), time.Now().Add(200*time.Second)
		for _, sp := range []journal.Spec{soon, late, never} {
			w.work(t, mustCreate(t, a, sp), "one")
		}
		// Contact: the control plane's deadlines are not ours to keep.
		for range 5 {
			pass(20 * time.Second)
			s.hear()
		}
		if p := phase(t, a, soon.Sandbox); p.Phase != journal.PhaseRunning {
			t.Errorf("paused in spite of contact: %+v", p)
		}
		// A renewal that reached us in time counts, an older incarnation's does not.
		if err := a.SetDeadlines(t.Context(), []journal.Deadline{
			{Sandbox: late.Sandbox, Incarnation: 1, At: time.Now().Add(150 * time.Second)},
			{Sandbox: late.Sandbox, Incarnation: 0, At: time.Now()},
			{Sandbox: id.NewSandbox(), Incarnation: 1, At: time.Now()},
		}); err != nil {
			t.Fatal(err)
		}
		pass(89 * time.Second)
		if p := phase(t, a, soon.Sandbox); p.Phase != journal.PhaseRunning {
			t.Errorf("paused after less than 90 s: %+v", p)
		}
		pass(3 * time.Second)
		if p := phase(t, a, soon.Sandbox); p.Phase != journal.PhasePaused || p.PausedReason != manager.ReasonLostContact || p.State.IsZero() {
			t.Errorf("S7: after its deadline without contact: %+v", p)
		}
		pass(50 * time.Second)
		if p := phase(t, a, late.Sandbox); p.Phase != journal.PhaseRunning {
			t.Errorf("S7: the renewal was not honoured: %+v", p)
		}
		a.stop()

		// TL-02: deadlines are on disk. The new agent waits for contact as well.
		b := boot(t, w, dir, s.config, func(c *manager.Config) { c.LostContactPause = -1 })
		pass(80 * time.Second)
		if p := phase(t, b, late.Sandbox); p.Phase != journal.PhaseRunning {
			t.Errorf("a new agent did not wait for contact: %+v", p)
		}
		pass(15 * time.Second)
		if p := phase(t, b, late.Sandbox); p.Phase != journal.PhasePaused {
			t.Errorf("TL-02: after a restart: %+v", p)
		}
		if p := phase(t, b, never.Sandbox); p.Phase != journal.PhaseRunning {
			t.Errorf("without a deadline: %+v", p)
		}
		b.stop()
		w.sim.Reboot()
		synctest.Wait()
	})
}

func TestH5_LongSilenceOrARefusalPausesAll(t *testing.T) {
	for _, refused := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, dir, s := newWorld(), t.TempDir(), &silence{heard: time.Now()}
			a := boot(t, w, dir, s.config)
			r, full := mustCreate(t, a, spec(id.NewSandbox(), 1)), mustCreate(t, a, spec(id.NewSandbox(), 1))
			w.sim.Script(fake.Checkpoint, fake.Fault{ID: full.Instance, Err: syscall.ENOSPC, Times: 2})
			pass(4 * time.Minute)
			if refused {
				s.refuse()
				pass(2 * time.Second)
			} else {
				if p := phase(t, a, r.Sandbox); p.Phase != journal.PhaseRunning {
					t.Errorf("paused too early: %+v", p)
				}
				pass(62 * time.Second)
			}
			if p := phase(t, a, r.Sandbox); p.Phase != journal.PhasePaused || p.PausedReason != manager.ReasonLostContact {
				t.Errorf("H5: %+v", p)
			}
			if p := phase(t, a, full.Sandbox); p.Phase != journal.PhaseRunning {
				t.Errorf("ST-05: a pause that failed: %+v", p)
			}
			pass(30 * time.Second) // tried again after 5 and 10
			if p := phase(t, a, full.Sandbox); p.Phase != journal.PhasePaused {
				t.Errorf("ST-05: it was not tried again: %+v", p)
			}
			k := a.kinds(t)
			counts := map[string]int{}
			for _, kind := range k {
				counts[kind]++
			}
			if counts["paused"] != 2 || counts["pause_failed"] != 2 {
				t.Errorf("H5: the control plane will hear %v", k)
			}
			// Contact is back: it may be resumed, and stays so.
			s.hear()
			p := phase(t, a, r.Sandbox)
			mustCreate(t, a, resume(p, p.State))
			pass(5 * time.Second)
			if p := phase(t, a, r.Sandbox); p.Phase != journal.PhaseRunning {
				t.Errorf("after contact came back: %+v", p)
			}
			a.stop()
			w.sim.Reboot()
			synctest.Wait()
		})
	}
}

func TestShutdownPausesByItself(t *testing.T) {
	w := newWorld()
	a := boot(t, w, t.TempDir())
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	if out := a.PauseForShutdown(t.Context()); len(out) != 1 || out[0].Err != nil {
		t.Fatalf("%+v", out)
	}
	if p := of(t, a, r.Sandbox); p.PausedReason != manager.ReasonHostShutdown {
		t.Errorf("it is %+v", p)
	}
	// What would start now nobody would pause any more.
	if _, err := a.Create(t.Context(), spec(id.NewSandbox(), 1)); !errs.Is(err, "agent_stopping") {
		t.Errorf("a create during the shutdown: %v", err)
	}
}
