package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/sdk"
)

// sandboxFiles is a server with nothing but the files of one sandbox.
type sandboxFiles struct {
	mu    sync.Mutex
	files map[string]string // a name that ends in / is a directory
}

func (s *sandboxFiles) entry(path string) map[string]any {
	kind, length := "", 0
	if content, ok := s.files[path]; ok {
		kind, length = "file", len(content)
	}
	for name := range s.files {
		if strings.HasPrefix(name, path+"/") {
			kind = "directory"
		}
	}
	if kind == "" {
		return nil
	}
	return map[string]any{
		"name": path[strings.LastIndexByte(path, '/')+1:], "path": path, "type": kind, "size": length,
		"mode": "-rw-r--r--", "owner": "user", "group": "user", "modified_at": "2026-01-02T03:04:05.000000Z",
	}
}

func (s *sandboxFiles) list(dir string) []map[string]any {
	items := []map[string]any{}
	seen := map[string]bool{}
	for name := range s.files {
		rest, ok := strings.CutPrefix(name, dir+"/")
		first, _, _ := strings.Cut(rest, "/")
		if ok && first != "" && !seen[first] {
			seen[first] = true
			items = append(items, s.entry(dir+"/"+first))
		}
	}
	return items
}

func (s *sandboxFiles) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := r.URL.Query().Get("path")
	answer := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	switch what := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/v1/sandboxes/sb-1/files"); what {
	case "GET /stat":
		if e := s.entry(path); e != nil {
			answer(http.StatusOK, e)
			return
		}
		answer(http.StatusNotFound, map[string]any{"error": map[string]any{"code": "file_not_found", "message": "No such file.", "request_id": "r"}})
	case "GET /list":
		answer(http.StatusOK, map[string]any{"items": s.list(path)})
	case "POST /mkdir":
		var body struct{ Path string }
		_ = json.NewDecoder(r.Body).Decode(&body)
		s.files[body.Path+"/"] = ""
		answer(http.StatusCreated, s.entry(body.Path))
	case "GET ":
		_, _ = io.WriteString(w, s.files[path])
	case "PUT ":
		raw, _ := io.ReadAll(r.Body)
		s.files[path] = string(raw)
		answer(http.StatusOK, s.entry(path))
	default:
		answer(http.StatusTeapot, map[string]any{"error": map[string]any{"code": "unknown", "message": what, "request_id": "r"}})
	}
}

func testEnv(t *testing.T) (*Env, *bytes.Buffer) {
	t.Helper()
	var stderr bytes.Buffer
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close() })
	return &Env{
		Context: t.Context(), Stdin: stdin, Stdout: io.Discard, Stderr: &stderr,
		Getenv: func(string) string { return "" }, ConfigFile: filepath.Join(t.TempDir(), "skerry", "config.json"),
	}, &stderr
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestO3_CpCopiesTreesBothWays(t *testing.T) {
	inside := &sandboxFiles{files: map[string]string{"/home/user/": ""}}
	server := httptest.NewServer(inside)
	defer server.Close()
	e, stderr := testEnv(t)
	g := &Globals{URL: server.URL, APIKey: "k"}
	here := t.TempDir()
	write(t, filepath.Join(here, "tree", "a.txt"), "A")
	write(t, filepath.Join(here, "tree", "deep", "ü b.txt"), strings.Repeat("B", 100_000))
	if err := os.Symlink("/etc/passwd", filepath.Join(here, "tree", "link")); err != nil {
		t.Fatal(err)
	}

	up := &cpCmd{Source: filepath.Join(here, "tree"), Destination: "sb-1:/home/user"}
	if err := up.Run(e, g); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"/home/user/": "", "/home/user/tree/": "", "/home/user/tree/deep/": "",
		"/home/user/tree/a.txt": "A", "/home/user/tree/deep/ü b.txt": strings.Repeat("B", 100_000),
	}
	if diff := cmp.Diff(want, inside.files); diff != "" {
		t.Errorf("inside (-want +got):\n%s", diff)
	}
	if !strings.Contains(stderr.String(), "link was left out") {
		t.Errorf("nothing was said of the link: %s", stderr)
	}

	down := &cpCmd{Source: "sb-1:/home/user/tree", Destination: filepath.Join(here, "back")}
	if err := down.Run(e, g); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(here, "back", "deep", "ü b.txt"))
	if err != nil || len(raw) != 100_000 {
		t.Errorf("%d bytes came back, %v", len(raw), err)
	}
	entries, err := os.ReadDir(filepath.Join(here, "back"))
	if err != nil || len(entries) != 2 {
		t.Errorf("back holds %v (%v), want the file and the directory and no remains", entries, err)
	}
}

