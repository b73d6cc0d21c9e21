package identity_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/identity"
)

// crash is the panic of a process that dies at a step.
type crash struct{}

// diesAt has the process die at the nth time it comes to a step. What a machine
// that loses power has not on disk yet is gone then.
type diesAt struct {
	step    identity.Step
	nth     int
	visited map[identity.Step]bool
}

func (d *diesAt) at(dir string) func(identity.Step) {
	before := map[string][]byte{}
	return func(s identity.Step) {
		d.visited[s] = true
		if s == identity.StepSynced { // the next thing is the rename
			before = contents(dir)
		}
		if s != d.step {
			return
		}
		if d.nth--; d.nth != 0 {
			return
		}
		switch s {
		case identity.StepWritten: // not synced: nothing of it is there
			for name := range contents(dir) {
				if strings.HasPrefix(name, ".new-") {
					_ = os.Truncate(filepath.Join(dir, name), 0)
				}
			}
		case identity.StepRenamed: // the directory is not: the names are the old ones
			for name := range contents(dir) {
				if _, was := before[name]; !was {
					_ = os.Remove(filepath.Join(dir, name))
				}
			}
			for name, content := range before {
				_ = os.WriteFile(filepath.Join(dir, name), content, 0o600)
			}
		}
		panic(crash{})
	}
}

func contents(dir string) map[string][]byte {
	out := map[string][]byte{}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		out[e.Name()], _ = os.ReadFile(filepath.Join(dir, e.Name()))
	}
	return out
}

// survives runs f and tells whether the process came out of it.
func survives(f func() error) (alive bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(crash); !ok {
				panic(r)
			}
			alive, err = false, nil
		}
	}()
	return true, f()
}

// life is a host's: it joins, renews, and when it was deleted it leaves.
func life(t *testing.T, s setup, cfg identity.Config, left *bool) error {
	i, err := identity.Open(cfg)
	if errors.Is(err, identity.ErrLeft) {
		*left = true
		return nil
	}
	if err != nil {
		return err
	}
	defer i.Close()
	if deleted(i) {
		return i.Leave()
	}
	if err := i.Register(t.Context(), identity.Facts{}); err != nil {
		return err
	}
	if err := i.Refresh(t.Context(), ""); errors.Is(err, identity.ErrDeleted) {
		return i.Leave()
	} else if err != nil {
		return err
	}
	s.control.Lock()
	s.control.Gone = s.ca.Statement(s.control.HostID)
	s.control.Unlock()
	if err := i.Refresh(t.Context(), ""); !errors.Is(err, identity.ErrDeleted) {
		return err
	}
	return i.Leave()
}

func deleted(i *identity.Identity) bool {
	select {
	case <-i.Deleted():
		return true
	default:
		return false
	}
}

// TestHI02_HI03_H4_ACrashAtAnyStepIsMadeUpFor: whatever step a host dies at,
// joining, renewing or leaving, its next starts go on to the end of its life,
// without an operator and without a token older than the one before last, which
// would be taken for theft.
func TestHI02_HI03_H4_ACrashAtAnyStepIsMadeUpFor(t *testing.T) {
	visited := map[identity.Step]bool{}
	for _, step := range identity.Steps() {
		for nth := 1; ; nth++ {
			s := newSetup(t)
			die := &diesAt{step: step, nth: nth, visited: visited}
			cfg := s.config()
			cfg.Step = die.at(s.dir)
			left, died := false, false
			for starts := 0; !left; starts++ {
				if starts > 5 {
					t.Fatalf("%s, time %d: the host does not get to the end of its life", step, nth)
				}
				alive, err := survives(func() error { return life(t, s, cfg, &left) })
				if err != nil {
					t.Fatalf("%s, time %d: %v", step, nth, err)
				}
				died = died || !alive
			}
			// A new token makes it another host, also when that is cut short.
			cfg.Token = "another"
			s.control.Lock()
			s.control.Token, s.control.Gone = cfg.Token, ""
			s.control.Unlock()
			s.control.NewHost()
			for starts := 0; ; starts++ {
				alive, err := survives(func() error {
					i, err := identity.Open(cfg)
					if err != nil {
						return err
					}
					defer i.Close()
					return i.Register(t.Context(), identity.Facts{})
				})
				if err != nil || starts > 1 {
					t.Fatalf("%s, time %d: the new host: %v", step, nth, err)
				}
				if died = died || !alive; alive {
					break
				}
			}
			if s.control.Revoked {
				t.Errorf("%s, time %d: the host presented a token that was over", step, nth)
			}
			for name := range contents(s.dir) {
				if name != "host.key" && name != "credentials.json" {
					t.Errorf("%s, time %d: %s is left", step, nth, name)
				}
			}
			if !died {
				break // it does not come there so often
			}
		}
		if !visited[step] {
			t.Errorf("no life has the step %s", step)
		}
	}
	if len(visited) != len(identity.Steps()) {
		t.Errorf("visited %v, which is not what Steps says", visited)
	}
}

