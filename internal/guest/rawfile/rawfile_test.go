package rawfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReplaceAndRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "name")
	for _, content := range []string{"seal-1\n", "", strings.Repeat("x", 100_000), "short"} {
		if err := Replace(path, content); err != nil {
			t.Fatal(err)
		}
		got, err := Read(path, 1<<20)
		if err != nil || string(got) != content {
			t.Fatalf("%d bytes, %v; %d were written", len(got), err, len(content))
		}
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o644 {
		t.Fatalf("%v, %v", fi.Mode(), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Fatalf("%v, %v", left, err)
	}
}

// TestALinkIsReplacedAndNotRead: a link may lead to what only the daemon may see
// or change.
func TestALinkIsReplacedAndNotRead(t *testing.T) {
	dir := t.TempDir()
	secret, path := filepath.Join(dir, "secret"), filepath.Join(dir, "name")
	if err := os.WriteFile(secret, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, path); err != nil {
		t.Fatal(err)
	}
	if b, err := Read(path, 100); err == nil {
		t.Fatalf("read %q", b)
	}
	if err := Replace(path, "new"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "kept" {
		t.Fatalf("%q, %v", b, err)
	}
	if b, err := Read(path, 100); err != nil || string(b) != "new" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestWhatIsNoSmallFile(t *testing.T) {
	dir := t.TempDir()
	pipe, large := filepath.Join(dir, "pipe"), filepath.Join(dir, "large")
	if err := unix.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(large, make([]byte, 101), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, large, dir, filepath.Join(dir, "none")} {
		if b, err := Read(path, 100); err == nil {
			t.Errorf("%s: %d bytes", path, len(b))
		}
	}
	if err := Remove(filepath.Join(dir, "none")); err != nil {
		t.Error(err)
	}
	if err := Replace(filepath.Join(dir, "none", "name"), "x"); err == nil {
		t.Error("a directory that is not there was written to")
	}
}
