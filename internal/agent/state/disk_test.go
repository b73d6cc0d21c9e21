package state_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"skerry.dev/skerry/internal/agent/state/statetest"
	"skerry.dev/skerry/internal/kernel/id"
)

// disk is an archive with a hole in it.
func disk() []byte {
	b := make([]byte, 3<<20)
	copy(b, "first")
	copy(b[2<<20:], bytes.Repeat([]byte("last"), 1000))
	return b
}

func writeDisk(w io.Writer) error {
	_, err := w.Write(disk())
	return err
}

func TestP7_AStateMayHaveItsDiskOnItsOwn(t *testing.T) {
	dir := root(t)
	s := open(t, dir, nil)
	st := mustSave(t, s, id.NewSnapshot(), id.NewSandbox(), "travels")
	h, err := s.Hold(t.Context(), st.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	// One that was not done leaves nothing.
	broken := errors.New("broken")
	if _, _, err := h.KeepDisk(t.Context(), func(w io.Writer) error { return errors.Join(writeDisk(w), broken) }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, _, err := h.KeepDisk(ended, writeDisk); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*", "disk*")); len(left) > 0 || h.HasDisk() || len(h.Parts()) != 4 {
		t.Fatalf("%v are left", left)
	}
	content, size, err := h.KeepDisk(t.Context(), writeDisk)
	if err != nil || content != int64(len(disk())) || size >= content {
		t.Fatalf("%d of %d bytes, %v", size, content, err)
	}
	// It travels with the state and is the same there.
	there := open(t, root(t), nil)
	if _, err := there.Import(t.Context(), copyOf(st), carry(h, nil)); err != nil {
		t.Fatal(err)
	}
	copied, err := there.Hold(t.Context(), st.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Release()
	path := filepath.Join(t.TempDir(), "disk.tar")
	if err := copied.UnpackDisk(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	var fs syscall.Stat_t
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, disk()) || syscall.Stat(path, &fs) != nil || fs.Blocks*512 >= fs.Size {
		t.Errorf("the disk is another, or without its hole: %v", err)
	}
	// A flipped byte is found, and another state's disk is none of this one.
	packed := copied.Parts()[2].Path
	b, err := os.ReadFile(packed)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := errors.Join(os.Chmod(packed, 0o600), os.WriteFile(packed, b, 0o600)); err != nil {
		t.Fatal(err)
	}
	wantReason(t, copied.UnpackDisk(t.Context(), path+"2"), "state_damaged")
	other := mustSave(t, s, id.NewSnapshot(), id.NewSandbox(), "other")
	o, err := s.Hold(t.Context(), other.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Release()
	if _, _, err := o.KeepDisk(t.Context(), writeDisk); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(o.Parts()[3].Path, h.Parts()[3].Path); err != nil {
		t.Fatal(err)
	}
	if h.HasDisk() {
		t.Error("another state's disk is taken for its own")
	}
}

// The power goes at each change: the state is whole, with its disk or without.
func TestP7_PowerCutWhileADiskIsKept(t *testing.T) {
	dead := errors.New("no power")
	rng := rand.New(rand.NewPCG(1, 2))
	for at := 0; ; at++ {
		dir := root(t)
		disk := statetest.New(dir)
		t.Cleanup(disk.Close)
		s := open(t, dir, disk)
		st := mustSave(t, s, id.NewSnapshot(), id.NewSandbox(), "stays")
		h, err := s.Hold(t.Context(), st.ID)
		if err != nil {
			t.Fatal(err)
		}
		cut := false
		disk.Fail(func(n int, _, _ string) error {
			if n >= at {
				cut = true
				return dead
			}
			return nil
		})
		_, _, kept := h.KeepDisk(t.Context(), writeDisk)
		h.Release()
		if !cut {
			if at < 5 {
				t.Errorf("only %d changes were seen", at)
			}
			break
		}
		if err := disk.PowerCut(rng); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, disk)
		whole(t, s, st.ID, "stays")
		if h, err = s.Hold(t.Context(), st.ID); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "disk.tar")
		if err := h.UnpackDisk(t.Context(), path); (err == nil) != h.HasDisk() || kept == nil && err != nil {
			t.Errorf("cut %d: it says that it has a disk: %v; %v", at, h.HasDisk(), err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*", "*.new")); len(left) > 0 {
			t.Errorf("cut %d: %v are left", at, left)
		}
		h.Release()
	}
}
