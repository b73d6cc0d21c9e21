// Package extract puts files into the sandbox that a build copies there: an
// archive comes in, and what is in it goes where it belongs, with its owners and
// permissions. It runs as root, inside, and follows links as any program does:
// the sandbox is the fence.
package extract

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// Command is the word by which the daemon's program does this instead of
// serving; its arguments are those of Parse.
const Command = "extract"

// Job is one archive.
type Job struct {
	// Dest is a directory, made with its parents when it is not there. With File
	// it is the name of the one file that comes, unless there is a directory of
	// that name: then the file goes into it.
	Dest string
	File bool
	// UID and GID own the directories that are made above.
	UID, GID int
}

// Parse reads arguments: destination, tree or file, user, group.
func Parse(args []string) (Job, error) {
	if len(args) != 4 || !filepath.IsAbs(args[0]) || args[1] != "tree" && args[1] != "file" {
		return Job{}, errors.New("usage: extract /destination tree|file uid gid")
	}
	uid, err := strconv.ParseUint(args[2], 10, 31)
	gid, gidErr := strconv.ParseUint(args[3], 10, 31)
	if err := errors.Join(err, gidErr); err != nil {
		return Job{}, err
	}
	return Job{Dest: filepath.Clean(args[0]), File: args[1] == "file", UID: int(uid), GID: int(gid)}, nil
}

// Args are what Parse reads.
func (j Job) Args() []string {
	kind := "tree"
	if j.File {
		kind = "file"
	}
	return []string{j.Dest, kind, strconv.Itoa(j.UID), strconv.Itoa(j.GID)}
}

// Run reads the archive to its end.
func (j Job) Run(from io.Reader) error {
	into := j.Dest
	if j.File {
		if fi, err := os.Stat(j.Dest); err != nil || !fi.IsDir() {
			into = ""
		}
	} else if err := j.parents(j.Dest); err != nil {
		return err
	}
	r := tar.NewReader(from)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the archive is broken: %w", err)
		}
		to := filepath.Join(into, filepath.Join("/", h.Name))
		if into == "" {
			to = j.Dest
		}
		if err := j.parents(filepath.Dir(to)); err != nil {
			return err
		}
		if err := put(to, h, r); err != nil {
			return err
		}
	}
}

// parents makes a directory and what is missing above it.
func (j Job) parents(dir string) error {
	switch fi, err := os.Stat(dir); {
	case err == nil && fi.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s is no directory", dir)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if dir != "/" {
		if err := j.parents(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, j.UID, j.GID))
}

// put makes one entry in place of what is there. A directory is merged with one
// that is there, and stands in nothing else's place.
func put(to string, h *tar.Header, content io.Reader) error {
	there, err := os.Lstat(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	exists := err == nil
	if exists && h.Typeflag == tar.TypeDir {
		if fi, err := os.Stat(to); err == nil && fi.IsDir() {
			return own(to, h)
		}
	}
	if exists {
		if there.IsDir() {
			return fmt.Errorf("%s is a directory: it is not replaced by a file", to)
		}
		if err := os.Remove(to); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		return own(to, h)
	case tar.TypeSymlink:
		if err := os.Symlink(h.Linkname, to); err != nil {
			return err
		}
		return os.Lchown(to, h.Uid, h.Gid)
	case tar.TypeReg:
		return write(to, h, content)
	}
	return fmt.Errorf("%s: what it is cannot be copied", to)
}

func write(to string, h *tar.Header, content io.Reader) error {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, content); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := own(to, h); err != nil {
		return err
	}
	return os.Chtimes(to, h.ModTime, h.ModTime)
}

// own gives an entry its owner, then its permissions: a change of owner takes
// some of them away.
func own(to string, h *tar.Header) error {
	if err := os.Chown(to, h.Uid, h.Gid); err != nil {
		return err
	}
	return syscall.Chmod(to, uint32(h.Mode)&0o7777)
}
