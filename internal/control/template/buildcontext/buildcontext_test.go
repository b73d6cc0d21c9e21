package buildcontext_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"skerry.dev/skerry/internal/control/template/buildcontext"
	"skerry.dev/skerry/internal/kernel/errs"
)

// packed makes an archive of lines: `name/`, `name = content`, `name -> target`,
// `name == hard link`.
func packed(t testing.TB, lines ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, l := range lines {
		h := &tar.Header{Mode: 0o644, Typeflag: tar.TypeReg, Uid: 1234}
		name, content, _ := strings.Cut(l, " = ")
		h.Name, h.Size = name, int64(len(content))
		if from, to, ok := strings.Cut(l, " -> "); ok {
			h.Name, h.Linkname, h.Typeflag, h.Size = from, to, tar.TypeSymlink, 0
		} else if from, to, ok := strings.Cut(l, " == "); ok {
			h.Name, h.Linkname, h.Typeflag, h.Size = from, to, tar.TypeLink, 0
		} else if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o750
		}
		if strings.HasSuffix(name, ".sh") {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func open(t testing.TB, raw []byte) (*buildcontext.Archive, error) {
	t.Helper()
	dir := t.TempDir()
	name := filepath.Join(dir, "context")
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := buildcontext.Open(context.Background(), name, filepath.Join(dir, "plain"), 1<<20)
	if err == nil {
		t.Cleanup(func() { a.Close() })
	}
	return a, err
}

// listed is what a selection writes, an entry a line.
func listed(t *testing.T, s *buildcontext.Selection) string {
	t.Helper()
	var raw bytes.Buffer
	if err := s.WriteTar(context.Background(), &raw, 7, 8); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if s.File {
		b.WriteString("file:")
	}
	r := tar.NewReader(&raw)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return strings.TrimSpace(b.String())
		}
		if err != nil || h.Uid != 7 || h.Gid != 8 {
			t.Fatalf("%+v %v", h, err)
		}
		content, _ := io.ReadAll(r)
		fmt.Fprintf(&b, " %s:%o:%s%s", h.Name, h.Mode, content, h.Linkname)
	}
}

func TestP2_CopyTakesWhatDockerTakes(t *testing.T) {
	a, err := open(t, packed(t,
		"./", "./a.txt = A", "b.txt = B", "run.sh = R", ".hidden = H", "dir/", "dir/x = X", "dir/sub/y = Y", "dir/link -> x", "dir/out -> /etc/passwd",
		"to-file -> dir/x", "to-dir -> dir", "up -> ../../a.txt", "hard == dir/x", "empty/", "odd*name = O",
		".dockerignore = secret\n*.log\n", "secret = S", "secret2/k = ok", "x.log = L", "loop -> loop", "a.txt = A2"))
	if err != nil {
		t.Fatal(err)
	}
	const tree = "link:644:x out:644:/etc/passwd sub/:755: sub/y:644:Y x:644:X"
	for _, c := range []struct {
		sources string
		into    bool
		want    string
	}{
		{"a.txt", false, "file: a.txt:644:A2"},
		{"a.txt", true, "a.txt:644:A2"},
		{"run.sh", false, "file: run.sh:755:R"},
		{"dir", false, tree},
		{"dir", true, tree},
		{"dir/x", false, "file: x:644:X"},
		{"*.txt", true, "a.txt:644:A2 b.txt:644:B"},
		{"*.sh", false, "file: run.sh:755:R"},
		{"a.txt dir", true, "a.txt:644:A2 " + tree},
		{"d?r/s*", true, "y:644:Y"},
		{"dir/link", false, "file: link:644:X"},
		{"to-file", false, "file: to-file:644:X"},
		{"to-dir", true, tree},
		{"to-dir/sub/y", false, "file: y:644:Y"},
		{"up", false, "file: up:644:A2"},
		{"hard", false, "file: hard:644:X"},
		{"empty", false, ""},
		{`odd\*name`, false, "file: odd*name:644:O"},
		{".h*", false, "file: .hidden:644:H"},
		{"secret2", false, "k:644:ok"},
	} {
		s, err := a.Select(strings.Fields(c.sources), c.into)
		if err != nil {
			t.Errorf("%s: %v", c.sources, err)
			continue
		}
		if diff := cmp.Diff(c.want, listed(t, s)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", c.sources, diff)
		}
	}
	for source, says := range map[string]string{
		"none": "no \"none\"", "dir/none": "no \"dir/none\"", "*.none": "no \"*.none\"", "secret": ".dockerignore", "x.log": ".dockerignore", "a.txt/b": "no \"a.txt/b\"",
		"*.txt": "several files", "loop": "circle",
	} {
		if _, err := a.Select([]string{source}, false); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", source, err)
		}
	}
	if s, err := a.Select([]string{"."}, true); err != nil || strings.Contains(listed(t, s), "secret:") || !strings.Contains(listed(t, s), ".hidden:") {
		t.Errorf("everything: %v", err)
	}
}

