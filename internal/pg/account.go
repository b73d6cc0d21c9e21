package pg

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/kernel/errs"
)

// account is the system user a cluster runs as: our own, or an unprivileged
// one when we are root.
type account struct {
	name     string
	uid, gid uint32
	change   bool // we are root and become it
}

func accountFor(name string) (account, error) {
	if os.Geteuid() != 0 {
		return account{name: currentUser(), uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}, nil
	}
	if name == "" {
		name = "postgres"
	}
	found, err := user.Lookup(name)
	if err != nil {
		return account{}, errs.FailedPrecondition("postgres_user_missing", fmt.Sprintf(
			"PostgreSQL does not run as root and there is no system user %q. Install PostgreSQL's package, which makes it, or set DATABASE_URL.", name)).Because(err)
	}
	uid, errUID := strconv.ParseUint(found.Uid, 10, 32)
	gid, errGID := strconv.ParseUint(found.Gid, 10, 32)
	if errUID != nil || errGID != nil || uid == 0 {
		return account{}, errs.Invalid("invalid_postgres_user", fmt.Sprintf("%q is not an unprivileged user.", name))
	}
	return account{name: name, uid: uint32(uid), gid: uint32(gid), change: true}, nil
}

func currentUser() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Geteuid())
}

func (a account) attr() *syscall.SysProcAttr {
	if !a.change {
		return &syscall.SysProcAttr{}
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: []uint32{}}}
}

func (a account) own(path string) error {
	if !a.change {
		return nil
	}
	return os.Lchown(path, int(a.uid), int(a.gid))
}

// canReach reports whether the account may pass through every directory on the
// way to dir; those that do not exist yet are made passable.
func (a account) canReach(dir string) bool {
	if !a.change {
		return true
	}
	for path := dir; ; path = filepath.Dir(path) {
		if info, err := os.Stat(path); err == nil {
			st, ok := info.Sys().(*syscall.Stat_t)
			if !ok || !mayPass(st, a) {
				return false
			}
		}
		if path == "/" {
			return true
		}
	}
}

func mayPass(st *syscall.Stat_t, a account) bool {
	switch {
	case st.Uid == a.uid:
		return st.Mode&0o100 != 0
	case st.Gid == a.gid:
		return st.Mode&0o010 != 0
	default:
		return st.Mode&0o001 != 0
	}
}

// lockFile holds an exclusive lock until the returned function is called; it
// vanishes with the process.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		pause := time.NewTimer(20 * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			_ = file.Close()
			return nil, fmt.Errorf("another process is starting this cluster: %w", ctx.Err())
		}
	}
}
