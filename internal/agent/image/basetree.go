package image

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
	newest, err := newestBefore(root, started)
	if err != nil {
		return time.Time{}, err
	}
	if err := settleShadow(filepath.Join(root, "etc/shadow"), newest); err != nil {
		return time.Time{}, err
	}
	return newest, settleTimes(root, started, newest)
}

// settleShadow gives all accounts one day of their last password change: that
// of the build differs from day to day, and none at all means "change it now",
// which would stop sudo.
func settleShadow(path string, day time.Time) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		fields := strings.Split(line, ":")
		if len(fields) > 2 {
			fields[2] = strconv.FormatInt(day.Unix()/(24*60*60), 10)
		}
		out.WriteString(strings.Join(fields, ":"))
	}
	return os.WriteFile(path, []byte(out.String()), 0o640) // the mode of the existing file stays
}

// newestBefore is the time of the newest file older than started, in whole
// seconds: the newest that came out of a package.
func newestBefore(root string, started time.Time) (time.Time, error) {
	newest := time.Unix(0, 0)
	err := walkTimes(root, func(_ string, m time.Time, isDir bool) error {
		if !isDir && m.Before(started.Truncate(time.Second)) && m.After(newest) {
			newest = m
		}
		return nil
	})
	return newest.Truncate(time.Second), err
}

// settleTimes gives all that is not older than started the one time.
func settleTimes(root string, started, at time.Time) error {
	ts := unix.NsecToTimespec(at.UnixNano())
	return walkTimes(root, func(path string, m time.Time, _ bool) error {
		if m.Before(started.Truncate(time.Second)) {
			return nil
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func walkTimes(root string, visit func(path string, m time.Time, isDir bool) error) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return visit(path, info.ModTime(), d.IsDir())
	})
}
