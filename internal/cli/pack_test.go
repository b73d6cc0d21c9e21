package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestP2_ADirectoryIsPackedWithoutWhatIsIgnored(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"Dockerfile": "FROM base", ".dockerignore": "node_modules\n*.log\n!keep.log\n", "src/a": "A", "node_modules/x/y": "no", "z.log": "no", "keep.log": "yes",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "src/link")); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	if err := packDir(&packed, dir); err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(&packed)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	r := tar.NewReader(zip)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || h.Uid != 0 || h.Uname != "" {
			t.Fatalf("%+v %v", h, err)
		}
		text, _ := io.ReadAll(r)
		got = append(got, fmt.Sprintf("%s=%s%s", h.Name, h.Linkname, text))
	}
	const want = ".dockerignore=node_modules\n*.log\n!keep.log\n Dockerfile=FROM base keep.log=yes src/= src/a=A src/link=/etc/passwd"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("packed %q, want %q", s, want)
	}
	if err := os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte("[a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := packDir(io.Discard, dir); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a bad .dockerignore: %v", err)
	}
}

func TestP2_WhichRecipesNeedAContext(t *testing.T) {
	for recipe, want := range map[string]bool{
		"COPY a b": true, "FROM x\n  copy a b": true, "COPY\ta b": true, "RUN COPY": false, "# COPY a b": false, "": false,
	} {
		if copies(recipe) != want {
			t.Errorf("%q: %t", recipe, !want)
		}
	}
}
