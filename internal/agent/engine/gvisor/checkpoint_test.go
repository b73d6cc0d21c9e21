package gvisor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/enginetest"
	"skerry.dev/skerry/internal/testkit"
)

// change edits the engine's record of an instance, as a crash would leave it.
func (w *world) change(t *testing.T, id engine.InstanceID, key string, value any) {
	t.Helper()
	path := filepath.Join(w.cfg.StateDir, "instances", string(id)+".json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	fields[key] = value
	if b, err = json.Marshal(fields); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// The agent died around a pause or a resume and nobody knows what became of it.
// To resume a guest that is not paused would end it.
func TestRC03_AgentDiesWhilePausing(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	spec, h := running(t, w, e)
	for round, paused := range []bool{false, true, false, true} {
		if paused {
			if err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: t.TempDir()}); err != nil {
				t.Fatal(err)
			}
		}
		w.change(t, spec.ID, "pause", "pausing")
		e = w.engine(t)
		if round < 2 {
			if err := e.Thaw(t.Context(), h); err != nil {
				t.Fatal(err)
			}
		} else { // or goes on with a checkpoint
			if err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: t.TempDir(), DiskOnly: true}); err != nil {
				t.Fatal(err)
			}
			if err := e.Thaw(t.Context(), h); err != nil {
				t.Fatal(err)
			}
		}
		if err := get(t, e, h, "/keep"); err != nil {
			t.Fatalf("paused %v: %v", paused, err)
		}
	}
}

// A pause or a resume was asked for, and the sentry has not read it when nobody
// waits for it any more: the caller has given up, or the agent has died. It takes
// effect all the same. What lets the guest go on must come after the one, and not
// be done again after the other.
func TestS5_PauseOrResumeStillToCome(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	spec, h := running(t, w, e)
	sentry := w.sentry(t, spec.ID).PID
	signal := func(s unix.Signal) {
		t.Helper()
		if err := unix.Kill(sentry, s); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Kill(sentry, unix.SIGCONT) })
	waiting := func(calls int) {
		t.Helper()
		testkit.Eventually(t, 10*time.Second, "the call waits for the sentry", func() bool { return callsOf(t, spec.ID) >= calls })
	}
	for round := range 12 {
		if round%3 == 2 {
			if err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: t.TempDir(), DiskOnly: true}); err != nil {
				t.Fatal(err)
			}
		}
		signal(unix.SIGSTOP)
		testkit.Eventually(t, 10*time.Second, "the sentry is stopped", func() bool { return stopped(sentry) })
		var wg sync.WaitGroup
		if round%3 == 0 {
			ctx, giveUp := context.WithCancel(t.Context())
			dir := t.TempDir()
			wg.Go(func() {
				err := e.Checkpoint(ctx, h, engine.CheckpointOptions{Dir: dir})
				if entries, _ := os.ReadDir(dir); !errors.Is(err, context.Canceled) || len(entries) > 0 {
					t.Errorf("round %d: given up: %v, left %v", round, err, entries)
				}
			})
			waiting(1)
			giveUp()
			<-time.After(20 * time.Millisecond) // for what would not wait
		} else {
			w.ask(t, spec.ID, map[int]string{1: "containerManager.Pause", 2: "containerManager.Resume"}[round%3])
			w.change(t, spec.ID, "pause", "pausing")
			e = w.engine(t)
			wg.Go(func() {
				if err := e.Thaw(t.Context(), h); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			})
			waiting(2)
		}
		signal(unix.SIGCONT)
		wg.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err := getWithin(ctx, e, h, "/keep")
		cancel()
		if err != nil {
			t.Fatalf("round %d: the guest stands still: %v\n%s", round, err, lastWords(spec))
		}
	}
}

// stopped tells whether no thread of a process runs.
func stopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, path := range threads {
		if b, err := os.ReadFile(path); err == nil && !bytes.Contains(b, []byte("\nState:\tT")) {
			return false
		}
	}
	return len(threads) > 0
}

