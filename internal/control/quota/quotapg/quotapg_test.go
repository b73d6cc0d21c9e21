package quotapg_test

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/apikey"
	"skerry.dev/skerry/internal/control/apikey/apikeypg"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/host/hostpg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/quota"
	"skerry.dev/skerry/internal/control/quota/quotapg"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/templatepg"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

func p(n int64) *int64 { return &n }

var root = principal.Principal{Kind: principal.KindUser, UserID: id.NewUser(), UserName: "root", IsAdmin: true}

// world has one host with room for everything.
type world struct {
	*sandboxtest.World
	quotas *quota.Service
	team   id.Team
	owner  principal.Principal
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{World: sandboxtest.NewWorld(t, pgtest.New(t), 4096, 4<<20)}
	w.quotas = quota.NewService(quotapg.New(w.Pool))
	w.team, w.owner = teamtest.New(t, w.Pool)
	if _, err := w.Pool.Exec(t.Context(), `UPDATE teams SET is_byoc = true WHERE id = $1`, w.team); err != nil {
		t.Fatal(err)
	}
	// A team with hosts of its own has its sandboxes there.
	if _, err := w.Pool.Exec(t.Context(), `INSERT INTO hosts (id, team_id, type, name, status, address, cpu_count, memory_bytes, disk_bytes, engines, generation, last_heartbeat_at)
		SELECT $1, $2, 'byoc', 'own', status, address, cpu_count, memory_bytes, disk_bytes, engines, generation, now() FROM hosts LIMIT 1`, id.NewHost(), w.team); err != nil {
		t.Fatal(err)
	}
	return w
}

// place takes the first host.
func place(hosts []scheduler.HostView) (scheduler.Decision, error) {
	return scheduler.Decision{Placed: true, HostID: hosts[0].ID, Engine: "fake", EngineVersion: "1"}, nil
}

// sandbox makes one at the store, where the quota is.
func (w *world) sandbox(ctx context.Context, cpuMillis, memoryMB, diskMB int64) error {
	var tpl id.Template
	if err := w.Pool.QueryRow(ctx, `SELECT id FROM templates WHERE name = 'base'`).Scan(&tpl); err != nil {
		return err
	}
	x := sandbox.Sandbox{
		ID: id.NewSandbox(), TeamID: w.team, TemplateID: tpl, TemplateName: "base", ImageDigest: "x", Status: sandbox.StatusPending, Incarnation: 1,
		CPUMillis: cpuMillis, MemoryMB: memoryMB, DiskMB: diskMB, TimeoutSec: 60, OnTimeout: sandbox.OnTimeoutPause,
		CreatedByType: "user", CreatedByID: "u", CreatedByName: "Ann",
	}
	n := sandbox.NewSandbox{Sandbox: x, Operation: sandbox.Operation{ID: id.NewOperation(), SandboxID: x.ID, TeamID: w.team, Kind: sandbox.KindCreate, Incarnation: 1}}
	_, err := w.Store.CreatePending(ctx, n, sandbox.Lease{}, place, func(h id.Host) audit.Entry { return audit.By(w.owner).SandboxCreated(w.team, x.ID, "base", h) })
	return err
}

// makers make one of each thing, and say what is left for one in an override.
func (w *world) makers() map[string]struct {
	limit quota.Override // one below
	make  func(ctx context.Context) error
} {
	keys := apikey.NewService(apikeypg.New(w.Pool), clock.System{}, slog.New(slog.DiscardHandler))
	hosts, templates := hostpg.New(w.Pool), templatepg.New(w.Pool)
	small := func(ctx context.Context) error { return w.sandbox(ctx, 500, 256, 1024) }
	return map[string]struct {
		limit quota.Override
		make  func(ctx context.Context) error
	}{
		"sandboxes": {quota.Override{Sandboxes: p(3)}, small},
		"vcpus":     {quota.Override{CPUMillis: p(1999)}, small},
		"memory_mb": {quota.Override{MemoryMB: p(3 * 256)}, small},
		"disk_mb":   {quota.Override{DiskMB: p(3*1024 + 1023)}, small},
		"api_keys": {quota.Override{APIKeys: p(3)}, func(ctx context.Context) error {
			_, err := keys.Create(ctx, w.owner, apikey.CreateRequest{Name: "k"})
			return err
		}},
		"hosts": {quota.Override{Hosts: p(4)}, func(ctx context.Context) error { // one is there
			h := id.NewHost()
			sum := sha256.Sum256([]byte(h.String()))
			_, err := hosts.Create(ctx, host.Host{ID: h, TeamID: w.team, Type: host.TypeBYOC, Name: "h"}, &w.owner.UserID,
				host.NewToken{ID: id.NewHostToken(), Hash: sum[:]}, audit.By(w.owner).HostCreated(w.team, h, "h"),
				func(host.Host, time.Time) host.Created { return host.Created{} })
			return err
		}},
		"templates": {quota.Override{Templates: p(3)}, func(ctx context.Context) error {
			tpl := id.NewTemplate()
			digest := artifact.Digest(strings.Repeat("ab", 32))
			image := id.NewArtifact()
			if _, err := w.Pool.Exec(ctx, `INSERT INTO artifacts (id, team_id, kind, status, manifest_digest, ready_at) VALUES ($1, $2, 'image', 'ready', 'x', now())`, image, w.team); err != nil {
				return err
			}
			_, err := templates.Publish(ctx, template.Template{ID: tpl, TeamID: w.team, Name: "t" + tpl.UUID().String(), Artifact: image, ImageDigest: digest, ManifestDigest: digest},
				audit.By(w.owner).TemplateBuilt(w.team, tpl, "t", true))
			return err
		}},
	}
}

