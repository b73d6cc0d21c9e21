package multihost

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	control "skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/fleet"
)

// stray is part of what the API says of what a host holds and the database does
// not know there.
type stray struct {
	Sandbox string `json:"sandbox_id"`
	Kind    string
	Phase   string
	Paused  string `json:"paused_at"`
	Destroy string `json:"destroy_at"`
}

func (w *world) stray(t *testing.T, k *worker) (x stray, is bool) {
	t.Helper()
	var all struct{ Items []stray }
	if _, err := w.try(t.Context(), "GET", "/v1/hosts/"+k.host.ID+"/strays", nil, &all); err != nil {
		return stray{}, false
	}
	i := slices.IndexFunc(all.Items, func(x stray) bool { return x.Sandbox == k.id })
	if i < 0 {
		return stray{}, false
	}
	return all.Items[i], true
}

// quarantined waits until a host's sandbox that nobody knows is paused and shown,
// and looks that it is still there.
func (w *world) quarantined(t *testing.T, k *worker) {
	t.Helper()
	var last stray
	defer func() {
		if t.Failed() {
			t.Logf("%s on %s is %+v", k.id, k.host.Name, last)
		}
	}()
	testkit.Eventually(t, 5*scale().look+time.Minute, "H8: what nobody knows is paused and shown", func() bool {
		last, _ = w.stray(t, k)
		return last.Kind == "unknown" && last.Phase == "paused" && last.Paused != "" && last.Destroy != ""
	})
	held, err := w.Inventory(t.Context(), k.host)
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range held.Instances {
		if in.Sandbox.String() == k.id && in.Phase == "paused" && !in.State.IsZero() {
			return
		}
	}
	t.Fatalf("H8: its host does not hold %s paused: %+v", k.id, held.Instances)
}

// A backup that is put back under running sandboxes ends none of them: those it
// knows go on as they really are, those that began later are paused and kept.
func TestH8_RC01_AnOlderDatabaseDestroysNothing(t *testing.T) {
	w := open(t)
	defer w.heal()
	goesOn, resumed := w.worker(t, 0, nil), w.worker(t, 1, nil)
	w.Servers[0].Must(t, "POST", "/v1/sandboxes/"+resumed.id+"/pause", map[string]any{}, nil)
	if err := w.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.revive(t)
	w.Servers[0].Must(t, "POST", "/v1/sandboxes/"+resumed.id+"/resume", map[string]any{}, nil)
	later := w.worker(t, 1, nil)
	for _, k := range []*worker{goesOn, resumed} {
		k.look(t)
	}
	for _, s := range w.Servers {
		s.Kill()
	}
	if err := w.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	restored := time.Now()
	w.revive(t)
	w.quarantined(t, later)
	goesOn.look(t)
	w.becomes(t, resumed.id, "running", time.Minute)
	resumed.look(t)
	t.Logf("all was in order %s after the restore", time.Since(restored).Round(100*time.Millisecond))
	for _, k := range []*worker{goesOn, resumed} {
		if x, is := w.stray(t, k); is {
			t.Errorf("RC-01: %s, which the backup knows, is a stray: %+v", k.id, x)
		}
	}
	// It is an admin's to end it.
	w.Servers[0].Must(t, "DELETE", "/v1/hosts/"+later.host.ID+"/strays/"+later.id, nil, nil)
	testkit.Eventually(t, 5*scale().look+time.Minute, "the stray that was given up is gone", func() bool {
		_, is := w.stray(t, later)
		held, err := w.Inventory(t.Context(), later.host)
		return !is && err == nil && !slices.ContainsFunc(held.Instances, func(in control.Instance) bool { return in.Sandbox.String() == later.id })
	})
	w.made = slices.DeleteFunc(w.made, func(box string) bool { return box == later.id })
	w.sound(t)
}

