package sandboxpg_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// travellers is a world of two hosts that share no path.
func travellers(t *testing.T) (*sandboxtest.World, *sandboxtest.Server) {
	t.Helper()
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	w.AddHost(8, 8192)
	return w, w.Serve(sandbox.Config{})
}

func other(w *sandboxtest.World, h id.Host) id.Host {
	if w.Hosts[0] == h {
		return w.Hosts[1]
	}
	return w.Hosts[0]
}

func uploader(w *sandboxtest.World, onStep func(sandbox.UploadStep, sandbox.Upload) error) *sandbox.Uploader {
	var at time.Duration
	return sandbox.NewUploader(w.Store, w.Agents, w.Vault(), sandbox.UploadConfig{After: &at, OnStep: onStep}, slog.New(slog.DiscardHandler))
}

// stored brings all that is due to the store.
func stored(t *testing.T, w *sandboxtest.World) {
	t.Helper()
	if err := uploader(w, nil).Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func paused(t *testing.T, w *sandboxtest.World, s *sandboxtest.Server, x id.Sandbox) sandbox.Sandbox {
	t.Helper()
	if _, err := s.Service.Pause(t.Context(), w.User(), x, true, true); err != nil {
		t.Fatal(err)
	}
	return get(t, w, x)
}

// lost takes a host away for good: its disk, and then the host.
func lost(t *testing.T, w *sandboxtest.World, h id.Host) {
	t.Helper()
	w.Agents.Wreck(h)
	away(t, w, h, time.Hour)
}

func resumed(t *testing.T, w *sandboxtest.World, s *sandboxtest.Server, x id.Sandbox) sandbox.Sandbox {
	t.Helper()
	got, err := s.Service.Resume(t.Context(), w.User(), x, nil, false, true)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// oneReservation checks that a sandbox counts on one host and nowhere else.
func oneReservation(t *testing.T, w *sandboxtest.World, x sandbox.Sandbox) {
	t.Helper()
	if n := tally(t, w, `sandboxes WHERE id = $1 AND host_id = $2`, x.ID, x.Host.ID); n != 1 {
		t.Errorf("its row is not on %s", x.Host.ID)
	}
}

func TestP5_TS05_WhatIsPausedGoesOnAfterItsHostIsGone(t *testing.T) {
	w, s := travellers(t)
	x := paused(t, w, s, create(t, w, s, request()).ID)
	if x.StateStored || len(x.StateCopies) != 1 || x.StateCopies[0] != x.Host.ID {
		t.Fatalf("before: stored %t, on %v", x.StateStored, x.StateCopies)
	}
	stored(t, w)
	if x = get(t, w, x.ID); !x.StateStored || tally(t, w, `sandbox_events WHERE sandbox_id = $1 AND kind = 'stored'`, x.ID) != 1 {
		t.Fatalf("uploaded: stored %t", x.StateStored)
	}
	first := x.Host.ID
	lost(t, w, first)
	got := resumed(t, w, s, x.ID)
	if got.Host.ID == first || got.Incarnation != 2 || got.Status != sandbox.StatusRunning {
		t.Fatalf("resumed as %s/%d on %s", got.Status, got.Incarnation, got.Host.ID)
	}
	if phase, at := w.Agents.On(got.Host.ID, x.ID); phase != sandbox.PhaseRunning || at != 2 {
		t.Errorf("on its new host it is %q/%d", phase, at)
	}
	if l, _ := w.Agents.Launch(x.ID); l.State == nil || *l.State != *x.StateID {
		t.Errorf("it started from %v", l.State)
	}
	oneReservation(t, w, got)
	if n := tally(t, w, `state_copies WHERE snapshot_id = $1 AND ready_at IS NOT NULL`, x.StateID); n != 2 {
		t.Errorf("%d copies are written down", n)
	}

	// Its former host is back, with what it held.
	back(t, w, first)
	w.Agents.Put(first, sandbox.Instance{Sandbox: x.ID, Incarnation: 1, Phase: sandbox.PhasePaused, State: *x.StateID})
	look(t, w, s, first)
	if phase, _ := w.Agents.On(first, x.ID); phase != "" {
		t.Errorf("what it left behind is still %s", phase)
	}
	look(t, w, s, first)
	look(t, w, s, first)
	if left := strays(t, s, first); len(left) != 0 || told(t, w, first, "host.claimed_foreign") != 0 {
		t.Errorf("strays: %+v", left)
	}
	if phase, at := w.Agents.On(got.Host.ID, x.ID); phase != sandbox.PhaseRunning || at != 2 || get(t, w, x.ID).Status != sandbox.StatusRunning {
		t.Errorf("where it went on it is %q/%d", phase, at)
	}
	// A newer state takes the place of the one that travelled, everywhere.
	y := paused(t, w, s, x.ID)
	testkit.Eventually(t, 20*time.Second, "the former state is nowhere", func() bool {
		if err := s.Sweep.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		return !w.Agents.HasState(*x.StateID) && tally(t, w, `snapshots WHERE id = $1 AND status = 'deleted' AND artifact_id IS NULL`, x.StateID) == 1
	})
	if !w.Agents.HasState(*y.StateID) {
		t.Error("the newest state is gone")
	}
}

func TestP5_ST01_NobodyGoesBackToAnOlderStateUnasked(t *testing.T) {
	w, s := travellers(t)
	x := paused(t, w, s, create(t, w, s, request()).ID)
	stored(t, w)
	resumed(t, w, s, x.ID)
	y := paused(t, w, s, x.ID) // newer, and not stored
	away(t, w, y.Host.ID, time.Hour)
	if _, err := s.Service.Resume(t.Context(), w.User(), x.ID, nil, false, true); !errs.Is(err, "host_unavailable") {
		t.Errorf("resumed from what is older: %v", err)
	}
	if got := get(t, w, x.ID); got.Status != sandbox.StatusPaused || *got.StateID != *y.StateID || got.StateStored {
		t.Errorf("afterwards %+v", got)
	}
	back(t, w, y.Host.ID)
	if got := resumed(t, w, s, x.ID); got.Host.ID != y.Host.ID {
		t.Error("it went elsewhere")
	}
}

func TestP5_AHostThatIsOnlySilentLosesNothing(t *testing.T) {
	w, s := travellers(t)
	x := paused(t, w, s, create(t, w, s, request()).ID)
	stored(t, w)
	first := x.Host.ID
	away(t, w, first, time.Hour)
	got := resumed(t, w, s, x.ID)
	// It comes back with something that it should not have: a life of its own.
	back(t, w, first)
	w.Agents.Put(first, sandbox.Instance{Sandbox: x.ID, Incarnation: 1, Phase: sandbox.PhaseRunning})
	for range 4 {
		look(t, w, s, first)
	}
	if phase, _ := w.Agents.On(first, x.ID); phase != sandbox.PhasePaused {
		t.Errorf("what it held is %q, not set aside", phase)
	}
	if left := strays(t, s, first); len(left) != 1 || left[0].Kind != sandbox.StrayUnknown || left[0].DestroyAt == nil {
		t.Errorf("strays: %+v", left)
	}
	if now := get(t, w, x.ID); now.Status != sandbox.StatusRunning || now.Host.ID != got.Host.ID || now.Incarnation != got.Incarnation {
		t.Errorf("the row believed it: %+v", now)
	}
	// It does not go back there as long as that is set aside.
	y := paused(t, w, s, x.ID)
	stored(t, w)
	away(t, w, y.Host.ID, time.Hour)
	if _, err := s.Service.Resume(t.Context(), w.User(), x.ID, nil, false, true); !errs.Is(err, "no_capacity") {
		t.Errorf("resumed where another life is: %v", err)
	}
	exec(t, w, `UPDATE host_strays SET destroy_at = now()`)
	for range 4 {
		look(t, w, s, first)
	}
	if got := resumed(t, w, s, x.ID); got.Host.ID != first {
		t.Errorf("resumed on %s", got.Host.ID)
	}
}

func TestP5_AFailedMoveLeavesItPausedAsBefore(t *testing.T) {
	w, s := travellers(t)
	x := paused(t, w, s, create(t, w, s, request()).ID)
	stored(t, w)
	lost(t, w, x.Host.ID)
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "create" {
			return errs.New(errs.CodeInternal, "engine_failed", "The engine failed.")
		}
		return ctx.Err()
	}
	if _, err := s.Service.Resume(t.Context(), w.User(), x.ID, nil, false, true); !errs.Is(err, "resume_failed") {
		t.Fatalf("resumed: %v", err)
	}
	got := get(t, w, x.ID)
	if got.Status != sandbox.StatusPaused || got.Host.ID != other(w, x.Host.ID) || *got.StateID != *x.StateID {
		t.Errorf("afterwards %s on %s", got.Status, got.Host.ID)
	}
	oneReservation(t, w, got)
	for range 3 {
		look(t, w, s, got.Host.ID)
	}
	if now := get(t, w, x.ID); now.Status != sandbox.StatusPaused {
		t.Fatalf("its host lacks a record of it, and it is %s", now.Status)
	}
	w.Agents.Before = nil
	if again := resumed(t, w, s, x.ID); again.Incarnation != 3 {
		t.Errorf("incarnation %d", again.Incarnation)
	}
}

// Where not even the state could be brought, it stays with the host that has it.
func TestP5_AMoveWithoutItsStateStaysAtHome(t *testing.T) {
	w, s := travellers(t)
	x := paused(t, w, s, create(t, w, s, request()).ID)
	stored(t, w)
	away(t, w, x.Host.ID, time.Hour)
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "fetch" {
			return errs.New(errs.CodeInvalid, "content_mismatch", "A chunk of the store does not match its digest.")
		}
		return ctx.Err()
	}
	if _, err := s.Service.Resume(t.Context(), w.User(), x.ID, nil, false, true); !errs.Is(err, "resume_failed") {
		t.Fatalf("resumed: %v", err)
	}
	got := get(t, w, x.ID)
	if got.Status != sandbox.StatusPaused || got.Host.ID != x.Host.ID {
		t.Errorf("afterwards %s on %s, want paused on %s", got.Status, got.Host.ID, x.Host.ID)
	}
	oneReservation(t, w, got)
	back(t, w, x.Host.ID)
	if again := resumed(t, w, s, x.ID); again.Host.ID != x.Host.ID || again.Incarnation != 3 {
		t.Errorf("resumed on %s in incarnation %d", again.Host.ID, again.Incarnation)
	}
}

