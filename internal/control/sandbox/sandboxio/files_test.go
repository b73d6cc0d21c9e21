package sandboxio_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/testkit"
)

func at(path string) sandboxio.Place { return sandboxio.Place{Path: path} }

func (w *world) put(t testing.TB, path string, body io.Reader, size int64) (sandboxio.FileEntry, error) {
	t.Helper()
	return w.UploadFile(t.Context(), principal.System("test"), w.targets.Sandbox, at(path), body, size)
}

func (w *world) get(t testing.TB, path string, cond sandboxio.Conditions) (*sandboxio.Download, []byte, error) {
	t.Helper()
	d, err := w.DownloadFile(t.Context(), principal.System("test"), w.targets.Sandbox, at(path), cond)
	if err != nil {
		return nil, nil, err
	}
	defer d.Close()
	data, err := io.ReadAll(d)
	return d, data, err
}

func TestFI01_UploadsAreWholeForTheNextCommand(t *testing.T) {
	w := newWorld(t)
	for _, size := range []int{0, 1, 18<<10 - 1, 18 << 10, 18<<10 + 1, 64<<20 - 1, 64<<20 + 1} {
		data := make([]byte, size)
		if _, err := rand.Read(data); err != nil {
			t.Fatal(err)
		}
		for _, told := range []int64{int64(size), -1} {
			e, err := w.put(t, "dir/file", bytes.NewReader(data), told)
			if err != nil || e.Size != int64(size) || e.Type != sandboxio.TypeFile || e.Owner != "user" || e.Mode != "-rw-r--r--" {
				t.Fatalf("size %d told %d: %+v, %v", size, told, e, err)
			}
			res := w.exec(t, shell("sha256sum < dir/file | cut -c1-64"))
			if want := fmt.Sprintf("%x\n", sha256.Sum256(data)); res.Stdout != want {
				t.Fatalf("size %d told %d: a command reads something else", size, told)
			}
			if _, got, err := w.get(t, "dir/file", sandboxio.Conditions{}); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("size %d told %d: a download is something else: %v", size, told, err)
			}
		}
	}
}

