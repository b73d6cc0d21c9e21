// Package passwd reads the sandbox's account files. The files belong to the
// sandbox's users, so everything in them is hostile: the reader takes only
// regular files, at most maxFile bytes of them, and skips each line that does
// not make sense.
package passwd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	maxFile   = 1 << 20
	maxGroups = 1024
)

// User is one account with its supplementary groups.
type User struct {
	Name   string
	UID    uint32
	GID    uint32
	Home   string // absolute, clean
	Shell  string
	Groups []uint32
}

// UnknownUserError says that an account does not exist. Its text is part of
// the wire protocol.
type UnknownUserError struct{ Name string }

func (e *UnknownUserError) Error() string { return fmt.Sprintf("invalid username: '%s'", e.Name) }

// Database answers questions from a pair of account files and reads them again
// when they have changed. Safe for concurrent use.
type Database struct {
	passwdPath, groupPath string

	mu             sync.Mutex
	passwd, groups source
	users          []User
	members        []group
}

type group struct {
	name    string
	gid     uint32
	members []string
}

// source remembers which version of a file was parsed.
type source struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// New reads from the named files; empty names mean those in /etc.
func New(passwdPath, groupPath string) *Database {
	if passwdPath == "" {
		passwdPath = "/etc/passwd"
	}
	if groupPath == "" {
		groupPath = "/etc/group"
	}
	return &Database{passwdPath: passwdPath, groupPath: groupPath}
}

// Lookup returns the account of that name, or *UnknownUserError.
func (d *Database) Lookup(name string) (User, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.refresh(); err != nil {
		return User{}, err
	}
	for _, u := range d.users {
		if u.Name != name {
			continue
		}
		for _, g := range d.members {
			if g.gid == u.GID || len(u.Groups) >= maxGroups {
				continue
			}
			for _, m := range g.members {
				if m == name {
					u.Groups = append(u.Groups, g.gid)
					break
				}
			}
		}
		return u, nil
	}
	return User{}, &UnknownUserError{Name: name}
}

// Names returns the names of an owner and a group, or their numbers when the
// files do not know them.
func (d *Database) Names(uid, gid uint32) (user, grp string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	user, grp = strconv.FormatUint(uint64(uid), 10), strconv.FormatUint(uint64(gid), 10)
	if d.refresh() != nil {
		return user, grp
	}
	for _, u := range d.users {
		if u.UID == uid {
			user = u.Name
			break
		}
	}
	for _, g := range d.members {
		if g.gid == gid {
			grp = g.name
			break
		}
	}
	return user, grp
}

func (d *Database) refresh() error {
	data, err := load(d.passwdPath, &d.passwd)
	switch {
	case err != nil:
		return fmt.Errorf("reading the accounts: %w", err)
	case data != nil:
		d.users = parsePasswd(string(data))
	}
	data, err = load(d.groupPath, &d.groups)
	switch {
	case errors.Is(err, os.ErrNotExist):
		d.groups, d.members = source{}, nil
	case err != nil:
		return fmt.Errorf("reading the groups: %w", err)
	case data != nil:
		d.members = parseGroup(string(data))
	}
	return nil
}

// load returns the content of a file that is newer than seen, or nil when it
// is the same, which one system call tells. It never blocks on a pipe somebody
// put in the file's place.
func load(name string, seen *source) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if sourceOf(&st) == *seen {
		return nil, nil
	}
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Of the file that is read, which may be another by now.
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, err
	}
	*seen = sourceOf(&st)
	if data == nil {
		data = []byte{}
	}
	return data, nil
}

func sourceOf(st *unix.Stat_t) source {
	return source{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

func parsePasswd(text string) []User {
	var users []User
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) != 7 || !validName(f[0]) {
			continue
		}
		uid, err1 := parseID(f[2])
		gid, err2 := parseID(f[3])
		if err1 != nil || err2 != nil {
			continue
		}
		home := "/"
		if path.IsAbs(f[5]) && !strings.ContainsRune(f[5], 0) {
			home = path.Clean(f[5])
		}
		users = append(users, User{Name: f[0], UID: uid, GID: gid, Home: home, Shell: f[6]})
	}
	return users
}

func parseGroup(text string) []group {
	var groups []group
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) != 4 || !validName(f[0]) {
			continue
		}
		gid, err := parseID(f[2])
		if err != nil {
			continue
		}
		g := group{name: f[0], gid: gid}
		if f[3] != "" {
			g.members = strings.Split(f[3], ",")
		}
		groups = append(groups, g)
	}
	return groups
}

// parseID reads a plain decimal number. 2^32-1 is not an id: to the kernel it
// means "leave as it is", which would keep the daemon's own.
func parseID(s string) (uint32, error) {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, strconv.ErrSyntax
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, err
	}
	if n == 1<<32-1 {
		return 0, strconv.ErrRange
	}
	return uint32(n), nil
}

func validName(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f || s[i] == '/' {
			return false
		}
	}
	return true
}
