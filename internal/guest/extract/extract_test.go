package extract

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
)

func archive(t *testing.T, entries ...tar.Header) *bytes.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		content := h.Linkname
		if h.Typeflag == tar.TypeReg {
			h.Linkname, h.Size = "", int64(len(content))
		}
		h.ModTime = time.Unix(1000, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b.Bytes())
}

func run(t *testing.T, j Job, entries ...tar.Header) error {
	t.Helper()
	again, err := Parse(j.Args())
	if err != nil || again != j {
		t.Fatalf("%+v %v", again, err)
	}
	return j.Run(archive(t, entries...))
}

func reg(name, content string, mode int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: content, Mode: mode, Uid: 7, Gid: 8}
}

func TestP2_WhatIsCopiedHasItsOwnersAndPermissions(t *testing.T) {
	testkit.Root(t)
	root := t.TempDir()
	dest := filepath.Join(root, "new", "deep")
	if err := run(t, Job{Dest: dest, UID: 5, GID: 6},
		tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o2750, Uid: 7, Gid: 8}, reg("d/x", "X", 0o4755),
		tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/nowhere", Uid: 7, Gid: 8}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		mode     uint32
		uid, gid uint32
	}{
		"new": {0o755, 5, 6}, "new/deep": {0o755, 5, 6}, "new/deep/d": {0o2750, 7, 8}, "new/deep/d/x": {0o4755, 7, 8}, "new/deep/l": {0o777, 7, 8},
	} {
		var st syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(root, name), &st); err != nil || st.Mode&0o7777 != want.mode || st.Uid != want.uid || st.Gid != want.gid {
			t.Errorf("%s: %o %d:%d %v", name, st.Mode&0o7777, st.Uid, st.Gid, err)
		}
	}
	if fi, err := os.Stat(filepath.Join(dest, "d/x")); err != nil || fi.ModTime().Unix() != 1000 {
		t.Errorf("%v %v", fi, err)
	}
}

func TestP2_CopyMergesDirectoriesAndReplacesFiles(t *testing.T) {
	testkit.Root(t)
	root := t.TempDir()
	at := func(s string) string { return filepath.Join(root, s) }
	for _, err := range []error{
		os.MkdirAll(at("d/keep"), 0o700), os.WriteFile(at("d/f"), []byte("old"), 0o600), os.WriteFile(at("victim"), []byte("safe"), 0o600),
		os.Symlink("../victim", at("d/l")), os.Symlink("d", at("way")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := run(t, Job{Dest: at("way")}, reg("f", "new", 0o644), reg("l", "file", 0o644), tar.Header{Typeflag: tar.TypeDir, Name: "keep/", Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"d/f": "new", "d/l": "file", "victim": "safe"} {
		if b, err := os.ReadFile(at(name)); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	if fi, err := os.Stat(at("d/keep")); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("%v %v", fi, err)
	}
	if err := run(t, Job{Dest: at("")}, reg("d", "x", 0o644)); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("a directory is replaced: %v", err)
	}
	// One file: into a directory of that name, or by that name.
	if err := run(t, Job{Dest: at("way"), File: true}, reg("one", "1", 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := run(t, Job{Dest: at("a/b"), File: true}, reg("one", "2", 0o644)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"d/one": "1", "a/b": "2"} {
		if b, err := os.ReadFile(at(name)); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	if err := (Job{Dest: at("x")}).Run(strings.NewReader("no archive, but long enough to be one: " + strings.Repeat("x", 600))); err == nil {
		t.Error("noise is taken for an archive")
	}
	for _, bad := range [][]string{nil, {"rel", "tree", "0", "0"}, {"/x", "tee", "0", "0"}, {"/x", "tree", "-1", "0"}, {"/x", "tree", "0", "a"}} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
