package journal

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/kernel/id"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, path string, outbox int) *Journal {
	t.Helper()
	j, err := Open(path, outbox)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func sample(phase Phase) Record {
	return Record{
		Spec: Spec{
			Sandbox: id.NewSandbox(), Incarnation: 3, Engine: "fake",
			Env: map[string]string{"A": "b"}, AccessToken: "secret",
		},
		Phase: phase, Instance: "0123456789abcdef0123456789abcdef", Slot: 7,
		Handle: engine.Handle(`{"v":1}`), InitSecret: "s", CreatedAt: time.Unix(1000, 0).UTC(),
	}
}

func TestH15_RecordsSurviveReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := open(t, path, 0)
	rec := sample(PhaseCreating)
	if err := j.Begin(rec); err != nil {
		t.Fatal(err)
	}
	j.Mark(rec.Spec.Sandbox, "prepare")
	other := sample(PhaseRunning)
	if err := j.Running(other); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the journal's mode is %v, %v", info.Mode(), err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Begin(rec); !errors.Is(err, ErrClosed) {
		t.Fatalf("a verb after Close: %v", err)
	}
	again := open(t, path, 0)
	if again.Generation() <= j.Generation() {
		t.Errorf("generation went from %d to %d", j.Generation(), again.Generation())
	}
	got, err := again.Records()
	if err != nil {
		t.Fatal(err)
	}
	rec.Step = "prepare"
	byID := map[id.Sandbox]Record{}
	for _, r := range got {
		byID[r.Spec.Sandbox] = r
	}
	want := map[id.Sandbox]Record{rec.Spec.Sandbox: rec, other.Spec.Sandbox: other}
	if diff := cmp.Diff(want, byID, cmp.Comparer(func(a, b id.Sandbox) bool { return a == b }),
		cmp.Comparer(func(a, b id.Team) bool { return a == b }), cmp.Comparer(func(a, b id.Template) bool { return a == b }),
		cmp.Comparer(func(a, b id.Snapshot) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestOneAgentPerDataDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	open(t, path, 0)
	if _, err := Open(path, 0); !errors.Is(err, ErrLocked) {
		t.Fatalf("a second agent: %v", err)
	}
}

func TestTombstonesKeepTheHighestAndArePruned(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "journal.db"), 0)
	sandbox := id.NewSandbox()
	old := time.Now().Add(-TombstoneAge - time.Hour)
	for _, n := range []uint64{4, 2} {
		if err := j.Bury(sandbox, n, old); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := j.Buried(sandbox); n != 4 || err != nil {
		t.Fatalf("buried %d, %v", n, err)
	}
	fresh := sample(PhaseDestroying)
	fresh.DestroyIncarnation = 9
	if err := j.Destroying(fresh, time.Now()); err != nil {
		t.Fatal(err)
	}
	if n, err := j.Prune(time.Now().Add(-TombstoneAge)); n != 1 || err != nil {
		t.Fatalf("pruned %d, %v", n, err)
	}
	if n, _ := j.Buried(sandbox); n != 0 {
		t.Errorf("an old tombstone stayed: %d", n)
	}
	if n, _ := j.Buried(fresh.Spec.Sandbox); n != 9 {
		t.Errorf("a fresh tombstone went: %d", n)
	}
}

func TestOutboxIsOrderedBoundedAndConfirmed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := open(t, path, 5)
	rec := sample(PhaseRunning)
	for range 8 {
		if err := j.Running(rec, Event{Kind: "k", Sandbox: rec.Spec.Sandbox}); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-j.Wake():
	case <-time.After(30 * time.Second):
		t.Fatal("no wake-up for new events")
	}
	seqs := func(j *Journal) []uint64 {
		events, err := j.Events(100)
		if err != nil {
			t.Fatal(err)
		}
		var out []uint64
		for _, e := range events {
			out = append(out, e.Seq)
		}
		return out
	}
	if diff := cmp.Diff([]uint64{4, 5, 6, 7, 8}, seqs(j)); diff != "" {
		t.Error(diff)
	}
	if n, _ := j.Dropped(); n != 3 {
		t.Errorf("dropped %d", n)
	}
	if err := j.Confirm(8); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = open(t, path, 5)
	if err := j.Running(rec, Event{Kind: "k", Sandbox: rec.Spec.Sandbox}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]uint64{9}, seqs(j)); diff != "" {
		t.Errorf("a sequence number was used twice: %s", diff)
	}
}