// A host that goes away while state is brought to it was never given the sandbox:
// it is paused as before at once, and not missing once its time is over.
func TestP5_AHostThatGoesWhileStateIsBroughtThereLosesNothing(t *testing.T) {
	for _, goes := range []bool{true, false} {
		t.Run(map[bool]string{true: "away", false: "until the end of its time"}[goes], func(t *testing.T) {
			w, s := travellers(t)
			x := paused(t, w, s, create(t, w, s, request()).ID)
			stored(t, w)
			away(t, w, x.Host.ID, time.Hour)
			to := other(w, x.Host.ID)
			w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
				if call != "fetch" {
					return ctx.Err()
				}
				if goes {
					exec(t, w, `UPDATE hosts SET status = 'unreachable' WHERE id = $1`, to)
				} else {
					exec(t, w, `UPDATE operations SET deadline_at = now() WHERE sandbox_id = $1 AND status = 'open'`, x.ID)
				}
				return errs.Unavailable("host_unavailable", "The host went away.")
			}
			if _, err := s.Service.Resume(t.Context(), w.User(), x.ID, nil, false, true); !errs.Is(err, "resume_failed") {
				t.Errorf("resumed: %v", err)
			}
			got := get(t, w, x.ID)
			if got.Status != sandbox.StatusPaused || got.Host.ID != x.Host.ID || *got.StateID != *x.StateID {
				t.Fatalf("afterwards %s on %s", got.Status, got.Host.ID)
			}
			oneReservation(t, w, got)
			w.Agents.Before = nil
			exec(t, w, `UPDATE hosts SET status = 'online' WHERE id = $1`, to)
			for range 3 {
				look(t, w, s, to)
			}
			if again := resumed(t, w, s, x.ID); again.Host.ID != to || again.Incarnation != 3 {
				t.Errorf("resumed on %s in incarnation %d", again.Host.ID, again.Incarnation)
			}
		})
	}
}

