package unpack_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/image/unpack"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/testkit"
)

var (
	made = time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	now  = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
)

func options() unpack.Options {
	return unpack.Options{
		MaxBytes: 8 << 20, MaxEntries: 1000, SizeSetting: "THE_SIZE", EntriesSetting: "THE_ENTRIES", Now: now, Otherwise: made,
	}
}

// e are short ways to say entries.
type e = tar.Header

func dir(name string) e { return e{Typeflag: tar.TypeDir, Name: name, Mode: 0o755} }
func file(name, content string) e {
	return e{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, PAXRecords: map[string]string{"TEST.content": content}}
}
func link(name, to string) e { return e{Typeflag: tar.TypeLink, Name: name, Linkname: to} }
func symlink(name, to string) e {
	return e{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}
}

// archive writes entries in their order; the content of a file travels in a
// record of its own until here.
func archive(t *testing.T, entries ...e) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		content := h.PAXRecords["TEST.content"]
		delete(h.PAXRecords, "TEST.content")
		if h.ModTime.IsZero() {
			h.ModTime = made.Add(-time.Hour)
		}
		h.Size = int64(len(content))
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// apply unpacks layers into a directory inside another one, which is returned
// for what may have escaped.
func apply(t *testing.T, opts unpack.Options, format unpack.Format, layers ...[]byte) (root string, err error) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "out", "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	tree, err := unpack.Open(root, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	for _, l := range layers {
		if err := tree.Apply(t.Context(), bytes.NewReader(l), format); err != nil {
			return root, err
		}
	}
	return root, tree.SettleTimes()
}

// list is a golden list: a line for each file below root.
func list(t *testing.T, root string) []string {
	t.Helper()
	out := []string{}
	names := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		name, _ := filepath.Rel(root, p)
		line := fmt.Sprintf("%s %d:%d %s", info.Mode(), st.Uid, st.Gid, name)
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			line += " -> " + to
		case info.Mode()&fs.ModeDevice != 0:
			line += fmt.Sprintf(" %d/%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", b)
			if first, ok := names[st.Ino]; ok {
				line += " = " + first
			} else {
				names[st.Ino] = name
			}
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out[1:] // the root's own
}

