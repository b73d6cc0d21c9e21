package state_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/agent/state/statetest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

func root(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "states")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t *testing.T, dir string, fs state.FS) *state.Store {
	t.Helper()
	s, err := state.Open(dir, fs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func image(text string) map[string]string {
	return map[string]string{"pages.img": strings.Repeat(text, 1000), "meta.img": "about " + text}
}

// save is what a pause does; an error is that of the step it came to.
func save(s *state.Store, which id.Snapshot, sandbox id.Sandbox, text string) (st state.State, err error) {
	d, err := s.Create(which, 10)
	if err != nil {
		return st, err
	}
	for name, content := range image(text) {
		if err := os.WriteFile(filepath.Join(d.Dir(), name), []byte(content), 0o600); err != nil {
			d.Discard()
			return st, err
		}
	}
	if err = keepGuest(d, "the daemon"); err == nil {
		st, err = d.Seal(context.Background(), state.Manifest{
			Sandbox: sandbox, Incarnation: 3, Engine: "fake", Memory: true, InitSecret: "s", CreatedAt: time.Now().UTC(), GuestDigest: digest("the daemon"),
		})
	}
	if err != nil {
		d.Discard()
		return st, err
	}
	d.Keep()
	return st, nil
}

// keepGuest gives a draft a daemon whose file is gone at once.
func keepGuest(d *state.Draft, program string) error {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "program")
	if err := os.WriteFile(file, []byte(program), 0o555); err != nil {
		return err
	}
	return d.KeepGuest(file)
}

func digest(content string) string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:])
}

func mustSave(t *testing.T, s *state.Store, which id.Snapshot, sandbox id.Sandbox, text string) state.State {
	t.Helper()
	st, err := save(s, which, sandbox, text)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// whole fails unless the state holds text, byte by byte.
func whole(t *testing.T, s *state.Store, which id.Snapshot, text string) {
	t.Helper()
	h, err := s.Hold(t.Context(), which)
	if err != nil {
		t.Errorf("a state is lost: %v", err)
		return
	}
	defer h.Release()
	for name, want := range image(text) {
		if got, err := os.ReadFile(filepath.Join(h.Dir, name)); err != nil || string(got) != want {
			t.Errorf("%s has other bytes: %v", name, err)
		}
	}
	if got, err := os.ReadFile(h.GuestFile()); err != nil || digest(string(got)) != h.GuestDigest {
		t.Errorf("its daemon is lost: %q, %v", got, err)
	}
}

func wantReason(t *testing.T, err error, reason string) {
	t.Helper()
	if !errs.Is(err, reason) {
		t.Errorf("got %v, want %s", err, reason)
	}
}

func TestS5_AStateFromBirthToEnd(t *testing.T) {
	dir := root(t)
	s := open(t, dir, nil)
	which, sandbox := id.NewSnapshot(), id.NewSandbox()
	st := mustSave(t, s, which, sandbox, "one")
	if st.ID != which || st.Sandbox != sandbox || len(st.Digest) != 64 || st.SizeBytes != 3009 || len(st.Files) != 2 {
		t.Errorf("the state is %+v", st)
	}
	_, err := s.Create(which, 1)
	wantReason(t, err, "state_exists")
	if got, ok := s.Get(which); !ok || got.Digest != st.Digest || len(s.List()) != 1 {
		t.Error("the state is not listed")
	}
	second := mustSave(t, s, id.NewSnapshot(), sandbox, "two")
	if s.Newest()[sandbox].ID != second.ID {
		t.Error("the newest state is the older one")
	}
	// What lies about goes at the next start; what is complete stays.
	for _, name := range []string{strings.Repeat("ab", 16) + ".new", strings.Repeat("cd", 16) + ".del"} {
		if err := os.MkdirAll(filepath.Join(dir, name, "image"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir, nil)
	if got, ok := s.Get(which); !ok || got.Digest != st.Digest || got.InitSecret != "s" {
		t.Errorf("after a restart: %+v", got)
	}
	whole(t, s, which, "one")
	whole(t, s, second.ID, "two")
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("%d entries are left, want 2", len(left))
	}
	for range 2 {
		if err := s.Delete(t.Context(), which); err != nil {
			t.Fatal(err)
		}
	}
	_, err = s.Hold(t.Context(), which)
	wantReason(t, err, "unknown_state")
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("LL-01: %d entries are left, want 1", len(left))
	}
}

func TestDeleteWaitsForThoseWhoStartFromIt(t *testing.T) {
	s := open(t, root(t), nil)
	which := id.NewSnapshot()
	mustSave(t, s, which, id.NewSandbox(), "x")
	h, err := s.Hold(t.Context(), which)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Delete(short, which); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a held state: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Delete(t.Context(), which) }()
	h.Release()
	h.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestST06_DamageIsFoundBeforeUse(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"one flipped byte": func(dir string) error {
			f, err := os.OpenFile(filepath.Join(dir, "image", "pages.img"), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte{'#'}, 1500)
			return errors.Join(err, f.Close())
		},
		"a short file":  func(dir string) error { return os.Truncate(filepath.Join(dir, "image", "pages.img"), 2999) },
		"a lost file":   func(dir string) error { return os.Remove(filepath.Join(dir, "image", "meta.img")) },
		"a swapped one": func(dir string) error { return swap(filepath.Join(dir, "image", "pages.img")) },
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprint(name, restart), func(t *testing.T) {
				dir := root(t)
				s := open(t, dir, nil)
				which := id.NewSnapshot()
				mustSave(t, s, which, id.NewSandbox(), "abc")
				whole(t, s, which, "abc")
				if err := damage(filepath.Join(dir, strings.ReplaceAll(which.UUID().String(), "-", ""))); err != nil {
					t.Fatal(err)
				}
				if restart {
					s = open(t, dir, nil)
				}
				_, err := s.Hold(t.Context(), which)
				wantReason(t, err, "state_damaged")
				if err := s.Delete(t.Context(), which); err != nil {
					t.Error(err)
				}
				if left, _ := os.ReadDir(dir); len(left) != 0 {
					t.Error("LL-01: a damaged state cannot be removed")
				}
			})
		}
	}
}

