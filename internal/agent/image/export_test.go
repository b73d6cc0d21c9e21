package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/kernel/errs"
)

// lowerTree is the mounted image of a sandbox.
func lowerTree(t *testing.T) string {
	t.Helper()
	needsErofs(t)
	root := t.TempDir()
	for name, content := range map[string]string{
		"etc/hosts": "127.0.0.1 localhost\n", "etc/resolv.conf": "", "etc/passwd": "root:x:0:0::/root:/bin/sh\n", "tmp/.keep": "",
		"a/kept": "k", "a/changed": "old", "a/deleted": "d", "o/old": "o", "gone/x": "x", "turned": "file", "first": "1",
	} {
		must(t, os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755))
		must(t, os.WriteFile(filepath.Join(root, name), []byte(content), 0o644))
	}
	must(t, os.Link(filepath.Join(root, "first"), filepath.Join(root, "second")))
	must(t, settleTimes(root, time.Unix(0, 0), madeAt))
	file := filepath.Join(t.TempDir(), "lower.erofs")
	must(t, packErofs(t.Context(), root, file, madeAt))
	dir := t.TempDir()
	must(t, mountErofs(file, dir))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

func whiteout(name string) tarEntry {
	return tarEntry{Header: tar.Header{Typeflag: tar.TypeChar, Name: name}}
}

func directory(name string, pax ...string) tarEntry {
	h := tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}
	for i := 0; i+1 < len(pax); i += 2 {
		h.PAXRecords = map[string]string{"SCHILY.xattr." + pax[i]: pax[i+1]}
	}
	return tarEntry{Header: h}
}

// upperTar is what a sandbox may have done, in the sentry's own way of saying it.
func upperTar(t *testing.T) []byte {
	t.Helper()
	owned := regular("./a/changed", "new", 0o4750)
	owned.Uid, owned.Gid = 1000, 7
	owned.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "n", "SCHILY.xattr.trusted.overlay.metacopy": "x"}
	now := time.Now()
	hosts := regular("./etc/hosts", "127.0.1.1 box\n", 0o644)
	hosts.ModTime = now
	etc := directory("./etc")
	etc.ModTime = now
	root := directory(".")
	root.ModTime = now
	return layerTar(t, root, etc, hosts, regular("./etc/hostname", "box", 0o644), whiteout("./etc/resolv.conf"), regular("./etc/.skerry-partial-1", "x", 0o644),
		directory("./run"), directory("./run/e2b"), regular("./run/e2b/.E2B_SANDBOX", "x", 0o444), directory("./.skerry"), regular("./.skerry/guest", "x", 0o755),
		directory("./a"), owned, whiteout("./a/deleted"), whiteout("./gone"),
		directory("./o", "trusted.overlay.opaque", "y"), regular("./o/new", "n", 0o644),
		whiteout("./o/w"), directory("./o/sub"), whiteout("./o/sub/w"), directory("./pure"), whiteout("./pure/w"),
		directory("./turned"), regular("./turned/x", "x", 0o600), whiteout("./turned/w"), directory("./tmp"), whiteout("./tmp/.keep"),
		regular("./h1", "h", 0o644), tarEntry{Header: tar.Header{Typeflag: tar.TypeLink, Name: "./h2", Linkname: "./h1"}},
		tarEntry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "./pipe", Mode: 0o600}},
		tarEntry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "./null", Mode: 0o666, Devmajor: 1, Devminor: 3}})
}

func gives(b []byte) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		_, err := w.Write(b)
		return err
	}
}

