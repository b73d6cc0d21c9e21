package artifactpg_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/kernel/id"
)

// carriers bring engines to the store as hosts do.
type carriers struct {
	w     *world
	asked []host.EngineCargo
	fail  bool
	lie   bool
}

func (c *carriers) Upload(ctx context.Context, h host.Ref, what host.Cargo, _ content.Source, progress host.Progress) (host.Uploaded, error) {
	e := what.(host.EngineCargo)
	c.asked = append(c.asked, e)
	if c.fail {
		return host.Uploaded{}, errors.New("no")
	}
	if c.lie {
		return host.Uploaded{}, nil
	}
	progress(1, 2)
	var a id.Artifact
	err := c.w.pool.QueryRow(ctx, `SELECT b.artifact_id FROM engine_builds b JOIN hosts h ON h.id = $1 AND h.team_id = b.team_id WHERE b.digest = $2`, h.ID, e.Digest).Scan(&a)
	if err != nil {
		return host.Uploaded{}, err
	}
	return host.Uploaded{}, c.w.upload(ctx, a, h.ID, whole, []byte(e.Digest))
}

func (w *world) says(h id.Host, current, kept string) {
	w.t.Helper()
	e := scheduler.Engine{Name: "gvisor", Version: current, Digest: strings.Repeat(current, 64)[:64], Healthy: true}
	if kept != "" {
		e.Builds = []scheduler.EngineBuild{{Version: kept, Digest: strings.Repeat(kept, 64)[:64]}}
	}
	w.exec(`UPDATE hosts SET engines = $2, arch = 'amd64', address = 'h:1' WHERE id = $1`, h, host.EnginesJSON([]scheduler.Engine{e, {Name: "fake", Version: "1", Healthy: true}}))
}

// TestP7_TheStoreHasEachBuildOfAnEngine: what hosts say they have is brought to
// the store, once, for those who may run it; what fails is tried again, and what
// neither a host has nor a state needs is forgotten.
func TestP7_TheStoreHasEachBuildOfAnEngine(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	c := &carriers{w: w, fail: true}
	s := w.service()
	keeper := artifact.NewEngineKeeper(w.rows, c, s, slog.New(slog.DiscardHandler))
	pass := func(want int) {
		t.Helper()
		c.asked = nil
		if err := keeper.Pass(ctx); (err != nil) != (c.fail || c.lie) {
			t.Errorf("the pass: %v", err)
		}
		if len(c.asked) != want {
			t.Errorf("%d uploads were asked for, want %d: %v", len(c.asked), want, c.asked)
		}
	}
	first, second, own := w.host(id.PlatformTeamID), w.host(id.PlatformTeamID), w.host(w.team)
	w.says(first, "a", "b")
	w.says(second, "a", "")
	w.says(own, "a", "")
	pass(3)
	c.fail = false
	pass(0) // not yet
	again := func() { w.exec(`UPDATE engine_builds SET upload_at = now() WHERE upload_at IS NOT NULL`) }
	again()
	c.lie = true
	pass(3)
	c.lie = false
	again()
	pass(3)
	pass(0)
	// The team's is the team's: its hosts may have both, others' only the platform's.
	for _, b := range []struct {
		team id.Team
		own  bool
	}{{id.PlatformTeamID, true}, {w.team, false}} {
		var a id.Artifact
		if err := w.pool.QueryRow(ctx, `SELECT artifact_id FROM engine_builds WHERE team_id = $1 AND version = 'a'`, b.team).Scan(&a); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Source(ctx, a, own, artifact.Read); err != nil {
			t.Errorf("the team's host: %v", err)
		}
		if _, err := s.Source(ctx, a, first, artifact.Read); (err == nil) != b.own {
			t.Errorf("a regular host, of %s: %v", b.team, err)
		}
	}
	w.settle()
	if n := w.count(`SELECT count(*) FROM engine_builds b JOIN artifacts a ON a.id = b.artifact_id AND a.status = 'ready'`); n != 3 {
		t.Errorf("%d builds are there, want 3", n)
	}
	// One that is gone from the store is brought again.
	w.exec(`UPDATE engine_builds SET artifact_id = NULL WHERE version = 'b'`)
	pass(1)
	// Nobody has b any more, but a state needs it; nor a, which nothing does.
	w.says(first, "c", "")
	w.says(second, "c", "")
	w.exec(`UPDATE engine_builds SET seen_at = now() - interval '8 days'`)
	tpl := id.NewTemplate()
	w.exec(`INSERT INTO templates (id, team_id, name, status, image_digest, manifest_digest) VALUES ($1, $2, 'x', 'ready', 'x', 'x')`, tpl, w.team)
	w.exec(`INSERT INTO snapshots (id, team_id, kind, status, sandbox_id, incarnation, host_id, template_id, template_name, image_digest, engine, engine_version, memory,
		cpu_millis, memory_mb, disk_mb, internet, digest, ready_at, created_by_type, created_by_id, created_by_name)
		VALUES ($1, $2, 'pause', 'ready', $3, 1, $4, $5, 'x', 'x', 'gvisor', 'b', true, 1, 1, 1, true, 'x', now(), 'user', 'x', 'x')`,
		id.NewSnapshot(), w.team, id.NewSandbox(), first, tpl)
	pass(1)
	rows, err := w.pool.Query(ctx, `SELECT version FROM engine_builds ORDER BY team_id, version`)
	if err != nil {
		t.Fatal(err)
	}
	var left string
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			t.Fatal(err)
		}
		left += v
	}
	if left != "bca" { // the platform's b and c, and the team's own a, which its host still has
		t.Errorf("builds %q are left", left)
	}
}

// TestP7_ATeamsMachinesHoldUpNoBuildOfThePlatforms: they may say that they have
// any number of builds.
func TestP7_ATeamsMachinesHoldUpNoBuildOfThePlatforms(t *testing.T) {
	w := newWorld(t)
	own, ours := w.host(w.team), w.host(id.PlatformTeamID)
	many := make([]scheduler.EngineBuild, 20)
	for i := range many {
		many[i] = scheduler.EngineBuild{Version: fmt.Sprint(i), Digest: strings.Repeat(fmt.Sprintf("%02x", i), 32)}
	}
	w.exec(`UPDATE hosts SET engines = $2, arch = 'amd64', address = 'h:1' WHERE id = $1`, own,
		host.EnginesJSON([]scheduler.Engine{{Name: "gvisor", Version: "own", Digest: strings.Repeat("e", 64), Healthy: true, Builds: many}}))
	c := &carriers{w: w}
	keeper := artifact.NewEngineKeeper(w.rows, c, w.service(), slog.New(slog.DiscardHandler))
	if err := keeper.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.says(ours, "a", "")
	c.asked = nil
	if err := keeper.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(c.asked) == 0 || c.asked[0].Version != "a" {
		t.Errorf("asked for %v", c.asked)
	}
}
