package hostpg_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/host/hostpg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// fleet is a world of sandboxes with the host room over it.
type fleet struct {
	*sandboxtest.World
	hosts *host.Service
	store *hostpg.Store
	admin principal.Principal
	away  atomic.Bool // no host hears a destroy
	gone  []id.Host   // that the room said were deleted
}

// greeting lets the fake agents say hello.
type greeting struct{ *sandboxtest.Agents }

func (greeting) Hello(context.Context, host.Ref) (int64, error) { return 1, nil }

func newFleet(t *testing.T, cpus int) *fleet {
	t.Helper()
	f := &fleet{World: sandboxtest.NewWorld(t, pgtest.New(t), cpus, cpus*1024)}
	keys, err := keyring.Load(context.Background(), keyringpg.New(f.Pool), f.Secret, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	f.store = hostpg.New(f.Pool)
	f.exec(t, `INSERT INTO team_limits (team_id, sandboxes, cpu_millis, memory_mb, disk_mb) VALUES ($1, 5000, 5000000, 5000000, 50000000)`, f.Team)
	f.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "destroy" && f.away.Load() {
			return errs.Unavailable("host_unavailable", "It is away.")
		}
		return ctx.Err()
	}
	f.hosts = host.NewService(f.store, keys, f.Secret, greeting{f.Agents}, "https://control:7071", slog.New(slog.DiscardHandler))
	f.hosts.OnDeleted(func(h id.Host) { f.gone = append(f.gone, h) })
	f.admin = principal.Principal{Kind: principal.KindUser, UserID: id.NewUser(), UserName: "Root", IsAdmin: true}
	return f
}

