package multihost

import (
	"slices"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/fleet"
)

// lost is one way in which a host loses contact to the servers, and comes back.
type lost struct {
	how string
	// pauses: the agent pauses what runs before contact is back.
	pauses bool
	away   func(t *testing.T, h *fleet.Host)
	// meanwhile happens while the host is unreachable.
	meanwhile func(t *testing.T, h *fleet.Host)
	back      func(t *testing.T, h *fleet.Host)
}

// Three hosts lose contact at once, each in another way: one goes on, one
// pauses its sandboxes and its agent dies and starts again, one hears nothing
// but 404 and 500 from what should be the server. Both servers die and start
// again meanwhile. The hosts become unreachable, their running sandboxes
// missing; on return each sandbox is what it was, with all it had.
func TestH5_H7_H8_H9_ST09_LostContactLosesNothing(t *testing.T) {
	w := open(t)
	defer w.heal()
	cut := func(t *testing.T, h *fleet.Host) {
		if err := h.Cut(); err != nil {
			t.Fatal(err)
		}
	}
	mend := func(t *testing.T, h *fleet.Host) {
		if err := h.Mend(); err != nil {
			t.Fatal(err)
		}
	}
	ways := []lost{
		{
			how: "its link is cut and its sandboxes go on", away: cut, back: mend,
			meanwhile: func(*testing.T, *fleet.Host) {},
		},
		{
			how: "its link is cut, it pauses its sandboxes, and its agent is killed", pauses: true, away: cut, back: mend,
			meanwhile: func(t *testing.T, h *fleet.Host) {
				h.Kill()
				if err := h.Start(); err != nil {
					t.Fatal(err)
				}
			},
		},
		{
			how:  "it is answered 404, then 500",
			away: func(_ *testing.T, h *fleet.Host) { w.Front.Answer(h.Addr, 404) },
			meanwhile: func(t *testing.T, h *fleet.Host) {
				if w.Front.Answered(h.Addr) == 0 {
					t.Error("nothing was answered 404")
				}
				w.Front.Answer(h.Addr, 500)
			},
			back: func(_ *testing.T, h *fleet.Host) { w.Front.Answer(h.Addr, 0) },
		},
	}
	long := testkit.Scaled(1, 0) == 1
	for i, h := range w.Hosts {
		pause := "-1s"
		if ways[i].pauses {
			pause = map[bool]string{true: "5m", false: "3s"}[long]
		}
		w.restart(t, h, "SKERRY_LOST_CONTACT_PAUSE="+pause)
	}

	running, paused := map[*fleet.Host]*worker{}, map[*fleet.Host]*worker{}
	for i := range 2 * len(w.Hosts) {
		k := w.worker(t, i%2, nil)
		if running[k.host] == nil {
			running[k.host] = k
			continue
		}
		paused[k.host] = k
		w.Servers[i%2].Must(t, "POST", "/v1/sandboxes/"+k.id+"/pause", map[string]any{}, nil)
	}
	if len(running) != len(w.Hosts) || len(paused) != len(w.Hosts) {
		t.Fatalf("not every host has two: %d and %d", len(running), len(paused))
	}

	began := time.Now()
	for i, h := range w.Hosts {
		ways[i].away(t, h)
	}
	for i, h := range w.Hosts {
		if err := h.Wait(t.Context(), "unreachable"); err != nil {
			t.Fatalf("%s: %v", ways[i].how, err)
		}
		if quick := scale().silence; i == 0 && time.Since(began) < quick-scale().heartbeat {
			t.Errorf("H7: it was unreachable after %s, want not before %s", time.Since(began), quick)
		}
	}
	t.Logf("all hosts were unreachable after %s", time.Since(began).Round(100*time.Millisecond))
	for i, h := range w.Hosts {
		w.becomes(t, running[h].id, "missing", time.Minute)
		if x := w.status(t, paused[h].id); x.Status != "paused" {
			t.Errorf("%s: the paused one is %+v", ways[i].how, x)
		}
		if code, err := w.Servers[i%2].Try(t.Context(), "POST", "/v1/sandboxes/"+paused[h].id+"/resume", map[string]any{}, nil); code != 503 {
			t.Errorf("H6: a resume on a host out of reach: %d, %v; want 503", code, err)
		}
	}
	for _, s := range w.Servers {
		s.Kill()
	}
	if long {
		// Contact is lost for ten minutes in all.
		<-time.After(time.Until(began.Add(10 * time.Minute)))
	}
	for i, h := range w.Hosts {
		if ways[i].pauses {
			w.guests(t, h, 0)
		} else {
			w.guests(t, h, 1)
		}
		ways[i].meanwhile(t, h)
	}
	for _, s := range w.Servers {
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Login(t.Context()); err != nil { // also waits for nothing: a server may still start
		testkit.Eventually(t, time.Minute, "a login", func() bool { return w.Login(t.Context()) == nil })
	}
	for i, h := range w.Hosts {
		ways[i].back(t, h)
	}
	returned := time.Now()
	for i, h := range w.Hosts {
		if err := h.Wait(t.Context(), "online"); err != nil {
			t.Fatalf("%s: %v", ways[i].how, err)
		}
		w.becomes(t, running[h].id, "running", 2*time.Minute)
		running[h].look(t)
		if got := w.kinds(t, running[h].id); ways[i].pauses != slices.Contains(got, "paused") || !slices.Contains(got, "missing") {
			t.Errorf("%s: the events are %v", ways[i].how, got)
		}
		if x := w.status(t, paused[h].id); x.Status != "paused" {
			t.Errorf("%s: the paused one is %+v", ways[i].how, x)
		}
		w.Servers[i%2].Must(t, "POST", "/v1/sandboxes/"+paused[h].id+"/resume", map[string]any{}, nil)
		paused[h].look(t)
	}
	t.Logf("away for %s; all as before %s after the return", returned.Sub(began).Round(time.Second), time.Since(returned).Round(100*time.Millisecond))
	for _, h := range w.Hosts {
		w.restart(t, h, "SKERRY_LOST_CONTACT_PAUSE=5m")
	}
	w.sound(t)
}
