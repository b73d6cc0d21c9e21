package unpack

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// The following change single files of the tree, by the same rules as archives
// do: links are followed with the tree as their root, the last part of a path
// never is, but for reading.

// ReadFile reads a regular file of at most limit bytes, also through a link;
// fs.ErrNotExist for anything else.
func (t *Tree) ReadFile(name string, limit int64) ([]byte, error) {
	fd, err := t.open(name, unix.O_RDONLY|unix.O_NONBLOCK)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENXIO) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fs.ErrNotExist
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// WriteFile replaces what has the name by a file of root's, with the tree's
// common time.
func (t *Tree) WriteFile(name string, content []byte, mode fs.FileMode) error {
	dir, err := t.enter(path.Dir(path.Clean(name)), true)
	if err != nil {
		return err
	}
	base := path.Base(name)
	if err := t.remove(dir.fd, base); err != nil {
		return err
	}
	fd, err := unix.Openat(dir.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return setTime(dir.fd, base, t.seconds(t.opts.Otherwise))
}

// Mkdir makes a directory of root's where there is none. What else has the name,
// a link among it, stays.
func (t *Tree) Mkdir(name string, mode fs.FileMode) error {
	above, err := t.enter(path.Dir(path.Clean(name)), true)
	if err != nil {
		return err
	}
	base := path.Base(name)
	err = unix.Mkdirat(above.fd, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Fchmodat(above.fd, base, uint32(mode.Perm())|sticky(mode), 0)
}

func sticky(mode fs.FileMode) uint32 {
	if mode&fs.ModeSticky != 0 {
		return unix.S_ISVTX
	}
	return 0
}

// Remove takes a name away with all below it. It succeeds on nothing.
func (t *Tree) Remove(name string) error {
	dir, err := t.enter(path.Dir(path.Clean(name)), false)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return err
	}
	return t.remove(dir.fd, path.Base(name))
}

// Kind is what has a name, without following it.
type Kind int

// Kinds of what a tree has.
const (
	Nothing Kind = iota
	Directory
	Whiteout // of an overlay
	Other
)

// Look says what has the name.
func (t *Tree) Look(name string) (Kind, error) {
	fd, err := t.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return Nothing, nil
	}
	if err != nil {
		return Nothing, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Nothing, err
	}
	switch mode := st.Mode & unix.S_IFMT; {
	case mode == unix.S_IFDIR:
		return Directory, nil
	case mode == unix.S_IFCHR && st.Rdev == 0:
		return Whiteout, nil
	}
	return Other, nil
}

// Names lists a directory, of which there may be none.
func (t *Tree) Names(dir string) ([]string, error) {
	fd, err := t.open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d := os.NewFile(uintptr(fd), dir)
	defer d.Close()
	return d.Readdirnames(-1)
}

// SetTime gives a directory the time it will have after SettleTimes.
func (t *Tree) SetTime(dir string, at time.Time) error {
	fd, err := t.open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	t.times[st.Ino] = t.seconds(at)
	return nil
}