// An older database was restored, from before a sandbox went on elsewhere: it runs
// there, and is not started a second time from what it was then.
func TestH8_WhatWentOnElsewhereSinceTheBackupIsNotStartedTwice(t *testing.T) {
	w, s := travellers(t)
	x := paused(t, w, s, create(t, w, s, request()).ID)
	stored(t, w)
	away(t, w, x.Host.ID, time.Hour)
	there := resumed(t, w, s, x.ID).Host.ID
	back(t, w, x.Host.ID)
	for range 3 {
		look(t, w, s, x.Host.ID)
	}
	exec(t, w, `DELETE FROM departures`)
	exec(t, w, `UPDATE sandboxes SET host_id = $2, status = 'paused', incarnation = 1, paused_at = now(), deadline_at = NULL WHERE id = $1`, x.ID, x.Host.ID)
	for range 3 {
		look(t, w, s, there)
		look(t, w, s, x.Host.ID)
	}
	if _, err := s.Service.Resume(t.Context(), w.User(), x.ID, nil, false, true); !errs.Is(err, "later_life") {
		t.Errorf("resumed: %v", err)
	}
	exec(t, w, `UPDATE sandboxes SET status = 'missing' WHERE id = $1`, x.ID)
	if _, err := s.Service.Recover(t.Context(), w.User(), x.ID); !errs.Is(err, "later_life") {
		t.Errorf("recovered: %v", err)
	}
	if phase, at := w.Agents.On(there, x.ID); phase != sandbox.PhaseRunning || at != 2 {
		t.Errorf("it is %q/%d where it went", phase, at)
	}
	if phase, _ := w.Agents.On(x.Host.ID, x.ID); phase == sandbox.PhaseRunning {
		t.Error("it runs twice")
	}
	// Once that is given up, by whoever manages the host, it goes on from what is known.
	exec(t, w, `DELETE FROM host_strays WHERE sandbox_id = $1`, x.ID)
	if _, err := s.Service.Recover(t.Context(), w.User(), x.ID); err != nil {
		t.Error(err)
	}
}

