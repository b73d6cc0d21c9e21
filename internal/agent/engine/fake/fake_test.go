package fake_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/enginetest"
	"skerry.dev/skerry/internal/agent/engine/fake"
)

func TestConformance(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) enginetest.Harness {
		w := fake.NewWorld()
		w.SetHandler(suiteGuest)
		dir := t.TempDir()
		return enginetest.Harness{
			Engine: func(*testing.T) engine.Engine { return fake.New(w) },
			Spec:   func(t *testing.T) engine.Spec { return spec(t, dir) },
			Kill: func(t *testing.T, id engine.InstanceID) {
				i, ok := w.Instance(id)
				if !ok {
					t.Fatal("no such instance")
				}
				i.End(engine.Exit{Reason: engine.ExitKilled, Code: -1})
			},
			Leaks: func(*testing.T) (out []string) {
				for _, id := range w.Instances() {
					out = append(out, "instance "+string(id))
				}
				files, _ := filepath.Glob(filepath.Join(dir, "*", "*"))
				return append(out, files...)
			},
		}
	})
}

func spec(t testing.TB, dir string) engine.Spec {
	t.Helper()
	id := enginetest.NewID()
	work := filepath.Join(dir, string(id))
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	return engine.Spec{
		ID: id, WorkDir: work, Hostname: "rock", Args: []string{"/guest"},
		Resources: engine.Resources{CPUMillis: 1000, MemoryBytes: 256 << 20, DiskBytes: 512 << 20, MaxProcesses: 100},
	}
}

// suiteGuest behaves like the suite's guest program.
func suiteGuest(i *fake.Instance) http.Handler {
	mux := http.NewServeMux()
	say := func(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }
	mux.HandleFunc("/info", func(w http.ResponseWriter, _ *http.Request) {
		say(w, enginetest.Info{PID: 1, Hostname: i.Spec.Hostname, Stdin: string(i.Spec.Stdin), Env: i.Spec.Env, Args: i.Spec.Args})
	})
	mux.HandleFunc("/keep", func(w http.ResponseWriter, r *http.Request) {
		old := i.Memory()
		if r.Method == http.MethodPost {
			b, _ := io.ReadAll(r.Body)
			i.SetMemory(b)
		}
		say(w, string(old))
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			b, _ := io.ReadAll(r.Body)
			i.SetFile(r.FormValue("path"), b)
		}
		b, _ := i.File(r.FormValue("path"))
		say(w, string(b))
	})
	mux.HandleFunc("/time", func(w http.ResponseWriter, _ *http.Request) { say(w, time.Now().UnixNano()) })
	mux.HandleFunc("/random", func(w http.ResponseWriter, _ *http.Request) { say(w, rand.Text()) })
	mux.HandleFunc("/spawn", func(w http.ResponseWriter, _ *http.Request) { say(w, 2) })
	mux.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("code"))
		i.End(engine.Exit{Reason: engine.ExitExited, Code: code})
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	return fake.Guest{Handler: mux, Listen: []int{enginetest.GuestPort}}
}

func TestFaults(t *testing.T) {
	w := fake.NewWorld()
	e := fake.New(w)
	s := spec(t, t.TempDir())
	t.Cleanup(func() { _ = e.Destroy(context.Background(), s.ID) })
	boom := errors.New("boom")

	w.Script(fake.Prepare, fake.Fault{Err: boom, Times: 1})
	if _, err := e.Prepare(t.Context(), s); !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if len(w.Instances()) != 0 {
		t.Error("a failed Prepare left something")
	}
	h, err := e.Prepare(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}

	// The answer is lost, the work is done.
	w.Script(fake.Start, fake.Fault{Err: boom, After: true, Times: 1})
	if _, err := e.Start(t.Context(), h); !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if i, _ := w.Instance(s.ID); !i.Running() {
		t.Error("it does not run")
	}

	release := make(chan struct{})
	w.Script(fake.Freeze, fake.Fault{Block: release, ID: s.ID, Times: 1})
	frozen := make(chan error, 1)
	go func() { frozen <- e.Freeze(t.Context(), h) }()
	select {
	case err := <-frozen:
		t.Fatalf("not blocked: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	if err := <-frozen; err != nil {
		t.Fatal(err)
	}

	w.Script(fake.Thaw, fake.Fault{Panic: "the agent dies here", Times: 1})
	func() {
		defer func() {
			if r := recover(); fmt.Sprint(r) != "the agent dies here" {
				t.Errorf("recovered %v", r)
			}
		}()
		_ = e.Thaw(t.Context(), h)
	}()

	w.Script(fake.Stats, fake.Fault{Exit: &engine.Exit{Reason: engine.ExitCrashed, Code: -1}, Times: 1})
	if _, err := e.Stats(t.Context(), h); !errors.Is(err, engine.ErrExited) {
		t.Errorf("got %v", err)
	}
	if x, err := e.Wait(t.Context(), h); err != nil || x.Reason != engine.ExitCrashed {
		t.Errorf("%+v %v", x, err)
	}
	if n := w.Steps(fake.Prepare); n != 2 {
		t.Errorf("%d steps of Prepare", n)
	}
	w.SetUnhealthy("no luck: try again tomorrow")
	if c := e.Probe(t.Context()); c.Healthy || len(c.Reasons) != 1 {
		t.Errorf("%+v", c)
	}
}

func TestDefaultGuestAndVersions(t *testing.T) {
	w := fake.NewWorld()
	e := fake.New(w)
	dir := t.TempDir()
	s, other := spec(t, dir), spec(t, dir)
	t.Cleanup(func() {
		_ = e.Destroy(context.Background(), s.ID)
		_ = e.Destroy(context.Background(), other.ID)
	})
	h, err := e.Prepare(t.Context(), s)
	if err == nil {
		h, err = e.Start(t.Context(), h)
	}
	if err != nil {
		t.Fatal(err)
	}
	client := enginetest.Client(e, h)
	for _, call := range [][2]string{{"GET", "/health"}, {"POST", "/init"}} {
		req, _ := http.NewRequestWithContext(t.Context(), call[0], "http://guest"+call[1], nil)
		res, err := client.Do(req)
		if err != nil || res.StatusCode != http.StatusNoContent {
			t.Fatalf("%s: %v %v", call, res, err)
		}
		_ = res.Body.Close()
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://guest/events", nil)
	res, err := client.Do(req)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("events: %v %v", res, err)
	}
	defer res.Body.Close()

	image := t.TempDir()
	if err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: image, LeaveRunning: true}); err != nil {
		t.Fatal(err)
	}
	w.SetVersion("fake-2")
	later, err := e.Prepare(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Restore(t.Context(), later, image); !errors.Is(err, engine.ErrUnsupported) {
		t.Errorf("image of another version: %v", err)
	}
	w.Reboot()
	if x, err := e.Wait(t.Context(), h); err != nil || x.Reason != engine.ExitHostRestart {
		t.Errorf("%+v %v", x, err)
	}
}
