package unpack

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// PruneWhiteouts removes those that hide nothing of lower, the tree this layer
// comes over. An overlay merges only directories that both have, and shows
// whiteouts in all others as names that lead nowhere; sandboxes leave them
// wherever something was deleted.
func (t *Tree) PruneWhiteouts(lower string) error {
	t.leave()
	fd, err := unix.Openat(t.root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return prune(fd, lower)
}

// prune closes fd. An empty lower is none. Every directory on the way to lower
// was found to be one, no link.
func prune(fd int, lower string) error {
	d := os.NewFile(uintptr(fd), "dir")
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch {
		case e.Type()&fs.ModeCharDevice != 0 && lower == "":
			var st unix.Stat_t
			if err := unix.Fstatat(fd, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
			if st.Rdev == 0 {
				if err := unix.Unlinkat(fd, e.Name(), 0); err != nil {
					return err
				}
			}
		case e.IsDir():
			sub, err := unix.Openat(fd, e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			below, err := merged(sub, lower, e.Name())
			if err != nil {
				_ = unix.Close(sub)
				return err
			}
			if err := prune(sub, below); err != nil {
				return err
			}
		}
	}
	return nil
}

// merged is the directory an overlay merges with this one, or empty.
func merged(fd int, lower, name string) (string, error) {
	if lower == "" {
		return "", nil
	}
	if _, err := unix.Fgetxattr(fd, opaque, make([]byte, 1)); err == nil {
		return "", nil
	}
	below := filepath.Join(lower, name)
	info, err := os.Lstat(below)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return "", nil
	}
	return below, err
}
