package gvisor_test

import (
	"context"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/guest/guestapi"
)

// TestWhatIsHeldCostsNothing compares a daemon that waits with one that is
// held, by the CPU time of their cgroups, and tells what it takes to have a held
// one listen to us again. SKERRY_TEST_LONG measures for 30 s instead of 3.
func TestWhatIsHeldCostsNothing(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	spec := w.daemonSpec(t, w.daemonProgram(t))
	h, err := e.Prepare(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Destroy(context.WithoutCancel(t.Context()), spec.ID); err != nil {
			t.Error(err)
		}
	})
	if h, err = e.Start(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, e, h)
	if code := g.init(bootSecret, guestapi.Init{DefaultUser: "root"}); code != http.StatusNoContent {
		t.Fatal(code)
	}
	if o := g.sh("true"); o.end.GetExitCode() != 0 {
		t.Fatalf("%+v", o)
	}
	span := 3 * time.Second
	if os.Getenv("SKERRY_TEST_LONG") != "" {
		span = 30 * time.Second
	}
	waiting := cpuOver(t, e, h, span)
	for range 2 { // idempotent
		if err := engine.Hold(t.Context(), e, h); err != nil {
			t.Fatal(err)
		}
	}
	held := cpuOver(t, e, h, span)
	t.Logf("CPU a second: waiting %v, held %v", waiting, held)
	if held > time.Millisecond {
		t.Errorf("what is held uses %v of CPU a second", held)
	}
	var takes []time.Duration
	for range 20 {
		if err := engine.Hold(t.Context(), e, h); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := e.Thaw(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		thawed := time.Since(began)
		g.http.CloseIdleConnections()
		if code := g.init(bootSecret, guestapi.Init{DefaultUser: "root"}); code != http.StatusNoContent {
			t.Fatal(code)
		}
		takes = append(takes, time.Since(began))
		if len(takes) == 1 {
			t.Logf("the first thaw took %v", thawed)
		}
	}
	var plain []time.Duration
	for range 20 {
		g.http.CloseIdleConnections()
		began := time.Now()
		if code := g.init(bootSecret, guestapi.Init{DefaultUser: "root"}); code != http.StatusNoContent {
			t.Fatal(code)
		}
		plain = append(plain, time.Since(began))
	}
	slices.Sort(takes)
	slices.Sort(plain)
	t.Logf("from held to configured: median %v, worst %v; of one that waits: %v, %v", takes[10], takes[19], plain[10], plain[19])
	if o := g.sh("echo on"); o.out != "on\n" {
		t.Errorf("after all: %+v", o)
	}
}

// cpuOver is how much CPU time the instance uses in a second, over a while. It
// rests first, so that what it did before is not in it.
func cpuOver(t *testing.T, e engine.Engine, h engine.Handle, span time.Duration) time.Duration {
	t.Helper()
	rest := time.NewTimer(time.Second)
	<-rest.C
	before, err := e.Stats(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	rest.Reset(span)
	<-rest.C
	after, err := e.Stats(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(float64(after.CPUTime-before.CPUTime) / time.Since(began).Seconds())
}
