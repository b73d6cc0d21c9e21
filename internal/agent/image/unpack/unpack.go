package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/kernel/errs"
)

// Format is how an archive says what it takes away from what lies below.
type Format int

// OCI removes what .wh. files name. Overlay keeps its removals, as the kernel's
// overlay wants them: a character device 0/0 hides a name, the attribute
// trusted.overlay.opaque what a directory had before.
const (
	OCI Format = iota
	Overlay
)

// Options bound a tree.
type Options struct {
	// MaxBytes bounds what the archives unpack to, all together and their headers
	// included; MaxEntries their entries. Both are required.
	MaxBytes   int64
	MaxEntries int
	// SizeSetting and EntriesSetting are what an operator sets to change them.
	SizeSetting, EntriesSetting string
	// Now is the latest time a file may have. What is younger, and directories no
	// archive describes, get Otherwise.
	Now, Otherwise time.Time
}

// Tree is a directory archives are applied to.
type Tree struct {
	opts    Options
	root    int // O_PATH
	rootIno uint64
	bytes   int64 // read of archives
	content int64 // of files, holes included
	entries int
	skipped int
	newest  int64 // seconds

	// times are the directories' own, by inode: whatever is made in one changes
	// its time on disk, so that they are set at the end.
	times map[uint64]int64
	// depths are how deep directories lie, by inode; the root's is 0.
	depths map[uint64]int
	seed   maphash.Seed
	// ours are the names the archive at hand has made: what it removes is only
	// what was there before.
	ours map[uint64]struct{}
	// touched are the directories it has put something into, by inode, and those
	// above them.
	touched map[uint64]struct{}

	parent place // of the last entry
	buf    []byte
}

// place is an open directory of the tree.
type place struct {
	path string
	fd   int
	ino  uint64
}

// Open begins with dir, which exists and is empty.
func Open(dir string, opts Options) (*Tree, error) {
	if opts.MaxBytes <= 0 || opts.MaxEntries <= 0 {
		return nil, errors.New("unpack: a tree needs its limits")
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	t := &Tree{
		opts: opts, root: fd, times: make(map[uint64]int64), depths: make(map[uint64]int), seed: maphash.MakeSeed(),
		parent: place{fd: -1}, buf: make([]byte, 1<<20),
	}
	t.newest = t.seconds(opts.Otherwise)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	t.rootIno = st.Ino
	return t, nil
}

// Close lets go of the directory, which stays.
func (t *Tree) Close() {
	t.leave()
	_ = unix.Close(t.root)
}

// Entries is how many were applied so far.
func (t *Tree) Entries() int { return t.entries }

// Bytes is what the archives so far had, headers included.
func (t *Tree) Bytes() int64 { return t.bytes }

// Skipped is how many devices were left out, because there are no such or this
// machine lets nobody make them.
func (t *Tree) Skipped() int { return t.skipped }

// Newest is the time of the youngest entry.
func (t *Tree) Newest() time.Time { return time.Unix(t.newest, 0).UTC() }

// Apply unpacks one archive over what is there. After an error the tree is good
// for nothing but removal.
func (t *Tree) Apply(ctx context.Context, archive io.Reader, format Format) error {
	t.ours, t.touched = make(map[uint64]struct{}), make(map[uint64]struct{})
	defer t.leave()
	bounded := &bound{r: archive, tree: t}
	for tr := tar.NewReader(bounded); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			// What follows the end mark is part of the archive's digest.
			_, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{bounded}, t.buf)
			return err
		}
		if err != nil {
			return damaged(err)
		}
		if err := t.count(); err != nil {
			return err
		}
		if err := t.entry(ctx, h, tr, format); err != nil {
			return explain(h.Name, err)
		}
	}
}

// count is of entries, and of directories that only their names tell of.
func (t *Tree) count() error {
	if t.entries++; t.entries <= t.opts.MaxEntries {
		return nil
	}
	return errs.New(errs.CodeTooLarge, "image_too_many_files", fmt.Sprintf(
		"The image has more than %d files and directories. Make it smaller, or raise %s on this host.", t.opts.MaxEntries, t.opts.EntriesSetting)).
		With("limit", t.opts.MaxEntries).With("setting", t.opts.EntriesSetting)
}

// bound counts what is read of an archive and ends at the limit.
type bound struct {
	r    io.Reader
	tree *Tree
}

