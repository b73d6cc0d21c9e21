package enginetest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/testkit"
)

// Run runs the suite; mk makes a world for each case.
func Run(t *testing.T, mk func(t *testing.T) Harness) {
	cases := []struct {
		name string
		run  func(b *bench)
	}{
		{"Probe", probe},
		{"LifeOfAnInstance", life},
		{"RepeatedCalls", repeated},
		{"RefusesBadSpecs", badSpecs},
		{"RC03_DestroyInEveryState", destroyEverywhere},
		{"DestroyDuringStart", destroyDuringStart},
		{"ST08_RecoverAfterAgentRestart", recoverRunning},
		{"RecoverWithTheHandleBeforeStart", recoverStale},
		{"ExitCodeOfPID1", exitCode},
		{"ExitWhileTheAgentIsAway", exitAway},
		{"S15_KilledFromOutside", killed},
		{"S15_OutOfMemory", outOfMemory},
		{"Inventory", inventory},
		{"IDsArePrefixesOfNothing", prefixes},
		{"DialClosedPortFailsAtOnce", dialClosed},
		{"S15_ConnectionsEndWithTheInstance", connectionsEnd},
		{"S14_LimitsAreWhatTheGuestSees", limits},
		{"FreezeAndThaw", freeze},
		{"Resize", resize},
		{"Stats", stats},
		{"CheckpointAndRestore", checkpoint},
		{"CheckpointStopsTheSource", checkpointStops},
		{"CheckpointDiskOnly", checkpointDisk},
		{"CheckpointFailureLeavesRunning", checkpointFails},
		{"S5_CheckpointGivenUp", checkpointGivenUp},
		{"S5_AgentDiesAfterACheckpoint", checkpointAgentDies},
		{"CheckpointOfAFrozenInstance", checkpointFrozen},
		{"DestroyDuringCheckpoint", destroyDuringCheckpoint},
		{"P6_CheckpointIsDescribed", checkpointDescribed},
		{"P6_RestoreRefusesWhatDoesNotFit", restoreMismatch},
		{"RestoreRefusesDamage", restoreDamage},
		{"RS01_WallClockAfterRestore", restoreClock},
		{"S6_RestoreWithOtherLimits", restoreOtherLimits},
		{"RS02_EightCopiesAtOnce", restoreEight},
		{"RS03_ConnectionsAcrossRestore", restoreConnections},
		{"ST03_SyncedWritesAcrossRestore", restoreWrites},
		{"LL01_CyclesLeaveNothing", restoreCycles},
		{"P2_ArchiveOfTheRoot", rootTar},
		{"EightAtOnce", eightAtOnce},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(newBench(t, mk)) })
	}
}

func probe(b *bench) {
	c := b.e.Probe(b.Context())
	if !c.Healthy || len(c.Reasons) > 0 || c.Name == "" || c.Version == "" {
		b.Errorf("probe: %+v", c)
	}
}

func life(b *bench) {
	spec := b.Spec(b.T)
	spec.Stdin = []byte("a secret for PID 1")
	spec.Env = append(spec.Env, "COLOUR=blue")
	h := b.start(spec)
	i := b.info(h)
	if i.PID != 1 || i.UID != 0 || i.Stdin != "a secret for PID 1" || i.Hostname != spec.Hostname ||
		!slices.Contains(i.Env, "COLOUR=blue") || !slices.Equal(i.Args, spec.Args) {
		b.Errorf("the guest sees %+v", i)
	}
	if strings.Contains(string(h), "secret") {
		b.Error("the handle holds PID 1's input")
	}
	_ = filepath.WalkDir(spec.WorkDir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if text, _ := os.ReadFile(path); strings.Contains(string(text), "secret") {
				b.Errorf("%s holds PID 1's input after the start", path)
			}
		}
		return nil
	})
	if err := b.e.Stop(b.Context(), h); err != nil {
		b.Fatal(err)
	}
	if x := b.exit(h); x.Reason != engine.ExitKilled || x.At.IsZero() {
		b.Errorf("exit %+v", x)
	}
	b.destroy(spec.ID)
	if entries, err := os.ReadDir(spec.WorkDir); err != nil || len(entries) > 0 {
		b.Errorf("WorkDir after Destroy: %v %v", entries, err)
	}
}

