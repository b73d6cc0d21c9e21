package sandboxpg_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

func TestS6_PauseAndResume(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	x := create(t, w, s, request())
	held := make(chan struct{})
	var once sync.Once
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "pause" {
			once.Do(func() { <-held })
		}
		return ctx.Err()
	}
	results := make(chan error, 2)
	go func() { _, err := s.Service.Pause(ctx, w.User(), x.ID, true, true); results <- err }()
	testkit.Eventually(t, 20*time.Second, "pausing", func() bool { return get(t, w, x.ID).Status == sandbox.StatusPausing })
	if joined, err := s.Service.Pause(ctx, w.User(), x.ID, true, false); err != nil || joined.Status != sandbox.StatusPausing {
		t.Errorf("a second one does not join the first: %v", err)
	}
	go func() { _, err := s.Service.Guest(ctx, w.User(), x.ID); results <- err }() // waits for what comes of it
	close(held)
	refused := 0
	for range 2 {
		if err := <-results; errs.Is(err, "invalid_state") && errs.As(err).Details["status"] == "paused" {
			refused++
		} else if err != nil {
			t.Errorf("while it was paused: %v", err)
		}
	}
	if refused != 1 {
		t.Errorf("%d were refused, want the one who wanted in", refused)
	}
	if w.Agents.Pauses(x.ID) != 1 {
		t.Errorf("paused %d times", w.Agents.Pauses(x.ID))
	}
	if _, err := s.Service.Pause(ctx, w.User(), x.ID, true, true); !errs.Is(err, "invalid_state") {
		t.Errorf("paused again: %v", err)
	}
	if err := s.Service.Ping(ctx, w.User(), x.ID); !errs.Is(err, "invalid_state") {
		t.Errorf("pinged: %v", err)
	}
	got, err := s.Service.Resume(ctx, w.User(), x.ID, p(int64(77)), false, true)
	if err != nil || got.Status != sandbox.StatusRunning || got.Incarnation != 2 || time.Until(*got.DeadlineAt) > 77*time.Second || got.PausedAt != nil {
		t.Fatalf("resumed: %v %+v", err, got)
	}
	if l, _ := w.Agents.Launch(x.ID); l.State == nil || *l.State != *got.StateID || l.AccessToken != sandbox.AccessToken(w.Secret, x.ID) || l.DiskOnly {
		t.Errorf("resumed with %+v", l)
	}
	if _, err := s.Service.Resume(ctx, w.User(), x.ID, nil, false, true); !errs.Is(err, "invalid_state") {
		t.Errorf("resumed again: %v", err)
	}
	whole(t, w, s)
}

func TestST05_AFailedPauseDestroysNothing(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	x := create(t, w, s, request())
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "pause" {
			return errs.Exhausted("disk_full", "The disk of the host is full. Delete snapshots there.")
		}
		return ctx.Err()
	}
	_, err := s.Service.Pause(ctx, w.User(), x.ID, true, true)
	if !errs.Is(err, "pause_failed") || errs.As(err).Details["reason"] != "disk_full" {
		t.Errorf("pause on a full disk: %v", err)
	}
	if got := get(t, w, x.ID); got.Status != sandbox.StatusRunning || got.DeadlineAt == nil || !got.DeadlineAt.Equal(*x.DeadlineAt) {
		t.Errorf("afterwards %+v", got)
	}
	whole(t, w, s)
	w.Agents.Before = nil
	if _, err := s.Service.Pause(ctx, w.User(), x.ID, true, true); err != nil {
		t.Errorf("once there is room: %v", err)
	}
}

func TestP3_SnapshotsAndWhatStartsFromThem(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 64, 65536)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	req := request()
	req.Env = map[string]string{"A": "1", "B": "2"}
	x := create(t, w, s, req)
	snap := func(overwrite bool) (sandbox.Snapshot, error) {
		r, err := s.Service.Snapshot(ctx, w.User(), sandbox.SnapshotRequest{Sandbox: x.ID, Name: "kept", Memory: true, Overwrite: overwrite})
		if err != nil {
			return sandbox.Snapshot{}, err
		}
		return s.Service.AwaitSnapshot(ctx, r)
	}
	first, err := snap(false)
	if err != nil || first.Status != sandbox.StateReady || first.EngineVersion != sandboxtest.Version || get(t, w, x.ID).Status != sandbox.StatusRunning {
		t.Fatalf("%v %+v", err, first)
	}
	if _, err := snap(false); !errs.Is(err, "name_taken") {
		t.Errorf("the same name: %v", err)
	}
	second, err := snap(true)
	if err != nil {
		t.Fatal(err)
	}
	y := create(t, w, s, sandbox.CreateRequest{Snapshot: "kept", Env: map[string]string{"B": "3"}})
	l, _ := w.Agents.Launch(y.ID)
	if l.State == nil || *l.State != second.ID || l.Env["A"] != "1" || l.Env["B"] != "3" || l.AccessToken == sandbox.AccessToken(w.Secret, x.ID) {
		t.Errorf("started with %+v", l)
	}
	if _, err := s.Service.GetSnapshot(ctx, w.UserOf(w.NewTeam()), second.ID.String()); !errs.Is(err, "snapshot_not_found") {
		t.Errorf("by another team: %v", err)
	}
	if _, err := w.Pool.Exec(ctx, `UPDATE hosts SET engines = '[{"name":"fake","version":"fake-2","healthy":true}]'`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Service.Create(ctx, w.User(), sandbox.CreateRequest{Snapshot: "kept"}); !errs.Is(err, "state_incompatible") {
		t.Errorf("P6, under another engine: %v", err)
	}
	if err := s.Service.DeleteSnapshot(ctx, w.User(), "kept"); err != nil {
		t.Fatal(err)
	}
	whole(t, w, s)
	if list, err := s.Service.ListSnapshots(ctx, w.User(), sandbox.StateFilter{}, page.Request{Limit: 10}); err != nil || len(list.Items) != 0 || w.Agents.States() != 0 {
		t.Errorf("left: %+v, %d on hosts (%v)", list.Items, w.Agents.States(), err)
	}
	if got := get(t, w, y.ID); got.Status != sandbox.StatusRunning {
		t.Errorf("what was made from it is %s", got.Status)
	}
}

