package sandboxpg_test

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg/pgtest"
)

func TestC4_AWalkSeesEachRowOnceInOneMicrosecond(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	ctx := context.Background()
	const rows = 1000
	insert := func(n int) {
		t.Helper()
		for i := range n {
			status, ended := "running", "NULL"
			if i%10 == 0 {
				status, ended = "stopped", "now()"
			}
			if _, err := w.Pool.Exec(ctx, fmt.Sprintf(`INSERT INTO sandboxes (id, team_id, host_id, template_id, template_name, image_digest, status, engine,
				cpu_millis, memory_mb, disk_mb, metadata, timeout_sec, on_timeout, created_by_type, created_by_id, created_by_name, created_at, ended_at)
				SELECT $1, $2, $3, id, name, image_digest, '%s', 'fake', 1, 1, 1, jsonb_build_object('n', $4::text), 300, 'pause', 'user', '', '', '2026-01-01', %s FROM templates`,
				status, ended), id.NewSandbox(), w.Team, w.Hosts[0], fmt.Sprint(i%4)); err != nil {
				t.Fatal(err)
			}
		}
	}
	insert(rows)
	walk := func(f sandbox.Filter, during func()) map[id.Sandbox]int {
		t.Helper()
		f.TeamID = w.Team
		seen := map[id.Sandbox]int{}
		p := page.Request{Limit: 77}
		for {
			got, err := w.Store.List(ctx, f, p)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range got.Items {
				seen[x.ID]++
			}
			if p.Cursor = got.NextCursor; p.Cursor == "" {
				return seen
			}
			during()
		}
	}
	all := append([]sandbox.Status{}, sandbox.Statuses()...)
	stable := walk(sandbox.Filter{Statuses: all}, func() {})
	turned := walk(sandbox.Filter{Statuses: all, OldestFirst: true, Since: time.Date(2025, 12, 30, 0, 0, 0, 0, time.UTC)}, func() {})
	if !maps.Equal(stable, turned) {
		t.Errorf("the other way round a walk saw %d, not the same %d once each", len(turned), len(stable))
	}
	seen := walk(sandbox.Filter{Statuses: all}, func() { insert(3) })
	if late := walk(sandbox.Filter{Statuses: all, OldestFirst: true, Since: time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)}, func() {}); len(late) != 0 {
		t.Errorf("%d began after they did", len(late))
	}
	if len(stable) != rows {
		t.Errorf("a walk saw %d of %d", len(stable), rows)
	}
	for x := range stable {
		if seen[x] != 1 {
			t.Fatalf("a stable row was seen %d times", seen[x])
		}
	}
	for name, c := range map[string]struct {
		f    sandbox.Filter
		want func(sandbox.Sandbox) bool
	}{
		"live only":   {sandbox.Filter{}, func(x sandbox.Sandbox) bool { return x.EndedAt == nil }},
		"by status":   {sandbox.Filter{Statuses: []sandbox.Status{sandbox.StatusStopped}}, func(x sandbox.Sandbox) bool { return x.Status == sandbox.StatusStopped }},
		"by metadata": {sandbox.Filter{Metadata: map[string]string{"n": "2"}}, func(x sandbox.Sandbox) bool { return x.Metadata["n"] == "2" && x.EndedAt == nil }},
	} {
		got, err := w.Store.List(ctx, sandbox.Filter{TeamID: w.Team, Statuses: c.f.Statuses, Metadata: c.f.Metadata}, page.Request{Limit: 200})
		if err != nil || len(got.Items) == 0 {
			t.Errorf("%s: %d rows (%v)", name, len(got.Items), err)
		}
		for _, x := range got.Items {
			if !c.want(x) {
				t.Errorf("%s: got %s %v", name, x.Status, x.Metadata)
			}
		}
	}
	if got, err := w.Store.List(ctx, sandbox.Filter{TeamID: w.Team, Template: "other"}, page.Request{Limit: 1}); err != nil || len(got.Items) != 0 {
		t.Errorf("another template: %d (%v)", len(got.Items), err)
	}
	for _, junk := range []string{"x", "bnVsbA", "e30", "e30x"} {
		if _, err := w.Store.List(ctx, sandbox.Filter{TeamID: w.Team}, page.Request{Limit: 1, Cursor: junk}); !errs.Is(err, "invalid_cursor") {
			t.Errorf("junk cursor %q: %v", junk, err)
		}
	}
}

func TestS1_BadRequestsNameTheField(t *testing.T) {
	ok := sandbox.CreateRequest{Template: "base"}
	if err := ok.Validate(); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(*sandbox.CreateRequest){
		"template":         func(r *sandbox.CreateRequest) { r.Template = "" },
		"vcpus":            func(r *sandbox.CreateRequest) { r.VCPUs = p(0.0) },
		"memory_mb":        func(r *sandbox.CreateRequest) { r.MemoryMB = p(int64(1)) },
		"disk_mb":          func(r *sandbox.CreateRequest) { r.DiskMB = p(int64(1) << 40) },
		"timeout_sec":      func(r *sandbox.CreateRequest) { r.TimeoutSec = p(int64(2592001)) },
		"idle_timeout_sec": func(r *sandbox.CreateRequest) { r.IdleTimeoutSec = p(int64(0)) },
		"on_timeout":       func(r *sandbox.CreateRequest) { r.OnTimeout = "explode" },
		"metadata":         func(r *sandbox.CreateRequest) { r.Metadata = map[string]string{"a\x00": "b"} },
		"env":              func(r *sandbox.CreateRequest) { r.Env = map[string]string{"A=B": ""} },
	} {
		r := ok
		change(&r)
		if err := r.Validate(); errs.CodeOf(err) != errs.CodeInvalid || errs.As(err).Details["field"] != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// What stays as it is costs those who wait for it no row, however long they wait.
func TestSeenTellsOnlyWhatChanged(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	still, moved := create(t, w, s, request()), create(t, w, s, request())
	before := map[id.Sandbox]time.Time{still.ID: {}, moved.ID: {}}
	got, err := w.Store.Seen(ctx, before)
	if err != nil || len(got) != 2 {
		t.Fatalf("the first look sees %d (%v), want both", len(got), err)
	}
	for _, x := range got {
		before[x.ID] = x.UpdatedAt
	}
	if got, err := w.Store.Seen(ctx, before); err != nil || len(got) != 0 {
		t.Errorf("the second look sees %d (%v), want nothing", len(got), err)
	}
	if err := s.Service.Delete(ctx, w.User(), moved.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := w.Store.Seen(ctx, before); err != nil || len(got) != 1 || got[0].ID != moved.ID || got[0].Status != sandbox.StatusStopped {
		t.Errorf("after a delete it sees %v (%v)", got, err)
	}
}