func repeated(b *bench) {
	spec := b.Spec(b.T)
	first := b.prepare(spec)
	h := b.prepare(spec) // starts over
	_ = first
	h, err := b.e.Start(b.Context(), h)
	if err != nil {
		b.Fatal(err)
	}
	b.up(h)
	b.keep(h, "same")
	again, err := b.e.Start(b.Context(), h)
	if err != nil {
		b.Fatalf("start of a running instance: %v", err)
	}
	if b.kept(again) != "same" {
		b.Error("a second Start made a second instance")
	}
	for range 2 {
		if err := b.e.Stop(b.Context(), h); err != nil {
			b.Errorf("stop: %v", err)
		}
	}
	if _, err := b.e.Start(b.Context(), h); !errors.Is(err, engine.ErrExited) {
		b.Errorf("start of an ended instance: %v", err)
	}
	for range 2 {
		b.destroy(spec.ID)
	}
	if _, err := b.e.Start(b.Context(), h); !errors.Is(err, engine.ErrNotFound) {
		b.Errorf("start of a destroyed instance: %v", err)
	}
	if err := b.e.Stop(b.Context(), h); !errors.Is(err, engine.ErrNotFound) {
		b.Errorf("stop of a destroyed instance: %v", err)
	}
}

func badSpecs(b *bench) {
	for name, spoil := range map[string]func(*engine.Spec){
		"short id":      func(s *engine.Spec) { s.ID = s.ID[:31] },
		"id of a path":  func(s *engine.Spec) { s.ID = "../" + s.ID[3:] },
		"upper case id": func(s *engine.Spec) { s.ID = engine.InstanceID(strings.ToUpper("abcdef" + string(s.ID[6:]))) },
		"no program":    func(s *engine.Spec) { s.Args = nil },
		"no memory":     func(s *engine.Spec) { s.Resources.MemoryBytes = 0 },
		"no disk":       func(s *engine.Spec) { s.Resources.DiskBytes = -1 },
	} {
		spec := b.Spec(b.T)
		spoil(&spec)
		if _, err := b.e.Prepare(b.Context(), spec); err == nil {
			b.Errorf("%s: prepared", name)
		}
	}
	if found, err := b.e.Inventory(b.Context()); err != nil || len(found) > 0 {
		b.Errorf("refused instances exist: %v %v", found, err)
	}
	if err := b.e.Destroy(b.Context(), "../../etc"); err == nil {
		b.Error("an id that is a path was destroyed")
	}
	if _, err := b.e.Start(b.Context(), engine.Handle(`{"version":99}`)); err == nil {
		b.Error("a handle of another version was started")
	}
}

func destroyEverywhere(b *bench) {
	b.destroy(NewID()) // nothing

	spec := b.Spec(b.T)
	h := b.prepare(spec)
	b.destroy(spec.ID)
	if _, err := b.e.Recover(b.Context(), h); !errors.Is(err, engine.ErrNotFound) {
		b.Errorf("recover after destroy: %v", err)
	}

	spec = b.Spec(b.T)
	h = b.start(spec)
	b.destroy(spec.ID) // running
	if x := b.exit(h); x.Reason != engine.ExitKilled {
		b.Errorf("exit of a destroyed instance: %+v", x)
	}

	spec = b.Spec(b.T)
	h = b.start(spec)
	if err := b.e.Freeze(b.Context(), h); err != nil {
		b.Fatal(err)
	}
	b.restartAgent()
	b.destroy(spec.ID) // frozen, by an engine that has never seen it
	for _, leak := range b.Leaks(b.T) {
		b.Errorf("left behind: %s", leak)
	}
}