func TestP2_AnExportedImageIsTheTreeASandboxSees(t *testing.T) {
	lower, upper := lowerTree(t), upperTar(t)
	var first Built
	for range 2 {
		out := t.TempDir()
		var said []string
		built, err := Export(t.Context(), func(l string) { said = append(said, l) }, ExportOptions{Lower: lower, Changes: gives(upper), Limits: limits()}, out)
		if err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, out, string(built.Digest)+".erofs")
		if first.Digest != "" && first.Digest != built.Digest {
			t.Error("the same tree twice has two digests")
		}
		first = built
		if !strings.Contains(strings.Join(said, "\n"), "MB/s") {
			t.Errorf("it said %q", said)
		}
	}
	dir := t.TempDir()
	must(t, mountErofs(first.Path, dir))
	defer func() { must(t, unix.Unmount(dir, 0)) }()
	if diff := cmp.Diff([]string{
		"drwxr-xr-x 0:0 a", "urwxr-x--- 1000:7 a/changed", "-rw-r--r-- 0:0 a/kept", "drwxr-xr-x 0:0 etc", "-rw-r--r-- 0:0 etc/hosts",
		"-rw-r--r-- 0:0 etc/passwd", "-rw-r--r-- 0:0 etc/resolv.conf", "-rw-r--r-- 0:0 first", "-rw-r--r-- 0:0 h1", "-rw-r--r-- 0:0 h2",
		"Dcrw-rw-rw- 0:0 null", "drwxr-xr-x 0:0 o", "-rw-r--r-- 0:0 o/new", "drwxr-xr-x 0:0 o/sub", "prw------- 0:0 pipe", "drwxr-xr-x 0:0 pure", "drwxr-xr-x 0:0 run", "-rw-r--r-- 0:0 second",
		"drwxr-xr-x 0:0 tmp", "-rw-r--r-- 0:0 tmp/.keep", "drwxr-xr-x 0:0 turned", "-rw------- 0:0 turned/x",
	}, listTree(t, dir)); diff != "" {
		t.Error(diff)
	}
	for name, want := range map[string]string{"a/changed": "new", "etc/hosts": "127.0.0.1 localhost\n", "turned/x": "x"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s has %q, %v", name, b, err)
		}
	}
	for _, pair := range [][2]string{{"h1", "h2"}, {"first", "second"}} {
		a, _ := os.Stat(filepath.Join(dir, pair[0]))
		if b, _ := os.Stat(filepath.Join(dir, pair[1])); !os.SameFile(a, b) {
			t.Errorf("%v are two files", pair)
		}
	}
	names := make([]byte, 1024)
	if n, err := unix.Llistxattr(filepath.Join(dir, "a/changed"), names); err != nil || string(names[:n]) != "user.note\x00" {
		t.Errorf("attributes %q, %v", names[:n], err)
	}
	// What Skerry wrote changed the times of two directories.
	for _, d := range []string{".", "etc"} {
		if info, err := os.Stat(filepath.Join(dir, d)); err != nil || !info.ModTime().Equal(madeAt) {
			t.Errorf("%s is of %v, %v", d, info.ModTime(), err)
		}
	}
}

func TestP2_AnUnchangedSandboxGivesItsImageBack(t *testing.T) {
	lower := lowerTree(t)
	dir := func(name string) tarEntry { e := directory(name); e.ModTime = time.Now(); return e }
	out := t.TempDir()
	built, err := Export(t.Context(), func(string) {}, ExportOptions{
		Lower: lower, Limits: limits(), Changes: gives(layerTar(t, dir("."), dir("./etc"), regular("./etc/hosts", "x", 0o644))),
	}, out)
	if err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(t.TempDir(), "again")
	must(t, packErofs(t.Context(), lower, again, madeAt))
	want, err := fileDigest(t.Context(), again)
	if err != nil || built.Digest != want {
		t.Errorf("%s, not %s: %v", built.Digest, want, err)
	}
}

func TestP2_AnExportThatFailsLeavesNothing(t *testing.T) {
	lower, upper := lowerTree(t), upperTar(t)
	before, err := mountsBelow("/")
	must(t, err)
	broken := errs.Unavailable("export_failed", "The engine broke.")
	small := limits()
	small.MaxBytes = 2000
	ctx, cancel := context.WithCancel(t.Context())
	for _, c := range []struct {
		name    string
		changes func(context.Context, io.Writer) error
		limits  Limits
		want    func(error) bool
	}{
		{"the engine breaks off", func(_ context.Context, w io.Writer) error { _, _ = w.Write(upper[:1000]); return broken }, limits(), func(err error) bool { return errs.Is(err, "export_failed") }},
		{"the archive ends early", gives(upper[:2000]), limits(), func(err error) bool { return errs.Is(err, "archive_damaged") }},
		{"too large", gives(upper), small, func(err error) bool { return errs.Is(err, "image_too_large") }},
		{"an endless archive", func(_ context.Context, w io.Writer) error {
			for {
				if _, err := w.Write(bytes.Repeat([]byte{0}, 1<<20)); err != nil {
					return err
				}
			}
		}, limits(), func(err error) bool { return errs.Is(err, "image_too_large") }},
		{"a hostile archive", gives(layerTar(t, regular("../../x", "x", 0o644))), limits(), func(err error) bool { return errs.Is(err, "archive_refused") }},
		{"given up", func(ctx context.Context, _ io.Writer) error { cancel(); <-ctx.Done(); return ctx.Err() }, limits(), func(err error) bool { return errors.Is(err, context.Canceled) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := t.TempDir()
			if _, err := Export(ctx, func(string) {}, ExportOptions{Lower: lower, Changes: c.changes, Limits: c.limits}, out); !c.want(err) {
				t.Errorf("%v", err)
			}
			nothingLeft(t, out)
		})
	}
	if after, err := mountsBelow("/"); err != nil || len(after) != len(before) {
		t.Errorf("%d mounts became %d, %v", len(before), len(after), err)
	}
}