// ask sends a call to the sentry and does not wait for its answer.
func (w *world) ask(t *testing.T, id engine.InstanceID, method string) {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(w.cfg.StateDir, "runsc", fmt.Sprintf("runsc-%s.sock", id)))
	if err == nil {
		_, err = fmt.Fprintf(c, `{"method":%q,"arg":null}`, method)
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// callsOf counts the connections to a sentry's control socket at its end.
func callsOf(t *testing.T, id engine.InstanceID) int {
	t.Helper()
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	const listens = "00010000"
	n := 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line) // address, references, protocol, flags, type, state, inode, path
		if len(f) == 8 && f[3] != listens && strings.HasSuffix(f[7], fmt.Sprintf("/runsc-%s.sock", id)) {
			n++
		}
	}
	return n
}

// The shim and all clients of runsc may be killed during a checkpoint.
func TestS5_ShimKilledDuringCheckpoint(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	_, h := running(t, w, e)
	failed := 0
	for _, after := range []time.Duration{5, 15, 25, 35, 45, 60, 90} {
		dir := t.TempDir()
		var wg sync.WaitGroup
		wg.Go(func() {
			<-time.After(after * time.Millisecond)
			w.killShim(t) // takes its clients with it
		})
		err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true, DiskOnly: true})
		wg.Wait()
		if err != nil {
			failed++
			if entries, _ := os.ReadDir(dir); len(entries) > 0 {
				t.Errorf("killed after %d ms: left %v", after, entries)
			}
		}
		if err := get(t, e, h, "/keep"); err != nil {
			t.Fatalf("killed after %d ms: %v", after, err)
		}
		testkit.Eventually(t, 20*time.Second, "the next checkpoint succeeds", func() bool {
			return e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: t.TempDir(), LeaveRunning: true, DiskOnly: true}) == nil
		})
	}
	t.Logf("%d of 7 failed", failed)
}

// A full disk is told as what it is, and by its name, and the guest goes on.
func TestS5_FullDiskIsNamed(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	_, h := running(t, w, e)
	if err := get(t, e, h, "/alloc?bytes=20000000"); err != nil {
		t.Fatal(err)
	}
	for _, body := range []bool{false, true} {
		if body {
			if err := post(t, e, h, "/file?path=/big", bytes.Repeat([]byte("full"), 1<<20)); err != nil {
				t.Fatal(err)
			}
		}
		for _, leave := range []bool{true, false} {
			err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: dir, LeaveRunning: leave, DiskOnly: body})
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("disk only %v, leave running %v: %v", body, leave, err)
			}
			if err := get(t, e, h, "/keep"); err != nil {
				t.Errorf("disk only %v, leave running %v: the guest after it: %v", body, leave, err)
			}
		}
	}
}

func post(t *testing.T, e engine.Engine, h engine.Handle, path string, body []byte) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://guest"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := enginetest.Client(e, h).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", res.Status)
	}
	return nil
}

// A copy is as jailed as an instance that was started, and its limits are its
// own.
func TestLL09_RestoredInstanceIsJailed(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	spec, h := running(t, w, e)
	dir := t.TempDir()
	if err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true}); err != nil {
		t.Fatal(err)
	}
	if err := e.Destroy(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	spec = w.spec(t)
	spec.Resources.MemoryBytes /= 2
	h, err := e.Prepare(t.Context(), spec)
	if err == nil {
		h, err = e.Restore(t.Context(), h, dir)
	}
	t.Cleanup(func() { destroyInstance(t, e, spec.ID) })
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 15*time.Second, "the guest answers", func() bool { return get(t, e, h, "/keep") == nil })
	w.jailed(t, spec)
	limit, err := os.ReadFile(filepath.Join(w.group(t, "memory", spec.ID), "memory.limit_in_bytes"))
	if err != nil {
		limit, err = os.ReadFile(filepath.Join(w.group(t, "memory", spec.ID), "memory.max"))
	}
	var n int64
	if _, scanErr := fmt.Sscan(strings.TrimSpace(string(limit)), &n); err != nil || scanErr != nil ||
		n < spec.Resources.MemoryBytes || n > spec.Resources.MemoryBytes+300<<20 {
		t.Errorf("memory limit %s of a guest with %d: %v", limit, spec.Resources.MemoryBytes, errors.Join(err, scanErr))
	}
}

// group is the directory of an instance's cgroup.
func (w *world) group(t *testing.T, controller string, id engine.InstanceID) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup/" + controller, "/sys/fs/cgroup"} {
		path := filepath.Join(dir, "skerry-"+w.tag, string(id))
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Fatalf("no cgroup of %s", id)
	return ""
}