// At whatever point of a start Destroy comes, nothing is left.
func destroyDuringStart(b *bench) {
	for after := time.Duration(0); after < 200*time.Millisecond; after += 15 * time.Millisecond {
		spec := b.Spec(b.T)
		h := b.prepare(spec)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = b.e.Start(b.Context(), h) })
		<-time.After(after)
		b.destroy(spec.ID)
		wg.Wait()
		b.destroy(spec.ID) // Start may have come after it, and found nothing
		for _, leak := range b.Leaks(b.T) {
			b.Errorf("destroyed %s into the start: left behind: %s", after, leak)
		}
	}
}

func recoverRunning(b *bench) {
	spec := b.Spec(b.T)
	h := b.start(spec)
	b.keep(h, "across the restart")
	b.restartAgent()
	h, err := b.e.Recover(b.Context(), h)
	if err != nil {
		b.Fatal(err)
	}
	if got := b.kept(h); got != "across the restart" {
		b.Errorf("kept %q", got)
	}
	b.do(h, "POST", "/spawn", nil)
	b.destroy(spec.ID)
}

// The agent may die after Start and before it has journaled the new handle.
func recoverStale(b *bench) {
	spec := b.Spec(b.T)
	before := b.prepare(spec)
	b.restartAgent()
	before, err := b.e.Recover(b.Context(), before)
	if err != nil {
		b.Fatalf("recover a prepared instance: %v", err)
	}
	if _, err := b.e.Start(b.Context(), before); err != nil {
		b.Fatal(err)
	}
	b.restartAgent()
	h, err := b.e.Recover(b.Context(), before)
	if err != nil {
		b.Fatalf("recover with the handle of Prepare: %v", err)
	}
	b.up(h)
	b.Kill(b.T, spec.ID)
	b.exit(h)
	if _, err := b.e.Recover(b.Context(), before); !errors.Is(err, engine.ErrExited) {
		b.Errorf("recover an ended instance: %v", err)
	}
	b.destroy(spec.ID)
}

func exitCode(b *bench) {
	spec := b.Spec(b.T)
	h := b.start(spec)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
			defer cancel()
			if x, err := b.e.Wait(ctx, h); err != nil || x.Reason != engine.ExitExited || x.Code != 7 {
				b.Errorf("waiter: %+v %v", x, err)
			}
		})
	}
	short, cancel := context.WithTimeout(b.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := b.e.Wait(short, h); !errors.Is(err, context.DeadlineExceeded) {
		b.Errorf("wait for a running instance: %v", err)
	}
	_, _ = b.try(h, "POST", "/exit?code=7", nil)
	wg.Wait()
	if x := b.exit(h); x.Code != 7 {
		b.Errorf("wait afterwards: %+v", x)
	}
	if _, err := b.e.Dial(b.Context(), h, GuestPort); !errors.Is(err, engine.ErrExited) {
		b.Errorf("dial an ended instance: %v", err)
	}
	if err := b.e.Freeze(b.Context(), h); !errors.Is(err, engine.ErrExited) {
		b.Errorf("freeze an ended instance: %v", err)
	}
}

func exitAway(b *bench) {
	h := b.start(b.Spec(b.T))
	_, _ = b.try(h, "POST", "/exit?code=9", nil)
	b.restartAgent()
	if x := b.exit(h); x.Reason != engine.ExitExited || x.Code != 9 {
		b.Errorf("exit %+v", x)
	}
}

func killed(b *bench) {
	spec := b.Spec(b.T)
	h := b.start(spec)
	b.Kill(b.T, spec.ID)
	if x := b.exit(h); x.Reason != engine.ExitKilled || x.Code != -1 {
		b.Errorf("exit %+v", x)
	}
}

