package sandboxpg_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// held waits for a random while.
func held(ctx context.Context, most time.Duration) error {
	timer := time.NewTimer(rand.N(most))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// Two servers look at a host again and again, each with inventories that arrive
// late, while something is being created, paused, resumed: whatever the timing,
// nothing healthy is taken for lost.
func TestRC02_NoTimingMakesAHealthySandboxLost(t *testing.T) {
	rounds := testkit.Scaled(500, 40)
	w := sandboxtest.NewWorld(t, pgtest.New(t), 64, 65536)
	w.Agents.After = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "inventory" || call == "create" || call == "pause" {
			return held(ctx, 8*time.Millisecond)
		}
		return ctx.Err()
	}
	servers := []*sandboxtest.Server{w.Serve(sandbox.Config{}), w.Serve(sandbox.Config{})}
	looks := 0
	for round := range rounds {
		stop := make(chan struct{})
		var monitors sync.WaitGroup
		var n [2]int
		for i, s := range servers {
			monitors.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						look(t, w, s, w.Hosts[0])
						n[i]++
					}
				}
			})
		}
		s := servers[round%2]
		x := create(t, w, s, request())
		want := sandbox.StatusRunning
		switch round % 3 {
		case 1:
			if _, err := s.Service.Pause(context.Background(), w.User(), x.ID, true, true); err != nil {
				t.Fatalf("round %d: pause: %v", round, err)
			}
			want = sandbox.StatusPaused
		case 2:
			if _, err := s.Service.Pause(context.Background(), w.User(), x.ID, true, true); err != nil {
				t.Fatalf("round %d: pause: %v", round, err)
			}
			if _, err := s.Service.Resume(context.Background(), w.User(), x.ID, nil, false, true); err != nil {
				t.Fatalf("round %d: resume: %v", round, err)
			}
		}
		close(stop)
		monitors.Wait()
		looks += n[0] + n[1]
		for range 2 {
			look(t, w, servers[(round+1)%2], w.Hosts[0])
		}
		if got := get(t, w, x.ID); got.Status != want || !w.Agents.Has(x.ID) {
			t.Fatalf("round %d: it is %s and should be %s; on its host: %v", round, got.Status, want, w.Agents.Has(x.ID))
		}
		if n := tally(t, w, `sandbox_events WHERE sandbox_id = $1 AND kind IN ('missing', 'stopped', 'orphan_destroyed', 'brought_forward')`, x.ID); n != 0 {
			t.Fatalf("round %d: it was taken for lost %d times", round, n)
		}
		if err := s.Service.Delete(context.Background(), w.User(), x.ID); err != nil {
			t.Fatal(err)
		}
	}
	if n := tally(t, w, `host_strays`); n != 0 || looks < rounds {
		t.Errorf("%d strays of none; %d looks", n, looks)
	}
	t.Logf("%d rounds, %d looks", rounds, looks)
}

// Several hosts, two servers, more creates than room: as many as fit are there,
// on no host more than fit, whoever decided.
func TestSC01_SeveralHostsAreNeverOversold(t *testing.T) {
	rounds := testkit.Scaled(50, 3)
	w := sandboxtest.NewWorld(t, pgtest.New(t), 64, 4096)
	for range 3 {
		w.AddHost(64, 4096)
	}
	servers := []*sandboxtest.Server{w.Serve(sandbox.Config{}), w.Serve(sandbox.Config{})}
	users := several(w)
	req := request()
	req.MemoryMB = p(int64(1024))
	for round := range rounds {
		var placed, refused atomic.Int64
		var asked sync.WaitGroup
		for i := range 40 {
			asked.Go(func() {
				_, err := servers[i%2].Service.Create(context.Background(), users[i], req)
				switch {
				case err == nil:
					placed.Add(1)
				case errs.Is(err, "no_capacity") && errs.As(err).RetryAfter > 0 && errs.As(err).Details["hosts"] != nil:
					refused.Add(1)
				default:
					t.Errorf("create: %v", err)
				}
			})
		}
		asked.Wait()
		if placed.Load() != 16 || refused.Load() != 24 {
			t.Fatalf("round %d: %d placed, %d refused; want 16 and 24", round, placed.Load(), refused.Load())
		}
		if n := tally(t, w, `(SELECT host_id FROM sandboxes WHERE ended_at IS NULL GROUP BY host_id HAVING sum(memory_mb) > 4096) over`); n != 0 {
			t.Fatalf("round %d: %d hosts are oversold", round, n)
		}
		gone(t, w, servers[0])
	}
}

// several are forty users, each of a team of their own: creates of one team come
// one after the other anyway.
func several(w *sandboxtest.World) []principal.Principal {
	users := make([]principal.Principal, 40)
	for i := range users {
		users[i] = w.UserOf(w.NewTeam())
	}
	return users
}

