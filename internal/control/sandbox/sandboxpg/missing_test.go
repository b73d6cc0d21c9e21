package sandboxpg_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

const window = 90 * time.Second

// away takes a host out of service as the monitor does, after so much silence.
func away(t testing.TB, w *sandboxtest.World, h id.Host, silent time.Duration) {
	t.Helper()
	exec(t, w, `UPDATE hosts SET status = 'unreachable', last_heartbeat_at = now() - make_interval(secs => $2) WHERE id = $1`, h, silent.Seconds())
}

func back(t testing.TB, w *sandboxtest.World, h id.Host) {
	t.Helper()
	exec(t, w, `UPDATE hosts SET status = 'online', last_heartbeat_at = now() WHERE id = $1`, h)
}

func TestH7_WhatRunsOnASilentHostIsMissingUntilItIsBack(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 64, 65536)
	one, two := w.Serve(sandbox.Config{}), w.Serve(sandbox.Config{})
	ctx := context.Background()
	h := w.Hosts[0]
	var xs []sandbox.Sandbox
	for range 4 {
		xs = append(xs, create(t, w, one, request()))
	}
	running, alone, exited, paused := xs[0].ID, xs[1].ID, xs[2].ID, xs[3].ID
	if _, err := one.Service.Pause(ctx, w.User(), paused, true, true); err != nil {
		t.Fatal(err)
	}
	mark := func() {
		var both sync.WaitGroup
		for _, s := range []*sandboxtest.Server{one, two} {
			both.Go(func() {
				if err := s.Reconciler.MarkMissing(ctx, window); err != nil {
					t.Errorf("mark: %v", err)
				}
			})
		}
		both.Wait()
	}
	// One that merely restarted, or that is in service, loses nothing.
	mark()
	away(t, w, h, time.Second)
	mark()
	if got := get(t, w, running); got.Status != sandbox.StatusRunning {
		t.Fatalf("without a full window of silence it is %s", got.Status)
	}
	guest, err := one.Service.Guest(ctx, w.User(), running)
	if err != nil {
		t.Fatal(err)
	}
	away(t, w, h, 91*time.Second)
	mark()
	mark()
	for _, x := range []id.Sandbox{running, alone, exited} {
		if got := get(t, w, x); got.Status != sandbox.StatusMissing || got.Incarnation != 1 {
			t.Errorf("after 91 s it is %s/%d", got.Status, got.Incarnation)
		}
		if n := tally(t, w, `sandbox_events WHERE sandbox_id = $1 AND kind = 'missing'`, x); n != 1 {
			t.Errorf("told %d times that it is missing", n)
		}
	}
	if got := get(t, w, paused); got.Status != sandbox.StatusPaused {
		t.Errorf("the paused one is %s", got.Status)
	}
	if _, err := one.Service.Resume(ctx, w.User(), paused, nil, false, true); !errs.Is(err, "host_unavailable") {
		t.Errorf("resuming it says %v", err)
	}
	select {
	case <-guest.Ended:
	case <-time.After(10 * time.Second):
		t.Error("those inside were not told")
	}
	// Meanwhile its host goes on by itself.
	w.Agents.PauseAlone(alone, "host_shutdown")
	exec(t, w, `UPDATE sandboxes SET deadline_at = now() - interval '1 s' WHERE id = $1`, alone) // it is not resumed by itself
	w.Agents.Exit(exited, "out_of_memory")
	back(t, w, h)
	look(t, w, two, h)
	for x, want := range map[id.Sandbox]sandbox.Status{
		running: sandbox.StatusRunning, alone: sandbox.StatusPaused, exited: sandbox.StatusStopped, paused: sandbox.StatusPaused,
	} {
		if got := get(t, w, x); got.Status != want {
			t.Errorf("its host shows %s, the row says %s", want, got.Status)
		}
	}
	for _, x := range []id.Sandbox{alone, paused} {
		if _, err := two.Service.Resume(ctx, w.User(), x, nil, false, true); err != nil {
			t.Errorf("resume: %v", err)
		}
	}
}

// One false view of a host after the other, twenty looks each: nothing ends.
func TestRC01_AFalseViewEndsNothing(t *testing.T) {
	for name, falsify := range map[string]func(*sandbox.Inventory, id.Sandbox) error{
		"out of reach": func(*sandbox.Inventory, id.Sandbox) error { return errs.Unavailable("host_unavailable", "Away.") },
		"an error":     func(*sandbox.Inventory, id.Sandbox) error { return errors.New("the engine could not list") },
		"empty": func(inv *sandbox.Inventory, _ id.Sandbox) error {
			*inv = sandbox.Inventory{Generation: inv.Generation}
			return nil
		},
		"partial": func(inv *sandbox.Inventory, _ id.Sandbox) error {
			inv.Instances, inv.States = inv.Instances[:len(inv.Instances)/2], nil
			return nil
		},
		"another's": func(inv *sandbox.Inventory, other id.Sandbox) error {
			inv.Instances = append(inv.Instances, sandbox.Instance{Sandbox: other, Incarnation: 7, Phase: sandbox.PhaseExited})
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := sandboxtest.NewWorld(t, pgtest.New(t), 64, 65536)
			s := w.Serve(sandbox.Config{})
			h := w.Hosts[0]
			var xs []sandbox.Sandbox
			for range 4 {
				xs = append(xs, create(t, w, s, request()))
			}
			for _, x := range xs[:2] {
				if _, err := s.Service.Pause(context.Background(), w.User(), x.ID, true, true); err != nil {
					t.Fatal(err)
				}
			}
			w.AddHost(64, 65536)
			away(t, w, h, time.Second)
			other := create(t, w, s, request())
			back(t, w, h)
			var destroyed atomic.Int64
			w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
				if call == "destroy" || call == "delete_state" {
					destroyed.Add(1)
				}
				return ctx.Err()
			}
			// As long as it takes in life: a minute of grace, half a minute a look.
			view := &falseView{Agents: w.Agents, falsify: func(inv *sandbox.Inventory) error { return falsify(inv, other.ID) }}
			r := w.Reconciler(s, view, time.Minute)
			for range 20 {
				_ = r.ReconcileHost(context.Background(), w.Ref(h))
			}
			for range 2 {
				if err := s.Sweep.Pass(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			if n := destroyed.Load(); n != 0 {
				t.Errorf("%d orders to destroy", n)
			}
			view.true.Store(true)
			for range 3 {
				if err := r.ReconcileHost(context.Background(), w.Ref(h)); err != nil {
					t.Fatal(err)
				}
			}
			for i, x := range xs {
				want := sandbox.StatusRunning
				if i < 2 {
					want = sandbox.StatusPaused
				}
				if got := get(t, w, x.ID); got.Status != want {
					t.Errorf("it is %s and should be %s", got.Status, want)
				}
			}
			if got := get(t, w, other.ID); got.Status != sandbox.StatusRunning {
				t.Errorf("the other host's is %s", got.Status)
			}
			if destroyed.Load() != 0 {
				t.Error("something was destroyed in the end")
			}
		})
	}
}

