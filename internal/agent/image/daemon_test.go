package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
)

// saved is a daemon in a file of its own, as a saved state has it.
func saved(t *testing.T, text string) Daemon {
	t.Helper()
	file := filepath.Join(t.TempDir(), "guest")
	must(t, os.WriteFile(file, []byte(text), 0o600))
	return Daemon{Digest: artifact.DigestOf([]byte(text)), File: file}
}

func runsOn(t *testing.T, tree Tree, want string) {
	t.Helper()
	file := filepath.Join(tree.Dir, GuestPath)
	if b, err := os.ReadFile(file); err != nil || string(b) != want {
		t.Errorf("the daemon reads %q, %v; want %q", b, err, want)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o555 || tree.Daemon != artifact.DigestOf([]byte(want)) {
		t.Errorf("the daemon is %v, %v, %s", info.Mode(), err, tree.Daemon)
	}
}

func (c *Cache) daemons(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(c.cfg.Dir, guestsDir))
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Trees of one image with several daemons are there side by side, as long as
// somebody has them.
func TestP7_ATreeHasTheDaemonThatIsAskedFor(t *testing.T) {
	s := newShelf(t)
	img, other := s.image(t, "one"), s.image(t, "two")
	c := newCache(t, t.TempDir(), nil)
	t.Cleanup(func() { must(t, c.Purge(context.Background())) })
	acquire := func(img Image, d Daemon, owner string) Tree {
		tree, err := c.Acquire(t.Context(), img, d, owner, s.clients())
		must(t, err)
		return tree
	}
	old := saved(t, "an older daemon")
	if _, err := c.Acquire(t.Context(), img, Daemon{Digest: old.Digest}, "a", s.clients()); !errs.Is(err, "guest_build_missing") {
		t.Errorf("a daemon nobody has: %v", err)
	}
	runsOn(t, acquire(img, Daemon{}, "a"), "the daemon")
	runsOn(t, acquire(img, old, "b"), "an older daemon")
	// From here on the cache has it, and the file is not needed.
	gone := Daemon{Digest: old.Digest, File: filepath.Join(t.TempDir(), "gone")}
	runsOn(t, acquire(other, gone, "c"), "an older daemon")
	if want, got := []string{string(c.guest), string(old.Digest)}, c.daemons(t); len(got) != 2 || !slices.Contains(got, want[0]) || !slices.Contains(got, want[1]) {
		t.Errorf("kept: %q, want %q", got, want)
	}
	noLeaks(t, c)

	must(t, c.Release(t.Context(), img.Digest, "b"))
	if slices.Contains(c.mounts(t), c.root(img.Digest, old.Digest)) {
		t.Error("a tree nobody has stays mounted")
	}
	reads(t, c.root(img.Digest, c.guest), "one")
	runsOn(t, Tree{Dir: c.root(other.Digest, old.Digest), Daemon: old.Digest}, "an older daemon")
	// Who wants another one has it instead.
	runsOn(t, acquire(other, Daemon{}, "c"), "the daemon")
	must(t, c.Release(t.Context(), img.Digest, "a"))
	if got := c.daemons(t); len(got) != 1 {
		t.Errorf("kept: %q", got)
	}
	if b, err := os.ReadFile(old.File); err != nil || string(b) != "an older daemon" {
		t.Errorf("the state's own file: %q %v", b, err)
	}
	noLeaks(t, c)
	if _, err := c.Acquire(t.Context(), img, gone, "a", s.clients()); !errs.Is(err, "guest_build_missing") {
		t.Errorf("a daemon that is gone again: %v", err)
	}
	must(t, os.WriteFile(old.File, []byte("something else"), 0o600))
	if _, err := c.Acquire(t.Context(), img, old, "a", s.clients()); !errs.Is(err, "guest_build_missing") {
		t.Errorf("a damaged daemon: %v", err)
	}
	if got := c.daemons(t); len(got) != 1 {
		t.Errorf("left: %q", got)
	}
	if _, err := c.Acquire(t.Context(), img, Daemon{Digest: "../x"}, "a", s.clients()); err == nil {
		t.Error("a name that is no digest is taken")
	}
}

// Over an end of the agent in any state, also with an upgrade, a daemon stays that
// something runs on, and no other.
func TestP7_ARestartKeepsTheDaemonsInUse(t *testing.T) {
	s := newShelf(t)
	dir := t.TempDir()
	img := s.image(t, "one")
	c := newCache(t, dir, nil)
	t.Cleanup(func() { must(t, c.Purge(context.Background())) })
	first := c.guest
	tree, err := c.Acquire(t.Context(), img, Daemon{}, "runs", s.clients())
	must(t, err)
	foreign := saved(t, "of another host")
	_, err = c.Acquire(t.Context(), img, foreign, "waits", s.clients())
	must(t, err)
	// What an end between two lines may leave.
	must(t, os.Mkdir(filepath.Join(dir, guestsDir, ".new-1"), 0o755))
	unused := filepath.Join(dir, guestsDir, string(artifact.DigestOf([]byte("unused"))))
	must(t, os.MkdirAll(filepath.Join(unused, filepath.Dir(GuestPath)), 0o755))
	must(t, os.WriteFile(filepath.Join(unused, GuestPath), []byte("unused"), 0o555))

	upgrade := func(c *Config) { must(t, os.WriteFile(c.GuestBinary, []byte("a newer daemon"), 0o755)) }
	for range 2 { // and once more
		c = newCache(t, dir, upgrade)
		must(t, c.Recover(t.Context(), map[string]Holding{"runs": {Image: img.Digest, Daemon: first}}))
		runsOn(t, tree, "the daemon")
		if got := c.daemons(t); len(got) != 2 || !slices.Contains(got, string(first)) || !slices.Contains(got, string(c.guest)) {
			t.Errorf("kept: %q", got)
		}
		if have := c.mounts(t); len(have) != 2 {
			t.Errorf("mounted: %q", have)
		}
		noLeaks(t, c)
	}
	// What starts now has the new one, and the old goes with its last owner.
	fresh, err := c.Acquire(t.Context(), img, Daemon{}, "new", transfer.Clients{})
	must(t, err)
	runsOn(t, fresh, "a newer daemon")
	open, err := os.Open(filepath.Join(tree.Dir, GuestPath))
	must(t, err)
	must(t, c.Release(t.Context(), img.Digest, "runs")) // still open, which is no error
	runsOn(t, tree, "the daemon")
	must(t, open.Close())
	must(t, c.Release(t.Context(), img.Digest, "anybody"))
	if got := c.daemons(t); len(got) != 1 || len(c.mounts(t)) != 2 {
		t.Errorf("kept: %q, mounted: %q", got, c.mounts(t))
	}

	// What runs goes on although somebody removed its daemon.
	c = newCache(t, dir, upgrade)
	must(t, c.Recover(t.Context(), map[string]Holding{"runs": {Image: img.Digest, Daemon: first}}))
	reads(t, fresh.Dir, "one")
}

// A damaged file of a daemon is replaced by a right one, and never mounted.
func TestP7_ADamagedDaemonIsNotMounted(t *testing.T) {
	s := newShelf(t)
	dir := t.TempDir()
	img := s.image(t, "one")
	c := newCache(t, dir, nil)
	t.Cleanup(func() { must(t, c.Purge(context.Background())) })
	old := saved(t, "an older daemon")
	_, err := c.Acquire(t.Context(), img, old, "a", s.clients())
	must(t, err)
	for _, m := range slices.Backward(c.mounts(t)) { // a reboot
		must(t, unix.Unmount(m, 0))
	}
	must(t, os.Remove(c.DaemonFile(old.Digest)))
	must(t, os.WriteFile(c.DaemonFile(old.Digest), []byte("damage"), 0o555))
	must(t, os.Remove(c.DaemonFile(c.guest)))
	c = newCache(t, dir, nil)
	tree, err := c.Acquire(t.Context(), img, Daemon{}, "b", s.clients())
	must(t, err)
	runsOn(t, tree, "the daemon")
	if _, err := c.Acquire(t.Context(), img, Daemon{Digest: old.Digest}, "a", s.clients()); !errs.Is(err, "guest_build_missing") {
		t.Errorf("damaged, and no other: %v", err)
	}
	tree, err = c.Acquire(t.Context(), img, old, "a", s.clients())
	must(t, err)
	runsOn(t, tree, "an older daemon")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Acquire(ctx, img, saved(t, "a third"), "d", s.clients()); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}
