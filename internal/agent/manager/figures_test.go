package manager_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine/fake"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

func TestS12_PauseAllReportsEachOutcome(t *testing.T) {
	w := newWorld()
	a := boot(t, w, t.TempDir(), func(c *manager.Config) { c.PauseWidth = 3 })
	runs := map[id.Sandbox]manager.Report{}
	for range 10 {
		r := mustCreate(t, a, spec(id.NewSandbox(), 1))
		w.work(t, r, r.Sandbox.String())
		runs[r.Sandbox] = r
	}
	var bad manager.Report
	for _, bad = range runs {
		break
	}
	w.sim.Script(fake.Checkpoint, fake.Fault{ID: bad.Instance, Err: syscall.ENOSPC, Times: 1})
	release := w.hold("checkpoint")
	done := make(chan []manager.Outcome, 1)
	go func() { done <- a.PauseAll(context.Background(), "drain") }()
	testkit.Eventually(t, 5*time.Second, "as many as may", func() bool { return w.calls("checkpoint") == 3 })
	release()
	out := <-done
	if len(out) != 10 {
		t.Fatalf("%d outcomes", len(out))
	}
	for _, o := range out {
		if o.Sandbox == bad.Sandbox {
			wantReason(t, o.Err, "disk_full")
			w.worked(t, of(t, a, o.Sandbox), o.Sandbox.String())
			continue
		}
		if o.Err != nil || o.State.Sandbox != o.Sandbox || of(t, a, o.Sandbox).PausedReason != "" {
			t.Errorf("%+v", o)
		}
		w.worked(t, mustCreate(t, a, resume(runs[o.Sandbox], o.State.ID)), o.Sandbox.String())
	}
}

func TestLogsAreTheEndOfTheConsole(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	if text, cut, err := a.Logs(t.Context(), r.Sandbox, 1); err != nil || len(text) != 0 || cut {
		t.Errorf("%q, %v, %v", text, cut, err)
	}
	at := filepath.Join(dir, "instances", string(r.Instance))
	older, newer := bytes.Repeat([]byte{'a'}, manager.MaxLogs), bytes.Repeat([]byte{'b'}, 100)
	for name, text := range map[string][]byte{"console.log.1": older, "console.log": newer} {
		if err := os.WriteFile(filepath.Join(at, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, cut, err := a.Logs(t.Context(), r.Sandbox, 1)
	if err != nil || !cut || !bytes.Equal(text, append(older[100:], newer...)) {
		t.Errorf("%d bytes, %v, %v", len(text), cut, err)
	}
	_, _, err = a.Logs(t.Context(), r.Sandbox, 2)
	wantReason(t, err, "unknown_sandbox")
}

func TestSamplesAreOfThoseThatRun(t *testing.T) {
	w := newWorld()
	a := boot(t, w, t.TempDir())
	r, paused := mustCreate(t, a, spec(id.NewSandbox(), 1)), mustCreate(t, a, spec(id.NewSandbox(), 1))
	mustPause(t, a, paused)
	for range 2 {
		got := a.Samples(t.Context())
		if len(got) != 1 || got[0].Sandbox != r.Sandbox || got[0].Incarnation != 1 || got[0].MemoryBytes < 8<<20 || got[0].Processes != 1 || got[0].At.IsZero() {
			t.Errorf("samples %+v", got)
		}
		// The fake uses one CPU all the time.
		if got[0].CPUMillis < 500 || got[0].CPUMillis > 1500 {
			t.Errorf("%d thousandths of a CPU", got[0].CPUMillis)
		}
		timer := time.NewTimer(20 * time.Millisecond)
		<-timer.C
	}
}
