package hostpg_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"skerry.dev/skerry/internal/control/host"
	hq "skerry.dev/skerry/internal/control/host/hostpg/sqlcgen"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
)

func TestZZRestoredFamily(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	m := newMachine(t)
	c := w.register(t, m)
	if _, err := w.pool.Exec(ctx, `CREATE TEMP TABLE x AS SELECT 1`); err != nil {
		t.Log(err)
	}
	owner := pgtest.Owner(t, w.pool)
	if _, err := owner.Exec(ctx, `CREATE TABLE kept AS SELECT * FROM host_refresh_tokens`); err != nil {
		t.Fatal(err)
	}
	c, err := w.hosts.Refresh(ctx, principal.Principal{}, c.RefreshToken, m.csr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := owner.Exec(ctx, `UPDATE host_refresh_tokens f SET counter = k.counter, token_hash = k.token_hash, previous_hash = k.previous_hash FROM kept k WHERE k.id = f.id`); err != nil {
		t.Fatal(err)
	}
	_, err = w.hosts.Refresh(ctx, principal.Principal{}, c.RefreshToken, m.csr)
	t.Logf("refresh after restore: %v; audited reuse %d", err, w.audited(t, "token_reused"))
}

func TestZZExplain(t *testing.T) {
	if os.Getenv("ZZ") == "" {
		t.Skip()
	}
	url := pgtest.URL(t)
	ctx := context.Background()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { fmt.Println(n.Message) }
	db, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(ctx)
	ex := func(s string, a ...any) {
		t.Helper()
		if _, err := db.Exec(ctx, s, a...); err != nil {
			t.Fatal(s, err)
		}
	}
	ex(`INSERT INTO hosts (id, team_id, type, name, status, last_heartbeat_at, registered_at, drain_requested_at, deleted_at)
	 SELECT gen_random_uuid(), '00000000-0000-0000-0000-000000000000', 'regular', 'h'||g,
	  CASE WHEN g<=1000 THEN CASE WHEN g<=20 THEN 'draining' WHEN g<=40 THEN 'unreachable' ELSE 'online' END ELSE 'deleted' END, now() - CASE WHEN g<=40 AND g>20 THEN interval '1 hour' ELSE interval '1 second' END, now(),
	  CASE WHEN g<=20 THEN now() END, CASE WHEN g>1000 THEN now() END FROM generate_series(1,1200) g`)
	ex(`INSERT INTO host_refresh_tokens (id, host_id, public_key, token_hash, expires_at, revoked_at) SELECT gen_random_uuid(), h.id, 'x', sha256((h.id::text||g)::bytea), now()+interval '1 day', CASE WHEN g<5 THEN now() END FROM hosts h, generate_series(1,5) g`)
	ex(`INSERT INTO teams (id, name, slug) SELECT gen_random_uuid(), 't'||g, 'team-'||lpad(g::text,8,'0') FROM generate_series(1,50) g`)
	ex(`INSERT INTO templates (id, team_id, name, status) SELECT gen_random_uuid(), id, 'x', 'building' FROM teams LIMIT 1`)
	ex(`INSERT INTO sandboxes (id, team_id, host_id, template_id, template_name, image_digest, status, engine, cpu_millis, memory_mb, disk_mb, timeout_sec, on_timeout, created_by_type, created_by_id, created_by_name, ended_at, deadline_at, paused_at)
	 SELECT gen_random_uuid(), (SELECT array_agg(id) FROM teams)[1 + g % 50], h.id, (SELECT id FROM templates LIMIT 1), 'x', 'd', CASE WHEN g <= 12 THEN 'running' WHEN g<=20 THEN 'paused' ELSE 'stopped' END, 'gvisor', 1000, 512, 4096, 300, 'pause', 'user', 'u', 'u',
	  CASE WHEN g > 20 THEN now() - interval '1 day' END, CASE WHEN g<=12 THEN now() + interval '1 hour' END, CASE WHEN g>12 AND g<=20 THEN now() END
	 FROM (SELECT id FROM hosts WHERE deleted_at IS NULL) h, generate_series(1,80) g`)
	ex(`INSERT INTO operations (id, sandbox_id, team_id, kind, incarnation, status, deadline_at, finished_at) SELECT gen_random_uuid(), s.id, s.team_id, CASE WHEN g=1 THEN 'create' ELSE 'pause' END, 1, CASE WHEN g=1 THEN 'succeeded' ELSE 'failed' END, now(), now() FROM sandboxes s, generate_series(1,3) g`)
	ex(`INSERT INTO snapshots (id, team_id, kind, status, sandbox_id, incarnation, host_id, template_id, template_name, image_digest, engine, memory, cpu_millis, memory_mb, disk_mb, internet, created_by_type, created_by_id, created_by_name, digest, ready_at, deleted_at)
	 SELECT gen_random_uuid(), s.team_id, 'pause', CASE WHEN s.status='paused' THEN 'ready' ELSE 'deleted' END, s.id, 1, s.host_id, s.template_id, 'x', 'd', 'gvisor', true, 1, 1, 1, true, 'u','u','u','d', now(), CASE WHEN s.status<>'paused' THEN now() END FROM sandboxes s`)
	ex(`ANALYZE`)
	ex(`LOAD 'auto_explain'`)
	ex(`SET auto_explain.log_min_duration=0; SET auto_explain.log_analyze=on; SET auto_explain.log_level=notice; SET auto_explain.log_timing=off; SET auto_explain.log_format=text; SET plan_cache_mode=force_generic_plan`)
	var h id.Host
	if err := db.QueryRow(ctx, `SELECT id FROM hosts WHERE status='online' LIMIT 1`).Scan(&h); err != nil {
		t.Fatal(err)
	}
	var all []uuid.UUID
	rows, _ := db.Query(ctx, `SELECT id FROM hosts WHERE deleted_at IS NULL`)
	all, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	if err != nil {
		t.Fatal(err)
	}
	q, hh := sqlcgen.New(), hq.New()
	var states []uuid.UUID
	var boxes []uuid.UUID
	rows, _ = db.Query(ctx, `SELECT id FROM snapshots WHERE host_id=$1`, h)
	states, _ = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	rows, _ = db.Query(ctx, `SELECT sandbox_id FROM snapshots WHERE host_id=$1`, h)
	boxes, _ = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
	for i := range 1 { // noise
		_ = i
	}
	run := func(name string, f func() error) {
		fmt.Println("=====", name)
		tx := time.Now()
		if _, err := db.Exec(ctx, "BEGIN"); err != nil {
			t.Fatal(err)
		}
		if err := f(); err != nil {
			fmt.Println("ERR", err)
		}
		db.Exec(ctx, "ROLLBACK")
		fmt.Println("-----", name, time.Since(tx))
	}
	compute := []string{"pending", "starting", "running", "pausing", "resuming", "snapshotting", "missing"}
	run("ListHosts", func() error { _, err := hh.ListHosts(ctx, db, hq.ListHostsParams{MaxRows: 101, DrainReason: "drain", Compute: compute}); return err })
	run("Standings", func() error { _, err := hh.Standings(ctx, db, all); return err })
	run("MarkStale", func() error { _, err := hh.MarkStale(ctx, db, hq.MarkStaleParams{Reason: "x", AfterSecs: 90}); return err })
	run("TakeDraining", func() error { _, err := q.TakeDraining(ctx, db, sqlcgen.TakeDrainingParams{LeaseSecs: 4, AtOnce: 8, MaxRows: 200, Reason: "drain"}); return err })
	run("MarkMissing", func() error { _, err := q.MarkMissing(ctx, db, sqlcgen.MarkMissingParams{AfterSecs: 90, MaxRows: 500, Reason: "x"}); return err })
	run("OnHost", func() error { _, err := q.OnHost(ctx, db, sqlcgen.OnHostParams{HostID: h, Named: boxes}); return err })
	run("OnHostNil", func() error { _, err := q.OnHost(ctx, db, sqlcgen.OnHostParams{HostID: h}); return err })
	run("ReservedByHost", func() error { _, err := q.ReservedByHost(ctx, db, sqlcgen.ReservedByHostParams{Compute: compute, Hosts: all}); return err })
	run("ViewPool", func() error { _, err := q.ViewPool(ctx, db, id.PlatformTeamID); return err })
	run("Redrop", func() error { return q.Redrop(ctx, db, sqlcgen.RedropParams{Ids: states, HostID: h}) })
	run("StrayStates", func() error { _, err := q.StrayStates(ctx, db, sqlcgen.StrayStatesParams{States: states, Sandboxes: boxes, HostID: h}); return err })
	run("Reconciled", func() error { return q.Reconciled(ctx, db, sqlcgen.ReconciledParams{HostID: h, Held: boxes}) })
	run("CountLost", func() error { _, err := q.CountLostWithHost(ctx, db, h); return err })
	run("Lost", func() error { _, err := q.LostWithHost(ctx, db, sqlcgen.LostWithHostParams{HostID: h, MaxRows: 101}); return err })
	run("LockOnHost", func() error { _, err := q.LockOnHost(ctx, db, h); return err })
	run("EndOnHost", func() error { _, err := q.EndOnHost(ctx, db, sqlcgen.EndOnHostParams{HostID: h, Reason: "a", Message: "b"}); return err })
	run("DropStatesOnHost", func() error { _, err := q.DropStatesOnHost(ctx, db, sqlcgen.DropStatesOnHostParams{HostID: h, Message: "b"}); return err })
	run("Expired", func() error { _, err := q.ExpiredSandboxes(ctx, db, sqlcgen.ExpiredSandboxesParams{LookedSecs: 90, MaxRows: 200}); return err })
	run("TakeIdle", func() error { _, err := q.TakeIdle(ctx, db, sqlcgen.TakeIdleParams{LeaseSecs: 4, MaxRows: 200}); return err })
	run("TakeDropping", func() error { _, err := q.TakeDropping(ctx, db, sqlcgen.TakeDroppingParams{LeaseSecs: 4, MaxRows: 200}); return err })
	run("LeftStates", func() error { _, err := q.LeftStates(ctx, db, 200); return err })
	run("DueStrays", func() error { _, err := q.DueStrays(ctx, db, sqlcgen.DueStraysParams{HostID: h, MaxRows: 200}); return err })
	run("PruneStrays", func() error { _, err := q.PruneStrays(ctx, db, 200); return err })
	run("overflow", func() error {
		if _, err := db.Exec(ctx, `UPDATE sandboxes SET incarnation = 9223372036854775807 WHERE id = (SELECT id FROM sandboxes WHERE host_id = $1 AND ended_at IS NULL LIMIT 1)`, h); err != nil {
			return err
		}
		_, err := q.EndOnHost(ctx, db, sqlcgen.EndOnHostParams{HostID: h, Reason: "a", Message: "b"})
		return err
	})
	_ = host.TypeBYOC
}
