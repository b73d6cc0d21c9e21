package app_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/testkit"
)

// TestO4_ATrialStartsASandboxAndLeavesNothing, also when it fails.
func TestO4_ATrialStartsASandboxAndLeavesNothing(t *testing.T) {
	testkit.Root(t)
	runsc := testkit.Runsc(t)
	guest := filepath.Join(t.TempDir(), "skerry-guest")
	buildGuest(t, guest)
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ runsc, guest, want string }{
		"sound": {runsc, guest, ""}, "a broken engine": {broken, guest, "does not work"}, "a broken guest": {runsc, broken, "guest"},
	} {
		dir, err := os.MkdirTemp("", "sk")
		if err != nil {
			t.Fatal(err)
		}
		version, err := app.Try(t.Context(), app.Config{
			DataDir: dir, Runsc: c.runsc, GuestBinary: c.guest,
			ShimCommand: []string{"/usr/bin/env", shimVar + "=" + app.ShimDir(dir), os.Args[0]},
		})
		switch {
		case c.want == "" && (err != nil || version == ""):
			t.Errorf("%s: %q, %v", name, version, err)
		case c.want != "" && err == nil:
			t.Errorf("%s: works", name)
		case c.want != "" && !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: the directory is left", name)
			_ = os.RemoveAll(dir)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil || strings.Contains(string(mounts), dir) {
			t.Errorf("%s: mounts are left: %v", name, err)
		}
	}
}
