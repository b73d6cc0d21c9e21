// Package testkit is what tests of every wing share: requirements that turn a
// skip into a failure, and bounded waits.
package testkit

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// requireVar lists, comma separated, what must be present; CI sets it, so that
// a test can never be skipped there unnoticed.
const requireVar = "SKERRY_TEST_REQUIRE"

// Missing skips the test because name ("gvisor", "postgres", "root", …) is not
// to be had here, with the reason; it fails instead when name is required.
func Missing(t testing.TB, name, reason string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv(requireVar), ","), name) {
		t.Fatalf("%s is required by %s and missing: %s", name, requireVar, reason)
	}
	t.Skipf("needs %s: %s", name, reason)
}

// Root skips the test unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root", "run the tests as root")
	}
}

// leastWait is what a slow machine that is busy may need for anything.
const leastWait = 30 * time.Second

// Eventually waits until ok holds, and fails the test with what it waited for
// when it does not within the given time, or 30 s where that is longer: the time
// is there to end a test that hangs and is no promise. For those there is
// Promise.
func Eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	within = max(within, leastWait)
	deadline := time.Now().Add(within)
	for pause := time.Millisecond; ; pause = min(pause*2, 50*time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
		timer := time.NewTimer(pause)
		<-timer.C
	}
}

// Promise fails the test when what takes longer than the product promises. one
// does it anew and returns how long it took. A machine that is busy with others
// holds up one run, or two; so when the first took too long there are four more,
// and the median counts.
func Promise(t testing.TB, most time.Duration, what string, one func() time.Duration) {
	t.Helper()
	var took []time.Duration
	for range 5 {
		took = append(took, one())
		if t.Failed() || len(took) == 1 && took[0] <= most {
			return
		}
	}
	if slices.Sort(took); took[len(took)/2] > most {
		t.Errorf("%s took %v, want at most %s", what, took, most)
	}
}

// longVar set to 1 runs tests at their full counts.
const longVar = "SKERRY_TEST_LONG"

// Scaled returns full in long runs, short otherwise.
func Scaled(full, short int) int {
	if os.Getenv(longVar) == "1" {
		return full
	}
	return short
}

// Runsc returns the path of gVisor's runsc: SKERRY_RUNSC, or bin/runsc of the
// checkout. Without one the test needs "gvisor".
func Runsc(t testing.TB) string {
	t.Helper()
	path := os.Getenv("SKERRY_RUNSC")
	if path == "" {
		path = filepath.Join(checkout(t), "bin", "runsc")
	}
	if _, err := os.Stat(path); err != nil {
		Missing(t, "gvisor", "no runsc: run make build, or set SKERRY_RUNSC")
	}
	return path
}

// checkout is the directory of go.mod above the test.
func checkout(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("the test does not run inside the checkout")
		}
	}
}
