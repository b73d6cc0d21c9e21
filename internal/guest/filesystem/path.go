package filesystem

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/guest/passwd"
)

// kind classifies failures once for both the RPC and the HTTP side.
type kind int

const (
	kindInternal kind = iota
	kindInvalid
	kindUser
	kindNotFound
	kindExists
	kindFull
	kindTooMany
	kindDenied
)

// failure is an error with the words a client may see.
type failure struct {
	kind kind
	text string
}

func (f *failure) Error() string { return f.text }

func fail(k kind, format string, args ...any) error {
	return &failure{kind: k, text: fmt.Sprintf(format, args...)}
}

// classify turns an error of the operating system about path into a failure.
func classify(err error, path string) error {
	var known *failure
	var unknown *passwd.UnknownUserError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return known
	case errors.As(err, &unknown):
		return fail(kindUser, "%s", unknown.Error())
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return fail(kindFull, "not enough disk space left for '%s'", path)
	case errors.Is(err, fs.ErrNotExist):
		return fail(kindNotFound, "path '%s' does not exist", path)
	case errors.Is(err, unix.ENOTDIR):
		return fail(kindInvalid, "a part of '%s' is not a directory", path)
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EISDIR):
		return fail(kindInvalid, "'%s': %s", path, reason(err))
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ETXTBSY), errors.Is(err, unix.EBUSY):
		return fail(kindDenied, "'%s': %s", path, reason(err))
	default:
		return fail(kindInternal, "'%s': %s", path, reason(err))
	}
}

func reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// acting returns the account the caller acts as.
func (s *Service) acting(ctx context.Context) (passwd.User, error) {
	return s.account(passwd.Acting(ctx, ""))
}

func (s *Service) account(name string) (passwd.User, error) {
	if name == "" {
		name = s.opt.DefaultUser()
	}
	if name == "" {
		name = guestapi.DefaultUser
	}
	return s.opt.Accounts.Lookup(name)
}

// resolve makes a client's path absolute: relative to the home of u.
func resolve(u passwd.User, path string) (string, error) {
	if strings.Contains(path, "\x00") {
		return "", fail(kindInvalid, "the path contains a zero byte")
	}
	switch {
	case path == "~" || path == "":
		return u.Home, nil
	case strings.HasPrefix(path, "~/"):
		return filepath.Join(u.Home, path[2:]), nil
	case filepath.IsAbs(path):
		return filepath.Clean(path), nil
	default:
		return filepath.Join(u.Home, path), nil
	}
}

// makeDirs creates path and what is missing above it, each new directory 0755
// and owned by u. It reports whether path itself was created.
func makeDirs(path string, u passwd.User) (bool, error) {
	fi, err := os.Stat(path)
	switch {
	case err == nil && fi.IsDir():
		return false, nil
	case err == nil:
		return false, fail(kindInvalid, "path '%s' exists and is not a directory", path)
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	if parent := filepath.Dir(path); parent != path {
		if _, err := makeDirs(parent, u); err != nil {
			return false, err
		}
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) { // somebody was faster, or a dangling link
			if fi, statErr := os.Stat(path); statErr == nil && fi.IsDir() {
				return false, nil
			}
		}
		return false, err
	}
	if err := os.Chmod(path, 0o755); err != nil {
		return false, err
	}
	return true, give(path, u)
}

// give makes u the owner, where the daemon may.
func give(path string, u passwd.User) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(path, int(u.UID), int(u.GID))
}