func TestP5_ALostOrDamagedCopyIsFetchedAgain(t *testing.T) {
	for _, what := range []string{"lost", "damaged"} {
		t.Run(what, func(t *testing.T) {
			w, s := travellers(t)
			x := paused(t, w, s, create(t, w, s, request()).ID)
			stored(t, w)
			away(t, w, other(w, x.Host.ID), time.Hour)
			if what == "lost" {
				w.Agents.Wreck(x.Host.ID)
			} else {
				w.Agents.Damage(x.Host.ID, *x.StateID)
			}
			if got := resumed(t, w, s, x.ID); got.Host.ID != x.Host.ID || w.Agents.Transfers("fetch") != 1 {
				t.Errorf("resumed on %s with %d fetches", got.Host.ID, w.Agents.Transfers("fetch"))
			}
		})
	}
	t.Run("damaged and nowhere else", func(t *testing.T) {
		w, s := travellers(t)
		x := paused(t, w, s, create(t, w, s, request()).ID)
		w.Agents.Damage(x.Host.ID, *x.StateID)
		if _, err := s.Service.Resume(t.Context(), w.User(), x.ID, nil, false, true); !errs.Is(err, "resume_failed") || errs.As(err).Details["reason"] != "state_damaged" {
			t.Errorf("resumed: %v", err)
		}
		if got := get(t, w, x.ID); got.Status != sandbox.StatusPaused || *got.StateID != *x.StateID {
			t.Errorf("afterwards %+v", got)
		}
	})
}

// The daemon in a state's memory is fetched again where the copy has lost it. Where
// the store has it not either, the refusal says so, nothing changes, and the disk
// is left, on the host that has it.
func TestP7_ALostDaemonIsFetchedAgain(t *testing.T) {
	for _, stores := range []bool{true, false} {
		w, s := travellers(t)
		x := paused(t, w, s, create(t, w, s, request()).ID)
		if stores {
			stored(t, w)
		}
		away(t, w, other(w, x.Host.ID), time.Hour)
		w.Agents.Strip(x.Host.ID, *x.StateID, true)
		for range 2 {
			_, err := s.Service.Resume(t.Context(), w.User(), x.ID, nil, false, true)
			if !errs.Is(err, "resume_failed") || errs.As(err).Details["reason"] != "guest_build_missing" || errs.CodeOf(err) != errs.CodeFailedPrecondition || !strings.Contains(err.Error(), "without memory") {
				t.Errorf("resumed: %v", err)
			}
			if got := get(t, w, x.ID); got.Status != sandbox.StatusPaused || *got.StateID != *x.StateID || !slices.Contains(got.StateCopies, x.Host.ID) {
				t.Errorf("afterwards %+v", got)
			}
		}
		if stores {
			w.Agents.Strip(x.Host.ID, *x.StateID, false)
			if got := resumed(t, w, s, x.ID); got.Host.ID != x.Host.ID || w.Agents.Transfers("daemon") != 1 || w.Agents.Transfers("fetch") != 0 {
				t.Errorf("resumed on %s with %d fetches", got.Host.ID, w.Agents.Transfers("daemon"))
			}
			continue
		}
		if _, err := s.Service.Resume(t.Context(), w.User(), x.ID, nil, true, true); err != nil {
			t.Errorf("without memory: %v", err)
		}
	}
}

