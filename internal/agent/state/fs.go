package state

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// FS is what a store changes its directory with. Tests put one in its place
// that fails, or that forgets what was never synced. Files are read, and by
// engines written, without it.
type FS interface {
	// Mkdir makes a directory of which the parent exists.
	Mkdir(path string) error
	// WriteFile makes a file; it is not synced.
	WriteFile(path string, data []byte) error
	// Sync returns when what the file or directory holds is on the disk.
	Sync(path string) error
	Rename(from, to string) error
	// Link gives a file that is never written to a second name, or makes a copy
	// of it where the disk cannot.
	Link(from, to string) error
	// Remove removes a tree and succeeds on nothing.
	Remove(path string) error
	// Truncate gives a file's space back, also when it is still open elsewhere.
	Truncate(path string) error
	// Free is how many bytes can be written below path.
	Free(path string) (int64, error)
}

// Disk is the machine's own file system.
type Disk struct{}

var _ FS = Disk{}

// Mkdir implements FS.
func (Disk) Mkdir(path string) error { return os.Mkdir(path, 0o700) }

// WriteFile implements FS.
func (Disk) WriteFile(path string, data []byte) error { return os.WriteFile(path, data, 0o600) }

// Sync implements FS.
func (Disk) Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Rename implements FS.
func (Disk) Rename(from, to string) error { return os.Rename(from, to) }

// Link implements FS.
func (Disk) Link(from, to string) error {
	err := os.Link(from, to)
	if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrExist) {
		return err
	}
	return copyTo(from, to) // another disk, or one that knows no links
}

// copyTo copies a file with its mode.
func copyTo(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(info.Mode().Perm()), out.Close())
}

// Remove implements FS.
func (Disk) Remove(path string) error { return os.RemoveAll(path) }

// Truncate implements FS.
func (Disk) Truncate(path string) error { return os.Truncate(path, 0) }

// Free implements FS.
func (Disk) Free(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", path, err)
	}
	return int64(st.Bavail) * st.Bsize, nil //nolint:gosec // no file system has 8 EiB
}

// empty truncates every file below dir. Processes that were born while an
// image was written may have inherited its files, and would keep the space.
func empty(fs FS, dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			_ = fs.Truncate(filepath.Join(dir, e.Name()))
		}
	}
}
