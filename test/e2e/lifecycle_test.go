package e2e

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/sdk"
)

//go:embed testdata/worker.py
var workerProgram string

// clockWithin is how far a sandbox's clock may be from the host's.
const clockWithin = 500 * time.Millisecond

// worker is a sandbox in which things change all the time: a counter in memory,
// a database in WAL mode, a connection inside, and files that its owner adds.
type worker struct {
	in    *machine
	id    string
	files map[string]string // name to SHA-256, as told before anything happened
	last  seen              // the newest that was answered
}

// seen is what the program in a worker says of itself and of what it finds.
type seen struct {
	Now    float64
	Worker struct{ N, Row, Echo, Back, PID int }
	Silent string // why the program does not answer

	Integrity   string
	Rows, Wrong int
	Files       map[string]string
	Boot        string
}

// small is a sandbox of which many fit on a small machine.
func small(more map[string]any) map[string]any {
	options := map[string]any{"vcpus": 0.5, "memory_mb": 256, "disk_mb": 256, "timeout_sec": 7200}
	maps.Copy(options, more)
	return options
}

func (in *machine) worker(t *testing.T, more map[string]any) *worker {
	t.Helper()
	w := &worker{in: in, id: in.Create(t, small(more)).ID, files: map[string]string{}}
	var result execResult
	in.Must(t, "POST", "/v1/sandboxes/"+w.id+"/exec", map[string]any{
		"cmd":   `cat >worker.py && mkdir data && { setsid python3 worker.py </dev/null >worker.log 2>&1 & }`,
		"stdin": workerProgram,
	}, &result)
	if result.ExitCode != 0 {
		t.Fatalf("the worker was not started: %+v", result)
	}
	testkit.Eventually(t, time.Minute, "the worker works", func() bool {
		got, err := in.seen(t, w.id)
		return err == nil && got.Worker.Row > 0 && got.Worker.Echo > 0
	})
	return w
}

// copyOf is a worker that was started from a state of w.
func (w *worker) copyOf(id string) *worker {
	c := *w
	c.id, c.files = id, maps.Clone(w.files)
	return &c
}

func (in *machine) seen(t testing.TB, id string) (seen, error) {
	var got seen
	var result execResult
	_, err := in.Try(t.Context(), "POST", "/v1/sandboxes/"+id+"/exec", map[string]any{"cmd": "python3", "args": []string{"worker.py", "look"}}, &result)
	if err != nil {
		return got, err
	}
	if err := json.Unmarshal([]byte(result.Stdout), &got); err != nil {
		return got, fmt.Errorf("%w in %+v", err, result)
	}
	return got, nil
}

// grow adds a file of 1 MiB, rewrites an older one, and remembers both.
func (w *worker) grow(t *testing.T) {
	t.Helper()
	n := len(w.files)
	got := w.in.Sh(t, w.id, fmt.Sprintf("cd data && for f in %d %d; do head -c 1048576 /dev/urandom >$f; done && sha256sum *", n, n/2))
	if got.ExitCode != 0 {
		t.Fatalf("adding a file: %+v", got)
	}
	for line := range strings.Lines(got.Stdout) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		w.files[name] = sum
	}
}

// look fails the test unless all that was ever acknowledged is there and the
// program still works on it, in the same process.
func (w *worker) look(t *testing.T) {
	t.Helper()
	before := time.Now()
	got, err := w.in.seen(t, w.id)
	if err != nil {
		t.Fatal(err)
	}
	w.clock(t, got, before, time.Now())
	w.check(t, got)
	// What was frozen in the middle goes on.
	testkit.Eventually(t, time.Minute, "it counts, writes and hears itself", func() bool {
		now, err := w.in.seen(t, w.id)
		if err != nil {
			t.Fatal(err)
		}
		w.last = now
		return now.Worker.N > got.Worker.N && now.Worker.Row > got.Worker.Row && now.Worker.Echo > got.Worker.Echo
	})
	w.check(t, w.last)
}

func (w *worker) clock(t *testing.T, got seen, before, after time.Time) {
	t.Helper()
	now := time.UnixMicro(int64(got.Now * 1e6))
	if now.Before(before.Add(-clockWithin)) || now.After(after.Add(clockWithin)) {
		t.Errorf("RS-01: inside it is %s, outside between %s and %s", now, before, after)
	}
}

func (w *worker) check(t *testing.T, got seen) {
	t.Helper()
	was := w.last
	switch {
	case got.Silent != "":
		t.Fatalf("the program does not answer on its port: %s", got.Silent)
	case was.Boot != "" && (got.Boot != was.Boot || got.Worker.PID != was.Worker.PID):
		t.Errorf("process %d of boot %s was process %d of boot %s", got.Worker.PID, got.Boot, was.Worker.PID, was.Boot)
	case got.Worker.N < was.Worker.N || got.Worker.Row < was.Worker.Row || got.Worker.Echo < was.Worker.Echo:
		t.Errorf("ST-01: it went back: %+v, was %+v", got.Worker, was.Worker)
	}
	if got.Worker.Back != 0 {
		t.Errorf("RS-01: monotonic time went back %d times", got.Worker.Back)
	}
	w.disk(t, got)
	w.last = got
}

// disk checks what is there with and without memory.
func (w *worker) disk(t *testing.T, got seen) {
	t.Helper()
	if got.Integrity != "ok" || got.Wrong != 0 || got.Rows < w.last.Worker.Row || got.Rows < w.last.Rows {
		t.Errorf("ST-03: the database: integrity %q, %d rows of which %d are wrong, acknowledged were %d", got.Integrity, got.Rows, got.Wrong, w.last.Worker.Row)
	}
	if !maps.Equal(got.Files, w.files) {
		t.Errorf("ST-01: the files are %v, want %v", got.Files, w.files)
	}
}