func TestFI01_ACutUploadChangesNothing(t *testing.T) {
	w := newWorld(t)
	if _, err := w.put(t, "kept", strings.NewReader("old"), 3); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the client left")
	for i := range 50 {
		n := int64(i * 40_000)
		told := int64(2_000_000)
		if i%2 == 0 {
			told = -1
		}
		body := io.MultiReader(io.LimitReader(zeros{}, n), iotest.ErrReader(broken))
		if _, err := w.put(t, "kept", body, told); !errs.Is(err, "upload_cut") {
			t.Fatalf("cut after %d: %v", n, err)
		}
		if _, err := w.put(t, "kept", io.LimitReader(zeros{}, n), n+1); err == nil {
			t.Fatalf("a body shorter than it said was written")
		}
	}
	if raw, err := os.ReadFile(filepath.Join(w.guest.Home, "kept")); err != nil || string(raw) != "old" {
		t.Errorf("the old content is %q, %v", raw, err)
	}
	testkit.Eventually(t, 30*time.Second, "nothing is left behind", func() bool {
		names, err := os.ReadDir(w.guest.Home)
		return err == nil && len(names) == 1
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestFI01_ProcFilesAreReadInFull(t *testing.T) {
	w := newWorld(t)
	d, got, err := w.get(t, "/proc/cpuinfo", sandboxio.Conditions{})
	if err != nil || len(got) == 0 || d.Length > 0 {
		t.Errorf("length %d, got %d bytes, %v", d.Length, len(got), err)
	}
}

func TestS9_RangesAndConditions(t *testing.T) {
	w := newWorld(t)
	if _, err := w.put(t, "f", strings.NewReader("0123456789"), 10); err != nil {
		t.Fatal(err)
	}
	d, got, err := w.get(t, "f", sandboxio.Conditions{Range: "bytes=2-5"})
	if err != nil || string(got) != "2345" || !d.Partial || d.ContentRange != "bytes 2-5/10" || d.Length != 4 {
		t.Errorf("range: %+v %q %v", d, got, err)
	}
	if d, got, err = w.get(t, "f", sandboxio.Conditions{Range: "bytes=0-1,4-5"}); err != nil || d.Partial || string(got) != "0123456789" {
		t.Errorf("several ranges: %+v %q %v", d, got, err)
	}
	if _, _, err = w.get(t, "f", sandboxio.Conditions{Range: "bytes=50-"}); !errs.Is(err, "range_not_satisfiable") {
		t.Errorf("beyond the end: %v", err)
	}
	last := d.LastModified
	if d, _, err = w.get(t, "f", sandboxio.Conditions{IfModifiedSince: last}); err != nil || !d.Unchanged {
		t.Errorf("unchanged: %+v %v", d, err)
	}
	if d, got, err = w.get(t, "f", sandboxio.Conditions{Range: "bytes=2-5", IfRange: "Mon, 01 Jan 2001 00:00:00 GMT"}); err != nil || d.Partial || len(got) != 10 {
		t.Errorf("a range of another version: %+v %q %v", d, got, err)
	}
}

// oddNames are names that must come back exactly as they were sent.
func oddNames() []string {
	names := []string{
		"plain", "a b", " lead", "trail ", "new\nline", "tab\there", `quo"te`, "apos'trophe", "back\\slash", "%2F", "%", "%zz", "a+b", "a&b=c", "a?b", "a#b",
		"a;b", "a:b", "a|b", "a*b", "$HOME", "`id`", "~x", "-rf", "--help", ".hidden", "...", "é", "e\u0301", "ÅÄÖ", "日本語", "עברית", "😀", "👩‍👩‍👧", "\u200b", "\u202e",
		"\x01\x1b[31m", "\x7f", "con.", strings.Repeat("n", 255), strings.Repeat("é", 127),
	}
	return names
}

func TestFI03_OddNamesMakeTheRoundTrip(t *testing.T) {
	w := newWorld(t)
	by, sb := principal.System("test"), w.targets.Sandbox
	for _, name := range oddNames() {
		full := filepath.Join(w.guest.Home, "odd", name)
		if e, err := w.put(t, full, strings.NewReader(name), int64(len(name))); err != nil || e.Name != name || e.Path != full {
			t.Errorf("%q: upload: %+v, %v", name, e, err)
			continue
		}
		if raw, err := os.ReadFile(full); err != nil || string(raw) != name {
			t.Errorf("%q: on disk: %q, %v", name, raw, err)
		}
		if _, got, err := w.get(t, full, sandboxio.Conditions{}); err != nil || string(got) != name {
			t.Errorf("%q: download: %q, %v", name, got, err)
		}
		if e, err := w.StatFile(t.Context(), by, sb, at(full)); err != nil || e.Name != name {
			t.Errorf("%q: stat: %+v, %v", name, e, err)
		}
		dir := filepath.Join(w.guest.Home, "dirs", name)
		if e, err := w.MakeDirectory(t.Context(), by, sb, at(dir)); err != nil || e.Name != name || e.Type != sandboxio.TypeDirectory {
			t.Errorf("%q: mkdir: %+v, %v", name, e, err)
		}
		if e, err := w.MoveFile(t.Context(), by, sb, at(full), dir+"/"+name); err != nil || e.Path != dir+"/"+name {
			t.Errorf("%q: move: %+v, %v", name, e, err)
		}
		if _, err := os.Stat(full); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q: still there after the move: %v", name, err)
		}
	}
	var got []string
	req := page.Request{Limit: 7}
	for {
		p, err := w.ListFiles(t.Context(), by, sb, at("dirs"), 1, req)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Items {
			got = append(got, e.Name)
		}
		if req.Cursor = p.NextCursor; req.Cursor == "" {
			break
		}
	}
	want := oddNames()
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("listing (-want +got):\n%s", diff)
	}
	for _, name := range oddNames() {
		dir := filepath.Join(w.guest.Home, "dirs", name)
		if err := w.RemoveFile(t.Context(), by, sb, at(dir)); err != nil {
			t.Errorf("%q: remove: %v", name, err)
		}
		if err := w.RemoveFile(t.Context(), by, sb, at(dir)); err != nil {
			t.Errorf("%q: remove again: %v", name, err)
		}
	}
	if names, err := os.ReadDir(filepath.Join(w.guest.Home, "dirs")); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
	for _, bad := range []string{"", "a\x00b", "\xff\xfe", strings.Repeat("a/", 2049)} {
		_, statErr := w.StatFile(t.Context(), by, sb, at(bad))
		_, putErr := w.put(t, bad, strings.NewReader(""), 0)
		_, _, getErr := w.get(t, bad, sandboxio.Conditions{})
		_, mkErr := w.MakeDirectory(t.Context(), by, sb, at(bad))
		_, mvErr := w.MoveFile(t.Context(), by, sb, at("x"), bad)
		_, mvErr2 := w.MoveFile(t.Context(), by, sb, at(bad), "x")
		_, lsErr := w.ListFiles(t.Context(), by, sb, at(bad), 1, page.Request{Limit: 1})
		rmErr := w.RemoveFile(t.Context(), by, sb, at(bad))
		for i, err := range []error{statErr, putErr, getErr, mkErr, mvErr, mvErr2, lsErr, rmErr} {
			if !errs.Is(err, "invalid_path") || errs.CodeOf(err) != errs.CodeInvalid {
				t.Errorf("%.20q, operation %d: %v", bad, i, err)
			}
		}
	}
}

func TestS9_ErrorsSayWhatIsWrong(t *testing.T) {
	w := newWorld(t)
	by, sb := principal.System("test"), w.targets.Sandbox
	if _, err := w.MakeDirectory(t.Context(), by, sb, at("d")); err != nil {
		t.Fatal(err)
	}
	_, _, dirErr := w.get(t, "d", sandboxio.Conditions{})
	_, putDirErr := w.put(t, "d", strings.NewReader("x"), 1)
	_, _, goneErr := w.get(t, "gone", sandboxio.Conditions{})
	_, statErr := w.StatFile(t.Context(), by, sb, at("gone"))
	_, mkErr := w.MakeDirectory(t.Context(), by, sb, at("d"))
	_, mvErr := w.MoveFile(t.Context(), by, sb, at("gone"), "d/x")
	_, userErr := w.StatFile(t.Context(), by, sb, sandboxio.Place{Path: "d", User: "nobody-here"})
	_, downErr := w.DownloadFile(t.Context(), by, sb, sandboxio.Place{Path: "d", User: "nobody-here"}, sandboxio.Conditions{})
	_, lsErr := w.ListFiles(t.Context(), by, sb, at("gone"), 1, page.Request{Limit: 1})
	_, depthErr := w.ListFiles(t.Context(), by, sb, at("d"), 17, page.Request{Limit: 1})
	_, cursorErr := w.ListFiles(t.Context(), by, sb, at("d"), 1, page.Request{Limit: 1, Cursor: "junk!"})
	rootErr := w.RemoveFile(t.Context(), by, sb, at("/"))
	for _, c := range []struct {
		name   string
		err    error
		code   errs.Code
		reason string
	}{
		{"download a directory", dirErr, errs.CodeInvalid, "is_a_directory"},
		{"upload onto a directory", putDirErr, errs.CodeInvalid, "is_a_directory"},
		{"download nothing", goneErr, errs.CodeNotFound, "file_not_found"},
		{"stat nothing", statErr, errs.CodeNotFound, "file_not_found"},
		{"mkdir again", mkErr, errs.CodeConflict, "already_exists"},
		{"move nothing", mvErr, errs.CodeNotFound, "file_not_found"},
		{"unknown user", userErr, errs.CodeInvalid, "invalid_user"},
		{"unknown user downloads", downErr, errs.CodeInvalid, "invalid_user"},
		{"list nothing", lsErr, errs.CodeNotFound, "file_not_found"},
		{"depth", depthErr, errs.CodeInvalid, "invalid_request"},
		{"cursor", cursorErr, errs.CodeInvalid, "invalid_cursor"},
		{"remove the root", rootErr, errs.CodeInvalid, "invalid_path"},
	} {
		if errs.CodeOf(c.err) != c.code || !errs.Is(c.err, c.reason) {
			t.Errorf("%s: got %v, want %s %s", c.name, c.err, c.code, c.reason)
		}
	}
}

func TestS9_ListingsPageInOrderWhileEntriesComeAndGo(t *testing.T) {
	w := newWorld(t)
	by, sb := principal.System("test"), w.targets.Sandbox
	w.exec(t, shell("mkdir -p t/a t/a-b t/b && touch t/a/1 t/a/2 t/a-b/1 t/b/z t/a.txt; ln -s /nowhere t/link; mkfifo t/pipe"))
	list := func(limit, depth int, between func(int)) (paths []string) {
		req := page.Request{Limit: limit}
		for n := 0; ; n++ {
			p, err := w.ListFiles(t.Context(), by, sb, at("t"), depth, req)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range p.Items {
				paths = append(paths, strings.TrimPrefix(e.Path, w.guest.Home+"/t/")+":"+string(e.Type))
			}
			if req.Cursor = p.NextCursor; req.Cursor == "" {
				return paths
			}
			between(n)
		}
	}
	want := []string{"a:directory", "a/1:file", "a/2:file", "a-b:directory", "a-b/1:file", "a.txt:file", "b:directory", "b/z:file", "link:symlink", "pipe:other"}
	for limit := 1; limit <= 10; limit++ {
		if diff := cmp.Diff(want, list(limit, 16, func(int) {})); diff != "" {
			t.Errorf("limit %d (-want +got):\n%s", limit, diff)
		}
	}
	got := list(2, 16, func(n int) {
		w.exec(t, shell(fmt.Sprintf("rm -f t/a/1; touch t/a/0%d", n))) // before where the reader is
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("while entries come and go (-want +got):\n%s", diff)
	}
}

func TestS9_ATransferEndsWithTheSandboxAndIsNeverWholeThen(t *testing.T) {
	w := newWorld(t)
	if _, err := w.put(t, "big", io.LimitReader(zeros{}, 64<<20), 64<<20); err != nil {
		t.Fatal(err)
	}
	d, err := w.DownloadFile(t.Context(), principal.System("test"), w.targets.Sandbox, at("big"), sandboxio.Conditions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := io.ReadFull(d, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	w.targets.End()
	if n, err := io.Copy(io.Discard, d); !errs.Is(err, "sandbox_ended") {
		t.Errorf("after %d bytes: %v", n, err)
	}
}

// Whoever pages through a directory has it read once, unless something is
// changed in the sandbox meanwhile; whoever begins sees what is there now.
func TestS9_ADirectoryIsReadOnceForAllItsPages(t *testing.T) {
	w := newWorld(t)
	by, sb := principal.System("test"), w.targets.Sandbox
	const many = 1000
	for i := range many {
		if err := os.WriteFile(filepath.Join(w.guest.Home, fmt.Sprintf("f%04d", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	next := func(cursor string) (page.Page[sandboxio.FileEntry], map[string]bool) {
		p, err := w.ListFiles(t.Context(), by, sb, at("."), 1, page.Request{Limit: 200, Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for _, e := range p.Items {
			names[e.Name] = true
		}
		return p, names
	}
	p, _ := next("")
	if err := os.Remove(filepath.Join(w.guest.Home, "f0250")); err != nil {
		t.Fatal(err)
	}
	p, names := next(p.NextCursor)
	if !names["f0250"] || len(names) != 200 {
		t.Errorf("the second of its pages was read anew: %d entries", len(names))
	}
	if err := w.RemoveFile(t.Context(), by, sb, at("f0450")); err != nil {
		t.Fatal(err)
	}
	p, names = next(p.NextCursor)
	if names["f0450"] || !names["f0449"] || !names["f0600"] {
		t.Error("what was removed is still listed")
	}
	seen := 600 + 1
	for p.NextCursor != "" {
		p, names = next(p.NextCursor)
		seen += len(names)
	}
	if seen != many {
		t.Errorf("%d of %d entries", seen, many)
	}
	if err := os.Remove(filepath.Join(w.guest.Home, "f0100")); err != nil {
		t.Fatal(err)
	}
	if _, names = next(""); names["f0100"] || !names["f0200"] {
		t.Error("the first page is not what is there now")
	}
}
