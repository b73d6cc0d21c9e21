package auditpg_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/audittrail"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// world is a database with a few teams and a key for exports.
type world struct {
	pool   *pgxpool.Pool
	owner  *pgxpool.Pool
	store  *auditpg.Store
	trail  *audit.Trail
	teams  []id.Team
	public ed25519.PublicKey
	sign   ed25519.PrivateKey
}

func newWorld(t testing.TB, teams int) *world {
	t.Helper()
	w := &world{pool: pgtest.New(t)}
	w.owner = pgtest.Owner(t, w.pool)
	w.store = auditpg.New(w.pool)
	var err error
	if w.public, w.sign, err = ed25519.GenerateKey(nil); err != nil {
		t.Fatal(err)
	}
	w.trail = audit.NewTrail(w.store, w, clock.System{})
	for range teams {
		w.teams = append(w.teams, w.team(t))
	}
	return w
}

// AuditSigner implements audit.Signer.
func (w *world) AuditSigner() (string, func([]byte) []byte) {
	return "k1", func(m []byte) []byte { return ed25519.Sign(w.sign, m) }
}

func (w *world) keys(string) (ed25519.PublicKey, bool) { return w.public, true }

// team makes one with an owner, as the database wants it.
func (w *world) team(t testing.TB) id.Team {
	t.Helper()
	team, user := id.NewTeam(), id.NewUser()
	x := team.UUID()
	slug := fmt.Sprintf("%x-%x", x[10:13], x[13:16])
	err := pg.InTx(context.Background(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO users (id, email, name) VALUES ($1, $2, 'Ada')", user, slug+"@example.org"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "INSERT INTO teams (id, name, slug) VALUES ($1, 'T', $2)", team, slug); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO users_teams (user_id, team_id, role) VALUES ($1, $2, 'owner')", user, team)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return team
}

func entryOf(team id.Team, name string) audit.Entry {
	by := principal.Principal{Kind: principal.KindUser, UserID: id.NewUser(), UserName: "Ada", RequestID: "r-1", IP: netip.MustParseAddr("2001:db8::1")}
	return audit.By(by).APIKeyCreated(team, id.NewAPIKey(), name)
}

func (w *world) append(entries ...audit.Entry) error {
	return pg.InTx(context.Background(), w.pool, func(ctx context.Context, tx pgx.Tx) error { return auditpg.Append(ctx, tx, entries...) })
}

// fill gives a team n entries, the last at one moment ago or, with age, all of
// them that old.
func (w *world) fill(t testing.TB, team id.Team, n int, age time.Duration) {
	t.Helper()
	for done := 0; done < n; {
		batch := make([]audit.Entry, min(1000, n-done))
		for i := range batch {
			batch[i] = entryOf(team, fmt.Sprint(done+i))
		}
		if err := w.append(batch...); err != nil {
			t.Fatal(err)
		}
		done += len(batch)
	}
	if age > 0 {
		w.backdate(t, team, age)
	}
}

// backdate rewrites a team's chain as if it had been written earlier; only the
// owner, with the triggers off, can.
func (w *world) backdate(t testing.TB, team id.Team, age time.Duration) {
	t.Helper()
	ctx := context.Background()
	var records []audit.Record
	if _, err := w.store.Export(ctx, team, func(audittrail.Point) error { return nil }, func(r audit.Record) error {
		records = append(records, r)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	tx, err := w.owner.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx) // after the commit it does nothing
	if _, err := tx.Exec(ctx, "ALTER TABLE audit_logs DISABLE TRIGGER audit_logs_append_only"); err != nil {
		t.Fatal(err)
	}
	var hash audit.Hash
	batch := &pgx.Batch{}
	for _, r := range records {
		r.At = r.At.Add(-age)
		hash = r.After(hash)
		batch.Queue("UPDATE audit_logs SET created_at = $2, hash = $3 WHERE id = $1", r.ID.UUID(), r.At, bytes.Clone(hash[:]))
	}
	batch.Queue("UPDATE audit_heads SET hash = $2 WHERE team_id = $1", team.UUID(), bytes.Clone(hash[:]))
	batch.Queue("ALTER TABLE audit_logs ENABLE ALWAYS TRIGGER audit_logs_append_only")
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
}

func (w *world) count(t testing.TB, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := w.owner.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (w *world) export(t testing.TB, team id.Team) string {
	t.Helper()
	var file bytes.Buffer
	if err := w.trail.ExportOf(context.Background(), team, &file); err != nil {
		t.Fatal(err)
	}
	return file.String()
}

// whole exports a team's trail and verifies it.
func (w *world) whole(t testing.TB, team id.Team) audittrail.Report {
	t.Helper()
	report, err := audittrail.Verify(strings.NewReader(w.export(t, team)), w.keys)
	if err != nil {
		t.Fatalf("the trail does not verify: %v", err)
	}
	return report
}

func TestL2_FiftyWritersOnOneChain(t *testing.T) {
	w := newWorld(t, 1)
	const writers, each = 50, 20
	started := time.Now()
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for j := range each {
				if err := w.append(entryOf(w.teams[0], fmt.Sprint(i, j))); err != nil {
					t.Errorf("append: %v", err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%.0f appends/s by %d writers on one chain", writers*each/time.Since(started).Seconds(), writers)
	if r := w.whole(t, w.teams[0]); r.Entries != writers*each || r.Last != writers*each {
		t.Errorf("the chain has %d entries up to %d", r.Entries, r.Last)
	}
	if n := w.count(t, "SELECT count(*) FROM outbox WHERE kind = 'api_key.create' AND team_id = $1", w.teams[0].UUID()); n != writers*each {
		t.Errorf("%d events for %d entries", n, writers*each)
	}
}

func TestL2_SeveralChainsInAnyOrder(t *testing.T) {
	w := newWorld(t, 6)
	const writers, each = 16, 15
	var wg sync.WaitGroup
	var mu sync.Mutex
	want := map[id.Team]int64{}
	for range writers {
		wg.Go(func() {
			for range each {
				var entries []audit.Entry
				for _, i := range rand.Perm(len(w.teams))[:3] {
					entries = append(entries, entryOf(w.teams[i], "a"), entryOf(w.teams[i], "b"))
				}
				rand.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
				tx, err := w.pool.Begin(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				// Without InTx, which would hide a deadlock by trying again.
				if err = auditpg.Append(context.Background(), tx, entries...); err == nil {
					err = tx.Commit(context.Background())
				}
				if err != nil {
					_ = tx.Rollback(context.Background())
					t.Errorf("append to three chains: %v", err)
					return
				}
				mu.Lock()
				for _, e := range entries {
					want[e.TeamID]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for _, team := range w.teams {
		if r := w.whole(t, team); r.Entries != want[team] {
			t.Errorf("%s has %d entries, want %d", team, r.Entries, want[team])
		}
	}
}

func TestAU01_NoChangeNoEntryAndNoEntryNoChange(t *testing.T) {
	w := newWorld(t, 1)
	ctx := context.Background()
	change := func(then error) error {
		return pg.InTx(ctx, w.pool, func(ctx context.Context, tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "UPDATE teams SET name = 'changed' WHERE id = $1", w.teams[0].UUID()); err != nil {
				return err
			}
			return errors.Join(auditpg.Append(ctx, tx, entryOf(w.teams[0], "k")), then)
		})
	}
	rows := func() int {
		return w.count(t, "SELECT (SELECT count(*) FROM audit_logs) + (SELECT count(*) FROM outbox) + (SELECT count(*) FROM audit_heads) + (SELECT count(*) FROM teams WHERE name = 'changed')")
	}
	if err := change(errors.New("no")); err == nil || rows() != 0 {
		t.Errorf("rolled back (%v), %d rows are there", err, rows())
	}
	for _, table := range []string{"audit_logs", "outbox", "audit_heads"} {
		if _, err := w.owner.Exec(ctx, "ALTER TABLE "+table+" ADD CONSTRAINT broken CHECK (false) NOT VALID"); err != nil {
			t.Fatal(err)
		}
		if err := change(nil); err == nil || rows() != 0 {
			t.Errorf("without %s: %v, %d rows are there", table, err, rows())
		}
		if _, err := w.owner.Exec(ctx, "ALTER TABLE "+table+" DROP CONSTRAINT broken"); err != nil {
			t.Fatal(err)
		}
	}
	huge := entryOf(w.teams[0], strings.Repeat("x", 20_000))
	if err := w.append(huge); err == nil || rows() != 0 {
		t.Errorf("an entry of 20 kB: %v", err)
	}
	if err := change(nil); err != nil || rows() != 4 {
		t.Errorf("in order: %v, %d rows", err, rows())
	}
	w.whole(t, w.teams[0])
}

// What somebody with the owner's powers does to the rows, the export shows.
func TestAU04_TamperedRowsAreFound(t *testing.T) {
	for name, tt := range map[string]struct {
		sql  string
		kind audittrail.Kind
		seq  int64
	}{
		"metadata":  {`UPDATE audit_logs SET metadata = '{"name":"other"}' WHERE seq = 5`, audittrail.Changed, 5},
		"actor":     {`UPDATE audit_logs SET actor_id = 'usr-other' WHERE seq = 5`, audittrail.Changed, 5},
		"address":   {`UPDATE audit_logs SET ip = NULL WHERE seq = 5`, audittrail.Changed, 5},
		"removed":   {`DELETE FROM audit_logs WHERE seq = 5`, audittrail.Removed, 5},
		"swapped":   {`UPDATE audit_logs SET seq = CASE seq WHEN 5 THEN 6 ELSE 5 END WHERE seq IN (5, 6)`, audittrail.Reordered, 5},
		"cut off":   {`DELETE FROM audit_logs WHERE seq > 7`, audittrail.CutOff, 7},
		"beginning": {`DELETE FROM audit_logs WHERE seq < 4; UPDATE audit_heads SET anchor_seq = 3`, audittrail.Changed, 4},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			w.fill(t, w.teams[0], 10, 0)
			ctx := context.Background()
			for _, sql := range []string{
				"ALTER TABLE audit_logs DISABLE TRIGGER audit_logs_append_only; ALTER TABLE audit_logs DROP CONSTRAINT audit_logs_team_id_seq_key", tt.sql,
			} {
				if _, err := w.owner.Exec(ctx, sql); err != nil {
					t.Fatal(err)
				}
			}
			_, err := audittrail.Verify(strings.NewReader(w.export(t, w.teams[0])), w.keys)
			var fault *audittrail.Fault
			if !errors.As(err, &fault) || fault.Kind != tt.kind || fault.Seq != tt.seq {
				t.Errorf("%v, want %s of %d", err, tt.kind, tt.seq)
			}
		})
	}
}

func TestL2_ExportOfNobodyIsNotFound(t *testing.T) {
	w := newWorld(t, 1)
	if err := w.trail.ExportOf(context.Background(), id.NewTeam(), io.Discard); !errs.Is(err, "team_not_found") {
		t.Errorf("export of nobody: %v", err)
	}
	if r := w.whole(t, w.teams[0]); r.Entries != 0 || r.Last != 0 {
		t.Errorf("an empty trail: %+v", r)
	}
}

// An export is of one moment, whatever is written and removed meanwhile.
func TestL2_ExportIsOneSnapshot(t *testing.T) {
	w := newWorld(t, 1)
	w.fill(t, w.teams[0], 1200, 48*time.Hour)
	var file bytes.Buffer
	busy := &meanwhile{w: &file, do: func() {
		w.fill(t, w.teams[0], 3, 0)
		if _, err := w.store.Prune(context.Background(), w.teams[0], 24*time.Hour, 1000, func(n, upTo int64) audit.Entry {
			return audit.By(principal.System("test")).Pruned(w.teams[0], n, upTo)
		}); err != nil {
			t.Error(err)
		}
		if err := w.trail.ExportOf(context.Background(), w.teams[0], io.Discard); !errors.Is(err, audit.ErrBusy) {
			t.Errorf("a second export of the same team: %v", err)
		}
	}}
	if err := w.trail.ExportOf(context.Background(), w.teams[0], busy); err != nil {
		t.Fatal(err)
	}
	report, err := audittrail.Verify(&file, w.keys)
	if err != nil || report.Entries != 1200 {
		t.Errorf("%+v, %v", report, err)
	}
	if r := w.whole(t, w.teams[0]); r.First != 1001 || r.Last != 1204 {
		t.Errorf("afterwards: %+v", r)
	}
}

// meanwhile does something after the first bytes.
type meanwhile struct {
	w  io.Writer
	do func()
}

func (m *meanwhile) Write(p []byte) (int, error) {
	if m.do != nil {
		m.do()
		m.do = nil
	}
	return m.w.Write(p)
}

func BenchmarkAppend(b *testing.B) {
	w := newWorld(b, 50)
	for _, bench := range []struct {
		name   string
		chains int
	}{{"50WritersOneChain", 1}, {"50WritersFiftyChains", 50}} {
		b.Run(bench.name, func(b *testing.B) {
			work := make(chan int)
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					for i := range work {
						if err := w.append(entryOf(w.teams[i%bench.chains], "k")); err != nil {
							b.Error(err)
						}
					}
				})
			}
			i := 0
			for b.Loop() {
				work <- i
				i++
			}
			close(work)
			wg.Wait()
			b.ReportMetric(float64(i)/b.Elapsed().Seconds(), "appends/s")
		})
	}
}
