package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
)

// With no room for its state a sandbox runs on, whoever wanted the pause, and
// the error says what to free. With room again the pause works.
func TestS5_ST05_ADiskWithoutRoomDestroysNothing(t *testing.T) {
	in := skerry(t)
	in.noStates(t)
	states := filepath.Join(in.Data, "agent", "states")
	// Less than a state must leave free.
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "mode=700,size=80m", "skerry-test", states).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v %s", err, out)
	}
	t.Cleanup(func() {
		in.noStates(t)
		if out, err := exec.Command("umount", states).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	w := in.worker(t, map[string]any{"on_timeout": "pause"})
	command := in.follow(t, w.id)
	w.grow(t)
	w.look(t)
	for path, body := range map[string]map[string]any{
		"/v1/sandboxes/" + w.id + "/pause": {},
		"/v1/snapshots":                    {"sandbox_id": w.id, "name": "none"},
		"/v1/sandboxes/" + w.id + "/fork":  {"count": 2},
	} {
		code, err := in.Try(t.Context(), "POST", path, body, nil)
		if code < 500 || err == nil || !strings.Contains(err.Error(), "MB") || !strings.Contains(err.Error(), "disk") {
			t.Errorf("ST-05: %s: %v; want an error that says how much is missing on which disk", path, err)
		}
		t.Log(err)
		w.look(t)
	}
	in.Must(t, "POST", "/v1/sandboxes/"+w.id+"/timeout", map[string]any{"timeout_sec": 1}, nil)
	testkit.Eventually(t, 2*time.Minute, "the pause at the deadline fails", func() bool { return times(in.history(t, w.id), "pause_failed") >= 2 })
	w.look(t)
	command.reattach()
	if left, _ := os.ReadDir(states); len(left) != 0 {
		t.Errorf("LL-01: %d entries are left of pauses that failed", len(left))
	}

	if out, err := exec.Command("mount", "-o", "remount,size=2g", states).CombinedOutput(); err != nil {
		t.Fatalf("remount: %v %s", err, out)
	}
	in.becomes(t, w.id, "paused") // the deadline is still due
	in.resume(t, w.id)
	w.look(t)
	command.reattach()
	command.finish(in)
}

// sentries are the engine's processes of this instance that run guests.
func (in *machine) sentries(t testing.TB) (pids []int) {
	t.Helper()
	for _, line := range in.traces(t) {
		var pid int
		if _, err := fmt.Sscanf(line, "process %d:", &pid); err == nil && strings.Contains(line, "runsc-sandbox") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// When its engine dies a sandbox is over, says so, and says what it can be
// started from again.
func TestS15_AKilledEngineLeavesWhatToRecoverFrom(t *testing.T) {
	in := skerry(t)
	in.noTraces(t)
	options := map[string]any{}
	if scaled(1, 0) == 1 {
		options["checkpoint_interval_sec"] = 60
	}
	w := in.worker(t, options)
	w.grow(t)
	w.look(t)
	in.pause(t, w.id)
	in.resume(t, w.id)
	saved := w.copyOf("")
	w.grow(t)
	w.look(t)
	if scaled(1, 0) == 1 { // a checkpoint bounds what is lost
		now := time.Now()
		testkit.Eventually(t, 3*time.Minute, "a checkpoint", func() bool { return in.state(t, w.id).SavedAt.After(now) })
		saved = w.copyOf("")
		w.look(t)
	}
	pids := in.sentries(t)
	if len(pids) != 1 {
		t.Fatalf("the sentries are %v, want one", pids)
	}
	waiting := make(chan time.Duration, 1)
	go func() {
		start := time.Now()
		_, _ = in.Try(t.Context(), "POST", "/v1/sandboxes/"+w.id+"/exec", map[string]any{"cmd": "sleep 600"}, nil)
		waiting <- time.Since(start)
	}()
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	x := in.becomes(t, w.id, "stopped")
	if x.EndReason != "engine_crashed" && x.EndReason != "killed" {
		t.Errorf("S15: it ended because of %q, want engine_crashed or killed", x.EndReason)
	}
	if x.Recoverable == nil || x.Recoverable.At.IsZero() {
		t.Fatalf("S15: it says %+v, but not what to recover from", x)
	}
	t.Logf("%s, recoverable from %s of %s; a call in flight ended after %s", x.EndReason, x.Recoverable.SnapshotID, x.Recoverable.At, <-waiting)
	var again sandbox
	in.Must(t, "POST", "/v1/sandboxes", map[string]any{"snapshot": x.Recoverable.SnapshotID, "timeout_sec": 7200}, &again)
	in.removed(t, again.ID)
	saved.id = again.ID
	saved.look(t)
	in.Must(t, "DELETE", "/v1/sandboxes/"+w.id, nil, nil)
}