func outOfMemory(b *bench) {
	if !b.OutOfMemory {
		b.Skip("this engine has no memory to run out of")
	}
	h := b.start(b.Spec(b.T))
	_, _ = b.try(h, "POST", "/alloc?bytes=2000000000", nil)
	if x := b.exit(h); x.Reason != engine.ExitOutOfMemory {
		b.Errorf("exit %+v", x)
	}
}

func inventory(b *bench) {
	want := map[engine.InstanceID]bool{}
	for i := range 3 {
		spec := b.Spec(b.T)
		h := b.prepare(spec)
		want[spec.ID] = i > 0
		if i > 0 {
			if _, err := b.e.Start(b.Context(), h); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.restartAgent() // an engine that knows of none
	found, err := b.e.Inventory(b.Context())
	if err != nil || len(found) != len(want) {
		b.Fatalf("inventory: %v %v", found, err)
	}
	for _, f := range found {
		if running, ok := want[f.ID]; !ok || running != f.Running {
			b.Errorf("%s running=%v, want %v (known: %v)", f.ID, f.Running, running, ok)
		}
		b.destroy(f.ID)
	}
}

func prefixes(b *bench) {
	one, other := b.Spec(b.T), b.Spec(b.T)
	other.ID = one.ID[:31] + "0"
	if one.ID == other.ID {
		other.ID = one.ID[:31] + "1"
	}
	h1, h2 := b.start(one), b.start(other)
	b.keep(h1, "one")
	b.keep(h2, "other")
	if b.kept(h1) != "one" || b.kept(h2) != "other" {
		b.Error("the instances are confused")
	}
	b.destroy(one.ID)
	if err := b.e.Destroy(b.Context(), one.ID[:31]); err == nil {
		b.Error("a prefix was destroyed")
	}
	if b.kept(h2) != "other" {
		b.Error("the wrong one was destroyed")
	}
}

func dialClosed(b *bench) {
	h := b.start(b.Spec(b.T))
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	testkit.Promise(b, time.Second, "a refused connection", func() time.Duration {
		began := time.Now()
		if c, err := b.e.Dial(ctx, h, 7001); err == nil {
			_ = c.Close()
			b.Error("somebody listens")
		}
		return time.Since(began)
	})
	for _, port := range []int{0, -1, 65536} {
		if _, err := b.e.Dial(ctx, h, port); err == nil {
			b.Errorf("port %d was dialled", port)
		}
	}
}

// Calls in flight end with the instance, not by a time-out.
func connectionsEnd(b *bench) {
	testkit.Promise(b, 2*time.Second, "the end of a connection", func() time.Duration {
		spec := b.Spec(b.T)
		h := b.start(spec)
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://guest/hang", nil)
		if err != nil {
			b.Fatal(err)
		}
		res, err := b.client(h).Do(req)
		if err != nil {
			b.Fatal(err)
		}
		defer res.Body.Close()
		began := time.Now()
		b.Kill(b.T, spec.ID)
		if _, err := io.ReadAll(res.Body); err == nil {
			b.Error("the stream ended as if all was well")
		}
		return time.Since(began)
	})
}

func limits(b *bench) {
	if !b.Limits {
		b.Skip("this engine's guests see no limits")
	}
	spec := b.Spec(b.T)
	h := b.start(spec)
	i := b.info(h)
	if i.MemoryKB != spec.Resources.MemoryBytes>>10 {
		b.Errorf("MemTotal %d kB", i.MemoryKB)
	}
	if i.Disk < spec.Resources.DiskBytes*9/10 || i.Disk > spec.Resources.DiskBytes {
		b.Errorf("disk %d bytes", i.Disk)
	}
	if i.Shm <= 0 || i.Shm > spec.Resources.MemoryBytes {
		b.Errorf("/dev/shm %d bytes", i.Shm)
	}
	if want := max(2, (spec.Resources.CPUMillis+999)/1000); i.CPUs > want {
		b.Errorf("%d CPUs, want at most %d", i.CPUs, want)
	}
	// A full disk is the guest's own trouble.
	if _, err := b.try(h, "POST", "/file?path=/big", make([]byte, 256<<20)); err != nil {
		b.Errorf("256 MiB of %d: %v", spec.Resources.DiskBytes, err)
	}
	if _, err := b.try(h, "POST", "/file?path=/bigger", make([]byte, 300<<20)); err == nil {
		b.Error("more was written than there is disk")
	}
	b.info(h)
}

func freeze(b *bench) {
	h := b.start(b.Spec(b.T))
	b.keep(h, "cold")
	for range 2 {
		if err := b.e.Freeze(b.Context(), h); err != nil {
			b.Fatal(err)
		}
	}
	before, err := b.e.Stats(b.Context(), h)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), 200*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://guest/keep", nil)
	if res, err := b.client(h).Do(req); err == nil {
		_ = res.Body.Close()
		b.Error("a frozen guest answered")
	}
	after, err := b.e.Stats(b.Context(), h)
	if err != nil || after.CPUTime-before.CPUTime > 5*time.Millisecond {
		b.Errorf("frozen for 200 ms it used %s of CPU (%v)", after.CPUTime-before.CPUTime, err)
	}
	for range 2 {
		if err := b.e.Thaw(b.Context(), h); err != nil {
			b.Fatal(err)
		}
	}
	if b.kept(h) != "cold" {
		b.Error("memory is lost")
	}
	if err := b.e.Freeze(b.Context(), h); err != nil {
		b.Fatal(err)
	}
	if err := b.e.Stop(b.Context(), h); err != nil {
		b.Fatalf("stop of a frozen instance: %v", err)
	}
	b.exit(h)
}

func resize(b *bench) {
	spec := b.Spec(b.T)
	h := b.start(spec)
	r := spec.Resources
	r.CPUMillis, r.MaxProcesses = 2*r.CPUMillis, 2*r.MaxProcesses
	if err := b.e.Resize(b.Context(), h, r); err != nil {
		b.Errorf("more CPU: %v", err)
	}
	r.DiskBytes *= 2
	if err := b.e.Resize(b.Context(), h, r); err != nil && !errors.Is(err, engine.ErrUnsupported) {
		b.Errorf("more disk: %v", err)
	}
	b.info(h)
}

func stats(b *bench) {
	h := b.start(b.Spec(b.T))
	s, err := b.e.Stats(b.Context(), h)
	if err != nil || s.CPUTime <= 0 || s.MemoryBytes < 1<<20 || s.MemoryBytes > 256<<20 || s.Processes < 1 || s.DiskBytes < 0 {
		b.Errorf("%+v %v", s, err)
	}
	b.writeFile(h, "/data", strings.Repeat("0123456789abcdef", 1<<18)) // 4 MiB
	after, err := b.e.Stats(b.Context(), h)
	if err != nil || after.DiskBytes < s.DiskBytes+4<<20 || after.CPUTime < s.CPUTime {
		b.Errorf("after writing 4 MiB: %+v, before %+v, %v", after, s, err)
	}
}

func eightAtOnce(b *bench) {
	var wg sync.WaitGroup
	for range 8 {
		spec := b.Spec(b.T)
		wg.Go(func() {
			h, err := b.e.Prepare(b.Context(), spec)
			if err == nil {
				h, err = b.e.Start(b.Context(), h)
			}
			if err != nil {
				b.Error(err)
				return
			}
			testkit.Eventually(b, 30*time.Second, "the guest answers", func() bool {
				_, err := b.try(h, "POST", "/keep", []byte(spec.ID))
				return err == nil
			})
			var got string
			if out, err := b.try(h, "GET", "/keep", nil); err != nil || !strings.Contains(string(out), string(spec.ID)) {
				b.Errorf("%s %s %v", out, got, err)
			}
			if err := b.e.Destroy(b.Context(), spec.ID); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	for _, leak := range b.Leaks(b.T) {
		b.Errorf("left behind: %s", leak)
	}
}
