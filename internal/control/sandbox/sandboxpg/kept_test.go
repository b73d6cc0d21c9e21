package sandboxpg_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/host/hostpg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// ended ends what is on a host, as its deletion does.
func ended(t *testing.T, w *sandboxtest.World, h id.Host) (sandboxes int) {
	t.Helper()
	ctx := t.Context()
	tx, err := w.Pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	all, err := sandboxpg.LostWithHost(ctx, tx, h, page.Request{Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	gone, _, err := sandboxpg.EndOnHost(ctx, tx, h, audit.By(principal.System("test")))
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(gone)) != all.Sandboxes || int64(len(all.Items)) != all.Sandboxes+all.Snapshots {
		t.Errorf("%d sandboxes ended, %d were said to (%d listed)", len(gone), all.Sandboxes, len(all.Items))
	}
	if _, err := tx.Exec(ctx, `UPDATE hosts SET status = 'deleted', deleted_at = now(), drain_requested_at = NULL WHERE id = $1`, h); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	return len(gone)
}

func TestH11_ADeletedHostTakesNothingThatIsElsewhere(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	first := w.Hosts[0]
	x, y := create(t, w, s, request()), create(t, w, s, request())
	kept := paused(t, w, s, x.ID)
	stored(t, w)
	only := paused(t, w, s, y.ID)
	w.AddHost(8, 8192)
	w.Agents.Wreck(first)
	if n := ended(t, w, first); n != 1 {
		t.Errorf("%d sandboxes ended", n)
	}
	if got := get(t, w, only.ID); got.Status != sandbox.StatusStopped || got.EndReason != sandbox.EndHostDeleted {
		t.Errorf("what was only there is %s", got.Status)
	}
	if n := tally(t, w, `snapshots WHERE id = $1 AND status = 'deleted'`, only.StateID); n != 1 {
		t.Error("its state is not gone")
	}
	got := get(t, w, kept.ID)
	if got.Status != sandbox.StatusPaused || !got.StateStored || len(got.StateCopies) != 0 || !got.HostDeleted {
		t.Fatalf("what is stored is %s, on %v", got.Status, got.StateCopies)
	}
	if again := resumed(t, w, s, x.ID); again.Host.ID != w.Hosts[1] {
		t.Errorf("resumed on %s", again.Host.ID)
	}
	// One whose host is deleted is deleted at once.
	z := paused(t, w, s, x.ID)
	stored(t, w)
	w.AddHost(8, 8192)
	w.Agents.Wreck(z.Host.ID)
	ended(t, w, z.Host.ID)
	if err := s.Service.Delete(t.Context(), w.User(), x.ID); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, "it is stopped", func() bool { return get(t, w, x.ID).Status == sandbox.StatusStopped })
}

func TestH12_WhatIsOnAHostToBeEmptiedGoesFirst(t *testing.T) {
	w, s := travellers(t)
	x, y := paused(t, w, s, create(t, w, s, request()).ID), paused(t, w, s, create(t, w, s, request()).ID)
	if x.Host.ID == y.Host.ID {
		t.Fatal("both are on one host")
	}
	exec(t, w, `UPDATE hosts SET status = 'draining', drain_requested_at = now() WHERE id = $1`, y.Host.ID)
	never := sandbox.NewUploader(w.Store, w.Agents, w.Vault(), sandbox.UploadConfig{}, slog.New(slog.DiscardHandler))
	if _, err := s.Service.Resume(t.Context(), w.User(), y.ID, nil, false, true); !errs.Is(err, "host_draining") {
		t.Errorf("resumed where it is to leave: %v", err)
	}
	if h, err := hostpg.New(w.Pool).Get(t.Context(), y.Host.ID); err != nil || h.OnlyHere != 1 || !h.Drained() {
		t.Errorf("%d are only there (%v)", h.OnlyHere, err)
	}
	if err := never.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h, err := hostpg.New(w.Pool).Get(t.Context(), y.Host.ID); err != nil || h.OnlyHere != 0 {
		t.Errorf("once stored %d are only there (%v)", h.OnlyHere, err)
	}
	if get(t, w, x.ID).StateStored || !get(t, w, y.ID).StateStored {
		t.Error("not just what is to leave was stored")
	}
	if got := resumed(t, w, s, y.ID); got.Host.ID != x.Host.ID {
		t.Error("it went on where it was to leave")
	}
}