func (in *machine) pause(t testing.TB, id string) {
	t.Helper()
	in.Must(t, "POST", "/v1/sandboxes/"+id+"/pause", map[string]any{}, nil)
}

func (in *machine) resume(t testing.TB, id string) {
	t.Helper()
	in.Must(t, "POST", "/v1/sandboxes/"+id+"/resume", map[string]any{}, nil)
}

// boxState is what a sandbox's row says of its life.
type boxState struct {
	ID           string
	Status       string
	Error        string
	EndReason    string    `json:"end_reason"`
	PausedReason string    `json:"paused_reason"`
	DeadlineAt   time.Time `json:"deadline_at"`
	SavedAt      time.Time `json:"saved_at"`
	Recoverable  *struct {
		SnapshotID string `json:"snapshot_id"`
		At         time.Time
	} `json:"recoverable_from"`
}

func (in *machine) state(t testing.TB, id string) boxState {
	t.Helper()
	var x boxState
	in.Must(t, "GET", "/v1/sandboxes/"+id, nil, &x)
	return x
}

// becomes waits until a sandbox has one of the statuses, and returns it then.
// The server may be away meanwhile.
func (in *machine) becomes(t testing.TB, id string, statuses ...string) (x boxState) {
	t.Helper()
	testkit.Eventually(t, 3*time.Minute, id+" becomes "+strings.Join(statuses, " or "), func() bool {
		var now boxState
		if _, err := in.Try(t.Context(), "GET", "/v1/sandboxes/"+id, nil, &now); err != nil {
			return false
		}
		x = now
		return slices.Contains(statuses, x.Status)
	})
	return x
}

// happened is one event of a sandbox's history.
type happened struct {
	Kind string
	At   time.Time
	Data map[string]any
}

// history is all of them, newest first.
func (in *machine) history(t testing.TB, id string) []happened {
	t.Helper()
	var events struct{ Items []happened }
	in.Must(t, "GET", "/v1/sandboxes/"+id+"/events?limit=200", nil, &events)
	return events.Items
}

// times counts events of a kind.
func times(events []happened, kind string) (n int) {
	for _, e := range events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// noStates waits until no saved state is on the disk but what templates and their
// builds keep: nothing needs one any more.
func (in *machine) noStates(t testing.TB) {
	t.Helper()
	var left []string
	defer func() {
		if t.Failed() {
			t.Logf("states on the disk: %v", left)
		}
	}()
	testkit.Eventually(t, 2*time.Minute, "LL-01: no saved state is left", func() bool {
		var kept struct {
			Items []struct{ ID, Type string }
		}
		if _, err := in.Try(context.WithoutCancel(t.Context()), "GET", "/v1/snapshots?type=all&limit=200", nil, &kept); err != nil { // cleanups look, too
			return false
		}
		entries, err := os.ReadDir(filepath.Join(in.Data, "agent", "states"))
		if err != nil && !os.IsNotExist(err) {
			return false
		}
		left = left[:0]
		for _, e := range entries {
			if !slices.ContainsFunc(kept.Items, func(s struct{ ID, Type string }) bool {
				return (s.Type == "layer" || s.Type == "template") && strings.ReplaceAll(strings.TrimPrefix(s.ID, "snap-"), "-", "") == e.Name()
			}) {
				left = append(left, e.Name())
			}
		}
		return len(left) == 0
	})
}

// stream is a command whose output is followed over everything that happens to
// its sandbox.
type stream struct {
	t      *testing.T
	client *sdk.Client
	box    string
	id     string
	now    *sdk.Process

	mu  sync.Mutex
	out bytes.Buffer
}

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

func (s *stream) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// follow starts a command that prints the numbers from 1 until it is told to
// finish.
func (in *machine) follow(t *testing.T, box string) *stream {
	t.Helper()
	client, err := sdk.New(in.URL, sdk.WithAPIKey(in.Key))
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{t: t, client: client, box: box}
	s.now, err = client.Start(t.Context(), box, sdk.Command{
		Cmd:    `i=0; until [ -e /tmp/finish ]; do i=$((i+1)); echo $i; sleep 0.2; done; echo end; exit 7`,
		Stdout: s,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.id = s.now.ID()
	return s
}

// reattach finds the command again where its connection ended, and waits until
// there is more of it.
func (s *stream) reattach() {
	s.t.Helper()
	s.now.Close()
	at := len(s.text())
	var err error
	if s.now, err = s.client.Attach(s.t.Context(), s.box, s.id, uint64(at), sdk.Command{Stdout: s}); err != nil {
		s.t.Fatalf("S8: attaching again: %v", err)
	}
	s.flows()
}

// flows waits until more output comes.
func (s *stream) flows() {
	s.t.Helper()
	at := len(s.text())
	testkit.Eventually(s.t, time.Minute, "the command's output goes on", func() bool { return len(s.text()) > at })
}

// finish ends the command and checks every byte of its output and its exit code.
func (s *stream) finish(in *machine) {
	s.t.Helper()
	in.Sh(s.t, s.box, "touch /tmp/finish")
	exit, err := s.now.Wait()
	if err != nil || exit.Code != 7 || exit.Lost != 0 {
		s.t.Errorf("S8: the command ended with %+v, %v; want 7", exit, err)
	}
	lines := strings.Split(strings.TrimSuffix(s.text(), "\n"), "\n")
	for i, line := range lines {
		want := fmt.Sprint(i + 1)
		if i == len(lines)-1 {
			want = "end"
		}
		if line != want {
			s.t.Fatalf("S8: line %d of %d is %q, want %q", i, len(lines), line, want)
		}
	}
}
