package e2e

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/sdk"
)

// away keeps processes of Skerry dead until the returned function is called:
// whoever would start them again is stopped meanwhile.
func (in *machine) away(t *testing.T, victims ...string) (back func()) {
	t.Helper()
	up := in.process(t, "up")
	signal := func(pid int, s syscall.Signal) {
		if err := syscall.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
	}
	signal(up, syscall.SIGSTOP)
	for _, victim := range victims {
		signal(in.process(t, victim), syscall.SIGKILL)
	}
	return sync.OnceFunc(func() { signal(up, syscall.SIGCONT) })
}

// due is a sandbox with a deadline.
type due struct {
	id, how string
	at      time.Time // zero: none that matters
	kill    bool
}

// Deadlines before, during and after an outage of everything are all met, once
// each, soon after their time or the end of the outage. Who has something to do
// is not idle, and what was promised before the outage holds.
func TestTL02_TL05_S7_DeadlinesOutliveEverything(t *testing.T) {
	in := skerry(t)
	count := scaled(30, 6)
	const outage = 6 * time.Second
	var all []due
	for i := range count {
		kill := i%2 == 1
		options := small(map[string]any{"vcpus": 0.2, "memory_mb": 128, "on_timeout": map[bool]string{true: "kill", false: "pause"}[kill]})
		all = append(all, due{id: in.Create(t, options).ID, how: []string{"before", "during", "after"}[i%3], kill: kill})
	}
	renewed := in.Create(t, small(map[string]any{"on_timeout": "kill"}))
	busy := in.Create(t, small(map[string]any{"idle_timeout_sec": 2}))
	command := in.follow(t, busy.ID)
	silent := in.Create(t, small(map[string]any{"idle_timeout_sec": 2}))
	quiet := in.follow(t, silent.ID)
	in.Sh(t, silent.ID, "touch /tmp/finish")
	if _, err := quiet.now.Wait(); err != nil {
		t.Fatal(err)
	}
	// A command that says nothing, and whose caller is gone.
	background, err := quiet.client.Start(t.Context(), silent.ID, sdk.Command{Cmd: "sleep 7200"})
	if err != nil {
		t.Fatal(err)
	}
	background.Close()

	until := func(id string, d time.Duration) time.Time {
		in.Must(t, "POST", "/v1/sandboxes/"+id+"/timeout", map[string]any{"timeout_sec": int(d.Seconds())}, nil)
		return in.state(t, id).DeadlineAt
	}
	for _, how := range []struct {
		name string
		in   time.Duration
	}{{"after", 2*outage + 10*time.Second}, {"during", outage/2 + time.Second}, {"before", time.Second}} {
		for i, d := range all {
			if d.how == how.name {
				all[i].at = until(d.id, how.in)
			}
		}
	}
	until(renewed.ID, outage/2)
	until(renewed.ID, time.Hour)
	<-time.After(time.Second) // the first pauses are under way
	killed := time.Now()
	back := in.away(t, "server", "agent")
	t.Cleanup(back)
	<-time.After(outage)
	back()
	testkit.Eventually(t, 2*time.Minute, "it is back", func() bool {
		var result execResult
		_, err := in.Try(t.Context(), "POST", "/v1/sandboxes/"+renewed.ID+"/exec", map[string]any{"cmd": "echo here"}, &result)
		return err == nil && result.Stdout == "here\n"
	})
	recovered := time.Now()

	var late []time.Duration
	for _, d := range all {
		want, began, other := "paused", "pausing", "stopped"
		if d.kill {
			want, began, other = "stopped", "stopping", "paused"
		}
		in.becomes(t, d.id, want)
		events := in.history(t, d.id)
		if times(events, want) != 1 || times(events, began) != 1 || times(events, other) != 0 {
			t.Errorf("TL-02: %s has the history %v, want %s once", d.id, events, want)
		}
		i := slices.IndexFunc(events, func(e happened) bool { return e.Kind == began })
		if i < 0 {
			continue
		}
		if events[i].At.Before(d.at) {
			t.Errorf("TL-02: %s began to be %s at %s, its deadline is %s", d.id, want, events[i].At, d.at)
		}
		from := d.at
		if d.at.Before(recovered) && events[i].At.After(killed) {
			from = recovered
		}
		late = append(late, max(events[i].At.Sub(from), 0))
		t.Logf("%s the outage, %s: %s late", d.how, want, events[i].At.Sub(from).Round(time.Millisecond))
	}
	slices.Sort(late)
	// A busy machine holds up single ones; half of them tell.
	if at := len(late) - 1; late[at] > 5*time.Second && (scaled(1, 0) == 1 || late[at/2] > 5*time.Second) {
		t.Errorf("TL-02: the latest ones came %v after their time, want at most 5s", late)
	}

	if x := in.state(t, renewed.ID); x.Status != "running" {
		t.Errorf("TL-02: renewed before the outage, it is %s", x.Status)
	}
	for _, id := range []string{busy.ID, silent.ID} {
		if x := in.state(t, id); x.Status != "running" || times(in.history(t, id), "paused") != 0 {
			t.Errorf("TL-05: with a command running in it, it is %s because of %q", x.Status, x.PausedReason)
		}
	}
	command.reattach()
	command.finish(in)
	in.becomes(t, busy.ID, "paused") // now nothing goes on
}