func TestS16_APausedSandboxGoesAfterItsTimeAndIsWarnedBefore(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	req := request()
	req.PausedTTLSec = p(int64(7 * 86400))
	x := paused(t, w, s, create(t, w, s, req).ID)
	if at := x.ExpiresAt(); at == nil || at.Sub(*x.PausedAt) != 7*24*time.Hour {
		t.Fatalf("expires at %v", at)
	}
	pass := func(days float64) (warned int, status sandbox.Status) {
		t.Helper()
		exec(t, w, `UPDATE sandboxes SET paused_at = now() - make_interval(secs => $1::float8 * 86400)`, days)
		if err := sandbox.NewSweep(s.Service, slog.New(slog.DiscardHandler)).Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		return tally(t, w, `sandbox_events WHERE kind = 'expiring'`), get(t, w, x.ID).Status
	}
	if n, status := pass(5.9); n != 0 || status != sandbox.StatusPaused {
		t.Errorf("early: warned %d times, %s", n, status)
	}
	for range 2 {
		if n, status := pass(6.1); n != 1 || status != sandbox.StatusPaused {
			t.Errorf("a day before: warned %d times, %s", n, status)
		}
	}
	pass(7.1)
	testkit.Eventually(t, 20*time.Second, "it is gone", func() bool { return get(t, w, x.ID).Status == sandbox.StatusStopped })
}

// What has ended and could be recovered from keeps no disk full: its host would
// not let go of the state, and no other copy would be given up any more.
func TestS16_WhatIsLeftToRecoverFromHoldsUpNothing(t *testing.T) {
	w, s := travellers(t)
	x := paused(t, w, s, create(t, w, s, request()).ID)
	at := x.Host.ID
	exec(t, w, `UPDATE hosts SET status = 'unreachable' WHERE id <> $1`, at)
	stored(t, w)
	exec(t, w, `UPDATE sandboxes SET status = 'stopped', ended_at = now(), end_reason = 'lost', deadline_at = NULL WHERE id = $1`, x.ID)
	exec(t, w, `UPDATE hosts SET disk_bytes = 1000 << 20, load = jsonb_build_object('disk_free_bytes', 100 << 20), last_heartbeat_at = now() WHERE id = $1`, at)
	if err := sandbox.NewEvictor(w.Store, 0.15, slog.New(slog.DiscardHandler)).Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, "its state is gone from the host", func() bool {
		look(t, w, s, at)
		exec(t, w, `UPDATE state_copies SET drop_at = now() WHERE drop_at IS NOT NULL`)
		if err := s.Sweep.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		return !w.Agents.HoldsState(at, *x.StateID)
	})
	exec(t, w, `UPDATE hosts SET disk_bytes = 1::bigint << 40 WHERE id = $1`, at)
	if _, err := s.Service.Recover(t.Context(), w.User(), x.ID); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		look(t, w, s, at)
	}
	if got := resumed(t, w, s, x.ID); got.Host.ID != at || w.Agents.Transfers("fetch") != 1 {
		t.Errorf("resumed on %s with %d fetches", got.Host.ID, w.Agents.Transfers("fetch"))
	}
}

// A host forgets a build of its engine that none of its states needs: a copy stays
// until the store has the build too.
func TestP7_ACopyStaysUntilItsEngineIsStored(t *testing.T) {
	w, s := travellers(t)
	x := paused(t, w, s, create(t, w, s, request()).ID)
	stored(t, w)
	exec(t, w, `UPDATE hosts SET disk_bytes = 1000 << 20, load = jsonb_build_object('disk_free_bytes', 100 << 20), last_heartbeat_at = now() WHERE id = $1`, x.Host.ID)
	engineStored(t, w, sandboxtest.Version)
	evict := sandbox.NewEvictor(w.Store, 0.15, slog.New(slog.DiscardHandler))
	for _, is := range []struct {
		status string
		gone   int
	}{{"deleting", 0}, {"ready", 1}} {
		exec(t, w, `UPDATE artifacts SET status = $1 WHERE kind = 'engine'`, is.status)
		if given, err := w.Store.GiveUpCopy(t.Context(), x.Host.ID, *x.StateID); is.gone == 0 && (err != nil || given) {
			t.Errorf("given up while the store lacks its engine (%v)", err)
		}
		if err := evict.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := tally(t, w, `state_copies WHERE snapshot_id = $1 AND drop_at IS NOT NULL`, x.StateID); n != is.gone {
			t.Errorf("with its engine %s in the store, %d copies go, want %d", is.status, n, is.gone)
		}
	}
}

