package filesystem

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/guest/passwd"
)

const (
	// tempPrefix starts the name of what is not a whole file yet. It stands in
	// the directory of the final name, so that the rename is atomic.
	tempPrefix = ".skerry-partial-"
	copySize   = 256 << 10
)

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copySize); return &b }}

// stream copies with a lent buffer and nothing else in memory.
func stream(w io.Writer, r io.Reader) (int64, error) {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	// Plain interfaces: a ReadFrom or WriteTo would bring buffers of its own.
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, *buf)
}

// save replaces path by what fill writes, or leaves the old content whole. A
// link is followed: what it points to is replaced. An existing file keeps its
// permissions; a new one is 0644. The file belongs to u afterwards.
func save(path string, u passwd.User, metadata map[string]string, fill func(io.Writer) error) (err error) {
	path, perm, err := destination(path, u)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		tmp.Close()
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if err := fill(tmp); err != nil {
		return err
	}
	if err := writeMetadata(tmp.Name(), metadata); err != nil {
		return err
	}
	if err := give(tmp.Name(), u); err != nil {
		return err
	}
	if err := tmp.Chmod(perm); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// destination follows links to the path that is really written and makes its
// parents.
func destination(path string, u passwd.User) (string, fs.FileMode, error) {
	for range 40 {
		fi, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			_, err := makeDirs(filepath.Dir(path), u)
			return path, 0o644, err
		case err != nil:
			return "", 0, err
		case fi.IsDir():
			return "", 0, fail(kindInvalid, "path '%s' is a directory", path)
		case fi.Mode().IsRegular():
			return path, fi.Mode().Perm(), nil
		case fi.Mode()&os.ModeSymlink == 0:
			return "", 0, fail(kindInvalid, "path '%s' is not a regular file", path)
		}
		next, err := os.Readlink(path)
		if err != nil {
			return "", 0, err
		}
		if !filepath.IsAbs(next) {
			dir, err := filepath.EvalSymlinks(filepath.Dir(path))
			if err != nil {
				return "", 0, err
			}
			next = filepath.Join(dir, next)
		}
		path = filepath.Clean(next)
	}
	return "", 0, unix.ELOOP
}

func copyFile(from, to string) error {
	src, err := openRegular(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := stream(dst, src); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}

// openRegular opens a regular file and nothing else; it never blocks on a pipe
// and never wakes a device.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ENXIO) {
		return nil, fail(kindInvalid, "path '%s' is not a regular file", path)
	}
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
	case fi.IsDir():
		err = fail(kindInvalid, "path '%s' is a directory", path)
	case !fi.Mode().IsRegular():
		err = fail(kindInvalid, "path '%s' is not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
