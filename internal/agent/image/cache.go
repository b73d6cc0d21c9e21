package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	defaultWarm = 4
	imageSuffix = ".erofs"
	imagesDir   = "images"
	guestsDir   = "guests"
	mountsDir   = "mounts"
	rootPrefix  = "root-"
)

// Config says where the cache lives and how much it may hold.
type Config struct {
	// Dir is the cache's directory, absolute, of this agent instance alone. Its
	// path holds no colon, comma, backslash or quote, which mean something in
	// the options of a mount.
	Dir string
	// GuestBinary is the guest daemon that sandboxes find at GuestPath.
	GuestBinary string
	// MaxBytes bounds the image files on disk; 0 is no bound. Images in use are
	// never removed for it.
	MaxBytes int64
	// WarmMounts is how many unused images stay mounted; 0 is 4, negative none.
	WarmMounts int
	Logger     *slog.Logger
}

// Image is what the control plane names.
type Image struct {
	Digest    artifact.Digest // of the whole file
	SizeBytes int64
	// From is where it is fetched when this host lacks it.
	From artifact.Source
}

// GuestPath is the guest daemon's path inside every root tree.
const GuestPath = "/.skerry/guest"

// entry is one image. Its owners and times are guarded by the Cache; what is on
// disk and mounted by its turn, which whoever changes it holds.
type entry struct {
	digest  artifact.Digest
	turn    chan struct{}
	owners  map[string]artifact.Digest // each has the tree with that daemon
	lastUse time.Time
	checked bool                     // the file had its digest since this process started
	mounted map[artifact.Digest]bool // trees, by daemon; guarded by the Cache
}

// owned tells whether somebody has the tree with a daemon. Called with Cache.mu
// held.
func (e *entry) owned(daemon artifact.Digest) bool {
	for _, d := range e.owners {
		if d == daemon {
			return true
		}
	}
	return false
}

// Cache hands out root trees. Safe for concurrent use.
type Cache struct {
	cfg   Config
	guest artifact.Digest

	mu      sync.Mutex
	entries map[artifact.Digest]*entry

	// layers is held from looking for a daemon's layer until it is mounted, and
	// while one that nothing is mounted on is removed. Taken before mu.
	layers sync.Mutex
	intact map[artifact.Digest]bool // daemons that had their digest since this process started
}

// New opens the cache and installs the guest daemon in it. Nothing is mounted
// before Recover or Acquire.
func New(cfg Config) (*Cache, error) {
	if !filepath.IsAbs(cfg.Dir) || strings.ContainsAny(cfg.Dir, `:,\"'`) {
		return nil, errs.Field("dir", "The image directory is an absolute path without colons, commas, backslashes and quotes.")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	switch {
	case cfg.WarmMounts == 0:
		cfg.WarmMounts = defaultWarm
	case cfg.WarmMounts < 0:
		cfg.WarmMounts = 0
	}
	// The guest's uid passes through the tree's directories, not through these.
	for _, d := range []string{"", imagesDir, guestsDir, mountsDir} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, d), 0o711); err != nil {
			return nil, err
		}
	}
	c := &Cache{cfg: cfg, entries: make(map[artifact.Digest]*entry), intact: make(map[artifact.Digest]bool)}
	if err := c.installCurrent(); err != nil {
		return nil, fmt.Errorf("installing the guest daemon: %w", err)
	}
	return c, nil
}

func (c *Cache) imagePath(d artifact.Digest) string {
	return filepath.Join(c.cfg.Dir, imagesDir, string(d)+imageSuffix)
}

func (c *Cache) mountDir(d artifact.Digest) string {
	return filepath.Join(c.cfg.Dir, mountsDir, string(d))
}

func (c *Cache) lower(d artifact.Digest) string { return filepath.Join(c.mountDir(d), "lower") }

func (c *Cache) root(d, daemon artifact.Digest) string {
	return filepath.Join(c.mountDir(d), rootPrefix+string(daemon))
}