// falseView lets a reconciler see what is not so.
type falseView struct {
	*sandboxtest.Agents
	falsify func(*sandbox.Inventory) error
	true    atomic.Bool
}

func (f *falseView) Inventory(ctx context.Context, h host.Ref) (sandbox.Inventory, error) {
	inv, err := f.Agents.Inventory(ctx, h)
	if err == nil && !f.true.Load() {
		err = f.falsify(&inv)
	}
	return inv, err
}

// Twenty that were paused are deleted while their host is away: one look after
// its return nothing of them is left there.
func TestRC05_WhatWasDeletedMeanwhileGoesAtTheReturn(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 64, 65536)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	h := w.Hosts[0]
	var xs []id.Sandbox
	for range 20 {
		x := create(t, w, s, request())
		if _, err := s.Service.Pause(ctx, w.User(), x.ID, true, true); err != nil {
			t.Fatal(err)
		}
		xs = append(xs, x.ID)
	}
	w.Agents.Before = func(ctx context.Context, _ string, _ id.Sandbox) error {
		if tally(t, w, `hosts WHERE status = 'unreachable'`) > 0 {
			return errs.Unavailable("host_unavailable", "Away.")
		}
		return ctx.Err()
	}
	away(t, w, h, 91*time.Second)
	short, cancel := context.WithCancel(ctx)
	var asked sync.WaitGroup
	for _, x := range xs {
		asked.Go(func() {
			if err := s.Service.Delete(short, w.User(), x); err != nil {
				t.Errorf("delete: %v", err)
			}
		})
	}
	testkit.Eventually(t, time.Minute, "all deletes are accepted", func() bool { return tally(t, w, `operations WHERE kind = 'delete'`) == len(xs) })
	cancel() // nobody waits for them
	asked.Wait()
	exec(t, w, `UPDATE operations SET deadline_at = now() WHERE status = 'open'`) // a day later
	testkit.Eventually(t, time.Minute, "all rows have ended", func() bool { return tally(t, w, `sandboxes WHERE ended_at IS NULL`) == 0 })
	back(t, w, h)
	for range 2 { // a pass, and the second look that destroying wants
		look(t, w, s, h)
	}
	if err := s.Sweep.Pass(ctx); err != nil {
		t.Fatal(err)
	}
	if w.Agents.Count() != 0 || w.Agents.States() != 0 {
		t.Errorf("%d instances and %d states are left", w.Agents.Count(), w.Agents.States())
	}
}

// A kill at a deadline and the end of what was paused for too long wait for a
// look at the host: the database may be older than what runs there.
func TestH8_NothingIsEndedByTimeBeforeItsHostWasLookedAt(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	h := w.Hosts[0]
	req := request()
	req.OnTimeout = sandbox.OnTimeoutKill
	x := create(t, w, s, req)
	exec(t, w, `UPDATE sandboxes SET deadline_at = now() - interval '1 hour' WHERE id = $1`, x.ID)
	exec(t, w, `UPDATE hosts SET reconciled_at = now() - interval '1 hour' WHERE id = $1`, h)
	// What runs there began a later life since.
	w.Agents.Put(h, sandbox.Instance{Sandbox: x.ID, Incarnation: 2, Phase: sandbox.PhaseRunning})
	if err := s.Sweep.Pass(ctx); err != nil {
		t.Fatal(err)
	}
	if got := get(t, w, x.ID); got.Status != sandbox.StatusRunning {
		t.Fatalf("ended before its host was looked at: %s", got.Status)
	}
	look(t, w, s, h)
	if err := s.Sweep.Pass(ctx); err != nil {
		t.Fatal(err)
	}
	got := get(t, w, x.ID)
	if got.Status != sandbox.StatusRunning || got.Incarnation != 2 || got.DeadlineAt == nil || time.Until(*got.DeadlineAt) < 4*time.Minute {
		t.Errorf("it is %s/%d until %v", got.Status, got.Incarnation, got.DeadlineAt)
	}
	// One whose deadline is its own is killed as ever.
	exec(t, w, `UPDATE sandboxes SET deadline_at = now() - interval '1 s' WHERE id = $1`, x.ID)
	testkit.Eventually(t, time.Minute, "the kill", func() bool {
		_ = s.Sweep.Pass(ctx)
		return get(t, w, x.ID).Status == sandbox.StatusStopped
	})
}
