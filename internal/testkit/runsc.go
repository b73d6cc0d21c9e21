package testkit

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// AnotherRunsc is the same runsc under another version: what building it with
// another stamp gives, without the minutes that takes.
func AnotherRunsc(t testing.TB, runsc string) (path, version string) {
	t.Helper()
	said, err := exec.CommandContext(t.Context(), runsc, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(said), "\n")
	have := strings.TrimPrefix(first, "runsc version ")
	const prefix = "another"
	if len(have) <= len(prefix) {
		t.Fatalf("a version %q is too short to be changed", have)
	}
	version = prefix + have[len(prefix):]
	program, err := os.ReadFile(runsc)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(program, []byte(have)) {
		t.Fatalf("%s does not hold its version %q", runsc, have)
	}
	path = filepath.Join(t.TempDir(), "runsc")
	if err := os.WriteFile(path, bytes.ReplaceAll(program, []byte(have), []byte(version)), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, version
}
