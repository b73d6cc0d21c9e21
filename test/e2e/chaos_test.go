package e2e

import (
	"bytes"
	"context"
	"fmt"
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
)

// process finds the pid of one of the instance's own processes: server, agent,
// shim, or postgres.
func (in *machine) process(t testing.TB, what string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		words := strings.Split(string(cmdline), "\x00")
		if len(words) < 2 {
			continue
		}
		if what == "postgres" {
			if raw, err := os.ReadFile(filepath.Join(in.Data, "postgres", "postmaster.pid")); err == nil {
				first, _, _ := strings.Cut(string(raw), "\n")
				if pid, err := strconv.Atoi(strings.TrimSpace(first)); err == nil {
					return pid
				}
			}
			return 0
		}
		environ, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "environ"))
		mine := bytes.Contains(environ, []byte("SKERRY_DATA="+in.Data)) || bytes.Contains(cmdline, []byte(in.Data))
		if mine && filepath.Base(words[0]) == "skerry" && words[1] == what {
			return pid
		}
	}
	return 0
}

// counter is a sandbox that counts for ever and remembers how far it was seen.
type counter struct {
	id   string
	boot string
	seen int
}

// Every process of Skerry is killed at random moments while sandboxes count and
// others come and go: no counter stops or goes back, and nothing is left
// half-done.
func TestST08_KillAnyProcessAtAnyMoment(t *testing.T) {
	in := skerry(t)
	in.noTraces(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	counters := make([]*counter, scaled(10, 4))
	for i := range counters {
		box := in.Create(t, map[string]any{"timeout_sec": 7200})
		in.Sh(t, box.ID, `setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i >/tmp/n.new; mv /tmp/n.new /tmp/n; sleep 0.05; done' </dev/null >/dev/null 2>&1 &`)
		counters[i] = &counter{id: box.ID, boot: in.Sh(t, box.ID, "cat /proc/sys/kernel/random/boot_id").Stdout}
	}
	for _, victim := range []string{"agent", "server", "shim", "postgres"} {
		for round := range scaled(5, 1) {
			t.Run(fmt.Sprintf("%s-%d", victim, round), func(t *testing.T) {
				in.look(t, counters)
				known := in.churn(t, func() {
					<-time.After(time.Duration(100+random.IntN(900)) * time.Millisecond)
					pid := in.process(t, victim)
					if pid == 0 {
						t.Fatalf("there is no %s to kill", victim)
					}
					if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
					testkit.Eventually(t, 30*time.Second, victim+" is back", func() bool {
						now := in.process(t, victim)
						return now != 0 && now != pid
					})
				})
				in.look(t, counters)
				in.settled(t, known, counters)
			})
		}
	}
}

// look reads every counter: it answers within 30 s, is the same machine, and
// has gone on counting.
func (in *machine) look(t *testing.T, counters []*counter) {
	t.Helper()
	for _, c := range counters {
		testkit.Eventually(t, 30*time.Second, "sandbox "+c.id+" answers and counts on", func() bool {
			var result execResult
			_, err := in.Try(t.Context(), "POST", "/v1/sandboxes/"+c.id+"/exec", map[string]any{"cmd": "cat /proc/sys/kernel/random/boot_id /tmp/n"}, &result)
			if err != nil {
				return false
			}
			boot, number, _ := strings.Cut(result.Stdout, "\n")
			n, err := strconv.Atoi(strings.TrimSpace(number))
			if boot+"\n" != c.boot || (err == nil && n < c.seen) {
				t.Fatalf("sandbox %s went back: boot %q (was %q), counter %d (was %d)", c.id, boot, c.boot, n, c.seen)
			}
			if err != nil || n == c.seen {
				return false
			}
			c.seen = n
			return true
		})
	}
}

// outcome is what the API acknowledged about a sandbox of the churn.
type outcome struct {
	created, deleted bool
}

// churn creates and deletes sandboxes while disturb runs, and returns what was
// acknowledged.
func (in *machine) churn(t *testing.T, disturb func()) map[string]*outcome {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var (
		mu    sync.Mutex
		known = map[string]*outcome{}
		wg    sync.WaitGroup
	)
	for range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				call, done := context.WithTimeout(context.Background(), 60*time.Second)
				var made sandbox
				if _, err := in.Try(call, "POST", "/v1/sandboxes", map[string]any{"template": "base"}, &made); err != nil {
					done()
					<-time.After(20 * time.Millisecond)
					continue
				}
				mu.Lock()
				known[made.ID] = &outcome{created: true}
				mu.Unlock()
				if _, err := in.Try(call, "DELETE", "/v1/sandboxes/"+made.ID, nil, nil); err == nil {
					mu.Lock()
					known[made.ID].deleted = true
					mu.Unlock()
				}
				done()
			}
		}()
	}
	disturb()
	<-time.After(500 * time.Millisecond)
	cancel()
	wg.Wait()
	return known
}

// settled waits until nothing is in transition, then checks each acknowledged
// outcome, and removes what the churn left alive: also sandboxes whose create
// succeeded though its answer was lost.
func (in *machine) settled(t *testing.T, known map[string]*outcome, keep []*counter) {
	t.Helper()
	testkit.Eventually(t, 90*time.Second, "no sandbox is in a transition", func() bool {
		var list struct{ Items []sandbox }
		_, err := in.Try(t.Context(), "GET", "/v1/sandboxes?limit=200&status=pending,starting,stopping,missing", nil, &list)
		return err == nil && len(list.Items) == 0
	})
	for id, o := range known {
		var now sandbox
		in.Must(t, "GET", "/v1/sandboxes/"+id, nil, &now)
		switch {
		case o.deleted && now.Status != "stopped":
			t.Errorf("%s was deleted and is %s", id, now.Status)
		case !o.deleted && now.Status != "running" && now.Status != "stopped":
			t.Errorf("%s was created and is %s", id, now.Status)
		}
	}
	var list struct{ Items []sandbox }
	in.Must(t, "GET", "/v1/sandboxes?limit=200&status=running", nil, &list)
	for _, box := range list.Items {
		if !slices.ContainsFunc(keep, func(c *counter) bool { return c.id == box.ID }) {
			in.Must(t, "DELETE", "/v1/sandboxes/"+box.ID, nil, nil)
		}
	}
}

// Stopped as with Ctrl-C and started again, it is back in seconds with every
// sandbox as it was.
func TestO1_UpAgainIsQuickAndKeepsSandboxes(t *testing.T) {
	in := skerry(t)
	box := in.Create(t, nil)
	in.Sh(t, box.ID, "echo kept >/home/user/kept")
	boot := in.Sh(t, box.ID, "cat /proc/sys/kernel/random/boot_id").Stdout
	testkit.Promise(t, 10*time.Second, "up again", func() time.Duration {
		if err := in.Stop(); err != nil {
			t.Fatal(err)
		}
		for _, what := range []string{"server", "agent", "postgres"} {
			if pid := in.process(t, what); pid != 0 && syscall.Kill(pid, 0) == nil {
				t.Errorf("%s (%d) still runs after up was stopped", what, pid)
			}
		}
		start := time.Now()
		if err := in.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		t.Logf("up again in %s", took)
		return took
	})
	testkit.Eventually(t, 30*time.Second, "the sandbox answers", func() bool {
		var result execResult
		_, err := in.Try(t.Context(), "POST", "/v1/sandboxes/"+box.ID+"/exec", map[string]any{"cmd": "cat /home/user/kept /proc/sys/kernel/random/boot_id"}, &result)
		return err == nil && result.Stdout == "kept\n"+boot
	})
}
