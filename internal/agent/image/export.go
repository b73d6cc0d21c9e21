package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/image/unpack"
	"skerry.dev/skerry/internal/agent/thread"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
)

// ExportOptions say what an image is made of.
type ExportOptions struct {
	// Lower is the mounted image a sandbox runs on.
	Lower string
	// Changes writes what the sandbox has changed, as a tar archive in the form of
	// an overlay's upper layer.
	Changes func(ctx context.Context, w io.Writer) error
	Limits  Limits
}

// skerryFiles are what the daemon writes in every sandbox. An image has them as
// the image before it had.
var skerryFiles = []string{".skerry", "etc/hosts", "etc/hostname", "etc/resolv.conf", "run/e2b"}

// partialPrefix begins the names under which the daemon writes them.
const partialPrefix = ".skerry-partial-"

// Export makes an image file in outDir of an image and what a sandbox has
// changed over it. The same tree, times included, gives the same digest. A
// failure or the end of ctx leaves nothing behind, mounts included, and neither
// does the end of this process but for files, which the next one removes.
func Export(ctx context.Context, log func(line string), o ExportOptions, outDir string) (Built, error) {
	if err := os.MkdirAll(outDir, 0o700); err != nil {
		return Built{}, err
	}
	work, done, err := newWorkDir(outDir)
	if err != nil {
		return Built{}, err
	}
	defer done()
	changes := filepath.Join(work, "changes")
	if err := o.unpack(ctx, log, changes); err != nil {
		return Built{}, err
	}
	began := time.Now()
	file := filepath.Join(work, "image.erofs")
	if err := packMerged(ctx, []string{changes, o.Lower}, filepath.Join(work, "merged"), file); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return Built{}, fullDisk(err)
	}
	built, err := keepImage(file, outDir)
	if err == nil {
		log("packed into one read-only image: " + rate(built.Size, time.Since(began)))
	}
	return built, fullDisk(err)
}

// unpack brings the changes to a directory, as a layer for the kernel's overlay.
func (o ExportOptions) unpack(ctx context.Context, log func(string), dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	tree, err := unpack.Open(dir, unpack.Options{
		MaxBytes: o.Limits.MaxBytes, MaxEntries: o.Limits.MaxFiles, SizeSetting: o.Limits.BytesSetting, EntriesSetting: o.Limits.FilesSetting,
		Now: time.Now(), Otherwise: time.Unix(0, 0),
	})
	if err != nil {
		return err
	}
	defer tree.Close()
	began := time.Now()
	if err := o.stream(ctx, tree); err != nil {
		return err
	}
	log(fmt.Sprintf("took %d changed files and directories, %s", tree.Entries(), rate(tree.Bytes(), time.Since(began))))
	if err := o.tidy(tree); err != nil {
		return err
	}
	if err := tree.PruneWhiteouts(o.Lower); err != nil {
		return err
	}
	return tree.SettleTimes()
}

func (o ExportOptions) stream(ctx context.Context, tree *unpack.Tree) error {
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := o.Changes(ctx, w)
		_ = w.CloseWithError(err) // nil is the end of the archive
		sent <- err
	}()
	err := tree.Apply(ctx, r, unpack.Overlay)
	_ = r.CloseWithError(errGivenUp)
	if serr := <-sent; serr != nil && !errors.Is(serr, errGivenUp) {
		return serr // what Apply read is only its consequence
	}
	return err
}

var errGivenUp = errors.New("image: the archive is not read on")

// tidy takes out of the changes what Skerry put there.
func (o ExportOptions) tidy(tree *unpack.Tree) error {
	for _, name := range skerryFiles {
		if err := tree.Remove(name); err != nil {
			return err
		}
	}
	names, err := tree.Names("etc")
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, partialPrefix) {
			if err := tree.Remove("etc/" + name); err != nil {
				return err
			}
		}
	}
	// Their directories' times changed with them.
	for _, dir := range []string{".", "etc", "run"} {
		info, err := os.Lstat(filepath.Join(o.Lower, dir))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
			continue
		}
		if err != nil {
			return err
		}
		if kind, err := tree.Look(dir); err != nil || kind != unpack.Directory {
			if err != nil {
				return err
			}
			continue
		}
		if err := tree.SetTime(dir, info.ModTime()); err != nil {
			return err
		}
	}
	kind, err := tree.Look("tmp")
	if err != nil {
		return err
	}
	if kind == unpack.Whiteout {
		if err := errors.Join(tree.Remove("tmp"), tree.Mkdir("tmp", 0o777|fs.ModeSticky)); err != nil {
			return err
		}
	}
	return keepTmp(tree)
}

// packMerged writes the image of layers, the uppermost first, merged by the
// kernel's overlay. The mount lives in a mount namespace of its own, that of a
// thread and of mkfs.erofs, and goes with them however they end.
func packMerged(ctx context.Context, layers []string, at, file string) error {
	if err := os.Mkdir(at, 0o700); err != nil {
		return err
	}
	return thread.Lose(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("a mount namespace: %w", err)
		}
		// What is mounted here is seen nowhere else.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return fmt.Errorf("a mount namespace: %w", err)
		}
		if err := unix.Mount("skerry", at, "overlay", mountFlags, "lowerdir="+strings.Join(layers, ":")); err != nil {
			return fmt.Errorf("overlay on %s: %w", at, err)
		}
		newest, err := newestOf(ctx, at)
		if err != nil {
			return err
		}
		return packErofs(ctx, at, file, newest)
	})
}

// newestOf is the time of the youngest file: the image is dated by it, and
// nothing is clamped.
func newestOf(ctx context.Context, root string) (time.Time, error) {
	newest := time.Unix(0, 0)
	err := walkTimes(root, func(_ string, m time.Time, _ bool) error {
		if m.After(newest) {
			newest = m
		}
		return ctx.Err()
	})
	return newest.Truncate(time.Second), err
}

// Hold mounts an image that is on this host for owner and returns its own tree,
// without the daemon. Release ends it.
func (c *Cache) Hold(ctx context.Context, digest artifact.Digest, owner string) (dir string, err error) {
	if _, err := c.Acquire(ctx, Image{Digest: digest}, Daemon{}, owner, transfer.Clients{}); err != nil {
		return "", err
	}
	return c.lower(digest), nil
}
