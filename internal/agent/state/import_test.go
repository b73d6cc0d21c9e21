package state_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/agent/state/statetest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// carry copies a held state's parts, as a fetch does; change may alter them.
func carry(h *state.Held, change func(name string, content []byte) ([]byte, error)) func(context.Context, string) error {
	return func(_ context.Context, dir string) error {
		for _, p := range h.Parts() {
			if !state.Accepts(p.Name) {
				return errors.New(p.Name + " is not accepted")
			}
			content, err := os.ReadFile(p.Path)
			if err == nil && change != nil {
				content, err = change(p.Name, content)
			}
			if err != nil {
				return err
			}
			if content == nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, filepath.FromSlash(p.Name)), content, 0o400); err != nil {
				return err
			}
		}
		return nil
	}
}

// source is a host with one state.
func source(t *testing.T) (state.State, *state.Held) {
	t.Helper()
	s := open(t, root(t), nil)
	st := mustSave(t, s, id.NewSnapshot(), id.NewSandbox(), "travels")
	h, err := s.Hold(t.Context(), st.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Release)
	return st, h
}

func copyOf(st state.State) state.Copy {
	return state.Copy{ID: st.ID, Digest: st.Digest, SizeBytes: st.SizeBytes}
}

func TestP5_ACopyLacksNothing(t *testing.T) {
	st, h := source(t)
	dir := root(t)
	s := open(t, dir, nil)
	for range 2 { // the second finds it there
		got, err := s.Import(t.Context(), copyOf(st), carry(h, nil))
		if err != nil || got.Digest != st.Digest || got.InitSecret != st.InitSecret {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	s = open(t, dir, nil)
	whole(t, s, st.ID, "travels")
	copied, err := s.Hold(t.Context(), st.ID)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range h.Parts() {
		want, _ := os.ReadFile(p.Path)
		got, err := os.ReadFile(copied.Parts()[i].Path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs: %v", p.Name, err)
		}
	}
	copied.Release()
	_, err = s.Import(t.Context(), state.Copy{ID: st.ID, Digest: "another"}, carry(h, nil))
	wantReason(t, err, "state_exists")

	// A damaged copy gives way to a good one.
	if err := os.WriteFile(copied.Parts()[0].Path, bytes.Repeat([]byte("x"), int(st.Files[0].Size)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.Hold(t.Context(), st.ID)
	wantReason(t, err, "state_damaged")
	if _, err := s.Import(t.Context(), copyOf(st), carry(h, nil)); err != nil {
		t.Fatal(err)
	}
	whole(t, s, st.ID, "travels")
	if err := s.Delete(t.Context(), st.ID); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

func TestST06_WhatIsNotTheStateIsRefused(t *testing.T) {
	st, h := source(t)
	other, _ := source(t)
	for what, change := range map[string]func(string, []byte) ([]byte, error){
		"a flipped byte": func(name string, b []byte) ([]byte, error) {
			if name == "image/pages.img" {
				b[len(b)/2] ^= 1
			}
			return b, nil
		},
		"a missing file": func(name string, b []byte) ([]byte, error) {
			if name == "image/meta.img" {
				return nil, nil
			}
			return b, nil
		},
		"a shorter file": func(_ string, b []byte) ([]byte, error) { return b[:len(b)-1], nil },
		"no manifest": func(name string, b []byte) ([]byte, error) {
			if name == "state.json" {
				return nil, nil
			}
			return b, nil
		},
	} {
		dir := root(t)
		s := open(t, dir, nil)
		_, err := s.Import(t.Context(), copyOf(st), carry(h, change))
		wantReason(t, err, "content_mismatch")
		if left, _ := os.ReadDir(dir); len(left) > 0 || s.Has(st.ID) {
			t.Errorf("%s: %v are left", what, left)
		}
	}
	s := open(t, root(t), nil)
	_, err := s.Import(t.Context(), state.Copy{ID: st.ID, Digest: other.Digest}, carry(h, nil))
	wantReason(t, err, "content_mismatch")
}

// What a broken fetch left is gone on with, and does not stay for ever.
func TestP5_ABrokenFetchIsGoneOnWith(t *testing.T) {
	st, h := source(t)
	dir := root(t)
	s := open(t, dir, nil)
	broken := errors.New("broken")
	half := carry(h, func(name string, b []byte) ([]byte, error) {
		if name == "state.json" {
			return nil, broken
		}
		return b, nil
	})
	attempt := func() string {
		t.Helper()
		if _, err := s.Import(t.Context(), copyOf(st), half); !errors.Is(err, broken) {
			t.Fatal(err)
		}
		left, err := filepath.Glob(filepath.Join(dir, "*.in"))
		if err != nil || len(left) != 1 || s.Has(st.ID) {
			t.Fatalf("left: %v", left)
		}
		return left[0]
	}
	attempt()
	s = open(t, dir, nil)
	if len(s.List()) > 0 {
		t.Error("half a state is listed")
	}
	if _, err := s.Import(t.Context(), copyOf(st), func(ctx context.Context, in string) error {
		if _, err := os.Stat(filepath.Join(in, "image", "pages.img")); err != nil {
			t.Error("what came before is gone")
		}
		return carry(h, nil)(ctx, in)
	}); err != nil {
		t.Fatal(err)
	}
	for _, end := range []func(string){
		func(string) { _ = s.Delete(t.Context(), st.ID) },
		func(left string) {
			long := time.Now().Add(-25 * time.Hour)
			_ = os.Chtimes(left, long, long)
			s.Tidy()
		},
		func(left string) {
			long := time.Now().Add(-25 * time.Hour)
			_ = os.Chtimes(left, long, long)
			s = open(t, dir, nil)
		},
	} {
		if err := s.Delete(t.Context(), st.ID); err != nil {
			t.Fatal(err)
		}
		end(attempt())
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%v are left", left)
		}
	}
}

func TestP5_ADiskWithoutRoomForACopy(t *testing.T) {
	st, h := source(t)
	disk := statetest.New(root(t))
	t.Cleanup(disk.Close)
	dir := root(t)
	s := open(t, dir, disk)
	disk.SetFree(state.Reserve + st.SizeBytes - 1)
	_, err := s.Import(t.Context(), copyOf(st), carry(h, nil))
	wantReason(t, err, "disk_full")
	if d := errs.As(err).Details; d["needed_bytes"] != state.Reserve+st.SizeBytes || d["free_bytes"] == nil {
		t.Errorf("details: %v", d)
	}
	disk.SetFree(state.Reserve + st.SizeBytes)
	if _, err := s.Import(t.Context(), copyOf(st), carry(h, nil)); err != nil {
		t.Fatal(err)
	}
}

// TestP5_PowerCutWhileACopyComes cuts the power at each change: whatever has the
// state's name is the state.
func TestP5_PowerCutWhileACopyComes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	st, h := source(t)
	dead := errors.New("no power")
	cuts := 0
	for _, luck := range []bool{false, true, true, true} {
		for at := 0; ; at++ {
			dir := root(t)
			disk := statetest.New(dir)
			t.Cleanup(disk.Close)
			s := open(t, dir, disk)
			cut := false
			disk.Fail(func(n int, _, _ string) error {
				if n >= at {
					cut = true
					return dead
				}
				return nil
			})
			_, came := s.Import(t.Context(), copyOf(st), carry(h, nil))
			if !cut {
				break
			}
			cuts++
			var rng *rand.Rand
			if luck {
				rng = rand.New(rand.NewPCG(seed, uint64(at)))
			}
			if err := disk.PowerCut(rng); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir, disk)
			if came == nil || s.Has(st.ID) {
				whole(t, s, st.ID, "travels")
			}
			if _, err := s.Import(t.Context(), copyOf(st), carry(h, nil)); err != nil {
				t.Fatalf("the next try: %v", err)
			}
			whole(t, s, st.ID, "travels")
		}
	}
	t.Logf("%d power cuts", cuts)
	if cuts < 10 {
		t.Errorf("only %d writes were seen", cuts)
	}
}
