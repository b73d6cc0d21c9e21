package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// paxXattr begins the records that hold extended attributes.
	paxXattr = "SCHILY.xattr."
	// opaque is the kernel's overlay's own.
	opaque = "trusted.overlay.opaque"
	// block is the unit of holes.
	block = 4096
)

// directory makes one, or gives one that is there the entry's owner, mode,
// attributes and time; what is in it stays.
func (t *Tree) directory(dir place, name string, h *tar.Header, format Format) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if err == nil {
			if err := t.remove(dir.fd, name); err != nil {
				return err
			}
		}
		if err := unix.Mkdirat(dir.fd, name, 0o700); err != nil {
			return err
		}
		if err := t.deepen(dir, name); err != nil {
			return err
		}
	}
	fd, err := unix.Openat(dir.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if err := t.own(fd, h); err != nil {
		return err
	}
	if err := dropXattrs(fd); err != nil {
		return err
	}
	if err := setXattrs(fd, h, format); err != nil {
		return err
	}
	t.times[st.Ino] = t.time(h)
	return nil
}

// time is the entry's, which counts for Newest.
func (t *Tree) time(h *tar.Header) int64 {
	at := t.seconds(h.ModTime)
	t.newest = max(t.newest, at)
	return at
}

// own gives an open file or directory the entry's owner, then its mode: the
// other way round the kernel takes set-user-id bits off again.
func (t *Tree) own(fd int, h *tar.Header) error {
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	return unix.Fchmod(fd, uint32(h.Mode)&0o7777) //nolint:gosec // twelve bits
}

// file writes a regular file. Blocks of zeros become holes.
func (t *Tree) file(ctx context.Context, dir place, name string, h *tar.Header, content io.Reader) error {
	// A sparse entry is larger than what the archive spends on it.
	if h.Size > t.opts.MaxBytes-t.content {
		return t.tooLarge()
	}
	t.content += h.Size
	fd, err := unix.Openat(dir.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := t.fill(ctx, f, content, h.Size); err != nil {
		return err
	}
	if err := t.own(fd, h); err != nil {
		return err
	}
	if err := setXattrs(fd, h, OCI); err != nil {
		return err
	}
	return t.finish(dir, name, h, true)
}

func (t *Tree) fill(ctx context.Context, f *os.File, content io.Reader, size int64) error {
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := t.buf[:min(int64(len(t.buf)), size-at)]
		if _, err := io.ReadFull(content, part); err != nil {
			return damaged(err)
		}
		if err := writeData(f, part, at); err != nil {
			return err
		}
		at += int64(len(part))
	}
	return f.Truncate(size)
}

// writeData writes the runs of blocks that are not all zeros.
func writeData(f *os.File, part []byte, at int64) error {
	for begin := 0; begin < len(part); {
		end := begin
		for end < len(part) && !isZero(part[end:min(end+block, len(part))]) {
			end += block
		}
		end = min(end, len(part))
		if end > begin {
			if _, err := f.WriteAt(part[begin:end], at+int64(begin)); err != nil {
				return err
			}
		}
		begin = max(end, begin+block)
	}
	return nil
}

