package auditpg_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/audittrail"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
)

func (w *world) pruner(keep audit.Retention) *audit.Pruner {
	return audit.NewPruner(w.store, keep, slog.New(slog.DiscardHandler))
}

func TestL5_RetentionIsWholeDays(t *testing.T) {
	for text, want := range map[string]audit.Retention{"": 0, "forever": 0, "1d": audit.MinRetention, "1": audit.MinRetention, "365d": 365 * audit.MinRetention} {
		if got, err := audit.ParseRetention(text); err != nil || got != want {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"0", "0d", "-1d", "24h", "1.5d", "d", "99999999d", "9223372036854775808", "year"} {
		if got, err := audit.ParseRetention(bad); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}

func TestL5_RetentionIsRecordedAndTheRestVerifies(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 3)
	old, mixed, young := w.teams[0], w.teams[1], w.teams[2]
	w.fill(t, old, 12_000, 40*24*time.Hour) // more than two batches
	w.fill(t, mixed, 30, 40*24*time.Hour)
	w.fill(t, mixed, 10, 0)
	w.fill(t, young, 10, 29*24*time.Hour)
	if err := w.append(entryOf(id.PlatformTeamID, "p")); err != nil { // whose id sorts first of all
		t.Fatal(err)
	}
	w.backdate(t, id.PlatformTeamID, 40*24*time.Hour)

	if err := w.pruner(0).Prune(ctx); err != nil {
		t.Fatal(err)
	}
	if n := w.count(t, "SELECT count(*) FROM audit_logs"); n != 12_051 {
		t.Fatalf("without retention %d entries are left", n)
	}
	if err := w.pruner(30 * audit.MinRetention).Prune(ctx); err != nil {
		t.Fatal(err)
	}
	for team, want := range map[id.Team]audittrail.Report{
		old:               {First: 12_001, Last: 12_003, Entries: 3}, // three batches, each recorded
		mixed:             {First: 31, Last: 41, Entries: 11},
		young:             {First: 1, Last: 10, Entries: 10},
		id.PlatformTeamID: {First: 2, Last: 2, Entries: 1},
	} {
		got := w.whole(t, team)
		if got.First != want.First || got.Last != want.Last || got.Entries != want.Entries {
			t.Errorf("%s: %d to %d, %d entries; want %+v", team, got.First, got.Last, got.Entries, want)
		}
	}
	if n := w.count(t, `SELECT sum((metadata->>'removed')::int) FROM audit_logs WHERE resource_type = 'audit' AND action = 'prune' AND actor_type = 'system'
		AND scope = 'admin' AND actor_id = 'audit retention'`); n != 12_031 {
		t.Errorf("%d removals are recorded, want 12031", n)
	}
	if n := w.count(t, `SELECT (metadata->>'up_to_seq')::int FROM audit_logs WHERE action = 'prune' AND team_id = $1`, mixed.UUID()); n != 30 {
		t.Errorf("recorded up to %d, want 30", n)
	}

	// A second look removes nothing and records nothing; entries about removals
	// alone do not go, or they would follow each other for ever.
	before := w.count(t, "SELECT count(*) FROM audit_logs")
	w.backdate2(t, old)
	for range 2 {
		if err := w.pruner(30 * audit.MinRetention).Prune(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.count(t, "SELECT count(*) FROM audit_logs"); n != before {
		t.Errorf("%d entries became %d", before, n)
	}
	// But they go along with others.
	if err := w.append(entryOf(old, "later")); err != nil {
		t.Fatal(err)
	}
	w.backdate2(t, old)
	if err := w.pruner(30 * audit.MinRetention).Prune(ctx); err != nil {
		t.Fatal(err)
	}
	if n := w.count(t, "SELECT count(*) FROM audit_logs WHERE team_id = $1", old.UUID()); n != 1 {
		t.Errorf("%d entries of the old team are left, want the one of the removal", n)
	}
}

// backdate2 makes a team's entries old without their hashes.
func (w *world) backdate2(t testing.TB, team id.Team) {
	t.Helper()
	for _, sql := range []string{
		"ALTER TABLE audit_logs DISABLE TRIGGER audit_logs_append_only",
		fmt.Sprintf("UPDATE audit_logs SET created_at = now() - interval '50 days' WHERE team_id = '%s'", team.UUID()),
		"ALTER TABLE audit_logs ENABLE ALWAYS TRIGGER audit_logs_append_only",
	} {
		if _, err := w.owner.Exec(context.Background(), sql); err != nil {
			t.Fatal(err)
		}
	}
}

func TestL5_PrunersAndWritersAtOnce(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 2)
	for _, team := range w.teams {
		w.fill(t, team, 6000, 3*24*time.Hour)
	}
	var wg sync.WaitGroup
	for range 3 { // servers
		wg.Go(func() {
			if err := w.pruner(audit.MinRetention).Prune(ctx); err != nil {
				t.Errorf("prune: %v", err)
			}
		})
	}
	for i := range 8 {
		wg.Go(func() {
			for range 20 {
				if err := w.append(entryOf(w.teams[i%2], "a"), entryOf(w.teams[(i+1)%2], "b")); err != nil {
					t.Errorf("append: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for _, team := range w.teams {
		if r := w.whole(t, team); r.First != 6001 || r.Entries != 160+2 {
			t.Errorf("%s: %+v", team, r)
		}
	}
}

func TestL2_TheDatabaseKeepsADayAtLeast(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 1)
	w.fill(t, w.teams[0], 5, 12*time.Hour)
	for name, sql := range map[string]string{
		"now":        "SELECT prune_audit_logs($1, now(), 100)",
		"future":     "SELECT prune_audit_logs($1, now() + interval '1 year', 100)",
		"almost":     "SELECT prune_audit_logs($1, now() - interval '23 hours', 100)",
		"null":       "SELECT prune_audit_logs($1, NULL, 100)",
		"everything": "SELECT prune_audit_logs($1, now() - interval '2 days', 1000000)",
		"nothing":    "SELECT prune_audit_logs($1, now() - interval '2 days', 0)",
	} {
		if _, err := w.pool.Exec(ctx, sql, w.teams[0].UUID()); err == nil {
			t.Errorf("%s passes", name)
		}
	}
	// A table of the caller's own cannot lead the function astray.
	if _, err := w.pool.Exec(ctx, "CREATE TEMP TABLE audit_heads AS SELECT team_id, seq, hash, 5::bigint AS anchor_seq, hash AS anchor_hash FROM audit_heads"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.pool.Exec(ctx, "SELECT prune_audit_logs($1, now() - interval '2 days', 100)", w.teams[0].UUID()); err != nil {
		t.Error(err)
	}
	if n := w.count(t, "SELECT count(*) FROM audit_logs"); n != 5 {
		t.Errorf("%d entries are left", n)
	}
}

func TestL1_OldCountsOfRefusalsGo(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, 0)
	var counts []audit.RefusalCount
	for i := range 100 {
		counts = append(counts, audit.RefusalCount{RefusalKey: audit.RefusalKey{
			IP: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i)), Reason: "invalid_token", Minute: time.Now().UTC().Truncate(time.Minute).Add(-time.Duration(i) * 24 * time.Hour),
		}, Count: 2})
	}
	var wg sync.WaitGroup
	for range 4 { // servers that count the same
		wg.Go(func() {
			if err := w.store.AddRefusals(ctx, counts); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := w.count(t, "SELECT sum(count) FROM refusal_counts"); n != 800 {
		t.Errorf("%d refusals, want 800", n)
	}
	if err := w.pruner(0).Prune(ctx); err != nil {
		t.Fatal(err)
	}
	if n := w.count(t, "SELECT count(*) FROM refusal_counts"); n != 90 {
		t.Errorf("%d counts are left, want those of 90 days", n)
	}
}

// Names that a client chose come back as they were, and still verify.
func TestL2_AnyTextSurvives(t *testing.T) {
	w := newWorld(t, 1)
	by := audit.By(principal.Principal{Kind: principal.KindUser, UserName: "a\u2028b <&> \"\\ \u00e9\t\x7f", RequestID: "r"})
	for _, name := range []string{"", "<script>", "\u0001\u2029", strings.Repeat("é", 1000), "{\"seq\":1}\n{\"head\":", "\xff\xfe", "\x00"} {
		e := by.APIKeyCreated(w.teams[0], id.NewAPIKey(), name)
		if err := w.append(e); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	if r := w.whole(t, w.teams[0]); r.Entries != 7 {
		t.Errorf("%+v", r)
	}
}