func TestS16_AFullDiskIsEmptiedOfWhatIsStored(t *testing.T) {
	w, s := travellers(t)
	first := w.Hosts[0]
	exec(t, w, `UPDATE hosts SET status = 'unreachable' WHERE id = $1`, w.Hosts[1])
	old, only := paused(t, w, s, create(t, w, s, request()).ID), create(t, w, s, request())
	stored(t, w)
	only = paused(t, w, s, only.ID)
	exec(t, w, `UPDATE hosts SET disk_bytes = 1000 << 20, load = jsonb_build_object('disk_free_bytes', 100 << 20), last_heartbeat_at = now() WHERE id = $1`, first)
	evict := sandbox.NewEvictor(w.Store, 0.15, slog.New(slog.DiscardHandler))
	for range 2 {
		if err := evict.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, 20*time.Second, "the stored one is gone from the host", func() bool {
		look(t, w, s, first)
		exec(t, w, `UPDATE state_copies SET drop_at = now() WHERE drop_at IS NOT NULL`)
		if err := s.Sweep.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		return !w.Agents.HoldsState(first, *old.StateID)
	})
	if n := tally(t, w, `sandbox_events WHERE sandbox_id = $1 AND kind = 'copy_given_up'`, old.ID); n != 1 {
		t.Errorf("told %d times", n)
	}
	if !w.Agents.HoldsState(first, *only.StateID) {
		t.Error("the only copy is gone")
	}
	for range 3 {
		look(t, w, s, first)
	}
	if got := get(t, w, old.ID); got.Status != sandbox.StatusPaused {
		t.Fatalf("it is %s", got.Status)
	}
	exec(t, w, `UPDATE hosts SET disk_bytes = 1::bigint << 40 WHERE id = $1`, first)
	if got := resumed(t, w, s, old.ID); got.Host.ID != first || w.Agents.Transfers("fetch") != 1 {
		t.Errorf("resumed on %s with %d fetches", got.Host.ID, w.Agents.Transfers("fetch"))
	}
}

