package kit_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"skerry.dev/skerry/internal/agent/engine/microvm/kit"
)

// Until something is installed the reason is the command that does it.
func TestCurrent_NothingIsInstalled(t *testing.T) {
	if _, err := kit.Current(t.TempDir()); !errors.Is(err, kit.ErrMissing) {
		t.Errorf("%v", err)
	}
}

// source is a kernel of its own, with all built in.
func source(t *testing.T, kernel, init string) kit.Source {
	t.Helper()
	dir := t.TempDir()
	s := kit.Source{Kernel: filepath.Join(dir, "vmlinuz-9.9-test"), Init: filepath.Join(dir, "init")}
	for path, text := range map[string]string{s.Kernel: kernel, s.Init: init} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestInstall_RepeatsReplacesAndRepairs(t *testing.T) {
	dir := t.TempDir()
	first := source(t, "a kernel", "an init")
	k, err := kit.Install(t.Context(), dir, first)
	if err != nil {
		t.Fatal(err)
	}
	if k.Release != "9.9-test" || len(k.Digest) != 64 {
		t.Errorf("%+v", k)
	}
	again, err := kit.Install(t.Context(), dir, first)
	if err != nil || again != k {
		t.Errorf("repeated: %+v %v, was %+v", again, err, k)
	}
	// What was damaged is what a repetition mends.
	if err := os.WriteFile(k.Kernel(), []byte("bad"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := kit.Install(t.Context(), dir, first); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(k.Kernel()); err != nil || string(b) != "a kernel" {
		t.Errorf("after the repair: %q %v", b, err)
	}
	// Another is beside it, and current.
	other, err := kit.Install(t.Context(), dir, source(t, "another kernel", "an init"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := kit.Current(dir); err != nil || got != other || got == k {
		t.Errorf("current: %+v %v, want %+v", got, err, other)
	}
	if _, err := os.Stat(k.Kernel()); err != nil {
		t.Errorf("machines may still need it: %v", err)
	}
	// A failure changes nothing, and leaves nothing.
	if _, err := kit.Install(t.Context(), dir, kit.Source{Kernel: first.Kernel, Init: filepath.Join(dir, "missing")}); err == nil {
		t.Error("installed without a first process")
	}
	if got, err := kit.Current(dir); err != nil || got != other {
		t.Errorf("after a failure: %+v %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// What an interrupted one has left is gone with the next.
func TestInstall_AfterAnInterruptedOne(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, ".new-1234", "kit"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := kit.Install(t.Context(), dir, source(t, "k", "i")); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := kit.Install(ended, dir, kit.Source{Init: "/nowhere"}); err == nil {
		t.Error("fetched for nobody")
	}
}

// The archive is one that cpio reads, and the same each time.
func TestInitramfs_IsAnArchiveAndTheSameEachTime(t *testing.T) {
	s := source(t, "k", "the first process")
	var one, two bytes.Buffer
	for _, w := range []*bytes.Buffer{&one, &two} {
		if err := kit.Initramfs(w, s.Init, ""); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("two archives differ")
	}
	for _, want := range []string{"070701", "init\x00", "the first process", "dev/console\x00", "TRAILER!!!\x00"} {
		if !bytes.Contains(one.Bytes(), []byte(want)) {
			t.Errorf("%q is missing", want)
		}
	}
	if one.Len()%512 != 0 {
		t.Errorf("%d bytes", one.Len())
	}
	if path, err := exec.LookPath("cpio"); err == nil {
		cmd := exec.Command(path, "-t", "--quiet")
		cmd.Stdin = &one
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "dev\nmodules\nroot\ndev/console\ninit\n" {
			t.Errorf("cpio: %v %s", err, out)
		}
	}
}
