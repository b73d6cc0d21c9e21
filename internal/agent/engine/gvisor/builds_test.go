package gvisor_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/enginetest"
	"skerry.dev/skerry/internal/agent/engine/gvisor"
	"skerry.dev/skerry/internal/testkit"
)

// upgraded is an engine as after an upgrade of the agent to another runsc.
func (w *world) upgraded(t *testing.T) (*gvisor.Engine, string) {
	t.Helper()
	path, version := testkit.AnotherRunsc(t, w.cfg.Runsc)
	w.cfg.Runsc = path
	e := w.engine(t)
	if c := e.Probe(t.Context()); !c.Healthy || c.Version != version {
		t.Fatalf("after the upgrade: %+v", c)
	}
	return e, version
}

func keep(t *testing.T, e engine.Engine, h engine.Handle, text string) {
	t.Helper()
	if err := post(t, e, h, "/keep", []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// kept is what the guest has in its memory.
func kept(t *testing.T, e engine.Engine, h engine.Handle) string {
	t.Helper()
	text, err := asked(t, e, h)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func asked(t *testing.T, e engine.Engine, h engine.Handle) (text string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://guest/keep", nil)
	if err != nil {
		return "", err
	}
	res, err := enginetest.Client(e, h).Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	return text, json.NewDecoder(res.Body).Decode(&text)
}

// An upgrade strands nothing: what runs goes on under its own build, what was
// saved comes back under the build that saved it, all else is started by the new
// one, and a build goes when nothing needs it any more.
func TestP7_AnUpgradeStrandsNothing(t *testing.T) {
	w := newWorld(t)
	w.cfg.BuildsDir = filepath.Join(w.dir, "b")
	old := w.engine(t)
	oldVersion := old.Probe(t.Context()).Version
	spec, h := running(t, w, old)
	keep(t, old, h, "of old")
	before := t.TempDir()
	if err := old.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: before, LeaveRunning: true}); err != nil {
		t.Fatal(err)
	}
	e, version := w.upgraded(t)
	if c := e.Probe(t.Context()); len(c.Builds) != 1 || c.Builds[0].Version != oldVersion || c.Digest == c.Builds[0].Digest {
		t.Fatalf("what it says of itself: %+v", c)
	}

	// What runs is found again, saved as what it is, and goes on.
	if _, err := e.Recover(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	after := t.TempDir()
	if err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: after}); err != nil {
		t.Fatal(err)
	}
	if info, err := engine.ReadCheckpoint(after); err != nil || info.Version != oldVersion {
		t.Fatalf("saved under the new engine: %+v, %v", info, err)
	}
	if err := e.Thaw(t.Context(), h); err != nil || kept(t, e, h) != "of old" {
		t.Fatalf("what ran: %v", err)
	}
	if err := e.Freeze(t.Context(), h); err != nil {
		t.Fatal(err)
	}

	// What was saved comes back; what starts now is new.
	for _, dir := range []string{before, after} {
		restored, back := w.restored(t, e, dir)
		if kept(t, e, back) != "of old" {
			t.Error("a restored instance has lost its memory")
		}
		w.runs(t, restored.ID, oldVersion)
		destroyInstance(t, e, restored.ID)
	}
	fresh, _ := running(t, w, e)
	w.runs(t, fresh.ID, version)

	// A build stays for an instance, for a state and for a day; then it goes.
	saved := map[string]bool{}
	sweep := func() []string {
		t.Helper()
		w.age(t)
		if err := e.SweepBuilds(t.Context(), func() map[string]bool { return saved }); err != nil {
			t.Fatal(err)
		}
		have, err := e.Builds(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var versions []string
		for _, k := range have {
			versions = append(versions, k.Version)
		}
		return versions
	}
	if have := sweep(); len(have) != 2 {
		t.Errorf("the build of an instance: %v are left", have)
	}
	destroyInstance(t, e, spec.ID)
	saved[oldVersion] = true
	if have := sweep(); len(have) != 2 {
		t.Errorf("the build of a state: %v are left", have)
	}
	delete(saved, oldVersion)
	if have := sweep(); len(have) != 1 || have[0] != version {
		t.Errorf("nothing needs the old build: %v are left", have)
	}
	again := w.spec(t)
	prepared, err := e.Prepare(t.Context(), again)
	if err == nil {
		_, err = e.Restore(t.Context(), prepared, before)
	}
	if !errors.Is(err, engine.ErrNoBuild) || !strings.Contains(err.Error(), oldVersion) {
		t.Errorf("without the build: %v", err)
	}
	destroyInstance(t, e, again.ID)
}

// restored starts an instance from a checkpoint and waits until it answers.
func (w *world) restored(t *testing.T, e engine.Engine, dir string) (engine.Spec, engine.Handle) {
	t.Helper()
	spec := w.spec(t)
	h, err := e.Prepare(t.Context(), spec)
	if err == nil {
		h, err = e.Restore(t.Context(), h, dir)
	}
	t.Cleanup(func() { destroyInstance(t, e, spec.ID) })
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "the guest answers", func() bool { _, err := asked(t, e, h); return err == nil })
	return spec, h
}