func (b *bound) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.tree.bytes += int64(n); b.tree.bytes > b.tree.opts.MaxBytes {
		return 0, b.tree.tooLarge()
	}
	return n, err
}

func (t *Tree) tooLarge() error {
	return errs.New(errs.CodeTooLarge, "image_too_large", fmt.Sprintf(
		"The image unpacks to more than %d MB. Make it smaller, or raise %s on this host.", t.opts.MaxBytes>>20, t.opts.SizeSetting)).
		With("limit", t.opts.MaxBytes).With("setting", t.opts.SizeSetting)
}

// damaged blames the archive for what its reader says, where nobody else was.
func damaged(err error) error {
	var typed *errs.Error
	var sys unix.Errno
	if errors.As(err, &typed) || errors.As(err, &sys) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return errs.Invalid("archive_damaged", "A layer of the image is damaged or no tar archive.").Because(err)
}

// explain gives an error its entry, bounded: names are the archive's words.
func explain(name string, err error) error {
	var typed *errs.Error
	switch {
	case errors.As(err, &typed), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return errs.Exhausted("disk_full", "This host's disk is full. Make room on it, or use a smaller image.").Because(fmt.Errorf("%.200q: %w", name, err))
	case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF):
		return damaged(err)
	}
	return errs.Invalid("archive_refused", fmt.Sprintf("The image's file %.200q cannot be unpacked: %v.", name, err)).Because(err)
}

func refused(name, why string) error {
	return errs.Invalid("archive_refused", fmt.Sprintf("The image's file %.200q is refused: %s.", name, why))
}

// clean is a name as a path below the root, "." for the root itself.
func clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", refused(name, "its name has a zero byte")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", refused(name, "its name leads out of its directory")
		}
	}
	return path.Clean("./" + strings.TrimLeft(name, "/")), nil
}

// entry applies one entry.
func (t *Tree) entry(ctx context.Context, h *tar.Header, content io.Reader, format Format) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= 1<<32-1 || int64(h.Gid) >= 1<<32-1 {
		return refused(h.Name, "its owner is no number a file can have")
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return refused(h.Name, "the root is a directory")
		}
		return t.directory(place{fd: t.root, ino: t.rootIno}, ".", h, format)
	}
	base := path.Base(name)
	if whiteout, ok := strings.CutPrefix(base, ".wh."); ok && format == OCI {
		return t.whiteout(path.Dir(name), whiteout, h.Name)
	}
	dir, err := t.enter(path.Dir(name), true)
	if err != nil {
		return err
	}
	if err := t.touch(dir); err != nil {
		return err
	}
	defer t.mark(dir, base)
	switch h.Typeflag {
	case tar.TypeDir:
		return t.directory(dir, base, h, format)
	case tar.TypeLink:
		return t.link(dir, base, h)
	}
	if err := t.remove(dir.fd, base); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return t.file(ctx, dir, base, h, content)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, dir.fd, base); err != nil {
			return err
		}
		return t.finish(dir, base, h, false)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return t.node(dir, base, h, format)
	}
	return refused(h.Name, fmt.Sprintf("entries of type %q are unknown", h.Typeflag))
}

// seconds is a time as the tree keeps it.
func (t *Tree) seconds(at time.Time) int64 {
	if !t.opts.Now.IsZero() && at.After(t.opts.Now) {
		at = t.opts.Otherwise
	}
	return max(at.Unix(), 0)
}

func (t *Tree) mark(dir place, name string) { t.ours[t.key(dir.ino, name)] = struct{}{} }

// touch notes that the archive has something in dir.
func (t *Tree) touch(dir place) error {
	for fd, ino := dir.fd, dir.ino; ; {
		_, known := t.touched[ino]
		t.touched[ino] = struct{}{}
		var above unix.Stat_t
		var err error
		up := -1
		if !known && ino != t.rootIno {
			if up, err = unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
				err = unix.Fstat(up, &above)
			}
		}
		if fd != dir.fd {
			_ = unix.Close(fd)
		}
		if err != nil || up < 0 {
			return err
		}
		fd, ino = up, above.Ino
	}
}

func (t *Tree) isOurs(dir uint64, name string) bool {
	_, ok := t.ours[t.key(dir, name)]
	return ok
}

// key stands for a name in a directory; the map of whole names would be several
// times as large.
func (t *Tree) key(dir uint64, name string) uint64 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	maphash.WriteComparable(&h, dir)
	_, _ = h.WriteString(name)
	return h.Sum64()
}