func TestP2_ADigestIsOfWhatIsCopiedAndOfNothingElse(t *testing.T) {
	digest := func(lines ...string) string {
		t.Helper()
		a, err := open(t, packed(t, lines...))
		if err != nil {
			t.Fatal(err)
		}
		s, err := a.Select([]string{"d"}, true)
		if err != nil {
			t.Fatal(err)
		}
		sum, err := s.Digest(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", sum)
	}
	base := digest("d/", "d/a = 1", "d/b = 2")
	if base != digest("other = x", "d/b = 2", "d/", "d/a = 1") {
		t.Error("what is not copied, or the order, changes it")
	}
	for _, other := range [][]string{{"d/", "d/a = 2", "d/b = 2"}, {"d/", "d/a = 1"}, {"d/", "d/a = 1", "d/c = 2"}, {"d/", "d/a -> 1", "d/b = 2"}, {"d/", "d/a = 12", "d/b = "}} {
		if base == digest(other...) {
			t.Errorf("%q has the same", other)
		}
	}
}

func TestP2_AnArchiveMayBePackedAndIsBounded(t *testing.T) {
	raw := packed(t, "a = A")
	var gz, zs bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, _ = w.Write(raw)
	w.Close()
	z, _ := zstd.NewWriter(&zs)
	_, _ = z.Write(raw)
	z.Close()
	for name, b := range map[string][]byte{"plain": raw, "gzip": gz.Bytes(), "zstd": zs.Bytes()} {
		a, err := open(t, b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s, err := a.Select([]string{"a"}, false); err != nil || listed(t, s) != "file: a:644:A" {
			t.Errorf("%s: %v", name, err)
		}
	}
	var bomb bytes.Buffer
	w = gzip.NewWriter(&bomb)
	_, _ = w.Write(make([]byte, 2<<20))
	w.Close()
	chain := []string{"l0 = A"}
	for i := range 60 {
		chain = append(chain, fmt.Sprintf("l%d == l%d", i+1, i))
	}
	many := make([]string, 8_500)
	for i := range many {
		many[i] = fmt.Sprintf("%d -> %s", i, strings.Repeat("x", 4000))
	}
	for name, b := range map[string][]byte{
		"links of links": packed(t, chain...), "deep": packed(t, strings.Repeat("d/", 300)+"f = F"), "long names": packed(t, many...),
		"a bomb": bomb.Bytes(), "cut": gz.Bytes()[:20], "cut zstd": zs.Bytes()[:len(zs.Bytes())-4], "no archive": []byte(strings.Repeat("x", 2000)),
		"outside": packed(t, "../x = X"), "outside by a link": packed(t, "a == ../../etc/passwd"), "linked to nothing": packed(t, "a == b"), "linked to itself": packed(t, "a == b", "b == a"),
		"below a file": packed(t, "a = A", "a/b = B"), "a bad .dockerignore": packed(t, ".dockerignore = [a"),
	} {
		if _, err := open(t, b); !errs.Is(err, "invalid_context") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestACopyIsBounded(t *testing.T) {
	lines := make([]string, 1000)
	for i := range lines {
		lines[i] = fmt.Sprintf("f%d = x", i)
	}
	a, err := open(t, packed(t, lines...))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := a.Select(slices.Repeat([]string{"."}, 200), true); err != nil || s.Files() != 200_000 {
		t.Errorf("as many as may be: %v", err)
	}
	if _, err := a.Select(slices.Repeat([]string{"."}, 201), true); !errs.Is(err, "invalid_context") {
		t.Errorf("more than may be: %v", err)
	}
}

func FuzzArchive(f *testing.F) {
	f.Add(packed(f, "a = A", "d/b = B", "l -> ../x", "h == a", ".dockerignore = a"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := open(t, raw)
		if err != nil {
			return
		}
		s, err := a.Select([]string{"."}, true)
		if err != nil {
			return
		}
		_, _ = s.Digest(context.Background())
		_ = s.WriteTar(context.Background(), io.Discard, 0, 0)
	})
}
