package sandboxpg_test

import (
	"context"
	"log/slog"
	"testing"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/pg/pgtest"
)

func TestT2_SnapshotsOfADeletedTeamGo(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 64, 65536)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	x := create(t, w, s, request())
	r, err := s.Service.Snapshot(ctx, w.User(), sandbox.SnapshotRequest{Sandbox: x.ID, Name: "kept", Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Service.AwaitSnapshot(ctx, r); err != nil {
		t.Fatal(err)
	}
	// One that is paused needs its state until it has ended.
	if _, err := s.Service.Pause(ctx, w.User(), x.ID, true, true); err != nil {
		t.Fatal(err)
	}
	pass := func() {
		t.Helper()
		for range 2 { // the second removes what the first gave up
			if err := sandbox.NewSweep(s.Service, slog.New(slog.DiscardHandler)).Pass(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	pass()
	if n := w.Agents.States(); n != 2 {
		t.Fatalf("%d states of a living team on hosts", n)
	}
	if _, err := w.Pool.Exec(ctx, "UPDATE teams SET deleted_at = now() WHERE id = $1", w.Team); err != nil {
		t.Fatal(err)
	}
	pass()
	if n := w.Agents.States(); n != 1 {
		t.Errorf("%d states on hosts, want the one that a sandbox goes on from", n)
	}
	if err := s.Service.EndOfTeam(ctx, x.ID); err != nil {
		t.Fatal(err)
	}
	whole(t, w, s)
	if n := w.Agents.States(); n != 0 {
		t.Errorf("%d states on hosts", n)
	}
	var left, entries int
	if err := w.Pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM snapshots WHERE team_id = $1 AND status <> 'deleted'),
		(SELECT count(*) FROM audit_logs WHERE team_id = $1 AND resource_type = 'snapshot' AND action = 'delete' AND actor_type = 'system')`, w.Team).Scan(&left, &entries); err != nil {
		t.Fatal(err)
	}
	if left != 0 || entries != 1 {
		t.Errorf("%d rows left, %d entries", left, entries)
	}
}