// runs finds the version in the program an instance really runs.
func (w *world) runs(t *testing.T, id engine.InstanceID, version string) {
	t.Helper()
	program, err := os.ReadFile(fmt.Sprintf("/proc/%d/exe", w.sentry(t, id).PID))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(program, []byte(version)) {
		t.Errorf("%s does not run %s", id, version)
	}
}

// age makes all builds as if nobody had wanted them for long.
func (w *world) age(t *testing.T) {
	t.Helper()
	abouts, _ := filepath.Glob(filepath.Join(w.cfg.BuildsDir, "*", "build.json"))
	for _, path := range abouts {
		long := time.Now().Add(-48 * time.Hour)
		if err := os.Chtimes(path, long, long); err != nil {
			t.Fatal(err)
		}
	}
}

// A build that is damaged is never run, and one that is fetched is what its name
// says. What runs needs no file: the sentry has its program.
func TestP7_BuildsAreWhatTheirNamesSay(t *testing.T) {
	w := newWorld(t)
	w.cfg.BuildsDir = filepath.Join(w.dir, "b")
	old := w.engine(t)
	builds, err := old.Builds(t.Context())
	if err != nil || len(builds) != 1 || builds[0].SizeBytes == 0 {
		t.Fatalf("%+v, %v", builds, err)
	}
	_, h := running(t, w, old)
	keep(t, old, h, "of old")
	dir := t.TempDir()
	if err := old.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true}); err != nil {
		t.Fatal(err)
	}
	w.upgraded(t)
	f, err := os.OpenFile(builds[0].Path, os.O_RDWR, 0)
	if err != nil {
		// The running sentry holds its program: put a damaged one in its place.
		program, readErr := os.ReadFile(builds[0].Path)
		if readErr != nil {
			t.Fatal(err, readErr)
		}
		program[len(program)/2] ^= 1
		if err := errors.Join(os.Remove(builds[0].Path), os.WriteFile(builds[0].Path, program, 0o755)); err != nil {
			t.Fatal(err)
		}
	} else {
		_ = f.Close()
		t.Fatal("the program of a running instance can be written to")
	}
	e := w.engine(t) // another start of the agent
	spec := w.spec(t)
	prepared, err := e.Prepare(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { destroyInstance(t, e, spec.ID) })
	if _, err := e.Restore(t.Context(), prepared, dir); !errors.Is(err, engine.ErrNoBuild) {
		t.Fatalf("restored by a damaged program: %v", err)
	}
	// What runs is saved all the same, and its program is kept again by that.
	if err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: t.TempDir(), LeaveRunning: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Restore(t.Context(), prepared, dir); err != nil {
		t.Fatalf("the program is whole again: %v", err)
	}

	// Fetched ones are looked at before they get a name.
	other, version := testkit.AnotherRunsc(t, builds[0].Path)
	for what, want := range map[string]engine.Build{
		"digest":  {Version: version, Digest: builds[0].Digest},
		"version": {Version: "elder"},
	} {
		if err := e.Keep(t.Context(), other, want); err == nil {
			t.Errorf("kept with another %s", what)
		}
	}
	if err := e.Keep(t.Context(), other, engine.Build{Version: version}); err != nil {
		t.Error(err)
	}
}