func (f *fleet) create(t *testing.T, s *sandboxtest.Server) sandbox.Sandbox {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	receipt, err := s.Service.Create(ctx, f.User(), sandbox.CreateRequest{Template: "base"})
	if err != nil {
		t.Fatal(err)
	}
	x, err := s.Service.Await(ctx, receipt)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func (f *fleet) get(t *testing.T, x id.Sandbox) sandbox.Sandbox {
	t.Helper()
	got, err := f.Store.Get(context.Background(), x)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (f *fleet) count(t *testing.T, sql string, args ...any) (n int) {
	t.Helper()
	if err := f.Pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// left is what still refers to a host as if it were there.
func (f *fleet) left(t *testing.T, h id.Host) string {
	t.Helper()
	return fmt.Sprintf("%d live, %d reserved, %d open operations, %d states, %d families, %d tokens",
		f.count(t, `SELECT count(*) FROM sandboxes WHERE host_id = $1 AND ended_at IS NULL`, h),
		f.count(t, `SELECT coalesce(sum(cpu_millis + memory_mb + disk_mb), 0) FROM sandboxes WHERE host_id = $1 AND ended_at IS NULL`, h),
		f.count(t, `SELECT count(*) FROM operations o JOIN sandboxes s ON s.id = o.sandbox_id WHERE s.host_id = $1 AND o.status = 'open'`, h),
		f.count(t, `SELECT count(*) FROM snapshots WHERE host_id = $1 AND status <> 'deleted'`, h),
		f.count(t, `SELECT count(*) FROM host_refresh_tokens WHERE host_id = $1 AND revoked_at IS NULL`, h),
		f.count(t, `SELECT count(*) FROM host_registration_tokens WHERE host_id = $1 AND revoked_at IS NULL`, h))
}

const nothing = "0 live, 0 reserved, 0 open operations, 0 states, 0 families, 0 tokens"

func TestH11_RefusedWhileAnythingWouldBeLost(t *testing.T) {
	f := newFleet(t, 16)
	s := f.Serve(sandbox.Config{})
	ctx := t.Context()
	h := f.Hosts[0]
	running, paused := f.create(t, s), f.create(t, s)
	r, err := s.Service.Snapshot(ctx, f.User(), sandbox.SnapshotRequest{Sandbox: running.ID, Name: "kept", Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Service.AwaitSnapshot(ctx, r); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Service.Pause(ctx, f.User(), paused.ID, true, true); err != nil {
		t.Fatal(err)
	}
	var seen []string
	cursor := ""
	for {
		lost, err := f.hosts.Preview(ctx, f.admin, h, page.Request{Limit: 1, Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		if lost.Sandboxes != 2 || lost.Snapshots != 1 {
			t.Errorf("%d sandboxes, %d snapshots", lost.Sandboxes, lost.Snapshots)
		}
		for _, l := range lost.Items {
			seen = append(seen, l.Kind+" "+l.Name+" "+l.Status+" "+l.WireID())
		}
		if cursor = lost.NextCursor; cursor == "" {
			break
		}
	}
	want := []string{
		"sandbox base running " + running.ID.String(), "sandbox base paused " + paused.ID.String(), "snapshot kept ready " + r.Snapshot.String(),
	}
	if strings.Join(seen, "\n") != strings.Join(want, "\n") {
		t.Errorf("the preview says\n%s\nwant\n%s", strings.Join(seen, "\n"), strings.Join(want, "\n"))
	}
	if _, err := f.hosts.Preview(ctx, f.admin, h, page.Request{Limit: 1, Cursor: "junk"}); !errs.Is(err, "invalid_cursor") {
		t.Errorf("a junk cursor: %v", err)
	}
	err = f.hosts.Delete(ctx, f.admin, h, false)
	if e := errs.As(err); e.Reason != "has_active_sandboxes" || e.Code != errs.CodeConflict || e.Details["sandboxes"] != int64(2) || e.Details["snapshots"] != int64(1) {
		t.Fatalf("delete: %v %v", err, errs.As(err).Details)
	}
	for _, x := range []id.Sandbox{running.ID, paused.ID} {
		if got := f.get(t, x); !got.Status.Live() {
			t.Errorf("a refused delete ended %s", got.Status)
		}
		if err := s.Service.Delete(ctx, f.User(), x); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.hosts.Delete(ctx, f.admin, h, false); !errs.Is(err, "has_active_sandboxes") {
		t.Errorf("with a snapshot left: %v", err)
	}
	if err := s.Service.DeleteSnapshot(ctx, f.User(), "kept"); err != nil {
		t.Fatal(err)
	}
	// What is being ended anyway is no loss, though its host does not hear it.
	last := f.create(t, s)
	f.away.Store(true)
	if err := s.Service.EndOfTeam(ctx, last.ID); err != nil {
		t.Fatal(err)
	}
	if lost, err := f.hosts.Preview(ctx, f.admin, h, page.Request{Limit: 1}); err != nil || lost.Sandboxes != 0 || len(lost.Items) != 0 {
		t.Errorf("%+v (%v)", lost, err)
	}
	if err := f.hosts.Delete(ctx, f.admin, h, false); err != nil {
		t.Fatalf("an empty one: %v", err)
	}
	if got := f.get(t, last.ID); got.Status != sandbox.StatusStopped || got.EndReason != sandbox.EndTeamDeleted {
		t.Errorf("%s %q", got.Status, got.EndReason)
	}
	if got := f.left(t, h); got != nothing {
		t.Error(got)
	}
	for what, err := range map[string]error{
		"delete again": f.hosts.Delete(ctx, f.admin, h, true),
		"get":          second(f.hosts.Get(ctx, f.admin, h)),
		"drain":        second(f.hosts.Drain(ctx, f.admin, h, nil)),
		"undrain":      second(f.hosts.Undrain(ctx, f.admin, h)),
		"preview":      second(f.hosts.Preview(ctx, f.admin, h, page.Request{Limit: 1})),
		"token":        second(f.hosts.IssueToken(ctx, f.admin, h)),
	} {
		if !errs.Is(err, "host_not_found") {
			t.Errorf("%s of a deleted host: %v", what, err)
		}
	}
	if list, err := f.hosts.List(ctx, f.admin, page.Request{Limit: 10}); err != nil || len(list.Items) != 0 {
		t.Errorf("%d hosts (%v)", len(list.Items), err)
	}
	if len(f.gone) != 1 || f.gone[0] != h {
		t.Errorf("told of %v", f.gone)
	}
}

func second[T any](_ T, err error) error { return err }

// Five run, five are paused, one is being ended for another reason, one is being
// saved: the host goes, and nothing is left that counts.
func TestRC05_AHostRemovedByForceLeavesNothing(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away %t", away), func(t *testing.T) {
			f := newFleet(t, 32)
			s := f.Serve(sandbox.Config{})
			ctx := t.Context()
			h := f.Hosts[0]
			var all []id.Sandbox
			for i := range 12 {
				x := f.create(t, s)
				all = append(all, x.ID)
				if i < 5 {
					if _, err := s.Service.Pause(ctx, f.User(), x.ID, true, true); err != nil {
						t.Fatal(err)
					}
				}
			}
			r, err := s.Service.Snapshot(ctx, f.User(), sandbox.SnapshotRequest{Sandbox: all[6], Name: "kept", Memory: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Service.AwaitSnapshot(ctx, r); err != nil {
				t.Fatal(err)
			}
			f.away.Store(away)
			if away {
				f.exec(t, `UPDATE hosts SET status = 'unreachable' WHERE id = $1`, h)
				// One whose team was deleted while its host was away.
				if err := s.Service.EndOfTeam(ctx, all[10]); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.hosts.Delete(ctx, f.admin, h, true); err != nil {
				t.Fatal(err)
			}
			if got := f.left(t, h); got != nothing {
				t.Error(got)
			}
			for i, x := range all {
				got := f.get(t, x)
				want := sandbox.EndHostDeleted
				if away && i == 10 {
					want = sandbox.EndTeamDeleted
				}
				if got.Status != sandbox.StatusStopped || got.EndReason != want || got.EndedAt == nil || got.Host.Online {
					t.Errorf("%s: %s %q", x, got.Status, got.EndReason)
				}
				if f.Agents.Has(x) != away && i >= 5 {
					t.Errorf("away %t: an instance is there %t", away, f.Agents.Has(x))
				}
			}
			if n := f.count(t, `SELECT count(*) FROM audit_logs WHERE action = 'destroy' AND metadata->>'reason' = $1`, sandbox.EndHostDeleted); n != len(all) {
				t.Errorf("%d entries of sandboxes, want %d", n, len(all))
			}
			if n := f.count(t, `SELECT count(*) FROM audit_logs WHERE resource_type = 'host' AND action = 'delete' AND (metadata->>'sandboxes')::int = $1`, len(all)); n != 1 {
				t.Errorf("%d entries of the host", n)
			}
			if n := f.count(t, `SELECT count(*) FROM sandbox_events WHERE kind = 'stopped' AND data->>'reason' = $1`, sandbox.EndHostDeleted); n != len(all) {
				t.Errorf("%d events, want %d", n, len(all))
			}
			if _, err := s.Service.Resume(ctx, f.User(), all[0], nil, false, true); !errs.Is(err, "invalid_state") {
				t.Errorf("resume of what was lost: %v", err)
			}
			if _, err := s.Service.Create(ctx, f.User(), sandbox.CreateRequest{Snapshot: "kept"}); !errs.Is(err, "snapshot_not_found") {
				t.Errorf("create from what was lost: %v", err)
			}
			if _, err := s.Service.Create(ctx, f.User(), sandbox.CreateRequest{Template: "base"}); !errs.Is(err, "no_capacity") {
				t.Errorf("create without any host: %v", err)
			}
		})
	}
}

func (f *fleet) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := f.Pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// Creates, pauses and snapshots on two servers while hosts are deleted under
// them: what was accepted lives on another host or has ended with its own.
func TestH11_DeletingRacesWithPlacing(t *testing.T) {
	f := newFleet(t, 4096)
	servers := []*sandboxtest.Server{f.Serve(sandbox.Config{}), f.Serve(sandbox.Config{})}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	rounds := testkit.Scaled(100, 6)
	lost, kept := 0, 0
	for round := range rounds {
		h := f.AddHost(4096, 4096*1024)
		added := time.Now() // servers look at the hosts anew twice a second
		testkit.Eventually(t, 10*time.Second, "the servers know of the host", func() bool { return time.Since(added) > 600*time.Millisecond })
		var wg sync.WaitGroup
		made := make([]sandbox.Receipt, 12)
		var created atomic.Int64
		for i := range made {
			wg.Go(func() {
				s := servers[i%2].Service
				receipt, err := s.Create(ctx, f.User(), sandbox.CreateRequest{Template: "base"})
				created.Add(1)
				if err != nil {
					t.Errorf("create: %v", err)
					return
				}
				made[i] = receipt
				if i%3 == 0 {
					if _, err := s.Pause(ctx, f.User(), receipt.Sandbox, true, true); err != nil && !errs.Is(err, "invalid_state") && !errs.Is(err, "pause_failed") {
						t.Errorf("pause: %v", err)
					}
				}
			})
		}
		wg.Go(func() {
			look := time.NewTicker(time.Millisecond)
			defer look.Stop()
			for created.Load() < 12 && f.count(t, `SELECT count(*) FROM sandboxes WHERE host_id = $1`, h) <= round%4 {
				<-look.C
			}
			if err := f.hosts.Delete(ctx, f.admin, h, true); err != nil {
				t.Errorf("delete: %v", err)
			}
		})
		wg.Wait()
		if got := f.left(t, h); got != nothing {
			t.Fatalf("round %d: %s", round, got)
		}
		for _, r := range made {
			testkit.Eventually(t, time.Minute, "it rests", func() bool {
				x := f.get(t, r.Sandbox)
				return !x.Status.Transient()
			})
			x := f.get(t, r.Sandbox)
			switch {
			case x.Host.ID == h && x.Status == sandbox.StatusStopped && x.EndReason == sandbox.EndHostDeleted:
				lost++
				testkit.Eventually(t, time.Minute, "its instance is gone", func() bool { return !f.Agents.Has(x.ID) })
			case x.Host.ID != h && (x.Status == sandbox.StatusRunning || x.Status == sandbox.StatusPaused):
				kept++
			default:
				t.Errorf("round %d: %s is %s %q", round, x.ID, x.Status, x.EndReason)
			}
		}
	}
	t.Logf("%d ended with their host, %d live on another", lost, kept)
	if lost == 0 || kept == 0 {
		t.Error("there was no race")
	}
}

// The entry of the trail cannot be written: the host is as it was.
func TestH11_AllOrNothing(t *testing.T) {
	f := newFleet(t, 16)
	s := f.Serve(sandbox.Config{})
	x := f.create(t, s)
	h := f.Hosts[0]
	if _, err := pgtest.Owner(t, f.Pool).Exec(t.Context(), `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN RAISE EXCEPTION 'disk full' USING ERRCODE = 'disk_full'; END $$;
		CREATE TRIGGER refuse BEFORE INSERT ON audit_logs FOR EACH ROW WHEN (NEW.resource_type = 'host') EXECUTE FUNCTION refuse()`); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"delete":  f.hosts.Delete(t.Context(), f.admin, h, true),
		"drain":   second(f.hosts.Drain(t.Context(), f.admin, h, nil)),
		"undrain": second(f.hosts.Undrain(t.Context(), f.admin, h)),
		"update":  second(f.hosts.Update(t.Context(), f.admin, h, host.Update{Labels: map[string]string{"a": "b"}})),
	} {
		if err == nil {
			t.Errorf("%s without its entry", what)
		}
	}
	got, err := f.hosts.Get(t.Context(), f.admin, h)
	if err != nil || got.Status != host.StatusOnline || got.Sandboxes != 1 || got.DrainRequestedAt != nil || len(got.Labels) != 0 || f.get(t, x.ID).Status != sandbox.StatusRunning {
		t.Errorf("%+v (%v)", got, err)
	}
	if len(f.gone) != 0 || !f.Agents.Has(x.ID) {
		t.Error("the agent was told, or the client evicted")
	}
}

// shared is a paused sandbox whose state two hosts have, the first of which it ran on.
func (f *fleet) shared(t *testing.T, s *sandboxtest.Server, other id.Host) sandbox.Sandbox {
	t.Helper()
	x := f.create(t, s)
	if _, err := s.Service.Pause(t.Context(), f.User(), x.ID, true, true); err != nil {
		t.Fatal(err)
	}
	x = f.get(t, x.ID)
	f.exec(t, `INSERT INTO state_copies (snapshot_id, host_id, ready_at) VALUES ($1, $2, now())`, *x.StateID, other)
	return x
}

// waiting waits until so many wait for a lock.
func (f *fleet) waiting(t *testing.T, n int) {
	t.Helper()
	testkit.Eventually(t, 20*time.Second, fmt.Sprintf("%d wait for a lock", n), func() bool {
		return f.count(t, `SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid WHERE a.datname = current_database() AND NOT l.granted`) >= n
	})
}

// Two hosts are deleted at once, each of which has what the other has: one of them
// is the last, and says so.
func TestH11_P5_OfTwoHostsDeletedAtOnceOneIsTheLast(t *testing.T) {
	f := newFleet(t, 16)
	s := f.Serve(sandbox.Config{})
	ctx := t.Context()
	first := f.Hosts[0]
	second := f.AddHost(16, 16<<10)
	x := f.shared(t, s, second)
	tx, err := f.Pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	// The first deletion has looked at what would be lost, and comes no further.
	if _, err := tx.Exec(ctx, `SELECT FROM sandboxes WHERE id = $1 FOR UPDATE`, x.ID); err != nil {
		t.Fatal(err)
	}
	var deleting sync.WaitGroup
	results := make([]error, 2)
	for i, h := range []id.Host{first, second} {
		deleting.Go(func() { results[i] = f.hosts.Delete(ctx, f.admin, h, false) })
		f.waiting(t, i+1)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	deleting.Wait()
	if results[0] != nil || !errs.Is(results[1], "has_active_sandboxes") || errs.As(results[1]).Details["sandboxes"] != int64(1) {
		t.Fatalf("deleted: %v; refused: %v", results[0], results[1])
	}
	if got := f.get(t, x.ID); got.Status != sandbox.StatusPaused || len(got.StateCopies) != 1 || got.StateCopies[0] != second {
		t.Fatalf("it is %s, its state on %v", got.Status, got.StateCopies)
	}
	if lost, err := f.hosts.Preview(ctx, f.admin, second, page.Request{Limit: 1}); err != nil || lost.Sandboxes != 1 || lost.Items[0].WireID() != x.ID.String() {
		t.Errorf("the preview of the last: %+v, %v", lost, err)
	}
	// By force it goes with it, though it never ran there.
	if err := f.hosts.Delete(ctx, f.admin, second, true); err != nil {
		t.Fatal(err)
	}
	if got := f.get(t, x.ID); got.Status != sandbox.StatusStopped || got.EndReason != sandbox.EndHostDeleted {
		t.Errorf("in the end it is %s, %q", got.Status, got.EndReason)
	}
	for _, h := range []id.Host{first, second} {
		if got := f.left(t, h); got != nothing {
			t.Error(got)
		}
	}
}

// A host that alone has the engine which saved states need is not deleted before
// the store has it, unless by force.
func TestP7_H11_TheLastHostWithAnEngineStays(t *testing.T) {
	f := newFleet(t, 16)
	s := f.Serve(sandbox.Config{})
	ctx := t.Context()
	first := f.Hosts[0]
	second := f.AddHost(16, 16<<10)
	x := f.shared(t, s, second)
	const digest = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	f.exec(t, `UPDATE hosts SET arch = 'amd64'`)
	f.exec(t, `UPDATE snapshots SET engine_version = 'one', memory = true WHERE id = $1`, *x.StateID)
	f.exec(t, `INSERT INTO engine_builds (team_id, engine, version, arch, digest) SELECT $1, engine, 'one', 'amd64', $2 FROM snapshots WHERE id = $3`, id.PlatformTeamID, digest, *x.StateID)
	has := func(h id.Host, list string) {
		t.Helper()
		f.exec(t, `UPDATE hosts SET engines = replace(replace($2, 'NAME', (SELECT engine FROM snapshots WHERE id = $3)), 'DIGEST', $4)::jsonb WHERE id = $1`, h, list, *x.StateID, digest)
	}
	kept := `[{"name":"NAME","version":"two","builds":[{"version":"one","digest":"DIGEST"}]}]`
	has(first, kept)
	has(second, `[{"name":"NAME","version":"two"}]`)
	if err := f.hosts.Delete(ctx, f.admin, first, false); !errs.Is(err, "engine_only_here") || errs.As(err).Details["engine_version"] != "one" {
		t.Fatalf("the only one with the engine: %v", err)
	}
	has(second, kept)
	if err := f.hosts.Delete(ctx, f.admin, first, false); err != nil {
		t.Fatalf("with another one that has it: %v", err)
	}
	if got := f.get(t, x.ID); got.Status != sandbox.StatusPaused {
		t.Errorf("it is %s", got.Status)
	}
}
