package unpack

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// open opens a path with the tree as the root of every link in it.
func (t *Tree) open(name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat2(t.root, name, &unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC), //nolint:gosec // flags are not negative
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
		// The kernel gives up when something was renamed anywhere meanwhile.
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// enter returns a directory, and makes it with those above when asked to. It is
// kept open for the next entry, and belongs to the tree.
func (t *Tree) enter(name string, create bool) (place, error) {
	if t.parent.fd >= 0 && t.parent.path == name {
		return t.parent, nil
	}
	fd, err := t.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) && create {
		above, aerr := t.enter(path.Dir(name), true)
		if aerr != nil {
			return place{}, aerr
		}
		if err := t.implied(above, path.Base(name)); err != nil {
			return place{}, err
		}
		fd, err = t.open(name, unix.O_PATH|unix.O_DIRECTORY)
	}
	if err != nil {
		return place{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return place{}, err
	}
	t.leave()
	t.parent = place{path: name, fd: fd, ino: st.Ino}
	return t.parent, nil
}

// implied makes a directory that is in a path but not in the archive.
func (t *Tree) implied(above place, name string) error {
	if err := t.count(); err != nil {
		return err
	}
	if err := unix.Mkdirat(above.fd, name, 0o755); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%q above it is a link that leads nowhere", name)
		}
		return err
	}
	t.mark(above, name)
	if err := t.deepen(above, name); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(above.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	delete(t.times, st.Ino)
	// Not what the process's mask leaves of it.
	return unix.Fchmodat(above.fd, name, 0o755, 0)
}

// maxDepth is how many directories lie in one another. Whoever walks the tree has
// as many of them open, and links lead deeper than any name is long.
const maxDepth = 500

// deepen notes how deep a directory lies that was just made.
func (t *Tree) deepen(above place, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(above.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	depth := t.depths[above.ino] + 1
	if depth > maxDepth {
		return refused(name, fmt.Sprintf("it lies more than %d directories deep", maxDepth))
	}
	t.depths[st.Ino] = depth
	return nil
}

// moved says that paths may lead elsewhere by now. The open directory stays open
// for the entry at hand.
func (t *Tree) moved() { t.parent.path = "" }

// leave closes the open directory.
func (t *Tree) leave() {
	if t.parent.fd >= 0 {
		_ = unix.Close(t.parent.fd)
	}
	t.parent = place{fd: -1}
}

// whiteout removes what earlier archives put there: a name, or all in dir.
func (t *Tree) whiteout(dir, name, full string) error {
	if name == "" || name == "." || name == ".." {
		return refused(full, "it removes no name")
	}
	at, err := t.enter(dir, false)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil // nothing to remove
	}
	if err != nil {
		return err
	}
	switch {
	case name == ".wh..opq":
		fd, err := unix.Openat(at.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return t.removeOthers(fd, at.ino)
	case strings.HasPrefix(name, ".wh."):
		return nil // what aufs kept for itself
	}
	return t.removeOther(at.fd, at.ino, name)
}

// removeOther removes a name but for what this archive has made there.
func (t *Tree) removeOther(dir int, ino uint64, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	_, touched := t.touched[st.Ino]
	switch ours := t.isOurs(ino, name); {
	case !ours && (!isDir || !touched):
		return t.remove(dir, name)
	case !isDir:
		return nil
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return t.removeOthers(fd, st.Ino)
}

// removeOthers does so with all in a directory, and closes it.
func (t *Tree) removeOthers(fd int, ino uint64) error {
	return eachName(fd, func(name string) error { return t.removeOther(fd, ino, name) })
}

// remove removes a name and all below it; it succeeds on nothing.
func (t *Tree) remove(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil {
		t.moved() // it may have been a link
		return nil
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := eachName(fd, func(child string) error { return t.remove(fd, child) }); err != nil {
		return err
	}
	t.moved()
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// eachName calls f for all names in a directory and closes it. The names are
// read before anything changes.
func eachName(fd int, f func(name string) error) error {
	d := os.NewFile(uintptr(fd), "dir")
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := f(name); err != nil {
			return err
		}
	}
	return nil
}