func TestP2_LayersGiveTheTreeTheyDescribe(t *testing.T) {
	testkit.Root(t)
	suid := file("bin/su", "su")
	suid.Mode, suid.Uid, suid.Gid = 0o4755, 0, 42
	owned := file("home/u/f", "f")
	owned.Uid, owned.Gid, owned.Mode = 1000, 1001, 0o600
	null := e{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}
	pipe := e{Typeflag: tar.TypeFifo, Name: "run/pipe", Mode: 0o640}
	sticky := dir("tmp/")
	sticky.Mode = 0o1777
	for _, c := range []struct {
		name   string
		layers [][]e
		want   []string
	}{
		{"owners, modes, kinds", [][]e{{sticky, dir("bin"), suid, owned, null, pipe, symlink("lib", "usr/lib")}}, []string{
			"drwxr-xr-x 0:0 bin", `-rwxr-xr-x 0:42 bin/su "su"`, "drwxr-xr-x 0:0 dev", "Dcrw-rw-rw- 0:0 dev/null 1/3",
			"drwxr-xr-x 0:0 home", "drwxr-xr-x 0:0 home/u", `-rw------- 1000:1001 home/u/f "f"`,
			"Lrwxrwxrwx 0:0 lib -> usr/lib", "drwxr-xr-x 0:0 run", "prw-r----- 0:0 run/pipe", "dtrwxrwxrwx 0:0 tmp",
		}},
		{"a whiteout removes a file, a tree and nothing", [][]e{
			{file("a/x", "x"), file("a/y", "y"), file("b/c/d", "d")}, {file("a/.wh.x", ""), file(".wh.b", ""), file("none/.wh.z", ""), file(".wh.none", "")},
		}, []string{"drwxr-xr-x 0:0 a", `-rw-r--r-- 0:0 a/y "y"`}},
		{"an opaque directory keeps what its own layer put there, before and after", [][]e{
			{file("a/old", "o"), file("a/sub/old", "o"), file("a/gone/old", "o")},
			{dir("a"), file("a/first", "1"), file("a/sub/new", "n"), file("a/.wh..wh..opq", ""), file("a/last", "2")},
		}, []string{
			"drwxr-xr-x 0:0 a", `-rw-r--r-- 0:0 a/first "1"`, `-rw-r--r-- 0:0 a/last "2"`, "drwxr-xr-x 0:0 a/sub", `-rw-r--r-- 0:0 a/sub/new "n"`,
		}},
		{"a whiteout after what its own layer put there", [][]e{
			{file("a/old", "o")}, {dir("a"), file("a/new", "n"), file(".wh.a", "")},
		}, []string{"drwxr-xr-x 0:0 a", `-rw-r--r-- 0:0 a/new "n"`}},
		{"a file becomes a directory and the other way round", [][]e{
			{file("a", "f"), file("b/x", "x"), symlink("c", "b"), file("d", "d")},
			{dir("a"), file("a/x", "x"), file("b", "f"), dir("c"), file("c/y", "y"), symlink("d", "a")},
			{file("a", "again")},
		}, []string{`-rw-r--r-- 0:0 a "again"`, `-rw-r--r-- 0:0 b "f"`, "drwxr-xr-x 0:0 c", `-rw-r--r-- 0:0 c/y "y"`, "Lrwxrwxrwx 0:0 d -> a"}},
		{"a hard link to a file of an earlier layer, which is then replaced", [][]e{
			{file("a", "one"), link("b", "a")}, {link("c", "/a"), link("c", "a")}, {file("a", "two")},
		}, []string{`-rw-r--r-- 0:0 a "two"`, `-rw-r--r-- 0:0 b "one"`, `-rw-r--r-- 0:0 c "one" = b`}},
		{"entries said twice: the last one counts", [][]e{
			{file("a", "long content"), file("a", "b"), dir("d"), {Typeflag: tar.TypeDir, Name: "d", Mode: 0o700, Uid: 5}, symlink("l", "x"), symlink("l", "y")},
		}, []string{`-rw-r--r-- 0:0 a "b"`, "drwx------ 5:0 d", "Lrwxrwxrwx 0:0 l -> y"}},
		{"a later layer goes through the links of an earlier one", [][]e{
			{dir("usr"), dir("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr/lib")}, {file("lib/x", "x"), file("abs/y", "y"), file("lib/.wh.z", "")},
		}, []string{
			"Lrwxrwxrwx 0:0 abs -> /usr/lib", "Lrwxrwxrwx 0:0 lib -> usr/lib", "drwxr-xr-x 0:0 usr", "drwxr-xr-x 0:0 usr/lib",
			`-rw-r--r-- 0:0 usr/lib/x "x"`, `-rw-r--r-- 0:0 usr/lib/y "y"`,
		}},
		{"absolute names are below the root", [][]e{{file("/etc/x", "x"), file("./y", "y"), dir("./")}}, []string{
			"drwxr-xr-x 0:0 etc", `-rw-r--r-- 0:0 etc/x "x"`, `-rw-r--r-- 0:0 y "y"`,
		}},
		{"what would hide something in a mounted image is left out", [][]e{{{Typeflag: tar.TypeChar, Name: "x"}, file(".wh..wh.plnk", "")}}, []string{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, archive(t, l...))
			}
			root, err := apply(t, options(), unpack.OCI, layers...)
			if err != nil {
				t.Fatal(err)
			}
			got := list(t, root)
			for i := range got { // the set-user-id bit shows as a letter of its own
				got[i] = strings.Replace(got[i], "urwx", "-rwx", 1)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestP2_SetUserIDAndCapabilitiesStay(t *testing.T) {
	testkit.Root(t)
	caps := "\x01\x00\x00\x02\x80\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	su := file("su", "x")
	su.Mode, su.Uid = 0o6755, 7
	capable := file("ping", "x")
	capable.PAXRecords["SCHILY.xattr.security.capability"] = caps
	capable.PAXRecords["SCHILY.xattr.user.note"] = "n"
	capable.PAXRecords["SCHILY.xattr.trusted.overlay.redirect"] = "/etc"
	opaque := dir("d")
	opaque.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.d": "1"}
	plain := dir("d")
	root, err := apply(t, options(), unpack.OCI, archive(t, su, capable, opaque))
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(root, "su"))
	if err != nil || info.Mode() != fs.ModeSetuid|fs.ModeSetgid|0o755 || info.Sys().(*syscall.Stat_t).Uid != 7 {
		t.Errorf("su is %v, %v", info.Mode(), err)
	}
	if diff := cmp.Diff(map[string]string{"security.capability": caps, "user.note": "n"}, xattrs(t, filepath.Join(root, "ping"))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"user.d": "1"}, xattrs(t, filepath.Join(root, "d"))); diff != "" {
		t.Error(diff)
	}
	if root, err = apply(t, options(), unpack.OCI, archive(t, opaque), archive(t, plain)); err != nil || len(xattrs(t, filepath.Join(root, "d"))) > 0 {
		t.Errorf("a directory said anew has %v, %v", xattrs(t, filepath.Join(root, "d")), err)
	}
	if root, err = apply(t, options(), unpack.Overlay, archive(t, opaque, e{Typeflag: tar.TypeChar, Name: "w"})); err != nil ||
		xattrs(t, filepath.Join(root, "d"))["trusted.overlay.opaque"] != "y" || !slices.Contains(list(t, root), "Dc--------- 0:0 w 0/0") {
		t.Errorf("an overlay's layer: %v, %v", err, list(t, root))
	}
}

func xattrs(t *testing.T, path string) map[string]string {
	t.Helper()
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, name := range strings.FieldsFunc(string(names[:n]), func(r rune) bool { return r == 0 }) {
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(value[:n])
	}
	return out
}

func TestP2_NoEntryLeavesTheTree(t *testing.T) {
	testkit.Root(t)
	for _, c := range []struct {
		name    string
		entries []e
		inside  string // where it lands instead
		refused bool
	}{
		{"a name with ..", []e{file("../x", "x")}, "", true},
		{"a name with .. behind a link", []e{dir("a"), symlink("a/l", "/"), file("a/l/../x", "x")}, "", true},
		{"a link to the outside and a file through it", []e{symlink("l", "../../../../.."), file("l/x", "x")}, "x", false},
		{"an absolute link and a file through it", []e{dir("tmp"), symlink("l", "/tmp"), file("l/x", "x")}, "tmp/x", false},
		{"a file over a link to the outside", []e{symlink("x", "../../escaped"), file("x", "x")}, "x", false},
		{"a directory's mode through a link", []e{symlink("l", "/"), dir("l")}, "l", false},
		{"a link that leads nowhere", []e{symlink("l", "../../nowhere"), file("l/x", "x")}, "", true},
		{"a hard link to the outside", []e{link("x", "../../secret")}, "", true},
		{"a hard link through a link", []e{symlink("l", "../.."), link("x", "l/secret")}, "", true},
		{"a hard link to a link, and a file through it", []e{dir("d"), symlink("d/l", "../../.."), link("k", "d/l"), file("k/x", "x")}, "x", false},
		{"a whiteout through a link", []e{symlink("l", "../.."), file("l/.wh.secret", "")}, "l", false},
		{"an opaque directory through a link", []e{symlink("l", "../.."), file("l/.wh..wh..opq", "")}, "l", false},
		{"a whiteout of ..", []e{dir("a"), file("a/.wh...", "")}, "", true},
		{"a whiteout of .", []e{dir("a"), file("a/.wh..", "")}, "", true},
		{"a whiteout of no name", []e{dir("a"), file("a/.wh.", "")}, "", true},
		{"a link to a process's directory", []e{symlink("l", "/proc/self/root"), file("l/x", "x")}, "", true},
		{"the root as a link", []e{symlink("./", "..")}, "", true},
		{"a file below a file", []e{file("a", "a"), file("a/x", "x")}, "", true},
		{"a device of impossible numbers", []e{{Typeflag: tar.TypeBlock, Name: "x", Devmajor: 1 << 13}}, "", true},
		{"an unknown type", []e{{Typeflag: 'Z', Name: "x"}}, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := archive(t, c.entries...)
			base := filepath.Join(t.TempDir(), "out")
			root := filepath.Join(base, "a", "root")
			if err := os.MkdirAll(root, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(base, "secret"), []byte("s"), 0o600); err != nil {
				t.Fatal(err)
			}
			tree, err := unpack.Open(root, options())
			if err != nil {
				t.Fatal(err)
			}
			defer tree.Close()
			err = tree.Apply(t.Context(), bytes.NewReader(raw), unpack.OCI)
			if c.refused != (err != nil) || err != nil && !errs.Is(err, "archive_refused") {
				t.Errorf("refused: %v", err)
			}
			if c.inside != "" {
				if _, err := os.Lstat(filepath.Join(root, c.inside)); err != nil {
					t.Error(err)
				}
			}
			for _, d := range []struct{ dir, want string }{{base, "a secret"}, {filepath.Join(base, "a"), "root"}} {
				var names []string
				entries, _ := os.ReadDir(d.dir)
				for _, e := range entries {
					names = append(names, e.Name())
				}
				if got := strings.Join(names, " "); got != d.want {
					t.Errorf("outside are %q", got)
				}
			}
		})
	}
}