// TestP5_AServerMayDieWhileStateTravels lets the server die at each step of a
// move to a host that lacks the state and its engine.
func TestP5_AServerMayDieWhileStateTravels(t *testing.T) {
	n := 0
	for _, step := range sandbox.TravelSteps() {
		n++
		t.Run(string(step), func(t *testing.T) {
			w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
			died := make(chan struct{})
			var once sync.Once
			first := w.Serve(sandbox.Config{Lease: 500 * time.Millisecond, OnStep: func(at sandbox.Step, _ sandbox.Operation) error {
				if at != step {
					return nil
				}
				once.Do(func() { close(died) })
				return errors.New("killed")
			}})
			x := paused(t, w, first, create(t, w, first, request()).ID)
			stored(t, w)
			away(t, w, x.Host.ID, time.Hour)
			newer := w.AddHost(8, 8192)
			upgraded(t, w, newer, "fake-2")
			engineStored(t, w, sandboxtest.Version)
			if _, err := first.Service.Resume(t.Context(), w.User(), x.ID, nil, false, false); err != nil {
				t.Fatal(err)
			}
			select {
			case <-died:
			case <-time.After(30 * time.Second):
				t.Fatal("the step was never reached")
			}
			first.Stop()
			w.Serve(sandbox.Config{Lease: 200 * time.Millisecond})
			testkit.Eventually(t, 30*time.Second, "the second server brings it to its end", func() bool {
				return get(t, w, x.ID).Status == sandbox.StatusRunning && openOperations(t, w) == 0
			})
			if phase, at := w.Agents.On(newer, x.ID); phase != sandbox.PhaseRunning || at != 2 {
				t.Errorf("it is %q/%d there", phase, at)
			}
			if w.Agents.Transfers("fetch") != 1 {
				t.Errorf("fetched %d times", w.Agents.Transfers("fetch"))
			}
		})
	}
	t.Logf("%d steps", n)
}

// upgraded has a host run another version of its engine.
func upgraded(t *testing.T, w *sandboxtest.World, h id.Host, version string) {
	t.Helper()
	w.Agents.Upgrade(h, version)
	exec(t, w, `UPDATE hosts SET engines = jsonb_build_array(jsonb_build_object('name', 'fake', 'version', $2::text, 'healthy', true)) WHERE id = $1`, h, version)
}

// engineStored puts a build of the engine into the store, for the platform's hosts.
func engineStored(t *testing.T, w *sandboxtest.World, version string) {
	t.Helper()
	a := id.NewArtifact()
	exec(t, w, `INSERT INTO artifacts (id, team_id, kind, status, manifest_digest, ready_at) VALUES ($1, $2, 'engine', 'ready', 'x', now())`, a, id.PlatformTeamID)
	exec(t, w, `INSERT INTO engine_builds (team_id, engine, version, arch, digest, artifact_id) VALUES ($1, 'fake', $2, '', 'd', $3)`, id.PlatformTeamID, version, a)
}

func TestP6_P7_AStateFollowsItsEngine(t *testing.T) {
	w, s := travellers(t)
	x := paused(t, w, s, create(t, w, s, request()).ID)
	stored(t, w)
	for _, h := range w.Hosts {
		upgraded(t, w, h, "fake-2")
	}
	_, err := s.Service.Resume(t.Context(), w.User(), x.ID, nil, false, true)
	if !errs.Is(err, "state_incompatible") || errs.As(err).Details["reason"] != "engine_version" {
		t.Fatalf("resumed under another engine: %v", err)
	}
	// From the disk alone: whether that can be the host says.
	if _, err := s.Service.Resume(t.Context(), w.User(), x.ID, nil, true, true); !errs.Is(err, "resume_failed") || errs.As(err).Details["reason"] != "state_incompatible" {
		t.Errorf("resumed from the disk: %v", err)
	}
	engineStored(t, w, sandboxtest.Version)
	x = get(t, w, x.ID)
	if got := resumed(t, w, s, x.ID); got.Host.ID != x.Host.ID || w.Agents.Transfers("engine") != 1 {
		t.Errorf("on %s, engine fetched %d times", got.Host.ID, w.Agents.Transfers("engine"))
	}
}

