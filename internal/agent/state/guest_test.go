package state_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

func hold(t *testing.T, s *state.Store, which id.Snapshot) *state.Held {
	t.Helper()
	h, err := s.Hold(t.Context(), which)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Release)
	return h
}

// lose removes a daemon's file, or makes it another's.
func lose(t *testing.T, h *state.Held, damage bool) {
	t.Helper()
	file := h.GuestFile()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if damage {
		if err := os.WriteFile(file, []byte("damage"), 0o555); err != nil {
			t.Fatal(err)
		}
	}
}

// The states of a host share one file of the daemon, and each has it for as long as
// it is there.
func TestP7_StatesShareTheirDaemon(t *testing.T) {
	s := open(t, root(t), nil)
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("the daemon"), 0o555); err != nil {
		t.Fatal(err)
	}
	var files []string
	var saved []state.State
	for range 2 {
		d, err := s.Create(id.NewSnapshot(), 10)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.KeepGuest(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("one that is not there: %v", err)
		}
		if err := errors.Join(d.KeepGuest(program), os.WriteFile(filepath.Join(d.Dir(), "pages.img"), []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
		st, err := d.Seal(t.Context(), state.Manifest{Sandbox: id.NewSandbox(), Memory: true, GuestDigest: digest("the daemon")})
		if err != nil {
			t.Fatal(err)
		}
		d.Keep()
		saved = append(saved, st)
		files = append(files, hold(t, s, st.ID).GuestFile())
	}
	var one, two syscall.Stat_t
	if err := errors.Join(syscall.Stat(files[0], &one), syscall.Stat(files[1], &two)); err != nil || one.Ino != two.Ino || one.Mode&0o777 != 0o555 {
		t.Errorf("two files of one daemon, %v", err)
	}
	if saved[0].SizeBytes != 1 {
		t.Errorf("a state of %d bytes", saved[0].SizeBytes)
	}
	other := open(t, root(t), nil)
	st := mustSave(t, other, id.NewSnapshot(), id.NewSandbox(), "x")
	if err := other.Delete(t.Context(), st.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(files[0]); err != nil || string(got) != "the daemon" {
		t.Errorf("%q, %v", got, err)
	}
}

// A state whose daemon was lost is as good for its disk, and gets it back from a
// copy that has it.
func TestP7_ALostDaemonComesBackFromACopy(t *testing.T) {
	st, h := source(t)
	dir := root(t)
	s := open(t, dir, nil)
	imports := func(fill func(context.Context, string) error) {
		t.Helper()
		if got, err := s.Import(t.Context(), copyOf(st), fill); err != nil || got.Digest != st.Digest {
			t.Fatal(got.Digest, err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*.*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	without := carry(h, func(name string, content []byte) ([]byte, error) {
		if name == "guest" {
			return nil, nil
		}
		return content, nil
	})
	wrong := carry(h, func(name string, content []byte) ([]byte, error) {
		if name == "guest" {
			return []byte("another daemon"), nil
		}
		return content, nil
	})
	broken := func(context.Context, string) error { return errs.Unavailable("store_unavailable", "It is down.") }

	imports(without)
	copied := hold(t, s, st.ID)
	if copied.GuestFile() != "" || len(copied.Parts()) != 3 {
		t.Error("a daemon that nobody has")
	}
	for name, fill := range map[string]func(context.Context, string) error{"without": without, "wrong": wrong, "broken": broken} {
		imports(fill)
		if copied.GuestFile() != "" {
			t.Errorf("%s: it has a daemon", name)
		}
	}
	imports(carry(h, nil))
	whole(t, s, st.ID, "travels")
	for _, damage := range []bool{false, true} {
		lose(t, copied, damage)
		imports(broken)
		fetched := 0
		imports(func(ctx context.Context, dir string) error {
			// All but the daemon is found there.
			for _, p := range h.Parts() {
				got, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(p.Name)))
				want, werr := os.ReadFile(p.Path)
				if err != nil || werr != nil || string(got) != string(want) {
					fetched++
				}
			}
			return only(h, "guest")(ctx, dir)
		})
		if fetched != 1 {
			t.Errorf("%d files were not there", fetched)
		}
		whole(t, s, st.ID, "travels")
	}
	// What is whole is not fetched at all.
	imports(func(context.Context, string) error { t.Error("it is here"); return nil })
	ended, end := context.WithCancel(t.Context())
	lose(t, copied, false)
	if _, err := s.Import(ended, copyOf(st), func(context.Context, string) error { end(); return context.Canceled }); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

// only brings one part, in the place of what is there.
func only(h *state.Held, name string) func(context.Context, string) error {
	return func(ctx context.Context, dir string) error {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
		return carry(h, func(n string, content []byte) ([]byte, error) {
			if n != name {
				return nil, nil
			}
			return content, nil
		})(ctx, dir)
	}
}

// A state of a release that did not write its daemon down is read as ever.
func TestP7_AStateOfBeforeIsRead(t *testing.T) {
	s := open(t, root(t), nil)
	d, err := s.Create(id.NewSnapshot(), 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.Dir(), "pages.img"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := d.Seal(t.Context(), state.Manifest{Sandbox: id.NewSandbox(), Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	d.Keep()
	h := hold(t, s, st.ID)
	if h.GuestFile() != "" || len(h.Parts()) != 2 {
		t.Errorf("parts %v", h.Parts())
	}
	there := open(t, root(t), nil)
	for range 2 {
		if _, err := there.Import(t.Context(), copyOf(st), carry(h, nil)); err != nil {
			t.Fatal(err)
		}
	}
}