// deed is something done to a sandbox while Skerry is killed.
type deed struct {
	name string
	// ready makes what it needs, and returns the deed itself.
	ready func(t *testing.T, w *worker) func(ctx context.Context) error
}

// deeds are what may be done to a running sandbox.
func (in *machine) deeds() []deed {
	post := func(path string, body map[string]any) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			_, err := in.Try(ctx, "POST", path, body, nil)
			return err
		}
	}
	return []deed{
		{"pause", func(_ *testing.T, w *worker) func(context.Context) error {
			return post("/v1/sandboxes/"+w.id+"/pause", map[string]any{})
		}},
		{"resume", func(t *testing.T, w *worker) func(context.Context) error {
			in.pause(t, w.id)
			return post("/v1/sandboxes/"+w.id+"/resume", map[string]any{})
		}},
		{"snapshot", func(_ *testing.T, w *worker) func(context.Context) error {
			return post("/v1/snapshots", map[string]any{"sandbox_id": w.id, "name": "chaos", "overwrite": true})
		}},
		{"fork", func(_ *testing.T, w *worker) func(context.Context) error {
			return post("/v1/sandboxes/"+w.id+"/fork", map[string]any{"count": 2})
		}},
		{"delete", func(t *testing.T, w *worker) func(context.Context) error {
			var made struct{ Items []sandbox }
			in.Must(t, "POST", "/v1/sandboxes/"+w.id+"/fork", map[string]any{}, &made)
			return func(ctx context.Context) error {
				_, err := in.Try(ctx, "DELETE", "/v1/sandboxes/"+made.Items[0].ID, nil, nil)
				return err
			}
		}},
	}
}