// TestHI02_AnAnswerThatIsCutAnywhereIsAskedForAgain drops the answers to
// registration and renewal at ten points each.
func TestHI02_AnAnswerThatIsCutAnywhereIsAskedForAgain(t *testing.T) {
	for _, path := range []string{"/v1/hosts/register", "/v1/hosts/auth/refresh"} {
		s := newSetup(t)
		points := []int{0, 1, 10, 50, 100, 300, 600, 1000, 2000, 1 << 20}
		s.control.Cut = func(r *http.Request) int {
			if r.URL.Path != path || len(points) == 0 {
				return -1
			}
			at := points[0]
			points = points[1:]
			return at
		}
		i := open(t, s.config())
		failures := 0
		for i.HostID().IsZero() {
			if err := i.Register(t.Context(), identity.Facts{}); err != nil {
				failures++
			}
		}
		for err := i.Refresh(t.Context(), ""); err != nil; err = i.Refresh(t.Context(), "") {
			if failures++; identity.Unauthorized(err) || failures > 20 {
				t.Fatalf("%s: after %d: %v", path, failures, err)
			}
		}
		if failures != 10 || s.control.Revoked || i.Turned() {
			t.Errorf("%s: %d failures, want 10; revoked: %v", path, failures, s.control.Revoked)
		}
	}
}

// TestHI05_OnlyASigningRequestLeavesTheHost looks at all that is sent.
func TestHI05_OnlyASigningRequestLeavesTheHost(t *testing.T) {
	s := newSetup(t)
	var mu sync.Mutex
	var sent bytes.Buffer
	s.control.Intercept = func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		sent.Write(body.Bytes())
		r.Body = readCloser{bytes.NewReader(body.Bytes())}
		return false
	}
	i := s.registered(t)
	if err := i.Refresh(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if n := strings.Count(sent.String(), "BEGIN CERTIFICATE REQUEST"); n != 2 {
		t.Fatalf("%d signing requests, want 2", n)
	}
	key, err := os.ReadFile(filepath.Join(s.dir, "host.key"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(key)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "---") && strings.Contains(sent.String(), line) {
			t.Error("a part of the host's key was sent")
		}
	}
	if strings.Contains(sent.String(), "PRIVATE KEY") {
		t.Error("a private key was sent")
	}
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

// shifted is a clock that is wrong.
type shifted struct{ by atomic.Int64 }

func (c *shifted) Now() time.Time { return time.Now().Add(time.Duration(c.by.Load())) }

func (c *shifted) set(by time.Duration) { c.by.Store(int64(by)) }

func TestHI04_AWrongClockIsCalledThat(t *testing.T) {
	for by, clear := range map[time.Duration]bool{
		0: false, 5*time.Minute - 10*time.Second: false, -5*time.Minute + 10*time.Second: false,
		time.Hour: true, -time.Hour - time.Minute: true, 8 * 24 * time.Hour: true,
	} {
		s := newSetup(t)
		var log buffer
		cfg := s.config()
		clock := &shifted{}
		clock.set(by)
		cfg.Clock, cfg.Logger = clock, log.logger()
		err := open(t, cfg).Register(t.Context(), identity.Facts{})
		said := log.String()
		if err != nil {
			said += err.Error()
		}
		if strings.Contains(said, "clock") != clear {
			t.Errorf("a clock that is %s off: %q", by, said)
		}
		if !clear && err != nil {
			t.Errorf("a clock that is %s off: %v", by, err)
		}
	}
}

// TestHI04_LifetimesAreKeptByTheClock moves the clock: renewal at half-life, a
// louder word when a quarter is left, and a way back for a host that was off
// for sixty days.
func TestHI04_LifetimesAreKeptByTheClock(t *testing.T) {
	s := newSetup(t)
	s.control.Lifetime = 14 * 24 * time.Hour
	var log buffer
	clock := &shifted{}
	cfg := s.config()
	cfg.Clock, cfg.Logger = clock, log.logger()
	i := open(t, cfg)
	if err := i.Register(t.Context(), identity.Facts{}); err != nil {
		t.Fatal(err)
	}
	clock.set(7*24*time.Hour - time.Minute)
	if i.RenewalDue() {
		t.Error("due before half its life")
	}
	clock.set(7*24*time.Hour + time.Minute)
	if !i.RenewalDue() {
		t.Error("not due at half its life")
	}
	// The control plane's own certificates stay young.
	s.control.Lock()
	s.control.Intercept = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusBadGateway)
		return true
	}
	s.control.Unlock()
	soon := "could not be renewed and end soon"
	clock.set(10 * 24 * time.Hour)
	beatOnce(t, i, &log, "could not be renewed yet")
	if strings.Contains(log.String(), soon) {
		t.Error("loud with a third left")
	}
	clock.set(11 * 24 * time.Hour)
	beatOnce(t, i, &log, soon)

	// Off for sixty days: all of it is over, and a new token brings back the
	// same host.
	s.control.Lock()
	s.control.Intercept = nil
	s.control.JWT, s.control.Revoked = "over", true
	s.control.Token = "by-the-operator"
	s.control.Unlock()
	clock.set(0) // both clocks have moved
	run(t, i, newBox())
	within(t, "the refusal", i.Turned)
	if !strings.Contains(log.String(), "skerry join") {
		t.Error("the refusal does not say what to do")
	}
	cfg.Token = s.control.Token
	again := open(t, cfg)
	if err := again.Register(t.Context(), identity.Facts{}); err != nil || again.HostID() != i.HostID() {
		t.Errorf("registered anew as %s: %v", again.HostID(), err)
	}
}

// beatOnce lets heartbeats fail until the log says something.
func beatOnce(t *testing.T, i *identity.Identity, log *buffer, what string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		identity.Contact{
			Identity: i, Outbox: newBox(), Load: func() identity.Load { return identity.Load{} },
			Heartbeat: time.Millisecond, RetryMin: time.Millisecond, RetryMax: time.Millisecond,
		}.Beat(ctx)
	})
	within(t, what, func() bool { return strings.Contains(log.String(), what) })
	cancel()
	wg.Wait()
}
