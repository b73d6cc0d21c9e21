package warmpg_test

import (
	"context"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/control/warm"
	"skerry.dev/skerry/internal/control/warm/warmpg"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// world is a database with hosts and a server that starts sandboxes on them.
type world struct {
	*sandboxtest.World
	t      *testing.T
	server *sandboxtest.Server
	store  *warmpg.Store
}

func newWorld(t *testing.T) *world {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	w.AddHost(8, 8192)
	return &world{World: w, t: t, server: w.Serve(sandbox.Config{}), store: warmpg.New(w.Pool, scheduler.DefaultOvercommit())}
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.Pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) create() sandbox.Sandbox {
	w.t.Helper()
	r, err := w.server.Service.Create(context.Background(), w.User(), sandbox.CreateRequest{Template: "base"})
	if err != nil {
		w.t.Fatal(err)
	}
	x, err := w.server.Service.Await(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return x
}

func (w *world) decide(p warm.Policy) (told []warm.Told, seen warm.World) {
	w.t.Helper()
	told, mine, err := w.store.Decide(w.t.Context(), warm.Window, func(x warm.World) []warm.Entry {
		seen = x
		return warm.Plan(x, p)
	})
	if err != nil || !mine {
		w.t.Fatal(mine, err)
	}
	return told, seen
}

func TestWhatIsWantedFollowsWhatIsStarted(t *testing.T) {
	w := newWorld(t)
	told, seen := w.decide(warm.Policy{})
	if len(seen.Hosts) != 2 || seen.Base == nil || len(seen.Demands) != 0 || len(told) != 2 || len(told[0].Entries) != 1 {
		t.Fatalf("%+v, told %+v", seen, told)
	}
	free := seen.Hosts[0].FreeMemoryMB
	first := w.create()
	for range 11 {
		w.create()
	}
	_, seen = w.decide(warm.Policy{})
	if len(seen.Demands) != 1 || seen.Demands[0].Count != 12 || seen.Demands[0].Template != seen.Base.Template || seen.Demands[0].Pool != id.PlatformTeamID {
		t.Errorf("demand: %+v", seen.Demands)
	}
	if seen.Hosts[0].FreeMemoryMB+seen.Hosts[1].FreeMemoryMB != 2*free-12*first.MemoryMB {
		t.Errorf("free: %+v", seen.Hosts)
	}
	// A host that is emptied keeps nothing, and is told so; one that cannot be called
	// is not told.
	w.exec(`UPDATE hosts SET status = 'draining', drain_requested_at = now() WHERE id = $1`, w.Hosts[0])
	told, _ = w.decide(warm.Policy{})
	for _, h := range told {
		if drains := h.ID == w.Hosts[0]; drains != (len(h.Entries) == 0) {
			t.Errorf("host %s: %+v", h.ID, h.Entries)
		}
	}
	w.exec(`UPDATE hosts SET status = 'unreachable', drain_requested_at = NULL WHERE id = $1`, w.Hosts[0])
	if told, _ = w.decide(warm.Policy{}); len(told) != 1 {
		t.Errorf("told %+v", told)
	}
	if told, _ = w.decide(warm.Policy{Off: true}); len(told) != 1 || len(told[0].Entries) != 0 {
		t.Errorf("off: %+v", told)
	}
	var rows int
	if err := w.Pool.QueryRow(t.Context(), `SELECT count(*) FROM host_warm`).Scan(&rows); err != nil || rows != 0 {
		t.Errorf("%d rows are left, %v", rows, err)
	}
	// What was started long ago says nothing.
	_, mine, err := w.store.Decide(t.Context(), -time.Hour, func(x warm.World) []warm.Entry { seen = x; return nil })
	if err != nil || !mine || len(seen.Demands) != 0 {
		t.Errorf("%+v, %v", seen.Demands, err)
	}
}

// A sandbox goes where it is ready, which is counted down in the same
// transaction, and what is kept ready keeps no sandbox out.
func TestH13_WarmHostsComeFirstAndWarmGivesWay(t *testing.T) {
	w := newWorld(t)
	told, seen := w.decide(warm.Policy{})
	ready := told[1]
	key := string(ready.Entries[0].Key())
	if err := w.store.Found(t.Context(), ready.ID, map[string]int{key: 3}); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if x := w.create(); x.Host.ID != ready.ID {
			t.Errorf("start %d is on %s", n, x.Host.ID)
		}
	}
	var there int
	if err := w.Pool.QueryRow(t.Context(), `SELECT there FROM host_warm WHERE host_id = $1`, ready.ID).Scan(&there); err != nil || there != 0 {
		t.Errorf("%d are ready still, %v", there, err)
	}
	if x := w.create(); x.Host.ID == ready.ID {
		t.Error("with none ready it is on the same host again")
	}
	// All that may be promised is wanted for what waits: sandboxes start all the same,
	// and what waits is cut to what they leave.
	w.exec(`UPDATE host_warm SET wanted = 1000`)
	for range 8 {
		w.create()
	}
	told, seen = w.decide(warm.Policy{Count: 1000})
	for _, h := range seen.Hosts {
		var memory int64
		for _, x := range told {
			for _, e := range x.Entries {
				if x.ID == h.ID {
					memory += int64(e.Wanted) * e.MemoryMB
				}
			}
		}
		if memory > h.FreeMemoryMB {
			t.Errorf("%d MB wait where %d are free", memory, h.FreeMemoryMB)
		}
	}
}

func TestOneServerDecidesAtATime(t *testing.T) {
	w := newWorld(t)
	_, mine, err := w.store.Decide(t.Context(), warm.Window, func(x warm.World) []warm.Entry {
		if _, other, err := w.store.Decide(t.Context(), warm.Window, func(warm.World) []warm.Entry {
			t.Error("two decide")
			return nil
		}); other || err != nil {
			t.Errorf("the other: %v, %v", other, err)
		}
		return warm.Plan(x, warm.Policy{})
	})
	if !mine || err != nil {
		t.Errorf("%v, %v", mine, err)
	}
}