func (w *world) set(t *testing.T, to quota.Override) {
	t.Helper()
	if _, err := w.quotas.Set(t.Context(), root, w.team, to); err != nil {
		t.Fatal(err)
	}
}

func TestSC06_FiftyAtOnceOneBelowEachLimit(t *testing.T) {
	for limit, m := range newWorld(t).makers() {
		t.Run(limit, func(t *testing.T) {
			w := newWorld(t)
			maker := w.makers()[limit].make
			for range 2 {
				if err := maker(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			w.set(t, m.limit)
			var mu sync.Mutex
			made := 0
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					err := maker(t.Context())
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						made++
						return
					}
					e := errs.As(err)
					if e.Reason != "quota_exceeded" || e.Code != errs.CodeExhausted || e.Details["limit"] != limit || e.Details["value"] == nil ||
						e.Details["used"] == nil || !strings.Contains(e.Message, "PUT /v1/admin/teams/"+w.team.String()+"/limits") {
						t.Errorf("refused with %v %v", err, e.Details)
					}
				})
			}
			wg.Wait()
			if made != 1 {
				t.Errorf("%d of 50 were accepted one below the limit", made)
			}
		})
	}
}

func TestQ1_CreatesAgainstAQuotaOfFive(t *testing.T) {
	w := newWorld(t)
	w.set(t, quota.Override{Sandboxes: p(5), APIKeys: p(5)})
	makers := w.makers()
	rounds := testkit.Scaled(200, 10)
	for round := range rounds {
		var mu sync.Mutex
		made := map[string]int{}
		var wg sync.WaitGroup
		for range 8 {
			for _, what := range []string{"sandboxes", "api_keys"} {
				wg.Go(func() {
					err := makers[what].make(t.Context())
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						made[what]++
					case !errs.Is(err, "quota_exceeded"):
						t.Errorf("%s: %v", what, err)
					}
				})
			}
		}
		wg.Wait()
		if made["sandboxes"] != 5 || made["api_keys"] != 5 {
			t.Fatalf("round %d: made %v", round, made)
		}
		if got, err := w.quotas.Mine(t.Context(), w.owner); err != nil || got.Used.Sandboxes != 5 || got.Used.APIKeys != 5 || got.Used.CPUMillis != 2500 || got.Used.MemoryMB != 5*256 || got.Used.DiskMB != 5*1024 {
			t.Fatalf("round %d: %+v (%v)", round, got, err)
		}
		if _, err := w.Pool.Exec(t.Context(), `UPDATE sandboxes SET status = 'stopped', ended_at = now() WHERE ended_at IS NULL`); err != nil {
			t.Fatal(err)
		}
		// A revoked key and an expired one count no longer.
		if _, err := w.Pool.Exec(t.Context(), `UPDATE team_api_keys SET revoked_at = CASE WHEN random() < 0.5 THEN now() END, expires_at = now() - interval '1 s' WHERE revoked_at IS NULL`); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d rounds", rounds)
}

