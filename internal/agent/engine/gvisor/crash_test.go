package gvisor_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/testkit"
)

func (w *world) killShim(t *testing.T) {
	t.Helper()
	info, err := w.shim.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(info.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// A guest that writes to its console lives on when the shim that drains it is
// killed, and what it writes to the next one arrives.
func TestH15_ShimKilledUnderARunningSandbox(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	spec, h := running(t, w, e)
	waiting := make(chan engine.Exit, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if x, err := e.Wait(t.Context(), h); err == nil {
			waiting <- x
		}
	})
	for round := range 3 {
		w.killShim(t)
		// Nobody may read at this moment.
		if err := get(t, e, h, "/say?bytes=20000"); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if _, err := w.shim.Info(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, 30*time.Second, "all that was written arrives", func() bool {
		b, _ := os.ReadFile(filepath.Join(spec.WorkDir, "console.log"))
		return bytes.Count(b, []byte("x")) == 60_000
	})
	if _, err := e.Recover(t.Context(), h); err != nil {
		t.Error(err)
	}
	_ = get(t, e, h, "/exit?code=5")
	if x := <-waiting; x.Reason != engine.ExitExited && x.Reason != engine.ExitUnknown || x.Reason == engine.ExitExited && x.Code != 5 {
		t.Errorf("exit %+v", x)
	}
}

// Freezing interrupts system calls that map memory and start processes for the
// guest, in whatever state they are. Neither the guest nor the freeze may suffer.
func TestRC03_FreezingABusyGuest(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	_, h := running(t, w, e)
	enough := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-enough:
				return
			default:
			}
			path := "/alloc?bytes=300000"
			if n%10 == 0 && n < 500 {
				path = "/spawn"
			} else if n >= 400 {
				path = "/info"
			}
			if err := get(t, e, h, path); err != nil {
				t.Errorf("request %d, %s: %v", n, path, err)
				return
			}
		}
	})
	for n := range 5 * cycles() {
		if err := e.Freeze(t.Context(), h); err != nil {
			t.Errorf("freeze %d: %v", n, err)
		}
		if err := e.Thaw(t.Context(), h); err != nil {
			t.Errorf("thaw %d: %v", n, err)
		}
		if t.Failed() {
			break
		}
	}
	close(enough)
	wg.Wait()
	if err := get(t, e, h, "/keep"); err != nil {
		t.Error(err)
	}
}

func TestLL03_GuestConsoleIsBounded(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	spec, h := running(t, w, e)
	for range 12 {
		if err := get(t, e, h, "/say?bytes=1000000"); err != nil {
			t.Fatal(err)
		}
	}
	var total int64
	err := filepath.WalkDir(spec.WorkDir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	if err != nil || total > 3<<20 {
		t.Errorf("%d bytes after 12 MB of console (%v)", total, err)
	}
}

// The host's disk is full: the checkpoint fails, its source does not.
func TestCheckpointOnAFullDisk(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatal(err)
	}
	// After the instance is gone: until then gVisor's processes hold a file open.
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	_, h := running(t, w, e)
	if err := get(t, e, h, "/alloc?bytes=20000000"); err != nil {
		t.Fatal(err)
	}
	for _, leave := range []bool{true, false} {
		err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: dir, LeaveRunning: leave})
		if err == nil {
			t.Fatal("20 MB went into 512 KiB")
		}
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("left in the directory: %v", entries)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil || st.Bfree != st.Blocks {
			t.Errorf("the disk stays full: %d of %d blocks free, %v", st.Bfree, st.Blocks, err)
		}
		if err := get(t, e, h, "/keep"); err != nil {
			t.Errorf("the source is damaged: %v", err)
		}
	}
}

// What runsc said is in the error, and nothing stays of the attempt.
func TestFailedStartSaysWhyAndLeavesNothing(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	for name, spoil := range map[string]func(*engine.Spec){
		"no such program":   func(s *engine.Spec) { s.Args = []string{"/no/such/program"} },
		"no such namespace": func(s *engine.Spec) { s.Network.NamespacePath += "-gone" },
		"no such root":      func(s *engine.Spec) { s.RootDir += "-gone" },
	} {
		spec := w.spec(t)
		spoil(&spec)
		h, err := e.Prepare(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		_, err = e.Start(t.Context(), h)
		if err == nil {
			t.Errorf("%s: started", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
		if err != nil && !strings.Contains(err.Error(), "no such file") && !strings.Contains(err.Error(), "-gone") {
			t.Errorf("%s: the cause is missing: %v", name, err)
		}
		if err := e.Destroy(t.Context(), spec.ID); err != nil {
			t.Error(err)
		}
	}
	for _, leak := range w.leaks() {
		t.Errorf("left behind: %s", leak)
	}
}

// The machine went down: records of another boot are no running instances.
func TestS15_HostRestartIsTheReason(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	spec, h := running(t, w, e)
	if err := e.Stop(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.cfg.StateDir, "instances", string(spec.ID)+".json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Replace(b, bytes.TrimSpace(boot), []byte("00000000-0000-0000-0000-000000000000"), 1)
	if err := os.WriteFile(path, other, 0o600); err != nil {
		t.Fatal(err)
	}
	if x, err := e.Wait(t.Context(), h); err != nil || x.Reason != engine.ExitHostRestart {
		t.Errorf("%+v %v", x, err)
	}
}

// The shim is killed at every stage of a start. Whatever Start says, Recover
// and the world agree with it, and Destroy leaves nothing.
func TestRC03_ShimKilledDuringStart(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	for after := time.Duration(0); after < 240*time.Millisecond; after += 20 * time.Millisecond {
		spec := w.spec(t)
		h, err := e.Prepare(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			<-time.After(after)
			w.killShim(t)
		})
		started, startErr := e.Start(t.Context(), h)
		wg.Wait()
		if startErr == nil {
			testkit.Eventually(t, 30*time.Second, "the guest answers", func() bool { return get(t, e, started, "/keep") == nil })
		}
		next := w.engine(t)
		found, err := next.Inventory(t.Context())
		if err != nil || len(found) != 1 || found[0].Running != (startErr == nil) {
			t.Errorf("shim killed %s into the start, which said %v: %v %v", after, startErr, found, err)
		}
		if startErr != nil { // it can be tried again
			if h, err = next.Recover(t.Context(), h); err == nil {
				h, err = next.Start(t.Context(), h)
			}
			if err != nil {
				t.Errorf("start again: %v", err)
			}
		}
		if err := next.Destroy(t.Context(), spec.ID); err != nil {
			t.Error(err)
		}
		for _, leak := range w.leaks() {
			t.Errorf("shim killed %s into the start: left behind: %s", after, leak)
		}
	}
}