// take waits for the turn of an image and returns it.
func (c *Cache) take(ctx context.Context, d artifact.Digest) (*entry, error) {
	c.mu.Lock()
	e := c.entryLocked(d)
	c.mu.Unlock()
	select {
	case e.turn <- struct{}{}:
		return e, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *Cache) entryLocked(d artifact.Digest) *entry {
	e := c.entries[d]
	if e == nil {
		e = &entry{
			digest: d, turn: make(chan struct{}, 1),
			owners: make(map[string]artifact.Digest), mounted: make(map[artifact.Digest]bool),
		}
		c.entries[d] = e
	}
	return e
}

func (e *entry) give() { <-e.turn }

// Tree is a root tree that somebody has.
type Tree struct {
	Dir    string
	Daemon artifact.Digest // the one in it
	// Layers are what it consists of: the directory with the daemon, and below it
	// the image's file.
	Layers [2]string
}

// Acquire returns the read-only root tree of img with a build of the daemon for
// owner, fetching, checking and mounting what is missing. Concurrent calls for one
// image share the work. Repeated for the same owner it returns the same tree and
// counts once; with another daemon the owner has that tree instead. Reasons:
// image_not_on_host, image_damaged, image_cache_full, guest_build_missing, and
// those of a download.
func (c *Cache) Acquire(ctx context.Context, img Image, daemon Daemon, owner string, clients transfer.Clients) (Tree, error) {
	if daemon.Digest == "" {
		daemon = Daemon{Digest: c.guest}
	}
	if err := errors.Join(img.Digest.Validate(), daemon.Digest.Validate()); err != nil {
		return Tree{}, err
	}
	if owner == "" {
		return Tree{}, errs.Field("owner", "An image needs an owner.")
	}
	e, err := c.take(ctx, img.Digest)
	if err != nil {
		return Tree{}, err
	}
	defer e.give()
	// Counted first, so that nobody makes room by removing it meanwhile.
	c.mu.Lock()
	before, held := e.owners[owner]
	e.owners[owner] = daemon.Digest
	e.lastUse = time.Now()
	c.mu.Unlock()
	if err := c.ready(ctx, e, img, daemon, clients); err != nil {
		c.mu.Lock()
		delete(e.owners, owner)
		if held {
			e.owners[owner] = before
		}
		c.mu.Unlock()
		return Tree{}, err
	}
	return Tree{
		Dir: c.root(img.Digest, daemon.Digest), Daemon: daemon.Digest,
		Layers: [2]string{c.guestLayer(daemon.Digest), c.imagePath(img.Digest)},
	}, nil
}

// ready brings the tree to be mounted. The turn is held.
func (c *Cache) ready(ctx context.Context, e *entry, img Image, daemon Daemon, clients transfer.Clients) error {
	c.mu.Lock()
	mounted := e.mounted[daemon.Digest]
	c.mu.Unlock()
	if mounted {
		return nil
	}
	if err := c.bring(ctx, e, img, clients, nil); err != nil {
		return err
	}
	c.layers.Lock()
	defer c.layers.Unlock()
	if err := c.layer(ctx, daemon); err != nil {
		return err
	}
	if err := c.mount(e.digest, daemon.Digest); err != nil {
		return fmt.Errorf("mounting image %s: %w", e.digest, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e.mounted[daemon.Digest] = true
	return nil
}

// Fetch brings the image to this host and mounts nothing. It succeeds at once on
// what is there.
func (c *Cache) Fetch(ctx context.Context, img Image, clients transfer.Clients, progress transfer.Progress) error {
	if err := img.Digest.Validate(); err != nil {
		return err
	}
	e, err := c.take(ctx, img.Digest)
	if err != nil {
		return err
	}
	defer e.give()
	c.mu.Lock()
	e.lastUse = time.Now()
	c.mu.Unlock()
	return c.bring(ctx, e, img, clients, progress)
}

// bring makes sure that the file is there and right. The turn is held.
func (c *Cache) bring(ctx context.Context, e *entry, img Image, clients transfer.Clients, progress transfer.Progress) error {
	if err := c.checkFile(ctx, e); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if img.From.URL == "" {
		return errs.NotFound("image_not_on_host", "The image is not on this host, and there is no address to fetch it from.")
	}
	if err := c.makeRoom(img.SizeBytes); err != nil {
		return err
	}
	want := transfer.Want{MediaType: artifact.MediaTypeErofs, Files: map[string]artifact.Digest{artifact.ImageFile: e.digest}}
	place := transfer.At(artifact.ImageFile, c.imagePath(e.digest))
	if err := transfer.Fetch(ctx, clients, img.From, want, place, transfer.Options{MaxBytes: img.SizeBytes, Progress: progress}); err != nil {
		return fmt.Errorf("fetching image %s: %w", e.digest, err)
	}
	e.checked = true
	return nil
}

// checkFile makes sure, once per process, that the file is what its name says.
// A damaged file that nobody uses is removed, to be fetched again; one in use is
// a refusal, for a sandbox must not start on something else. fs.ErrNotExist
// when there is no file. The turn is held.
func (c *Cache) checkFile(ctx context.Context, e *entry) error {
	path := c.imagePath(e.digest)
	if e.checked {
		_, err := os.Stat(path)
		return err
	}
	got, err := fileDigest(ctx, path)
	if err != nil {
		return err
	}
	if got == e.digest {
		e.checked = true
		return nil
	}
	c.cfg.Logger.Error("a cached image is damaged", "digest", e.digest, "found", got)
	if mounts, err := mountsBelow(c.mountDir(e.digest)); err != nil || len(mounts) > 0 {
		return errors.Join(err, errs.FailedPrecondition("image_damaged", "The image's file on this host does not match its digest while sandboxes run on it. End them, then start again."))
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return fs.ErrNotExist
}

// Import puts a file that is already on this machine into the cache, under its
// digest; it need not be fetched then.
func (c *Cache) Import(ctx context.Context, path string, digest artifact.Digest) error {
	if err := digest.Validate(); err != nil {
		return err
	}
	e, err := c.take(ctx, digest)
	if err != nil {
		return err
	}
	defer e.give()
	if err := c.checkFile(ctx, e); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := c.makeRoom(info.Size()); err != nil {
		return err
	}
	tmp := c.imagePath(digest) + ".import"
	if err := copyFile(path, tmp, 0o400); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	if got, err := fileDigest(ctx, tmp); err != nil || got != digest {
		return errors.Join(err, os.Remove(tmp), errs.Invalid("content_mismatch", "The file is not the image its digest names."))
	}
	if err := os.Rename(tmp, c.imagePath(digest)); err != nil {
		return err
	}
	e.checked = true
	return syncDir(filepath.Join(c.cfg.Dir, imagesDir))
}

// Has reports whether the image's file is on this host.
func (c *Cache) Has(digest artifact.Digest) bool {
	if digest.Validate() != nil {
		return false
	}
	_, err := os.Stat(c.imagePath(digest))
	return err == nil
}

func fileDigest(ctx context.Context, path string) (artifact.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return artifact.Digest(hex.EncodeToString(h.Sum(nil))), nil
		}
		if err := errors.Join(err, ctx.Err()); err != nil {
			return "", err
		}
	}
}

// copyFile copies and flushes; dst must not be of use before it returns nil.
func copyFile(src, dst string, mode fs.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(mode), out.Sync(), out.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
