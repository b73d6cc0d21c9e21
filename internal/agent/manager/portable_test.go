package manager_test

import (
	"context"
	"testing"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

// Nobody waits for the disk of a paused sandbox to be kept on its own: neither the
// pause nor a resume or a destroy that follows it.
func TestP7_NobodyWaitsForTheDiskOfItsOwn(t *testing.T) {
	w := newWorld()
	a := boot(t, w, t.TempDir())
	for _, next := range []string{"resume", "destroy"} {
		r := mustCreate(t, a, spec(id.NewSandbox(), 1))
		w.work(t, r, "one")
		release := w.hold("root tar")
		st := mustPause(t, a, r) // which answers
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if next == "resume" {
			back, err := a.Create(ctx, resume(r, st.ID))
			if err != nil {
				t.Fatal(err)
			}
			w.worked(t, back, "one")
		} else if err := a.Destroy(ctx, r.Sandbox, 1, "deleted"); err != nil {
			t.Fatal(err)
		}
		cancel()
		release()
		h, err := a.states.Hold(t.Context(), st.ID)
		if err != nil {
			t.Fatal(err)
		}
		if h.HasDisk() {
			t.Errorf("%s: a disk that was not done", next)
		}
		h.Release()
	}
	// Undisturbed it is there.
	r := mustCreate(t, a, spec(id.NewSandbox(), 1))
	st := mustPause(t, a, r)
	testkit.Eventually(t, 10*time.Second, "the disk", func() bool {
		h, err := a.states.Hold(t.Context(), st.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Release()
		return h.HasDisk()
	})
}