// Whatever is killed while a sandbox is paused, resumed, saved, copied or
// deleted: afterwards it runs or is paused with all that it ever acknowledged,
// and nothing is left half-done.
func TestS4_ST04_ST05_KilledAtAnyMoment(t *testing.T) {
	in := skerry(t)
	in.noTraces(t)
	in.noStates(t)
	before := in.keeps(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	deeds := in.deeds()
	victims := []string{"agent", "server", "shim"}
	kills := scaled(60, 6)
	w := in.worker(t, nil)
	for i := range kills {
		d, victim := deeds[i%len(deeds)], victims[random.IntN(len(victims))]
		t.Logf("%d: the %s dies during %s", i, victim, d.name)
		w.grow(t)
		w.look(t)
		do := d.ready(t, w)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		done := make(chan error, 1)
		go func() { done <- do(ctx) }()
		<-time.After(time.Duration(random.IntN(600)) * time.Millisecond)
		in.killed(t, victim)
		if err := <-done; err != nil {
			t.Logf("%s: %v", d.name, err)
		}
		cancel()
		if x := in.becomes(t, w.id, "running", "paused"); x.Status == "paused" {
			in.resumed(t, w.id)
		}
		w.look(t)
		in.alone(t, w.id)
		if len(w.files) > 12 { // its disk is small
			w.files = map[string]string{}
			in.Sh(t, w.id, "rm data/*")
		}
	}
	in.Must(t, "DELETE", "/v1/sandboxes/"+w.id, nil, nil)
	_, _ = in.Try(t.Context(), "DELETE", "/v1/snapshots/chaos", nil, nil)
	in.noTraces(t)
	in.noStates(t)
	in.sameMachine(t, before, 6+warm)
}

// alone removes every sandbox but one, and waits until all others are gone and
// nothing moves.
func (in *machine) alone(t *testing.T, keep string) {
	t.Helper()
	testkit.Eventually(t, 3*time.Minute, "only one sandbox is left, and rests", func() bool {
		var list struct{ Items []sandbox }
		if _, err := in.Try(t.Context(), "GET", "/v1/sandboxes?limit=200", nil, &list); err != nil {
			return false
		}
		rests := true
		for _, x := range list.Items {
			if x.ID != keep {
				rests = false
				_, _ = in.Try(t.Context(), "DELETE", "/v1/sandboxes/"+x.ID, nil, nil)
			} else if x.Status != "running" {
				rests = false
			}
		}
		return rests && len(list.Items) == 1
	})
}

// descriptors are those of each of Skerry's own processes, and how many of them
// hold files that have no name any more.
func (in *machine) descriptors(t *testing.T) map[string]int {
	t.Helper()
	found := map[string]int{}
	for _, what := range []string{"server", "agent", "shim"} {
		dir := filepath.Join("/proc", strconv.Itoa(in.process(t, what)), "fd")
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		found[what+", descriptors"] = len(entries)
		for _, entry := range entries {
			if target, _ := os.Readlink(filepath.Join(dir, entry.Name())); strings.HasSuffix(target, " (deleted)") && strings.Contains(target, in.Data) {
				found[what+", deleted files"]++
			}
		}
	}
	return found
}

// Created, paused, resumed and destroyed again and again, sandboxes leave
// nothing: no process, namespace, mount, cgroup, interface, descriptor or file.
func TestLL01_ManyLivesLeaveNothing(t *testing.T) {
	in := skerry(t)
	in.noTraces(t)
	in.noStates(t)
	const width = 3
	life := func() error {
		var made sandbox
		if _, err := in.Try(t.Context(), "POST", "/v1/sandboxes", small(map[string]any{"template": "base", "vcpus": 0.2, "memory_mb": 128}), &made); err != nil {
			return err
		}
		for _, verb := range []string{"pause", "resume"} {
			if _, err := in.Try(t.Context(), "POST", "/v1/sandboxes/"+made.ID+"/"+verb, map[string]any{}, nil); err != nil {
				return err
			}
		}
		_, err := in.Try(t.Context(), "DELETE", "/v1/sandboxes/"+made.ID, nil, nil)
		return err
	}
	lives := func(n int) {
		t.Helper()
		gate := make(chan struct{}, width)
		var wg sync.WaitGroup
		for range n {
			gate <- struct{}{}
			wg.Go(func() {
				defer func() { <-gate }()
				if err := life(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		in.noTraces(t)
		in.noStates(t)
	}
	lives(2 * width) // pools are full from here on
	before, open := in.keeps(t), in.descriptors(t)
	start := time.Now()
	count := scaled(1000, 50)
	lives(count)
	t.Logf("%d lives in %s", count, time.Since(start).Round(time.Second))
	in.sameMachine(t, before, width)
	testkit.Eventually(t, 2*time.Minute, "LL-01: as many descriptors as before", func() bool {
		for what, n := range in.descriptors(t) {
			// Connections are kept for a while, and made when needed.
			if n > open[what]+10 || strings.HasSuffix(what, "deleted files") && n > open[what] {
				t.Logf("%s: %d, were %d", what, n, open[what])
				return false
			}
		}
		return true
	})
}