func TestGuestEventIsTakenOnce(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "journal.db"), 0)
	rec := sample(PhaseRunning)
	if err := j.Running(rec); err != nil {
		t.Fatal(err)
	}
	e := Event{Kind: "oom_kill", Sandbox: rec.Spec.Sandbox, Incarnation: rec.Spec.Incarnation}
	stale := e
	stale.Incarnation--
	for _, in := range []struct {
		seq int64
		e   Event
	}{{1, e}, {1, e}, {2, stale}, {2, e}} {
		if err := j.GuestEvent(in.seq, in.e); err != nil {
			t.Fatal(err)
		}
	}
	if events, _ := j.Events(10); len(events) != 2 {
		t.Errorf("%d events, want 2", len(events))
	}
}

func TestParallelVerbsShareTransactions(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "journal.db"), 0)
	before := j.db.Stats()
	var wg sync.WaitGroup
	const n = 200
	for range n {
		wg.Go(func() {
			rec := sample(PhaseCreating)
			if err := j.Begin(rec); err != nil {
				t.Error(err)
			}
			if err := j.Remove(rec.Spec.Sandbox); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := j.Confirm(0); err != nil { // after all that was queued
		t.Fatal(err)
	}
	if recs, _ := j.Records(); len(recs) != 0 {
		t.Errorf("%d records left", len(recs))
	}
	after := j.db.Stats()
	d := after.Sub(&before)
	if w := d.TxStats.GetWrite(); w >= 2*n*3 {
		t.Errorf("%d page writes for %d verbs: nothing was shared", w, 2*n)
	}
}

func BenchmarkCreateDestroy(b *testing.B) {
	j, err := Open(filepath.Join(b.TempDir(), "journal.db"), 0)
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	for b.Loop() {
		rec := sample(PhaseCreating)
		_ = j.Begin(rec)
		_ = j.Running(rec, Event{Kind: "started"})
		_ = j.Destroying(rec, time.Now())
		_ = j.Remove(rec.Spec.Sandbox, Event{Kind: "destroyed"})
	}
}

func TestH15_ALostJournalRepeatsNoGeneration(t *testing.T) {
	began := uint64(time.Now().Unix())
	path := filepath.Join(t.TempDir(), "journal.db")
	j := open(t, path, 0)
	if j.Generation() < began {
		t.Fatalf("the first generation is %d: a journal that was lost began there too", j.Generation())
	}
	first := j.Generation()
	for range 3 {
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		j = open(t, path, 0)
	}
	if j.Generation() < first+3 {
		t.Errorf("three openings led from %d to %d", first, j.Generation())
	}
}

func TestTL02_DeadlinesAndSeenEventsOutliveOtherWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	j, err := Open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	rec := Record{Spec: Spec{Sandbox: id.NewSandbox(), Incarnation: 2}, Phase: PhaseRunning, Instance: "i"}
	if err := j.Running(rec); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(time.Hour).UTC().Round(0)
	err = j.SetDeadlines([]Deadline{
		{Sandbox: rec.Spec.Sandbox, Incarnation: 2, At: until},
		{Sandbox: rec.Spec.Sandbox, Incarnation: 1, At: time.Now()},
		{Sandbox: id.NewSandbox(), Incarnation: 1, At: time.Now()},
	})
	if err == nil {
		err = j.GuestEvent(7, Event{Sandbox: rec.Spec.Sandbox, Incarnation: 2})
	}
	if err != nil {
		t.Fatal(err)
	}
	// The manager's own copy knows of neither.
	rec.Phase, rec.Pause = PhasePausing, &Pause{State: id.NewSnapshot(), Memory: true}
	if err := j.Pausing(rec); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j, err = Open(path, 0); err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	got, ok, err := j.Record(rec.Spec.Sandbox)
	if err != nil || !ok || !got.Deadline.Equal(until) || got.GuestSeq != 7 || got.Phase != PhasePausing || got.Pause.State != rec.Pause.State {
		t.Errorf("%+v, %v, %v", got, ok, err)
	}
	// Another instance starts with its own.
	rec.Instance, rec.Pause, rec.Phase = "j", nil, PhaseRunning
	if err := j.Running(rec); err != nil {
		t.Fatal(err)
	}
	if got, _, _ = j.Record(rec.Spec.Sandbox); !got.Deadline.IsZero() || got.GuestSeq != 0 {
		t.Errorf("%+v", got)
	}
	if records, err := j.Records(); err != nil || len(records) != 1 {
		t.Errorf("%d records, %v", len(records), err)
	}
}
