package multihost

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
)

// seed is that of the run, or the one that is asked for.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if asked := os.Getenv("SKERRY_TEST_SEED"); asked != "" {
		var err error
		if n, err = strconv.ParseUint(asked, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SKERRY_TEST_SEED=%d", n)
	return n
}

// life is what one caller knows of a sandbox of the storm.
type life struct {
	id, token string
	// gone: a delete was accepted; doubtful: one was tried and its answer lost.
	gone, doubtful bool
	// told: the token is in it.
	told bool
}

// caller does things to sandboxes of its own, and remembers what was accepted.
type caller struct {
	w      *world
	t      *testing.T
	random *rand.Rand
	lives  []*life
	// accepted are calls that were answered with success, by sandbox and by the
	// audit's name for them; counts are all calls by what came of them.
	accepted map[string]map[string]int
	counts   map[string]int
}

const callLimit = 2 * time.Minute

func (c *caller) call(what, method, path string, body, out any) (status int, err error) {
	// What was begun when the storm ends comes to its end.
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	status, err = c.w.Servers[c.random.IntN(len(c.w.Servers))].Try(ctx, method, path, body, out)
	switch {
	case err == nil:
		c.counts[what]++
	case status == 0:
		c.counts[what+" unanswered"]++
	default:
		c.counts[fmt.Sprintf("%s %d", what, status)]++
		if status >= 500 && status != http.StatusServiceUnavailable {
			c.t.Errorf("nobody's fault but ours: %v", err)
		}
	}
	if status == 0 || status >= 500 {
		<-time.After(20 * time.Millisecond) // as a caller would
	}
	return status, err
}

func (c *caller) accept(l *life, action string) {
	if c.accepted[l.id] == nil {
		c.accepted[l.id] = map[string]int{}
	}
	c.accepted[l.id][action]++
}

// act does one thing.
func (c *caller) act() {
	var living []*life
	for _, l := range c.lives {
		if !l.gone && !l.doubtful {
			living = append(living, l)
		}
	}
	if len(living) == 0 || len(living) < 3 && c.random.IntN(3) == 0 {
		c.create()
		return
	}
	l := living[c.random.IntN(len(living))]
	path := "/v1/sandboxes/" + l.id
	switch dice := c.random.IntN(10); {
	case dice < 5:
		c.exec(l)
	case dice < 7:
		if _, err := c.call("pause", "POST", path+"/pause", map[string]any{}, nil); err == nil {
			c.accept(l, "pause")
		}
	case dice < 9:
		if _, err := c.call("resume", "POST", path+"/resume", map[string]any{}, nil); err == nil {
			c.accept(l, "resume")
		}
	default:
		if _, err := c.call("delete", "DELETE", path, nil, nil); err == nil {
			l.gone = true
			c.accept(l, "destroy")
		} else {
			l.doubtful = true
		}
	}
}

func (c *caller) create() {
	var made sandbox
	options := small(map[string]any{"template": "base"})
	if _, err := c.call("create", "POST", "/v1/sandboxes", options, &made); err != nil {
		return
	}
	l := &life{id: made.ID, token: strconv.FormatUint(c.random.Uint64(), 16)}
	c.lives = append(c.lives, l)
	c.accept(l, "create")
	c.exec(l)
}

// exec leaves the token in the sandbox, or looks for it.
func (c *caller) exec(l *life) {
	line := "cat /home/user/token"
	if !l.told {
		line = "echo " + l.token + " >/home/user/token && " + line
	}
	var result execResult
	if _, err := c.call("exec", "POST", "/v1/sandboxes/"+l.id+"/exec", map[string]any{"cmd": line}, &result); err != nil {
		return
	}
	if got := strings.TrimSpace(result.Stdout); got != l.token || result.ExitCode != 0 {
		c.t.Errorf("%s says %+v, want %q", l.id, result, l.token)
	}
	l.told = true
}

// victims are what the storm kills, by name, with how each comes back.
func (w *world) victims() map[string][2]func(ctx context.Context) error {
	all := map[string][2]func(ctx context.Context) error{
		"database": {func(context.Context) error { return w.KillDatabase() }, w.StartDatabase},
	}
	for i, s := range w.Servers {
		all["server "+strconv.Itoa(i)] = [2]func(context.Context) error{
			func(context.Context) error { s.Kill(); return nil }, func(context.Context) error { return s.Start() },
		}
	}
	for i, h := range w.Hosts {
		all["agent "+strconv.Itoa(i)] = [2]func(context.Context) error{
			func(context.Context) error { h.Kill(); return nil }, func(context.Context) error { return h.Start() },
		}
	}
	return all
}