func TestP4_ForksAreAllOrNone(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 4096)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	x := create(t, w, s, request())
	if _, err := s.Service.Fork(ctx, w.User(), x.ID, sandbox.ForkRequest{Count: 64}); !errs.Is(err, "no_capacity") {
		t.Errorf("more than fit: %v", err)
	}
	fork := func() ([]sandbox.Sandbox, error) {
		r, err := s.Service.Fork(ctx, w.User(), x.ID, sandbox.ForkRequest{Count: 3})
		if err != nil {
			return nil, err
		}
		return s.Service.AwaitFork(ctx, r)
	}
	made, err := fork()
	if err != nil || len(made) != 3 || made[0].Status != sandbox.StatusRunning || get(t, w, x.ID).Status != sandbox.StatusRunning {
		t.Fatalf("%v %+v", err, made)
	}
	for _, c := range made {
		if err := s.Service.Delete(ctx, w.User(), c.ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Service.Pause(ctx, w.User(), x.ID, true, true); err != nil {
		t.Fatal(err)
	}
	n := 0
	var mu sync.Mutex
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		mu.Lock()
		defer mu.Unlock()
		if call == "create" {
			if n++; n == 2 {
				return errs.New(errs.CodeInternal, "engine_failed", "The engine failed.")
			}
		}
		return ctx.Err()
	}
	if _, err := fork(); !errs.Is(err, "fork_failed") {
		t.Errorf("one of three that fails: %v", err)
	}
	testkit.Eventually(t, 30*time.Second, "none is left", func() bool { return count(t, w, `ended_at IS NULL`) == 1 })
	whole(t, w, s)
}

func TestS15_WhatEndedByItselfIsRecoverable(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	req := request()
	req.CheckpointIntervalSec = p(int64(60))
	x := create(t, w, s, req)
	if _, err := w.Pool.Exec(ctx, `UPDATE sandboxes SET checkpoint_due_at = now() WHERE id = $1`, x.ID); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, "a checkpoint", func() bool {
		if err := s.Sweep.Pass(ctx); err != nil {
			t.Fatal(err)
		}
		got := get(t, w, x.ID)
		return got.StateID != nil && got.Status == sandbox.StatusRunning
	})
	w.Agents.Exit(x.ID, "engine_crashed")
	if err := s.Reconciler.ReconcileHost(ctx, w.Ref(w.Hosts[0])); err != nil {
		t.Fatal(err)
	}
	got := get(t, w, x.ID)
	if got.Status != sandbox.StatusStopped || got.EndReason != "engine_crashed" || got.StateID == nil || got.StateStatus != sandbox.StateReady {
		t.Fatalf("%+v", got)
	}
	whole(t, w, s)
	if y := create(t, w, s, sandbox.CreateRequest{Snapshot: got.StateID.String()}); y.Status != sandbox.StatusRunning {
		t.Errorf("recovered as %s", y.Status)
	}
	if err := s.Service.Delete(ctx, w.User(), x.ID); err != nil {
		t.Fatal(err)
	}
	whole(t, w, s)
	if w.Agents.HasState(*got.StateID) {
		t.Error("deleted, and its state is still there")
	}
}

func TestS10_SamplesOfTheHostsOwnOnce(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	x := create(t, w, s, request())
	at := time.Now().Add(-time.Minute).Truncate(time.Microsecond)
	samples := []sandbox.Sample{
		{Sandbox: x.ID, Figures: sandbox.Figures{At: at, CPUMillis: 5}},
		{Sandbox: x.ID, Figures: sandbox.Figures{At: at.Add(30 * time.Second), CPUMillis: 6}},
		{Sandbox: x.ID, Figures: sandbox.Figures{At: at.Add(time.Hour)}}, // a clock that is wrong
		{Sandbox: id.NewSandbox(), Figures: sandbox.Figures{At: at}},
	}
	for _, from := range []id.Host{w.Hosts[0], w.Hosts[0], w.AddHost(1, 1)} {
		if err := s.Service.Samples(ctx, from, samples); err != nil {
			t.Fatal(err)
		}
	}
	m, err := s.Service.Metrics(ctx, w.User(), x.ID, at.Add(-time.Hour))
	if err != nil || len(m.Samples) != 2 || !m.Samples[0].At.Equal(at) || m.Samples[1].CPUMillis != 6 || m.Live == nil || m.Live.Processes != 3 {
		t.Errorf("%v %+v", err, m)
	}
	if n, err := w.Store.PruneSamples(ctx, 10); err != nil || n != 0 {
		t.Errorf("pruned %d (%v)", n, err)
	}
}