func swap(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[7]++
	return errors.Join(os.WriteFile(path+".x", b, 0o600), os.Rename(path+".x", path))
}

func TestAManifestIsKnownByItsDigest(t *testing.T) {
	dir := root(t)
	s := open(t, dir, nil)
	which := id.NewSnapshot()
	mustSave(t, s, which, id.NewSandbox(), "x")
	path := filepath.Join(dir, strings.ReplaceAll(which.UUID().String(), "-", ""), "state.json")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(raw), `"incarnation":3`, `"incarnation":4`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, nil)
	if _, ok := s.Get(which); ok || len(s.List()) != 0 {
		t.Error("a changed manifest is believed")
	}
	_, err = s.Hold(t.Context(), which)
	wantReason(t, err, "state_damaged")
}

func TestS5_AFullDiskSaysWhatIsNeeded(t *testing.T) {
	dir := root(t)
	disk := statetest.New(dir)
	t.Cleanup(disk.Close)
	s := open(t, dir, disk)
	disk.SetFree(state.Reserve + 99)
	_, err := s.Create(id.NewSnapshot(), 100)
	wantReason(t, err, "disk_full")
	e := errs.As(err)
	if e.Details["needed_bytes"] != int64(state.Reserve+100) || e.Details["free_bytes"] != int64(state.Reserve+99) || !strings.Contains(e.Message, "Delete snapshots") {
		t.Errorf("the error says %q, %v", e.Message, e.Details)
	}
	disk.SetFree(state.Reserve + 150)
	d, err := s.Create(id.NewSnapshot(), 100)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Create(id.NewSnapshot(), 100) // promised already
	wantReason(t, err, "disk_full")
	d.Discard()
	mustSave(t, s, id.NewSnapshot(), id.NewSandbox(), "x")
	for _, err := range []error{syscall.ENOSPC, errors.New("runsc: write pages.img: no space left on device")} {
		if !state.Full(err) {
			t.Errorf("%v is not taken for a full disk", err)
		}
	}
}

// TestS5_ENOSPCAtEveryWrite lets each change of a save fail in turn: nothing of
// it stays, what was there before is whole, and it succeeds later.
func TestS5_ENOSPCAtEveryWrite(t *testing.T) {
	failures := 0
	for at := 0; ; at++ {
		dir := root(t)
		disk := statetest.New(dir)
		t.Cleanup(disk.Close)
		s := open(t, dir, disk)
		old, which, sandbox := id.NewSnapshot(), id.NewSnapshot(), id.NewSandbox()
		mustSave(t, s, old, sandbox, "old")
		hit := ""
		disk.Fail(func(n int, call, _ string) error {
			if n == at {
				hit = call
				return syscall.ENOSPC
			}
			return nil
		})
		_, err := save(s, which, sandbox, "new")
		disk.Fail(nil)
		if hit == "" {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		failures++
		wantReason(t, err, "disk_full")
		s.Tidy()
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("LL-01: %s %d failed and %d entries are left", hit, at, len(left))
		}
		whole(t, s, old, "old")
		mustSave(t, s, which, sandbox, "new")
		whole(t, s, which, "new")
	}
	t.Logf("%d writes failed in turn", failures)
	if failures < 10 {
		t.Errorf("only %d writes were seen", failures)
	}
}

// TestS5_PowerCutAtEveryWrite cuts the power at each change of a save and of a
// delete, with what was never synced lost, or partly lost.
func TestS5_PowerCutAtEveryWrite(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dead := errors.New("no power")
	cuts := 0
	for _, luck := range []bool{false, true, true, true} {
		for at := 0; ; at++ {
			dir := root(t)
			disk := statetest.New(dir)
			t.Cleanup(disk.Close)
			s := open(t, dir, disk)
			old, gone, which, sandbox := id.NewSnapshot(), id.NewSnapshot(), id.NewSnapshot(), id.NewSandbox()
			mustSave(t, s, old, sandbox, "old")
			mustSave(t, s, gone, sandbox, "gone")
			cut := false
			disk.Fail(func(n int, _, _ string) error {
				if n >= at {
					cut = true
					return dead
				}
				return nil
			})
			_, saved := save(s, which, sandbox, "new")
			deleted := s.Delete(context.Background(), gone)
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
			whole(t, s, old, "old")
			if saved == nil {
				whole(t, s, which, "new")
			} else if s.Has(which) { // it came to be and nobody was told: whole or named as damaged
				if _, err := s.Hold(t.Context(), which); err != nil && !errs.Is(err, "state_damaged") {
					t.Error(err)
				} else if err == nil {
					whole(t, s, which, "new")
				}
			}
			if deleted == nil && s.Has(gone) {
				t.Error("a deleted state came back")
			}
			if deleted != nil && s.Has(gone) {
				whole(t, s, gone, "gone")
			}
		}
	}
	t.Logf("%d power cuts", cuts)
}