// What the database lost and then knows again goes on with its memory: while
// nobody knew it, it was paused, not ended.
func TestH8_WhatTheDatabaseLostIsPausedAndKeepsItsMemory(t *testing.T) {
	w := open(t)
	defer w.heal()
	k := w.worker(t, 0, nil)
	recall, err := w.Forget(t.Context(), k.id)
	if err != nil {
		t.Fatal(err)
	}
	w.quarantined(t, k)
	if n, err := k.host.Audited(t.Context(), "stray_found", k.id); err != nil || n != 1 {
		t.Errorf("the trail tells of it %d times: %v", n, err)
	}
	if err := recall(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 5*scale().look+time.Minute, "it is known again", func() bool {
		x := w.status(t, k.id)
		_, is := w.stray(t, k)
		return !is && (x.Status == "paused" || x.Status == "running")
	})
	if w.status(t, k.id).Status == "paused" {
		w.Servers[1].Must(t, "POST", "/v1/sandboxes/"+k.id+"/resume", map[string]any{}, nil)
	}
	k.look(t)
	w.sound(t)
}

// A customer's host says of another's sandbox, over and over, that it has ended.
// Nothing comes of it but an entry in the trail.
func TestH9_RC06_ACustomersHostHasNoSayInOthersSandboxes(t *testing.T) {
	w := open(t)
	defer w.heal()
	k := w.worker(t, 0, nil)
	before := w.kinds(t, k.id)
	h := w.customer(t)
	bare := strings.TrimPrefix(k.id, "sb-")
	for seq := range 3 {
		for path, body := range map[string]any{
			"/events": map[string]any{"generation": 1, "events": []map[string]any{{
				"seq": 1000 + seq, "kind": "exited", "sandbox_id": bare, "incarnation": 1, "at": time.Now(), "data": map[string]any{"reason": "killed"},
			}}},
			"/samples": map[string]any{"samples": []map[string]any{{
				"sandbox_id": bare, "incarnation": 1, "at": time.Now().Add(time.Duration(seq) * time.Second), "cpu_millis": 777777, "memory_bytes": 1, "disk_bytes": 1, "processes": 1,
			}}},
		} {
			if status, answer, err := h.Say(t.Context(), "/v1/hosts/"+h.ID+path, body); err != nil || status != http.StatusNoContent {
				t.Errorf("%s: %d %s, %v", path, status, answer, err)
			}
			if status, _, err := h.Say(t.Context(), "/v1/hosts/"+k.host.ID+path, body); err != nil || status != http.StatusUnauthorized {
				t.Errorf("in the other host's name: %s: %d, %v", path, status, err)
			}
		}
	}
	if x := w.status(t, k.id); x.Status != "running" {
		t.Errorf("it is %+v", x)
	}
	k.look(t)
	if after := w.kinds(t, k.id); !slices.Equal(before, after) {
		t.Errorf("its events were %v and are %v", before, after)
	}
	if n, err := h.Audited(t.Context(), "claim_foreign", k.id); err != nil || n != 1 {
		t.Errorf("the trail tells of it %d times: %v", n, err)
	}
	var figures struct {
		Items []struct {
			CPU int `json:"cpu_millis"`
		}
	}
	w.Servers[0].Must(t, "GET", "/v1/sandboxes/"+k.id+"/metrics", nil, &figures)
	for _, x := range figures.Items {
		if x.CPU == 777777 {
			t.Error("its figures are the other host's")
		}
	}
}

// customer is a new host of a team that brings its own.
func (w *world) customer(t *testing.T) *fleet.Host {
	t.Helper()
	var made struct{ ID string }
	s := w.Servers[0]
	s.Must(t, "POST", "/v1/teams", map[string]any{"name": "Customer"}, &made)
	s.Must(t, "PUT", "/v1/admin/teams/"+made.ID+"/byoc", map[string]any{"enabled": true}, nil)
	s.Must(t, "POST", "/v1/auth/switch-team", map[string]any{"team_id": made.ID}, nil)
	h, err := w.AddHost("SKERRY_HEARTBEAT=" + scale().heartbeat.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := s.Try(context.Background(), "DELETE", "/v1/hosts/"+h.ID+"?force=true", nil, nil); err != nil {
			t.Error(err)
		}
		if err := w.Remove(context.Background(), h); err != nil {
			t.Error(err)
		}
	})
	if err := h.Announce(t.Context(), map[string]any{"type": "byoc", "name": "customer"}); err != nil {
		t.Fatal(err)
	}
	if err := w.Login(t.Context()); err != nil { // in the former team
		t.Fatal(err)
	}
	if err := h.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h
}
