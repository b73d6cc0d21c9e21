// Package rawfile reads, writes and replaces small files by as few system calls
// as it takes. Each of them costs dearly in some guest kernels, package os makes
// twice as many, and all that is done here is done while somebody waits for his
// sandbox. The files lie where root inside may have put anything.
package rawfile

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Read returns the content of a regular file of at most limit bytes, which is
// not a link. It never waits, for a pipe in its place. What is not such a file
// is an error.
func Read(path string, limit int) ([]byte, error) {
	fd, err := open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > int64(limit) {
		return nil, &os.PathError{Op: "read", Path: path, Err: fs.ErrInvalid}
	}
	// One byte more than there should be: its absence is the end.
	buf := make([]byte, 0, int(st.Size)+1)
	for {
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		case n <= 0 || len(buf)+n < cap(buf): // it cannot be grown without being written to
			return buf[:len(buf)+max(n, 0)], nil
		}
		if buf = buf[:len(buf)+n]; len(buf) > limit {
			return nil, &os.PathError{Op: "read", Path: path, Err: fs.ErrInvalid}
		}
		buf = slices.Grow(buf, len(buf))
	}
}

// Replace puts a new file, readable by all, where path is: whoever looks sees the
// old content or the new. A link there is replaced, not followed. What the
// runtime mounted there is written to.
func Replace(path, content string) error {
	dir := filepath.Dir(path)
	for range 8 {
		temp := filepath.Join(dir, ".skerry-partial-"+strconv.FormatUint(rand.Uint64(), 36))
		err := write(temp, unix.O_EXCL|unix.O_NOFOLLOW, content)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err == nil {
			if err = unix.Rename(temp, path); err == nil {
				return nil
			}
		}
		_ = unix.Unlink(temp)
		if errors.Is(err, unix.EBUSY) {
			err = write(path, unix.O_TRUNC, content)
		}
		if err != nil {
			return &os.PathError{Op: "replace", Path: path, Err: err}
		}
		return nil
	}
	return &os.PathError{Op: "replace", Path: path, Err: fs.ErrExist}
}

// Remove removes a file; that there is none is no error.
func Remove(path string) error {
	if err := unix.Unlink(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

func write(path string, flags int, content string) error {
	fd, err := open(path, unix.O_WRONLY|unix.O_CREAT|flags, 0o644)
	if err != nil {
		return err
	}
	err = writeAll(fd, []byte(content))
	if closed := unix.Close(fd); err == nil {
		err = closed
	}
	return err
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func open(path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
