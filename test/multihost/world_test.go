package multihost

import (
	"context"
	"slices"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/fleet"
)

// revive starts all that does not run and waits until it serves: each host is
// online, or in another status that is named.
func (w *world) revive(t *testing.T, or ...string) {
	t.Helper()
	if err := w.StartDatabase(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, s := range w.Servers {
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range w.Hosts {
		if err := h.Mend(); err != nil {
			t.Fatal(err)
		}
		if err := h.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range w.Servers {
		testkit.Eventually(t, time.Minute, "the server answers", func() bool {
			status, err := s.Try(t.Context(), "GET", "/readyz", nil, nil)
			return err == nil && status == 200
		})
	}
	for _, h := range w.Hosts {
		testkit.Eventually(t, 2*time.Minute, h.Name+" is in service", func() bool {
			now, err := h.State(t.Context())
			return err == nil && (now.Status == "online" || slices.Contains(or, now.Status))
		})
	}
}

// restart gives a host's agent other settings.
func (w *world) restart(t *testing.T, h *fleet.Host, settings ...string) {
	t.Helper()
	h.Set(settings...)
	if err := h.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, time.Minute, "the agent of "+h.Name+" answers", func() bool {
		_, err := w.Inventory(t.Context(), h)
		return err == nil
	})
	if err := h.Wait(t.Context(), "online"); err != nil {
		t.Fatal(err)
	}
}

// guests waits until so many run on a host, as its processes say.
func (w *world) guests(t *testing.T, h *fleet.Host, want int) {
	t.Helper()
	testkit.Eventually(t, time.Minute, "the host runs as many guests as it should", func() bool {
		got, err := h.Guests()
		return err == nil && got == want
	})
}

// sound fails the test unless, after quiet time, every invariant holds.
func (w *world) sound(t *testing.T) {
	t.Helper()
	var last error
	defer func() {
		if t.Failed() {
			t.Logf("at last: %v", last)
		}
	}()
	testkit.Eventually(t, 3*time.Minute, "after quiet time the invariants hold", func() bool {
		last = w.Sound(t.Context())
		return last == nil
	})
}

// heal undoes what a test that failed left undone, before its sandboxes are
// removed.
func (w *world) heal() {
	for _, h := range w.Hosts {
		_ = h.Mend()
		w.Front.Answer(h.Addr, 0)
	}
	_ = w.StartDatabase(context.Background())
	for _, s := range w.Servers {
		_ = s.Start()
	}
	for _, h := range w.Hosts {
		_ = h.Start()
	}
}