// TestO3_NamesFromInsideStayInside: the file names come from whoever is in the
// sandbox.
func TestO3_NamesFromInsideStayInside(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../x", "a/b", "/etc/cron.d/x", "a\x00b"} {
		if got, err := localName(name); err == nil {
			t.Errorf("%q was taken as %q", name, got)
		}
	}
	if _, err := localName("...fine"); err != nil {
		t.Error(err)
	}
}

// TestO3_KeysGoOnlyToTheirServer: a key that one source knows is never sent to
// a server that another source names.
func TestO3_KeysGoOnlyToTheirServer(t *testing.T) {
	e, _ := testEnv(t)
	local := filepath.Join(t.TempDir(), "credentials.env")
	write(t, local, "SKERRY_URL=http://127.0.0.1:7070\nSKERRY_API_KEY=local\nSKERRY_ADMIN_EMAIL=a@b\nSKERRY_ADMIN_PASSWORD=p\n")
	e.Credentials = []string{filepath.Join(t.TempDir(), "absent"), local}
	find := func(g Globals) [2]string {
		t.Helper()
		c, err := e.find(&g)
		if err != nil {
			t.Fatal(err)
		}
		if c.APIKey == "" && c.login {
			return [2]string{c.URL, "(login)"}
		}
		return [2]string{c.URL, c.APIKey}
	}
	if got := find(Globals{}); got != [2]string{"http://127.0.0.1:7070", "local"} {
		t.Errorf("of a local up: %v", got)
	}
	if err := e.alone(func() error { return e.keep(kept{URL: "https://far", Refresh: "srt_1"}) }); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		g    Globals
		want [2]string
	}{
		{Globals{}, [2]string{"https://far", "(login)"}},
		{Globals{URL: "http://127.0.0.1:7070/"}, [2]string{"http://127.0.0.1:7070", "local"}},
		{Globals{URL: "https://elsewhere"}, [2]string{"https://elsewhere", ""}},
		{Globals{APIKey: "given"}, [2]string{defaultURL, "given"}},
		{Globals{URL: "https://far", APIKey: "given"}, [2]string{"https://far", "given"}},
	} {
		if got := find(c.g); got != c.want {
			t.Errorf("%+v gives %v, want %v", c.g, got, c.want)
		}
	}
}

func TestO3_ExitCodesMeanSomething(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), exitFailed},
		{&usageError{"x"}, ExitUsage},
		{fmt.Errorf("wrapped: %w", &ExitError{Code: 42}), 42},
		{errNoCredentials, exitNotAllowed},
		{&sdk.Error{Status: 401}, exitNotAllowed},
		{&sdk.Error{Status: 403}, exitNotAllowed},
		{fmt.Errorf("wrapped: %w", &sdk.Error{Status: 404}), exitNotFound},
		{&sdk.Error{Status: 409}, exitConflict},
		{&sdk.Error{Status: 503}, exitUnavailable},
		{&sdk.Error{Status: 400}, exitFailed},
		{&sdk.UnreachableError{}, exitUnavailable},
	} {
		if got := Report(io.Discard, c.err); got != c.want {
			t.Errorf("%v gives %d, want %d", c.err, got, c.want)
		}
	}
	var out bytes.Buffer
	Report(&out, &sdk.Error{Status: 404, Code: "not_found", Message: "evil \x1b[2Jtext", RequestID: "r7"})
	if strings.Contains(out.String(), "\x1b") || !strings.Contains(out.String(), "r7") {
		t.Errorf("printed %q", &out)
	}
}

func TestO3_ExecTellsProgramsFromLines(t *testing.T) {
	for _, c := range []struct {
		words []string
		cmd   string
		args  []string
		bad   bool
	}{
		{words: []string{"--", "ls", "-la"}, cmd: "ls", args: []string{"-la"}},
		{words: []string{"ls", "-la"}, cmd: "ls", args: []string{"-la"}},
		{words: []string{"echo $HOME | wc"}, cmd: "echo $HOME | wc"},
		{words: []string{"--", "-x"}, cmd: "-x"},
		{words: []string{"-i", "--", "ls"}, bad: true},
		{words: []string{"--"}, bad: true},
		{bad: true},
	} {
		got, err := (&execCmd{Cmd: c.words}).command()
		if (err != nil) != c.bad {
			t.Errorf("%q: %v", c.words, err)
		}
		if !c.bad && (got.Cmd != c.cmd || !cmp.Equal(got.Args, c.args)) {
			t.Errorf("%q gives %q %q", c.words, got.Cmd, got.Args)
		}
	}
}

func TestBar(t *testing.T) {
	b := &bar{}
	b.next("/home/user/data.bin", 200)
	b.at, b.total = 100, 3_000_000
	if got, want := b.line(time.Second), "data.bin                     ████████████░░░░░░░░░░░░  50 %  100 B of 200 B  3.0 MB/s"; got != want {
		t.Errorf("line\n%q, want\n%q", got, want)
	}
}
