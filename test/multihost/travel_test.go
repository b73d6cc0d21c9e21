package multihost

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/fleet"
)

// saved is what the API says of a paused sandbox or a snapshot.
type saved struct {
	ID         string
	Status     string
	SnapshotID string `json:"snapshot_id"`
	Stored     bool
	OnlyOnHost string `json:"only_on_host"`
	Hosts      []string
}

// extra is a host that a test may do away with. It is of the fleet until the test
// ends, unless gone is called.
func (w *world) extra(t *testing.T) (h *fleet.Host, gone func()) {
	t.Helper()
	h, err := w.AddHost("SKERRY_HEARTBEAT=" + scale().heartbeat.String())
	if err != nil {
		t.Fatal(err)
	}
	once := false
	gone = func() {
		if once {
			return
		}
		once = true
		if err := w.Remove(context.Background(), h); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(gone)
	if err := h.Announce(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := h.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h, gone
}

// pause pauses a worker and waits until its state is in the store.
func (w *world) pause(t *testing.T, k *worker) {
	t.Helper()
	w.Servers[0].Must(t, "POST", "/v1/sandboxes/"+k.id+"/pause", map[string]any{}, nil)
	w.stored(t, "/v1/sandboxes/"+k.id)
}

// stored waits until what is at path says that it is in the store.
func (w *world) stored(t *testing.T, path string) {
	t.Helper()
	var last saved
	defer func() {
		if t.Failed() {
			t.Logf("%s is %+v", path, last)
		}
	}()
	testkit.Eventually(t, time.Minute, path+" is in the store", func() bool {
		last = saved{}
		_, err := w.try(t.Context(), "GET", path, nil, &last)
		if err == nil && !last.Stored && last.OnlyOnHost == "" {
			t.Fatalf("%s is not stored, and does not say where it is: %+v", path, last)
		}
		return err == nil && last.Stored && last.OnlyOnHost == ""
	})
}

// resume resumes a worker through a server and notes where it is.
func (w *world) resume(t *testing.T, k *worker, through int) {
	t.Helper()
	w.Servers[through].Must(t, "POST", "/v1/sandboxes/"+k.id+"/resume", map[string]any{}, nil)
	k.host = w.hostOf(t, k.id)
	k.look(t)
}

// copyOf is a worker on what another one was made from.
func (w *world) copyOf(t *testing.T, k *worker, box string) *worker {
	t.Helper()
	w.made = append(w.made, box)
	other := *k
	other.id, other.host = box, w.hostOf(t, box)
	return &other
}

// What was saved on a host that is gone for good, with its disk, goes on on
// another one: a paused sandbox, a snapshot, copies of both.
func TestP1_P5_TS05_WhatIsSavedOutlivesItsHost(t *testing.T) {
	w := open(t)
	defer w.heal()
	h, gone := w.extra(t)
	k := w.on(t, h)
	w.Servers[0].Must(t, "POST", "/v1/snapshots", map[string]any{"sandbox_id": k.id, "name": "travels"}, nil)
	t.Cleanup(func() { _, _ = w.Servers[0].Try(context.Background(), "DELETE", "/v1/snapshots/travels", nil, nil) })
	fromSnapshot := *k
	k.look(t)
	w.stored(t, "/v1/snapshots/travels")
	w.pause(t, k)
	gone() // the process, the machine, its directories: nothing of it is left
	if err := h.Wait(t.Context(), "unreachable"); err != nil {
		t.Fatal(err)
	}
	w.resume(t, k, 1)
	if k.host == h {
		t.Fatal("it says it runs on a host that is gone")
	}

	var box sandbox
	w.Servers[0].Must(t, "POST", "/v1/sandboxes", small(map[string]any{"snapshot": "travels"}), &box)
	w.copyOf(t, &fromSnapshot, box.ID).look(t)

	var forks struct{ Items []sandbox }
	w.Servers[1].Must(t, "POST", "/v1/sandboxes/"+k.id+"/fork", map[string]any{"count": 2}, &forks)
	for _, f := range forks.Items {
		w.copyOf(t, k, f.ID).look(t)
	}

	// Nothing is lost with that host any more.
	w.Servers[0].Must(t, "DELETE", "/v1/hosts/"+h.ID, nil, nil)
	k.look(t)
	w.sound(t)
}

// A host that comes back holds what went on elsewhere meanwhile, and lets go of it.
func TestS6_ST04_AReturningHostGivesUpWhatWentOn(t *testing.T) {
	w := open(t)
	defer w.heal()
	h := w.Hosts[2]
	k := w.on(t, h)
	w.pause(t, k)
	if err := h.Cut(); err != nil {
		t.Fatal(err)
	}
	if err := h.Wait(t.Context(), "unreachable"); err != nil {
		t.Fatal(err)
	}
	w.resume(t, k, 0)
	w.Servers[0].Sh(t, k.id, "echo later >/home/user/later; sync")
	if err := h.Mend(); err != nil {
		t.Fatal(err)
	}
	if err := h.Wait(t.Context(), "online"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, time.Minute, "the host gives up what it holds of "+k.id, func() bool {
		held, err := w.Inventory(t.Context(), h)
		if err != nil {
			return false
		}
		for _, in := range held.Instances {
			if in.Sandbox.String() == k.id {
				return false
			}
		}
		return true
	})
	k.look(t)
	// There and back again.
	w.pause(t, k)
	w.resume(t, k, 1)
	if got := w.Servers[0].Sh(t, k.id, "cat /home/user/later"); got.Stdout != "later\n" {
		t.Errorf("it went back: %+v", got)
	}
	var strays struct{ Items []any }
	w.Servers[0].Must(t, "GET", "/v1/hosts/"+h.ID+"/strays", nil, &strays)
	if len(strays.Items) != 0 {
		t.Errorf("what went on is shown as a stray: %v", strays.Items)
	}
	w.sound(t)
}

// A damaged store is found out before anything runs, and named; the sandbox stays
// paused, and goes on once its first host is back, which heals the store.
func TestTS01_S5_ADamagedStoreIsNamedAndHealed(t *testing.T) {
	w := open(t)
	defer w.heal()
	h := w.Hosts[1]
	k := w.on(t, h)
	before := w.chunks(t)
	w.pause(t, k)
	var own []string
	for _, path := range w.chunks(t) {
		if !slices.Contains(before, path) {
			own = append(own, path)
		}
	}
	if len(own) == 0 {
		t.Fatal("the store has nothing of it")
	}
	if err := h.Cut(); err != nil {
		t.Fatal(err)
	}
	if err := h.Wait(t.Context(), "unreachable"); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(own[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func() error{
		"a flipped byte": func() error {
			bad := slices.Clone(whole)
			bad[len(bad)/2] ^= 1
			return os.WriteFile(own[0], bad, 0o600)
		},
		"a missing chunk": func() error { return os.Remove(own[0]) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		code, err := w.Servers[0].Try(t.Context(), "POST", "/v1/sandboxes/"+k.id+"/resume", map[string]any{}, nil)
		if code < 400 || err == nil {
			t.Fatalf("%s: resumed, %d", name, code)
		}
		t.Logf("%s: %v", name, err)
		if x := w.status(t, k.id); x.Status != "paused" {
			t.Errorf("%s: it is %s, want paused", name, x.Status)
		}
	}
	if err := h.Mend(); err != nil {
		t.Fatal(err)
	}
	if err := h.Wait(t.Context(), "online"); err != nil {
		t.Fatal(err)
	}
	if testkit.Scaled(1, 0) == 1 { // the store is looked after each half a minute
		testkit.Eventually(t, 2*time.Minute, "the host brings what the store lost", func() bool {
			now, err := os.ReadFile(own[0])
			return err == nil && bytes.Equal(now, whole)
		})
		w.stored(t, "/v1/sandboxes/"+k.id)
	}
	w.resume(t, k, 1)
	if err := os.WriteFile(own[0], whole, 0o600); err != nil {
		t.Fatal(err)
	}
	w.sound(t)
}

// chunks are the files of the store that hold pieces of teams' artifacts.
func (w *world) chunks(t *testing.T) []string {
	t.Helper()
	var out []string
	if err := filepath.WalkDir(w.Store(), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(path, "/chunks/") {
			return err
		}
		out = append(out, path)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}
