package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// baseFiles are written into the tree, and those with empty content replace
// what the machine it was built on left there.
var baseFiles = []struct {
	path    string
	content string
	mode    fs.FileMode
}{
	{"etc/hostname", "sandbox\n", 0o644},
	{"etc/hosts", "127.0.0.1 localhost\n127.0.1.1 sandbox\n", 0o644},
	{"etc/resolv.conf", "", 0o644},
	{"etc/machine-id", "", 0o444},
	{"etc/default/locale", "LANG=C.UTF-8\n", 0o644},
	{"etc/environment", "LANG=C.UTF-8\n", 0o644},
	{"etc/sudoers.d/user", "user ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440},
	// A runtime puts a tmpfs, which counts as memory, over an empty /tmp.
	{"tmp/.keep", "", 0o644},
}

// baseLitter differs between two builds of the same packages and is of no use
// in a sandbox. Patterns as in filepath.Glob.
var baseLitter = []string{
	"var/lib/apt/lists/*", "var/cache/apt/*", "var/cache/debconf/*-old", "var/cache/ldconfig/*",
	"var/lib/dpkg/*-old", "var/log/*", "etc/*-", "etc/.pwd.lock", "etc/apt/apt.conf.d/99mmdebstrap",
	"var/lib/dbus/machine-id", "var/lib/systemd/*", "run/*", "tmp/*", "root/.[a-z]*history", "dev/*",
}

// shapeTree turns a fresh bootstrap into the base image's tree, identical for
// identical packages. Times are kept, for Python's compiled files name those of
// their sources; what was written during this build gets the time of the newest
// file that came out of a package. It returns that time.
func shapeTree(root string, started time.Time) (time.Time, error) {
	for _, pattern := range baseLitter {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return time.Time{}, err
		}
		for _, p := range found {
			if err := os.RemoveAll(p); err != nil {
				return time.Time{}, err
			}
		}
	}
	for _, f := range baseFiles {
		path := filepath.Join(root, f.path)
		// Removed first: a link there must not lead out of the tree.
		if err := os.RemoveAll(path); err != nil {
			return time.Time{}, err
		}
		if err := os.WriteFile(path, []byte(f.content), f.mode); err != nil {
			return time.Time{}, err
		}
		if err := os.Chmod(path, f.mode); err != nil {
			return time.Time{}, err
		}
	}
	return settleTimes(root, started)
}

// settleTimes gives all that is not older than started the newest older time.
func settleTimes(root string, started time.Time) (time.Time, error) {
	limit := started.Truncate(time.Second)
	newest := time.Unix(0, 0)
	var young []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch m := info.ModTime(); {
		case !m.Before(limit):
			young = append(young, path)
		case m.After(newest) && !d.IsDir():
			newest = m
		}
		return nil
	})
	if err != nil {
		return time.Time{}, err
	}
	newest = newest.Truncate(time.Second)
	ts := unix.NsecToTimespec(newest.UnixNano())
	var errList []error
	for _, path := range young {
		errList = append(errList, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return newest, errors.Join(errList...)
}