// kills ends and restarts one process after the other until ctx ends; each is
// back before the next one goes. Some stay away until their host is given up.
func (w *world) kills(ctx context.Context, t *testing.T, random *rand.Rand) map[string]int {
	victims, counts := w.victims(), map[string]int{}
	names := slices.Sorted(maps.Keys(victims))
	pause := func(d time.Duration) bool {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for pause(time.Duration(500+random.IntN(2500)) * time.Millisecond) {
		name := names[random.IntN(len(names))]
		away := time.Duration(random.IntN(1500)) * time.Millisecond
		if random.IntN(8) == 0 {
			away += scale().silence + time.Second
		}
		counts[name]++
		if err := victims[name][0](ctx); err != nil {
			t.Errorf("killing %s: %v", name, err)
		}
		pause(away)
		if err := victims[name][1](context.WithoutCancel(ctx)); err != nil {
			t.Errorf("starting %s: %v", name, err)
			break
		}
	}
	return counts
}

// Sandboxes are created, used, paused, resumed and deleted through both servers
// while servers, agents and the database are killed. Afterwards nothing that
// was accepted is lost or undone, and all invariants hold.
func TestH9_AU01_StormOfKills(t *testing.T) {
	w := open(t)
	defer w.heal()
	n := seed(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(testkit.Scaled(600, 60))*time.Second)
	defer cancel()
	var (
		wg      sync.WaitGroup
		callers []*caller
		killed  map[string]int
	)
	for i := range 4 {
		c := &caller{w: w, t: t, random: rand.New(rand.NewPCG(n, uint64(i)+1)), accepted: map[string]map[string]int{}, counts: map[string]int{}}
		callers = append(callers, c)
		wg.Go(func() {
			for ctx.Err() == nil {
				c.act()
			}
		})
	}
	wg.Go(func() { killed = w.kills(ctx, t, rand.New(rand.NewPCG(n, 0))) })
	wg.Wait()
	ended := time.Now()
	w.revive(t)
	w.sound(t)
	t.Logf("at rest, and sound, %s after the storm", time.Since(ended).Round(100*time.Millisecond))

	accepted, counts, sandboxes := map[string]map[string]int{}, map[string]int{}, 0
	for _, c := range callers {
		maps.Copy(accepted, c.accepted)
		for what, n := range c.counts {
			counts[what] += n
		}
		for _, l := range c.lives {
			sandboxes++
			c.outcome(l)
		}
	}
	t.Logf("killed: %v", killed)
	t.Logf("calls: %v; %d sandboxes", counts, sandboxes)
	if err := w.Audited(t.Context(), accepted); err != nil {
		t.Errorf("audit: %v", err)
	}
	w.empty(t)
}

// outcome checks that a sandbox is what it was accepted to be.
func (c *caller) outcome(l *life) {
	x := c.w.status(c.t, l.id)
	switch {
	case l.gone && x.Status != "stopped":
		c.t.Errorf("%s was deleted and is %+v", l.id, x)
	case !l.gone && !l.doubtful && x.Status != "running" && x.Status != "paused":
		c.t.Errorf("%s was never deleted and is %+v", l.id, x)
	}
	if x.Status == "running" && l.told {
		c.exec(l)
	}
}

// empty deletes every sandbox, also those whose creation nobody was told of, and
// waits until no host holds anything of any.
func (w *world) empty(t *testing.T) {
	t.Helper()
	rows, err := w.Rows(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.Status.Live() {
			w.Servers[0].Must(t, "DELETE", "/v1/sandboxes/"+r.ID.String(), nil, nil)
		}
	}
	for _, h := range w.Hosts {
		var last error
		testkit.Eventually(t, 3*time.Minute, "nothing is left", func() bool {
			if err := h.NothingLeft(); err != nil {
				if last == nil || last.Error() != err.Error() {
					t.Log(err)
				}
				last = err
				return false
			}
			return true
		})
	}
	w.sound(t)
}
