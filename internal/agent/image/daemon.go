package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Daemon names a build of the guest daemon. What was saved with memory maps the
// daemon's file, so that it starts with that very build alone, also after this
// host has come to ship another.
type Daemon struct {
	// Digest of the program; empty is the one that this host ships.
	Digest artifact.Digest
	// File has it, for a host that does not keep it any more; empty where nobody
	// has. It is never written to again: it may become the layer's own by another
	// name.
	File string
}

func (c *Cache) guestLayer(daemon artifact.Digest) string {
	return filepath.Join(c.cfg.Dir, guestsDir, string(daemon))
}

// DaemonFile is where the program of a daemon is that somebody has a tree with, or
// that this host ships.
func (c *Cache) DaemonFile(daemon artifact.Digest) string {
	return filepath.Join(c.guestLayer(daemon), GuestPath)
}

// installCurrent keeps the daemon that this host ships. What is there already,
// perhaps below a mount, is never touched.
func (c *Cache) installCurrent() error {
	ctx := context.Background() // before anybody waits
	digest, err := fileDigest(ctx, c.cfg.GuestBinary)
	if err != nil {
		return err
	}
	c.layers.Lock()
	defer c.layers.Unlock()
	if !c.kept(ctx, digest) {
		// A copy: an upgrade may write to the original.
		if err := c.install(ctx, digest, func(to string) error { return copyFile(c.cfg.GuestBinary, to, 0o555) }); err != nil {
			return err
		}
	}
	c.guest = digest
	return nil
}

// layer makes sure that a daemon's layer is there and right. c.layers is held.
func (c *Cache) layer(ctx context.Context, d Daemon) error {
	if c.kept(ctx, d.Digest) {
		return nil
	}
	if d.File != "" {
		err := c.install(ctx, d.Digest, func(to string) error { return linkOrCopy(d.File, to) })
		if err == nil || ctx.Err() != nil || !errors.Is(err, os.ErrNotExist) && !errors.Is(err, errOther) {
			return err
		}
		c.cfg.Logger.Error("the guest daemon of a saved state is damaged or gone", "digest", d.Digest, "err", err)
	}
	return errs.FailedPrecondition("guest_build_missing", "Its memory needs the build of the sandbox daemon that it was saved with, which is not on this host. "+
		"Its disk does not: try again without memory.").With("guest_digest", string(d.Digest))
}

// kept tells whether a daemon is there, and finds out once per process that it is
// what its name says. c.layers is held.
func (c *Cache) kept(ctx context.Context, daemon artifact.Digest) bool {
	file := c.DaemonFile(daemon)
	if c.intact[daemon] {
		_, err := os.Stat(file)
		return err == nil
	}
	got, err := fileDigest(ctx, file)
	c.intact[daemon] = err == nil && got == daemon
	return c.intact[daemon]
}

// errOther: the file is not the daemon that it should be.
var errOther = errors.New("image: the file is another daemon")

// install makes a daemon's layer of the file that put makes. A damaged layer gives
// way.
func (c *Cache) install(ctx context.Context, daemon artifact.Digest, put func(to string) error) error {
	layer := c.guestLayer(daemon)
	tmp, err := os.MkdirTemp(filepath.Join(c.cfg.Dir, guestsDir), ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	program := filepath.Join(tmp, GuestPath)
	if err := errors.Join(os.Chmod(tmp, 0o755), os.Mkdir(filepath.Dir(program), 0o755)); err != nil {
		return err
	}
	if err := put(program); err != nil {
		return err
	}
	if got, err := fileDigest(ctx, program); err != nil || got != daemon {
		return errors.Join(err, errOther)
	}
	if err := errors.Join(os.Chmod(program, 0o555), syncDir(filepath.Dir(program)), syncDir(tmp)); err != nil {
		return err
	}
	if err := os.RemoveAll(layer); err != nil {
		return err
	}
	if err := os.Rename(tmp, layer); err != nil {
		return err
	}
	c.intact[daemon] = true
	return syncDir(filepath.Dir(layer))
}

// linkOrCopy gives a file that is never written to a second name, or copies it
// where the disk is another.
func linkOrCopy(from, to string) error {
	err := os.Link(from, to)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EPERM) {
		return copyFile(from, to, 0o555)
	}
	return err
}

// dropTrees unmounts trees of an image that nobody has, of other daemons than the
// current one: what comes next is started with that. The turn is held.
func (c *Cache) dropTrees(e *entry) error {
	have, err := mountsBelow(c.mountDir(e.digest))
	if err != nil {
		return err
	}
	var failed []error
	for _, dir := range have {
		daemon, ok := daemonOf(dir)
		c.mu.Lock()
		keep := !ok || daemon == c.guest || e.owned(daemon)
		c.mu.Unlock()
		if keep {
			continue
		}
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		c.mu.Lock()
		if delete(e.mounted, daemon); err != nil {
			e.mounted[daemon] = true // and is looked at again
		}
		c.mu.Unlock()
		switch {
		case errors.Is(err, unix.EBUSY):
			c.cfg.Logger.Warn("an unused tree is still open and stays mounted", "digest", e.digest, "guest_digest", daemon)
		case err != nil:
			failed = append(failed, fmt.Errorf("unmounting %s: %w", dir, err))
		default:
			failed = append(failed, os.Remove(dir), c.dropLayer(daemon))
		}
	}
	return errors.Join(failed...)
}

// dropLayer removes a daemon that no tree is left of.
func (c *Cache) dropLayer(daemon artifact.Digest) error {
	c.layers.Lock()
	defer c.layers.Unlock()
	if daemon == c.guest {
		return nil
	}
	have, err := mountsBelow(filepath.Join(c.cfg.Dir, mountsDir))
	if err != nil {
		return err
	}
	for _, m := range have {
		if d, ok := daemonOf(m); ok && d == daemon {
			return nil
		}
	}
	delete(c.intact, daemon)
	return os.RemoveAll(c.guestLayer(daemon))
}

// dropLayers removes the daemons of earlier builds that no tree is mounted with,
// and what broken installs left.
func (c *Cache) dropLayers() error {
	layers, err := os.ReadDir(filepath.Join(c.cfg.Dir, guestsDir))
	if err != nil {
		return err
	}
	var failed []error
	for _, l := range layers {
		failed = append(failed, c.dropLayer(artifact.Digest(l.Name())))
	}
	return errors.Join(failed...)
}

// daemonOf is the daemon of the tree mounted at dir; false where that is no tree.
func daemonOf(dir string) (artifact.Digest, bool) {
	name, ok := strings.CutPrefix(filepath.Base(dir), rootPrefix)
	return artifact.Digest(name), ok
}