// gone deletes all that lives.
func gone(t *testing.T, w *sandboxtest.World, s *sandboxtest.Server) {
	t.Helper()
	rows, err := w.Pool.Query(context.Background(), `SELECT id, team_id FROM sandboxes WHERE ended_at IS NULL`)
	if err != nil {
		t.Fatal(err)
	}
	all := map[id.Sandbox]id.Team{}
	for rows.Next() {
		var x id.Sandbox
		var team id.Team
		if err := rows.Scan(&x, &team); err != nil {
			t.Fatal(err)
		}
		all[x] = team
	}
	rows.Close()
	var asked sync.WaitGroup
	for x, team := range all {
		asked.Go(func() {
			if err := s.Service.Delete(context.Background(), w.UserOf(team), x); err != nil {
				t.Errorf("delete: %v", err)
			}
		})
	}
	asked.Wait()
	testkit.Eventually(t, time.Minute, "all are gone", func() bool { return tally(t, w, `sandboxes WHERE ended_at IS NULL`) == 0 })
}

// A storm of creates, pauses, resumes and deletes, with calls that fail, answers
// that are lost and a server that dies, on a host that is nearly full: it is
// never oversold, and when it is calm as much fits as the living rows leave.
func TestSC02_AfterAStormTheReservedIsWhatLives(t *testing.T) {
	const size, room = 1024, 12
	rounds := testkit.Scaled(1200, 240)
	w := sandboxtest.NewWorld(t, pgtest.New(t), 64, room*size)
	var calm atomic.Bool
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		switch n := rand.N(20); {
		case calm.Load() || call == "inventory":
		case n == 0:
			return errs.New(errs.CodeInternal, "engine_failed", "The engine failed.")
		case n < 3:
			return errs.Unavailable("host_unavailable", "A link that breaks.")
		}
		return ctx.Err()
	}
	w.Agents.After = func(ctx context.Context, call string, _ id.Sandbox) error {
		if !calm.Load() && call != "inventory" && rand.N(10) == 0 {
			return errs.Unavailable("host_unavailable", "The effect is there, the answer is lost.")
		}
		return ctx.Err()
	}
	cfg := sandbox.Config{Lease: 200 * time.Millisecond}
	stays, dies := w.Serve(cfg), w.Serve(cfg)
	req := request()
	req.MemoryMB = p(int64(size))
	var mu sync.Mutex
	var made []id.Sandbox
	some := func() (x id.Sandbox, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(made) == 0 {
			return x, false
		}
		return made[max(0, len(made)-1-rand.N(16))], true
	}
	var storm sync.WaitGroup
	var done atomic.Int64
	for range 8 {
		storm.Go(func() {
			for range rounds / 8 {
				if done.Add(1) == int64(rounds/2) {
					dies.Stop()
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(20+rand.N(100))*time.Millisecond)
				x, ok := some()
				switch n := rand.N(8); {
				case n < 3:
					if r, err := stays.Service.Create(context.Background(), w.User(), req); err == nil {
						mu.Lock()
						made = append(made, r.Sandbox)
						mu.Unlock()
					} else if !errs.Is(err, "no_capacity") {
						t.Errorf("create: %v", err)
					}
				case !ok:
				case n == 3:
					_, _ = stays.Service.Pause(ctx, w.User(), x, true, true)
				case n == 4:
					_, _ = dies.Service.Resume(ctx, w.User(), x, nil, false, true)
				case n == 5:
					_, _ = stays.Service.Fork(ctx, w.User(), x, sandbox.ForkRequest{Count: 1})
				default:
					_ = dies.Service.Delete(ctx, w.User(), x)
				}
				cancel()
				if n := tally(t, w, `(SELECT 1 FROM sandboxes WHERE status = ANY($1) HAVING sum(memory_mb) > $2) over`, holding(), room*size); n != 0 {
					t.Error("the host is oversold")
				}
			}
		})
	}
	storm.Wait()
	calm.Store(true)
	testkit.Eventually(t, 2*time.Minute, "calm", func() bool {
		look(t, w, stays, w.Hosts[0])
		return tally(t, w, `sandboxes WHERE status NOT IN ('running', 'paused', 'stopped', 'error')`)+tally(t, w, `operations WHERE status = 'open'`) == 0
	})
	running := tally(t, w, `sandboxes WHERE status = 'running'`)
	fits := 0
	for {
		r, err := stays.Service.Create(context.Background(), w.User(), req)
		if errs.Is(err, "no_capacity") {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stays.Service.Await(context.Background(), r); err != nil {
			t.Fatal(err)
		}
		if fits++; fits > room {
			break
		}
	}
	if fits != room-running {
		t.Errorf("%d run of %d that fit, and %d more fit", running, room, fits)
	}
	gone(t, w, stays)
	x := create(t, w, stays, sandbox.CreateRequest{Template: "base", MemoryMB: p(int64(room * size))})
	if len(made) < room {
		t.Errorf("only %d were made", len(made))
	}
	t.Logf("%d rounds, %d sandboxes; the whole host fits %s", rounds, len(made), x.ID)
}

// holding are the statuses of what may really use CPU and memory. What is being
// deleted counts as if it did, also where it was paused.
func holding() []string {
	var out []string
	for _, s := range sandbox.ComputeStatuses() {
		if s != sandbox.StatusStopping {
			out = append(out, string(s))
		}
	}
	return out
}