func TestTS05_WhatIsMissingIsRecoveredFromWhatWasSaved(t *testing.T) {
	w, s := travellers(t)
	x := create(t, w, s, request())
	if _, err := s.Service.Recover(t.Context(), w.User(), x.ID); !errs.Is(err, "invalid_state") {
		t.Errorf("a running one was recovered: %v", err)
	}
	before := paused(t, w, s, x.ID)
	first := before.Host.ID
	x = resumed(t, w, s, x.ID)
	away(t, w, first, time.Hour)
	if err := s.Reconciler.MarkMissing(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	_, err := s.Service.Recover(t.Context(), w.User(), x.ID)
	if !errs.Is(err, "no_state") || errs.As(err).Details["hosts"] == nil {
		t.Errorf("recovered from what is out of reach: %v", err)
	}
	back(t, w, first)
	stored(t, w)
	away(t, w, first, time.Hour)
	got, err := s.Service.Recover(t.Context(), w.User(), x.ID)
	if err != nil || got.Status != sandbox.StatusPaused || got.Incarnation != x.Incarnation+1 || got.PausedReason != sandbox.PausedRecovered {
		t.Fatalf("recovered: %v %+v", err, got)
	}
	if tally(t, w, `audit_logs WHERE action = 'recover' AND resource_id = $1`, x.ID.String()) != 1 {
		t.Error("not in the trail")
	}
	if got = resumed(t, w, s, x.ID); got.Host.ID == first {
		t.Fatal("resumed on the host that is away")
	}
	// The host is back, and it still runs there: set aside.
	back(t, w, first)
	for range 4 {
		look(t, w, s, first)
	}
	if phase, _ := w.Agents.On(first, x.ID); phase != sandbox.PhasePaused || len(strays(t, s, first)) != 1 {
		t.Errorf("there it is %q, %d strays", phase, len(strays(t, s, first)))
	}
	if now := get(t, w, x.ID); now.Status != sandbox.StatusRunning || now.Host.ID != got.Host.ID {
		t.Errorf("the row believed it: %+v", now)
	}
}

func TestS4_WhatEndedByItselfIsBroughtBack(t *testing.T) {
	w, s := travellers(t)
	x := paused(t, w, s, create(t, w, s, request()).ID)
	x = resumed(t, w, s, x.ID)
	w.Agents.Exit(x.ID, "engine_crashed")
	look(t, w, s, x.Host.ID)
	if got := get(t, w, x.ID); got.Status != sandbox.StatusStopped {
		t.Fatalf("it is %s", got.Status)
	}
	if got, err := s.Service.Recover(t.Context(), w.User(), x.ID); err != nil || got.Status != sandbox.StatusPaused || got.EndedAt != nil || got.EndReason != "" {
		t.Fatalf("recovered: %v %+v", err, got)
	}
	for range 3 {
		look(t, w, s, x.Host.ID)
	}
	if got := resumed(t, w, s, x.ID); got.Incarnation != x.Incarnation+2 {
		t.Errorf("incarnation %d", got.Incarnation)
	}
	// What its owner deleted is not brought back.
	if err := s.Service.Delete(t.Context(), w.User(), x.ID); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, "deleted", func() bool { return get(t, w, x.ID).Status == sandbox.StatusStopped })
	if _, err := s.Service.Recover(t.Context(), w.User(), x.ID); !errs.Is(err, "no_state") {
		t.Errorf("recovered what was deleted: %v", err)
	}
}

func TestTS01_SeveralServersUploadEachStateOnce(t *testing.T) {
	w, s := travellers(t)
	const n = 8
	for range n {
		paused(t, w, s, create(t, w, s, request()).ID)
	}
	var mu sync.Mutex
	under, most := 0, 0
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "upload" {
			mu.Lock()
			under++
			most = max(most, under)
			mu.Unlock()
			defer func() {
				mu.Lock()
				under--
				mu.Unlock()
			}()
			return held(ctx, 20*time.Millisecond)
		}
		return ctx.Err()
	}
	var servers sync.WaitGroup
	for range 2 {
		servers.Go(func() {
			u := uploader(w, nil)
			for range n { // those whose hosts were busy
				if err := u.Pass(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	servers.Wait()
	if got := tally(t, w, `snapshots p JOIN artifacts a ON a.id = p.artifact_id WHERE a.status = 'ready' AND p.upload_at IS NULL`); got != n {
		t.Errorf("%d of %d are stored", got, n)
	}
	if got := w.Agents.Transfers("upload"); got != n {
		t.Errorf("uploaded %d times", got)
	}
	if got := tally(t, w, `sandbox_events WHERE kind = 'stored'`); got != n {
		t.Errorf("told %d times", got)
	}
	if most > 2*2*2 {
		t.Errorf("%d at once by two servers on two hosts", most)
	}
}

func TestTS01_WhatWasSupplantedIsNotStored(t *testing.T) {
	w, s := travellers(t)
	x := paused(t, w, s, create(t, w, s, request()).ID)
	var once sync.Once
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "upload" {
			once.Do(func() { // it goes on, and is paused anew, while it is on its way
				resumed(t, w, s, x.ID)
				paused(t, w, s, x.ID)
				if err := s.Sweep.Pass(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		return ctx.Err()
	}
	stored(t, w)
	stored(t, w)
	got := get(t, w, x.ID)
	if !got.StateStored || *got.StateID == *x.StateID {
		t.Errorf("its newest state is stored %t", got.StateStored)
	}
	if n := tally(t, w, `snapshots WHERE id = $1 AND artifact_id IS NULL AND status = 'deleted'`, x.StateID); n != 1 {
		t.Error("the former one is not gone")
	}
}
