// Package testkit is what tests of every wing share: requirements that turn a
// skip into a failure, and bounded waits.
package testkit

import (
	"os"
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

// Eventually waits until ok holds, and fails the test with what it waited for
// when it does not within the given time.
func Eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
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