func TestQ1_LimitsAreSetShownAndAudited(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	got, err := w.quotas.Mine(ctx, w.owner)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(quota.Limits{Limit: quota.Defaults(), Used: quota.Amounts{Hosts: 1}}, got); diff != "" {
		t.Error(diff)
	}
	for range 2 { // the second time nothing changes
		w.set(t, quota.Override{Sandboxes: p(0), MemoryMB: p(1 << 32), CPUMillis: p(500)})
	}
	want := quota.Defaults()
	want.Sandboxes, want.MemoryMB, want.CPUMillis = 0, 1<<32, 500
	if got, err = w.quotas.OfTeam(ctx, w.team); err != nil || got.Limit != want {
		t.Errorf("%+v (%v)", got, err)
	}
	if err := w.sandbox(ctx, 1, 1, 1); !errs.Is(err, "quota_exceeded") {
		t.Errorf("with a limit of none: %v", err)
	}
	w.set(t, quota.Override{Hosts: p(7)}) // what is left out is the default again
	want = quota.Defaults()
	want.Hosts = 7
	if got, err = w.quotas.OfTeam(ctx, w.team); err != nil || got.Limit != want {
		t.Errorf("%+v (%v)", got, err)
	}
	var audited int
	if err := w.Pool.QueryRow(ctx, `SELECT count(*) FROM audit_logs WHERE team_id = $1 AND action = 'limits_update' AND scope = 'admin'`, w.team).Scan(&audited); err != nil || audited != 2 {
		t.Errorf("%d entries (%v)", audited, err)
	}
	for _, bad := range []quota.Override{{Sandboxes: p(-1)}, {Sandboxes: p(1 << 31)}, {CPUMillis: p(1 << 62)}, {MemoryMB: p(1<<32 + 1)}, {APIKeys: p(10_001)}, {StoredMB: p(-5)}} {
		_, err := w.quotas.Set(ctx, root, w.team, bad)
		if e := errs.As(err); err == nil || e.Code != errs.CodeInvalid || !strings.Contains(e.Message, "between 0 and") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, of := range []id.Team{id.PlatformTeamID, id.NewTeam()} {
		if _, err := w.quotas.OfTeam(ctx, of); !errs.Is(err, "team_not_found") {
			t.Errorf("%s: %v", of, err)
		}
		if _, err := w.quotas.Set(ctx, root, of, quota.Override{}); !errs.Is(err, "team_not_found") {
			t.Errorf("%s: %v", of, err)
		}
	}
}

func TestQ1_SavedBytesCount(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	if err := w.sandbox(ctx, 500, 256, 1024); err != nil {
		t.Fatal(err)
	}
	save := func(bytes int64) {
		t.Helper()
		if _, err := w.Pool.Exec(ctx, `INSERT INTO snapshots (id, team_id, kind, status, digest, ready_at, sandbox_id, incarnation, host_id, template_id, template_name, image_digest, engine,
				memory, cpu_millis, memory_mb, disk_mb, internet, size_bytes, created_by_type, created_by_id, created_by_name)
			SELECT $1, team_id, 'pause', 'ready', 'd', now(), id, 1, host_id, template_id, 'base', 'x', 'fake', true, 500, 256, 1024, true, $2, 'user', 'u', 'Ann' FROM sandboxes`,
			id.NewSnapshot(), bytes); err != nil {
			t.Fatal(err)
		}
	}
	save(3 << 20)
	save(1)
	w.set(t, quota.Override{StoredMB: p(4)})
	if got, err := w.quotas.Mine(ctx, w.owner); err != nil || got.Used.StoredMB != 4 || got.Limit.StoredMB != 4 {
		t.Errorf("%+v (%v)", got, err)
	}
	check := func(want quota.Want) error {
		return pg.InTx(ctx, w.Pool, func(ctx context.Context, tx pgx.Tx) error { return quotapg.Check(ctx, tx, w.team, want) })
	}
	if err := check(quota.Want{StoredMB: 1}); !errs.Is(err, "quota_exceeded") {
		t.Errorf("above: %v", err)
	}
	if err := check(quota.Want{Sandboxes: 1}); err != nil {
		t.Errorf("one limit is reached and another thing is refused: %v", err)
	}
}

func TestLL05_AllLimitsAndUseAreOneQuery(t *testing.T) {
	w := newWorld(t)
	counter := &queries{}
	cfg := w.Pool.Config()
	cfg.ConnConfig.Tracer = counter
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := quotapg.New(pool).Limits(t.Context(), w.team); err != nil {
		t.Fatal(err)
	}
	counter.n = 0
	if _, err := quotapg.New(pool).Limits(t.Context(), w.team); err != nil || counter.n != 1 {
		t.Errorf("%d queries (%v)", counter.n, err)
	}
}

type queries struct{ n int }

func (q *queries) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	q.n++
	return ctx
}

func (*queries) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