// isZero compares b with itself, one byte on.
func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// link gives a file another name. The target is found in the tree as it is now:
// it may be of an earlier archive.
func (t *Tree) link(dir place, name string, h *tar.Header) error {
	target, err := clean(h.Linkname)
	if err != nil {
		return err
	}
	from, err := t.open(path.Dir(target), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("the file %.200q it links to: %w", h.Linkname, err)
	}
	defer unix.Close(from)
	var st, old unix.Stat_t
	if err := unix.Fstatat(from, path.Base(target), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("the file %.200q it links to: %w", h.Linkname, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return refused(h.Name, "it links to a directory")
	}
	if err := unix.Fstatat(dir.fd, name, &old, unix.AT_SYMLINK_NOFOLLOW); err == nil && old.Ino == st.Ino {
		return nil // to itself, or said twice
	}
	if err := t.remove(dir.fd, name); err != nil {
		return err
	}
	return unix.Linkat(from, path.Base(target), dir.fd, name, 0)
}

// node makes a device or a named pipe. It is of use only inside: the directory
// is closed to everybody, and images are mounted without devices.
func (t *Tree) node(dir place, name string, h *tar.Header, format Format) error {
	mode, dev := uint32(unix.S_IFIFO), 0
	if h.Typeflag != tar.TypeFifo {
		if h.Devmajor < 0 || h.Devmajor > 1<<12-1 || h.Devminor < 0 || h.Devminor > 1<<20-1 {
			return refused(h.Name, "there are no such device numbers")
		}
		mode = unix.S_IFBLK
		if h.Typeflag == tar.TypeChar {
			mode = unix.S_IFCHR
		}
		dev = int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))) //nolint:gosec // bounded above
	}
	// In a layer it would hide something; there is no such device.
	if whiteout := h.Typeflag == tar.TypeChar && dev == 0; whiteout && format == OCI {
		t.skipped++
		return nil
	}
	err := unix.Mknodat(dir.fd, name, mode|0o600, dev)
	if errors.Is(err, unix.EPERM) && format == OCI {
		t.skipped++
		return nil
	}
	if err != nil {
		return err
	}
	return t.finish(dir, name, h, false)
}

// finish gives what was made its owner, mode and time without following it;
// owned says that it has all but the time.
func (t *Tree) finish(dir place, name string, h *tar.Header, owned bool) error {
	if !owned {
		if err := unix.Fchownat(dir.fd, name, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if h.Typeflag != tar.TypeSymlink {
			if err := unix.Fchmodat(dir.fd, name, uint32(h.Mode)&0o7777, 0); err != nil { //nolint:gosec // twelve bits
				return err
			}
		}
	}
	return setTime(dir.fd, name, t.time(h))
}

func setTime(dir int, name string, at int64) error {
	ts := unix.NsecToTimespec(at * 1e9)
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// kept are the attributes that mean something inside. Those of the kernel's
// overlay in particular would change what a mounted image shows.
func kept(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

func setXattrs(fd int, h *tar.Header, format Format) error {
	for record, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(record, paxXattr)
		if !ok || !kept(name) && !(format == Overlay && name == opaque && value == "y") {
			continue
		}
		err := unix.Fsetxattr(fd, name, []byte(value), 0)
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOSPC) && len(value) > 1024, errors.Is(err, unix.E2BIG), errors.Is(err, unix.ERANGE):
			return refused(h.Name, fmt.Sprintf("its attribute %.100q has %d bytes, which is more than this host's file system keeps", name, len(value)))
		default:
			return fmt.Errorf("its attribute %.100q: %w", name, err)
		}
	}
	return nil
}

// dropXattrs takes away what an earlier archive gave a directory.
func dropXattrs(fd int) error {
	names := make([]byte, 64<<10)
	n, err := unix.Flistxattr(fd, names)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if kept(name) || name == opaque {
			if err := unix.Fremovexattr(fd, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// SettleTimes gives every directory its time. It comes last.
func (t *Tree) SettleTimes() error {
	t.leave()
	fd, err := unix.Openat(t.root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return t.settle(fd)
}

func (t *Tree) settle(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return err
	}
	at, ok := t.times[st.Ino]
	if !ok {
		at = t.seconds(t.opts.Otherwise)
	}
	d := os.NewFile(uintptr(fd), "dir")
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return err
	}
	dirs := slices.DeleteFunc(entries, func(e os.DirEntry) bool { return !e.IsDir() })
	for _, e := range dirs {
		sub, err := unix.Openat(fd, e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := t.settle(sub); err != nil {
			return err
		}
	}
	ts := unix.NsecToTimeval(at * 1e9)
	return unix.Futimes(fd, []unix.Timeval{ts, ts})
}