func TestP2_TimesAreThoseOfTheArchive(t *testing.T) {
	testkit.Root(t)
	old, future := file("old", "x"), file("future", "x")
	old.ModTime, future.ModTime = time.Unix(-5, 0), now.Add(time.Hour)
	d := dir("d")
	d.ModTime = made.Add(-2 * time.Hour)
	root, err := apply(t, options(), unpack.OCI, archive(t, d, file("d/x", "x"), file("implied/x", "x"), old, future), archive(t, file("d/.wh.x", "")))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]time.Time{
		"old": time.Unix(0, 0), "future": made, "d": made.Add(-2 * time.Hour), "implied": made, "implied/x": made.Add(-time.Hour), ".": made,
	} {
		if info, err := os.Lstat(filepath.Join(root, name)); err != nil || !info.ModTime().Equal(want) {
			t.Errorf("%s is of %v, not %v: %v", name, info.ModTime().UTC(), want, err)
		}
	}
}

func TestP2_ATreeIsBounded(t *testing.T) {
	testkit.Root(t)
	opts := options()
	opts.MaxBytes = 1 << 20
	_, err := apply(t, opts, unpack.OCI, archive(t, file("a", strings.Repeat("x", 600<<10))), archive(t, file("b", strings.Repeat("x", 600<<10))))
	if got := errs.As(err); got.Reason != "image_too_large" || !strings.Contains(got.Message, "1 MB") || !strings.Contains(got.Message, "THE_SIZE") {
		t.Errorf("too large: %v", err)
	}
	holes := sparse(t, 1<<40)
	if _, err = apply(t, opts, unpack.OCI, holes); !errs.Is(err, "image_too_large") {
		t.Errorf("a terabyte of holes: %v", err)
	}
	if _, err = apply(t, opts, unpack.OCI, archive(t, file("a", "x")), sparse(t, 1<<62), sparse(t, math.MaxInt64)); !errs.Is(err, "image_too_large") {
		t.Errorf("holes that add up to less than nothing: %v", err)
	}
	// Each link leads deeper than a name can.
	deep := strings.Repeat("d/", 400)
	if _, err = apply(t, options(), unpack.OCI, archive(t, dir(deep), symlink("s", deep), dir("s/"+deep))); !errs.Is(err, "archive_refused") {
		t.Errorf("too deep: %v", err)
	}
	few := options()
	few.MaxEntries = 300
	if _, err = apply(t, few, unpack.OCI, archive(t, file(deep+"f", "x"))); !errs.Is(err, "image_too_many_files") {
		t.Errorf("directories of names: %v", err)
	}
	many := make([]e, 100_000)
	for i := range many {
		many[i] = link("b", "a")
	}
	many[0] = file("a", "x")
	opts = options()
	opts.MaxBytes, opts.MaxEntries = 1<<30, len(many)-1
	_, err = apply(t, opts, unpack.OCI, archive(t, many...))
	if got := errs.As(err); got.Reason != "image_too_many_files" || !strings.Contains(got.Message, "99999") || !strings.Contains(got.Message, "THE_ENTRIES") {
		t.Errorf("too many: %v", err)
	}
}

