package multihost

import (
	"context"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/fleet"
)

// on makes a worker on a host: hosts are taken in turn.
func (w *world) on(t *testing.T, h *fleet.Host) *worker {
	t.Helper()
	for i := range 2 * len(w.Hosts) {
		if k := w.place(t, i%2, nil); k.host == h {
			k.begin(t, i%2)
			return k
		}
	}
	t.Fatalf("none of %d sandboxes was placed on %s", 2*len(w.Hosts), h.Name)
	return nil
}

// A host that is drained gets nothing new, and pauses what runs; nothing of it
// is lost, whichever server and whatever agent dies meanwhile.
func TestH12_ST10_ADrainedHostPausesItsSandboxes(t *testing.T) {
	w := open(t)
	defer w.heal()
	h := w.Hosts[1]
	kept := []*worker{w.on(t, h), w.on(t, h)}
	w.Servers[0].Must(t, "POST", "/v1/hosts/"+h.ID+"/drain", map[string]any{}, nil)
	w.Servers[0].Kill()
	h.Kill()
	w.revive(t, "draining")
	for _, k := range kept {
		w.becomes(t, k.id, "paused", 2*time.Minute)
		if x := w.status(t, k.id); x.PausedReason != "drain" {
			t.Errorf("%s is paused because of %q, want drain", k.id, x.PausedReason)
		}
	}
	testkit.Eventually(t, time.Minute, "H12: the host says that it is drained", func() bool {
		now, err := h.State(t.Context())
		return err == nil && now.Status == "draining" && now.Drained
	})
	for i := range 3 {
		if k := w.place(t, i%2, nil); k.host == h {
			t.Errorf("H12: %s was placed on a host that is drained", k.id)
		}
	}
	w.Servers[1].Must(t, "POST", "/v1/hosts/"+h.ID+"/undrain", map[string]any{}, nil)
	if err := h.Wait(t.Context(), "online"); err != nil {
		t.Fatal(err)
	}
	for i, k := range kept {
		w.Servers[i%2].Must(t, "POST", "/v1/sandboxes/"+k.id+"/resume", map[string]any{}, nil)
		k.look(t)
	}
	w.sound(t)
}

// A host out of reach is deleted against a warning. What it held has ended; its
// agent, back again, is told so by the platform's own word, cleans up and ends.
func TestH11_H5_RC05_ADeletedHostCleansItselfOnReturn(t *testing.T) {
	w := open(t)
	defer w.heal()
	h, err := w.AddHost("SKERRY_HEARTBEAT=" + scale().heartbeat.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Remove(context.Background(), h); err != nil {
			t.Error(err)
		}
	})
	if err := h.Announce(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := h.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	running, paused := w.on(t, h), w.on(t, h)
	w.Servers[0].Must(t, "POST", "/v1/sandboxes/"+paused.id+"/pause", map[string]any{}, nil)
	if err := h.Cut(); err != nil {
		t.Fatal(err)
	}
	if err := h.Wait(t.Context(), "unreachable"); err != nil {
		t.Fatal(err)
	}
	path := "/v1/hosts/" + h.ID
	if code, err := w.Servers[0].Try(t.Context(), "DELETE", path, nil, nil); code != 409 {
		t.Fatalf("H11: a delete that would lose sandboxes: %d, %v; want 409", code, err)
	}
	w.Servers[0].Must(t, "DELETE", path+"?force=true", nil, nil)
	for _, s := range w.Servers {
		if code, err := s.Try(t.Context(), "GET", path, nil, nil); code != 404 {
			t.Errorf("H11: the deleted host: %d, %v; want 404", code, err)
		}
	}
	for _, k := range []*worker{running, paused} {
		if x := w.status(t, k.id); x.Status != "stopped" || x.EndReason != "host_deleted" {
			t.Errorf("H11: %s is %+v, want stopped, host_deleted", k.id, x)
		}
	}
	if n, err := h.Guests(); err != nil || n != 1 {
		t.Errorf("out of reach it runs %d guests, want one still: %v", n, err)
	}
	ended, why := h.Ended()
	if err := h.Mend(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
		if err := why(); err != nil {
			t.Errorf("H5: the agent ended with %v, want success", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("H5: the agent did not end")
	}
	if err := h.NothingLeft(); err != nil {
		t.Errorf("H5: %v", err)
	}
	if _, err := h.Read("agent/identity/credentials.json"); err == nil {
		t.Error("H5: it keeps its credentials")
	}
}
