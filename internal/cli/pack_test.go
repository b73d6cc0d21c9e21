package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skerry.dev/skerry/sdk"
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
		"RUN echo \\\n  COPY a b": false, "RUN echo \\\n# amid\n\n COPY a b \\\n&& true\nCOPY a b": true, "COPY\\\n a b": true, "COPYING a": false, "RUN a \\": false,
	} {
		if copies(recipe) != want {
			t.Errorf("%q: %t", recipe, !want)
		}
	}
}

// A server that has no place for an archive gets it again, whole; what it says of
// it in the end is said, not that nobody reads on.
func TestP2_WhatIsNotTakenIsSentAgain(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Skerryfile"), []byte("FROM base\nCOPY big /\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 4<<20)
	_, _ = rand.Read(big) // never fails
	if err := os.WriteFile(filepath.Join(dir, "big"), big, 0o600); err != nil {
		t.Fatal(err)
	}
	uploads := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/build-contexts" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		uploads++
		w.Header().Set("Content-Type", "application/json")
		if uploads == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"error":{"code":"server_busy","message":"Not now.","request_id":"r"}}`)
			return
		}
		if n, err := io.Copy(io.Discard, r.Body); err != nil || n < int64(len(big)) {
			t.Errorf("the second time %d bytes came: %v", n, err)
		}
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"error":{"code":"forbidden","message":"Not yours.","request_id":"r"}}`)
	}))
	defer server.Close()
	env, _ := testEnv(t)
	cmd := templateBuildCmd{Name: "x", Dir: dir}
	if err := cmd.Run(env, &Globals{URL: server.URL, APIKey: "skerry_" + strings.Repeat("0", 40)}); !sdk.Is(err, "forbidden") || uploads != 2 {
		t.Errorf("after %d uploads: %v", uploads, err)
	}
}