// sparse is an archive of one file that is a hole.
func sparse(t *testing.T, size int64) []byte {
	t.Helper()
	raw := archive(t, file("hole", "\n"))
	i := bytes.Index(raw, []byte("ustar"))
	h := raw[i-257 : i-257+512]
	h[156] = 'S'                                    // GNU's old sparse entries
	copy(h[257:265], "ustar  \x00")                 // and their header
	clear(h[345:500])                               // where the map of data is
	copy(h[386:], "00000000000\x0000000000000\x00") // which is none
	size36 := make([]byte, 12)
	size36[0] = 0x80
	for n := 11; n > 0; n-- {
		size36[n], size = byte(size), size>>8
	}
	copy(h[483:495], size36)
	copy(h[124:136], "00000000000\x00")
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return append(h, make([]byte, 1024)...)
}

func TestP2_DamageIsNamed(t *testing.T) {
	testkit.Root(t)
	whole := archive(t, file("a", strings.Repeat("x", 5000)))
	for name, raw := range map[string][]byte{
		"cut off in a file": whole[:3000], "cut off in a header": whole[:300], "noise": []byte(strings.Repeat("noise", 1000)),
	} {
		if _, err := apply(t, options(), unpack.OCI, raw); !errs.Is(err, "archive_damaged") {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	root := t.TempDir()
	tree, err := unpack.Open(root, options())
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if err := tree.Apply(ctx, bytes.NewReader(whole), unpack.OCI); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

func TestP2_ZerosBecomeHoles(t *testing.T) {
	testkit.Root(t)
	content := strings.Repeat("\x00", 3<<20) + "end" + strings.Repeat("\x00", 10_000)
	root, err := apply(t, options(), unpack.OCI, archive(t, file("f", content)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(root, "f"))
	if err != nil || string(b) != content {
		t.Errorf("%d bytes instead of %d: %v", len(b), len(content), err)
	}
	info, err := os.Stat(filepath.Join(root, "f"))
	if err != nil || info.Sys().(*syscall.Stat_t).Blocks*512 > 64<<10 {
		t.Errorf("it takes %d blocks, %v", info.Sys().(*syscall.Stat_t).Blocks, err)
	}
}
