package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
)

// partAge is how long a broken download waits to be gone on with.
const partAge = 24 * time.Hour

// Release gives the tree back. Succeeds on what is not held. A few unused
// images stay mounted; of the others the longest unused is unmounted. Of a daemon
// that is not the current one nothing stays.
func (c *Cache) Release(ctx context.Context, digest artifact.Digest, owner string) error {
	c.mu.Lock()
	if e := c.entries[digest]; e != nil {
		if _, held := e.owners[owner]; held {
			delete(e.owners, owner)
			e.lastUse = time.Now()
		}
	}
	c.mu.Unlock()
	return c.cool(ctx)
}

// unused lists entries without owners, the longest unused first.
func (c *Cache) unused() []*entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*entry
	for _, e := range c.entries {
		if len(e.owners) == 0 {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *entry) int { return a.lastUse.Compare(b.lastUse) })
	return out
}

// cool unmounts unused images beyond the warm ones, and unused trees with other
// daemons than the current one. What is busy, with an Acquire or an open file, is
// left for the next time.
func (c *Cache) cool(ctx context.Context) error {
	failed := []error{c.coolTrees()}
	var warm []*entry
	for _, e := range c.unused() {
		if have, err := mountsBelow(c.mountDir(e.digest)); err != nil {
			return err
		} else if len(have) > 0 {
			warm = append(warm, e)
		}
	}
	for i := 0; i < len(warm)-c.cfg.WarmMounts && ctx.Err() == nil; i++ {
		if err := c.drop(warm[i], false); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// coolTrees unmounts trees with other daemons than the current one that nobody has.
func (c *Cache) coolTrees() error {
	c.mu.Lock()
	var stale []*entry
	for _, e := range c.entries {
		for daemon := range e.mounted {
			if daemon != c.guest && !e.owned(daemon) {
				stale = append(stale, e)
				break
			}
		}
	}
	c.mu.Unlock()
	var failed []error
	for _, e := range stale {
		select {
		case e.turn <- struct{}{}:
			failed = append(failed, c.dropTrees(e))
			e.give()
		default:
		}
	}
	return errors.Join(failed...)
}

// drop unmounts an image nobody owns, and removes its file when asked to.
// Nothing happens to one that somebody works on or owns by now.
func (c *Cache) drop(e *entry, file bool) error {
	select {
	case e.turn <- struct{}{}:
	default:
		return nil
	}
	defer e.give()
	c.mu.Lock()
	owned := len(e.owners) > 0
	c.mu.Unlock()
	if owned {
		return nil
	}
	if err := c.dropTrees(e); err != nil {
		return err
	}
	c.mu.Lock()
	clear(e.mounted)
	c.mu.Unlock()
	if err := c.unmount(e.digest); err != nil {
		if errors.Is(err, unix.EBUSY) {
			c.cfg.Logger.Warn("an unused image is still open and stays mounted", "digest", e.digest)
			return nil
		}
		return err
	}
	if !file {
		return nil
	}
	e.checked = false
	return ignoreMissing(os.Remove(c.imagePath(e.digest)))
}

// makeRoom removes unused images until need more bytes fit.
func (c *Cache) makeRoom(need int64) error {
	if c.cfg.MaxBytes <= 0 {
		return nil
	}
	used, err := c.usage()
	if err != nil {
		return err
	}
	c.know()
	for _, e := range c.unused() {
		if used+need <= c.cfg.MaxBytes {
			return nil
		}
		if err := c.drop(e, true); err != nil {
			return err
		}
		if used, err = c.usage(); err != nil {
			return err
		}
	}
	if used+need > c.cfg.MaxBytes {
		return errs.Exhausted("image_cache_full", "The images in use on this host leave no room for another one.").
			With("limit", c.cfg.MaxBytes).With("used", used).With("needed", need)
	}
	return nil
}

// know makes an entry for each file on disk: those of earlier runs count too.
func (c *Cache) know() {
	files, _ := filepath.Glob(filepath.Join(c.cfg.Dir, imagesDir, "*"+imageSuffix))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range files {
		if d, err := artifact.ParseDigest(strings.TrimSuffix(filepath.Base(f), imageSuffix)); err == nil {
			c.entryLocked(d)
		}
	}
}

// usage is what the files take on disk.
func (c *Cache) usage() (int64, error) {
	files, err := os.ReadDir(filepath.Join(c.cfg.Dir, imagesDir))
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, f := range files {
		if info, err := f.Info(); err == nil {
			sum += info.Size()
		}
	}
	return sum, nil
}

// Holding is the tree somebody has.
type Holding struct {
	Image  artifact.Digest
	Daemon artifact.Digest // empty is the current one
}

// Recover is called once at the agent's start with every owner the journal
// knows. It mounts what they need and is missing, as after a reboot, and
// unmounts what nobody owns. An owner whose image cannot be mounted is named in
// the error and does not stop the others. One whose daemon is gone has its image
// all the same: what runs there has the daemon open.
func (c *Cache) Recover(ctx context.Context, owners map[string]Holding) error {
	var failed []error
	for owner, h := range owners {
		_, err := c.Acquire(ctx, Image{Digest: h.Image}, Daemon{Digest: h.Daemon}, owner, transfer.Clients{})
		if errs.Is(err, "guest_build_missing") {
			c.cfg.Logger.Error("the guest daemon of a sandbox that runs here is gone", "owner", owner, "guest_digest", h.Daemon)
			c.mu.Lock()
			c.entryLocked(h.Image).owners[owner] = h.Daemon
			c.mu.Unlock()
			continue
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("image %s of %s: %w", h.Image, owner, err))
		}
	}
	mounted, err := os.ReadDir(filepath.Join(c.cfg.Dir, mountsDir))
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	for _, dir := range mounted {
		d, err := artifact.ParseDigest(dir.Name())
		if err != nil {
			continue
		}
		e, err := c.take(ctx, d)
		if err != nil {
			return errors.Join(append(failed, err)...)
		}
		err = c.dropTrees(e)
		e.give()
		failed = append(failed, err, c.drop(e, false))
	}
	failed = append(failed, c.dropLayers(), c.removeStale())
	return errors.Join(failed...)
}

// removeStale removes what broken downloads left.
func (c *Cache) removeStale() error {
	files, err := os.ReadDir(filepath.Join(c.cfg.Dir, imagesDir))
	if err != nil {
		return err
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil || strings.HasSuffix(f.Name(), imageSuffix) || time.Since(info.ModTime()) < partAge {
			continue
		}
		if err := ignoreMissing(os.Remove(filepath.Join(c.cfg.Dir, imagesDir, f.Name()))); err != nil {
			return err
		}
	}
	return nil
}

// Leaks lists mounts below Dir that no owner accounts for and that are not the
// few kept warm.
func (c *Cache) Leaks(context.Context) ([]string, error) {
	have, err := mountsBelow(filepath.Join(c.cfg.Dir, mountsDir))
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	warm := make(map[artifact.Digest]bool)
	var leaks []string
	for _, m := range have {
		d := artifact.Digest(filepath.Base(filepath.Dir(m)))
		e := c.entries[d]
		daemon, tree := daemonOf(m)
		switch {
		case e != nil && len(e.turn) > 0:
		case e != nil && len(e.owners) > 0 && (!tree || daemon == c.guest || e.owned(daemon)):
		case e != nil && e.mounted[c.guest] && (!tree || daemon == c.guest):
			warm[d] = true
		default:
			leaks = append(leaks, "mount "+m)
		}
	}
	if len(warm) > c.cfg.WarmMounts {
		leaks = append(leaks, fmt.Sprintf("%d unused images are mounted, %d may be", len(warm), c.cfg.WarmMounts))
	}
	return leaks, nil
}

// Purge unmounts and removes everything below Dir, whoever owns it. It refuses,
// having removed no file, when a mount is still in use.
func (c *Cache) Purge(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	have, err := mountsBelow(c.cfg.Dir)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(have) {
		if err := unix.Unmount(m, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmounting %s: %w", m, err)
		}
	}
	c.entries = make(map[artifact.Digest]*entry)
	return os.RemoveAll(c.cfg.Dir)
}
