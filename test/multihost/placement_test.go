package multihost

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// Sandboxes go to all hosts in turn, whichever server is asked, and either one
// serves them: commands, files, pause, resume, events.
func TestH13_H6_EitherServerServesSandboxesOnAllHosts(t *testing.T) {
	w := open(t)
	defer w.heal()
	placed := map[string]int{}
	var workers []*worker
	for i := range 6 {
		k := w.worker(t, i%2, nil)
		placed[k.host.Name]++
		workers = append(workers, k)
	}
	for _, h := range w.Hosts {
		if placed[h.Name] != 2 {
			t.Errorf("%s got %d of 6 sandboxes: %v", h.Name, placed[h.Name], placed)
		}
	}
	for i, k := range workers[:3] {
		one, other := w.Servers[i%2], w.Servers[1-i%2]
		one.Must(t, "POST", "/v1/sandboxes/"+k.id+"/pause", map[string]any{}, nil)
		if x := w.status(t, k.id); x.Status != "paused" {
			t.Errorf("after a pause it is %+v", x)
		}
		other.Must(t, "POST", "/v1/sandboxes/"+k.id+"/resume", map[string]any{}, nil)
		other.Sh(t, k.id, "echo kept >/home/user/kept")
		if got := one.Sh(t, k.id, "cat /home/user/kept").Stdout; got != "kept\n" {
			t.Errorf("through the other server it says %q", got)
		}
		k.look(t)
		events := w.kinds(t, k.id)
		for _, want := range []string{"created", "running", "paused"} {
			if !slices.Contains(events, want) {
				t.Errorf("its events are %v, without %q", events, want)
			}
		}
	}
}

// Two agents on one machine have nothing in common but the kernel: what one
// makes the other neither sees nor counts.
func TestH14_AgentsOnOneMachineDoNotDisturbEachOther(t *testing.T) {
	w := open(t)
	defer w.heal()
	before := make([]int, len(w.Hosts))
	for i, h := range w.Hosts {
		traces, err := h.Traces()
		if err != nil {
			t.Fatal(err)
		}
		before[i] = len(traces)
	}
	k := w.worker(t, 0, nil)
	for i, h := range w.Hosts {
		traces, err := h.Traces()
		if err != nil {
			t.Fatal(err)
		}
		if h == k.host && len(traces) == before[i] {
			t.Errorf("%s has the sandbox and shows nothing of it", h.Name)
		}
		if h != k.host && len(traces) != before[i] {
			t.Errorf("%s has no sandbox and shows %s", h.Name, strings.Join(traces, "\n"))
		}
		for _, other := range w.Hosts {
			if err := h.Run(t.Context(), "test", "-e", other.Data); (err == nil) != (h == other) {
				t.Errorf("%s and the data of %s: %v", h.Name, other.Name, err)
			}
		}
	}
	// One that ends takes nothing of the others along.
	for _, h := range w.Hosts {
		if h != k.host {
			h.Kill()
		}
	}
	k.look(t)
	w.revive(t)
}

// Whatever is killed, every sandbox is the same afterwards.
func TestH9_H15_ST08_KilledOneByOne(t *testing.T) {
	w := open(t)
	defer w.heal()
	var workers []*worker
	for i := range len(w.Hosts) {
		workers = append(workers, w.worker(t, i%2, nil))
	}
	kill := map[string]func() error{
		"database": w.KillDatabase,
		"server 0": func() error { w.Servers[0].Kill(); return nil },
		"server 1": func() error { w.Servers[1].Kill(); return nil },
		"agent 0":  func() error { w.Hosts[0].Kill(); return nil },
		"agent 1":  func() error { w.Hosts[1].Kill(); return nil },
		"agent 2":  func() error { w.Hosts[2].Kill(); return nil },
	}
	kill["everything"] = func() error {
		for name, one := range kill {
			if name != "everything" {
				if err := one(); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for name, one := range kill {
		t.Run(name, func(t *testing.T) {
			if err := one(); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(name, "server") {
				// The other one serves on.
				for _, k := range workers {
					k.look(t)
				}
			}
			w.revive(t)
			for _, k := range workers {
				k.look(t)
			}
		})
	}
}

// A host that answers nothing, though its address takes connections, holds up
// nobody else.
func TestRC06_ASlowHostDelaysNobody(t *testing.T) {
	w := open(t)
	defer w.heal()
	var workers []*worker
	for i := range len(w.Hosts) {
		workers = append(workers, w.worker(t, i%2, nil))
	}
	slow := workers[0]
	thaw := slow.host.Freeze()
	defer thaw()
	// Long enough for the servers to want its inventory, and for its silence to
	// be noticed.
	deadline := time.Now().Add(scale().silence + 3*time.Second)
	var longest time.Duration
	for calls := 0; time.Now().Before(deadline) || calls == 0; calls++ {
		for _, k := range workers[1:] {
			for _, s := range w.Servers {
				start := time.Now()
				var result execResult
				if _, err := s.Try(t.Context(), "POST", "/v1/sandboxes/"+k.id+"/exec", map[string]any{"cmd": "true"}, &result); err != nil {
					t.Errorf("a sandbox elsewhere: %v", err)
				}
				longest = max(longest, time.Since(start))
			}
		}
	}
	for _, h := range w.Hosts {
		if h == slow.host {
			continue
		}
		if now, err := h.State(t.Context()); err != nil || now.Status != "online" {
			t.Errorf("%s is %+v because of another host: %v", h.Name, now, err)
		}
	}
	if err := slow.host.Wait(t.Context(), "unreachable"); err != nil {
		t.Error(err)
	}
	t.Logf("the slowest call elsewhere took %s", longest.Round(time.Millisecond))
	if most := 5 * time.Second; longest > most {
		t.Errorf("a call elsewhere took %s, want at most %s", longest, most)
	}
	thaw()
	if err := slow.host.Wait(t.Context(), "online"); err != nil {
		t.Fatal(err)
	}
	slow.look(t)
}