func TestP3_P4_TS05_SnapshotsAndForksStartAnywhere(t *testing.T) {
	w, s := travellers(t)
	x := create(t, w, s, request())
	r, err := s.Service.Snapshot(t.Context(), w.User(), sandbox.SnapshotRequest{Sandbox: x.ID, Name: "kept", Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Service.AwaitSnapshot(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	x = paused(t, w, s, x.ID)
	stored(t, w)
	lost(t, w, x.Host.ID)
	there := other(w, x.Host.ID)
	y := create(t, w, s, sandbox.CreateRequest{Snapshot: "kept"})
	if y.Host.ID != there {
		t.Errorf("started on %s", y.Host.ID)
	}
	f, err := s.Service.Fork(t.Context(), w.User(), x.ID, sandbox.ForkRequest{Count: 3})
	if err != nil {
		t.Fatal(err)
	}
	made, err := s.Service.AwaitFork(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range made {
		if c.Host.ID != there || c.Status != sandbox.StatusRunning {
			t.Errorf("a copy is %s on %s", c.Status, c.Host.ID)
		}
	}
	if n := w.Agents.Transfers("fetch"); n != 2 {
		t.Errorf("%d transfers for two states", n)
	}

	// Deleted on both, also on the one that is away, once it is back.
	state := r.Snapshot
	if err := s.Service.DeleteSnapshot(t.Context(), w.User(), "kept"); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.Agents.HoldsState(there, state) {
		t.Error("the host in reach still has it")
	}
	if n := tally(t, w, `snapshots WHERE id = $1 AND status = 'deleting'`, state); n != 1 {
		t.Error("it counts as deleted, and a host has not said so")
	}
	back(t, w, x.Host.ID)
	if err := s.Sweep.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := tally(t, w, `snapshots WHERE id = $1 AND status = 'deleted' AND artifact_id IS NULL`, state); n != 1 {
		t.Error("it is not deleted when all hosts have said so")
	}
}

func TestTS01_AServerMayDieAtEachStepOfAnUpload(t *testing.T) {
	for _, step := range sandbox.UploadSteps() {
		t.Run(string(step), func(t *testing.T) {
			w, s := travellers(t)
			x := paused(t, w, s, create(t, w, s, request()).ID)
			if step == sandbox.StepUploadFailed {
				w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
					if call == "upload" {
						return errs.Unavailable("host_unavailable", "The host is away.")
					}
					return ctx.Err()
				}
			}
			reached := false
			u := uploader(w, func(at sandbox.UploadStep, _ sandbox.Upload) error {
				if at != step {
					return nil
				}
				reached = true
				return errors.New("killed")
			})
			if err := u.Pass(t.Context()); err != nil || !reached {
				t.Fatalf("reached %t, %v", reached, err)
			}
			w.Agents.Before = nil
			if step == sandbox.StepUploadFailed {
				if n := tally(t, w, `snapshots WHERE id = $1 AND upload_error <> '' AND upload_at > now()`, x.StateID); n != 1 {
					t.Error("the failure is not written down")
				}
			}
			exec(t, w, `UPDATE snapshots SET upload_at = now() WHERE upload_at IS NOT NULL`) // the lease is over
			stored(t, w)
			if n := tally(t, w, `snapshots p JOIN artifacts a ON a.id = p.artifact_id WHERE p.id = $1 AND a.status = 'ready' AND p.upload_at IS NULL`, x.StateID); n != 1 {
				t.Error("it is not stored")
			}
			if n := tally(t, w, `artifacts WHERE status <> 'ready'`); n != 0 {
				t.Errorf("%d uploads are left half way", n)
			}
			if n := tally(t, w, `sandbox_events WHERE kind = 'stored'`); n != 1 {
				t.Errorf("told %d times", n)
			}
		})
	}
	t.Logf("%d steps", len(sandbox.UploadSteps()))
}
