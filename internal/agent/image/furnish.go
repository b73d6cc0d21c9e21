package image

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"skerry.dev/skerry/internal/agent/image/unpack"
	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	passwdFile = "etc/passwd"
	groupFile  = "etc/group"
	// maxAccounts is what the guest daemon reads of these files.
	maxAccounts = 1 << 20
)

// furnish gives the tree what a sandbox needs and a container image may lack, and
// returns the account its commands run under.
func furnish(tree *unpack.Tree, user string) (account string, err error) {
	// Ours alone; the daemon lies over it.
	if err := tree.Remove(".skerry"); err != nil {
		return "", err
	}
	for _, d := range []struct {
		name string
		mode fs.FileMode
	}{
		{"etc", 0o755},
		{"proc", 0o755},
		{"sys", 0o755},
		{"dev", 0o755},
		{"run", 0o755},
		{"tmp", 0o777 | fs.ModeSticky},
		{"var", 0o755},
		{"var/tmp", 0o777 | fs.ModeSticky},
	} {
		// Through a link there may be no way.
		if above, err := tree.Look(path.Dir(d.name)); err != nil || above != unpack.Directory {
			if err != nil {
				return "", err
			}
			continue
		}
		if err := tree.Mkdir(d.name, d.mode); err != nil {
			return "", err
		}
	}
	if err := keepTmp(tree); err != nil {
		return "", err
	}
	passwd, err := readText(tree, passwdFile)
	if err != nil {
		return "", err
	}
	groups, err := readText(tree, groupFile)
	if err != nil {
		return "", err
	}
	account, added, err := accountOf(passwd, groups, user)
	if err != nil {
		return "", err
	}
	changed := passwd
	if !slices.ContainsFunc(parseAccounts(passwd), func(a unixAccount) bool { return a.name == "root" }) {
		changed = "root:x:0:0:root:/root:/bin/sh\n" + changed
	}
	if added != "" {
		changed = strings.TrimRight(changed, "\n") + "\n" + added + "\n"
	}
	if changed != passwd {
		if err := tree.WriteFile(passwdFile, []byte(changed), 0o644); err != nil {
			return "", err
		}
	}
	if groups == "" {
		return account, tree.WriteFile(groupFile, []byte("root:x:0:\n"), 0o644)
	}
	return account, nil
}

// keepTmp puts a file into /tmp: over an empty one a runtime puts a tmpfs, which
// counts as memory.
func keepTmp(tree *unpack.Tree) error {
	kind, err := tree.Look("tmp")
	if err != nil || kind != unpack.Directory {
		return err
	}
	if kind, err = tree.Look("tmp/.keep"); err != nil || kind == unpack.Other {
		return err
	}
	return tree.WriteFile("tmp/.keep", nil, 0o644)
}

func readText(tree *unpack.Tree, name string) (string, error) {
	b, err := tree.ReadFile(name, maxAccounts)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}

type unixAccount struct {
	name     string
	uid, gid uint64
	home     string
	shell    string
}

func parseAccounts(passwd string) []unixAccount {
	var out []unixAccount
	for line := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) != 7 || f[0] == "" {
			continue
		}
		uid, err1 := parseNumber(f[2])
		gid, err2 := parseNumber(f[3])
		if err1 == nil && err2 == nil {
			out = append(out, unixAccount{f[0], uid, gid, f[5], f[6]})
		}
	}
	return out
}

func parseNumber(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n == 1<<32-1 {
		err = strconv.ErrRange
	}
	return n, err
}

// accountOf finds the account for what an image says in USER: a name or a number,
// with a group or without. The guest daemon knows accounts by name only, so that
// numbers without one get an account, which is added.
func accountOf(passwd, groups, user string) (name, added string, err error) {
	if user == "" {
		return "root", "", nil
	}
	unknown := errs.FailedPrecondition("image_user_unknown", fmt.Sprintf(
		"The image runs as %.100q, which its accounts do not know. Add the user to the image, or set another one.", user))
	who, group, hasGroup := strings.Cut(user, ":")
	accounts := parseAccounts(passwd)
	var have unixAccount
	known := slices.IndexFunc(accounts, func(a unixAccount) bool { return a.name == who })
	uid, numErr := parseNumber(who)
	if known < 0 && numErr == nil {
		known = slices.IndexFunc(accounts, func(a unixAccount) bool { return a.uid == uid })
	}
	switch {
	case known >= 0:
		have = accounts[known]
	case numErr == nil:
		have = unixAccount{uid: uid, home: "/", shell: "/bin/sh"}
	default:
		return "", "", unknown
	}
	want := have
	if hasGroup {
		if want.gid, err = groupOf(groups, group); err != nil {
			return "", "", unknown
		}
	}
	if known >= 0 && have.gid == want.gid {
		return have.name, "", nil
	}
	if i := slices.IndexFunc(accounts, func(a unixAccount) bool { return a.uid == want.uid && a.gid == want.gid }); i >= 0 {
		return accounts[i].name, "", nil
	}
	name = fmt.Sprintf("u%d", want.uid)
	for slices.ContainsFunc(accounts, func(a unixAccount) bool { return a.name == name }) {
		name += fmt.Sprintf("g%d", want.gid)
	}
	return name, fmt.Sprintf("%s:x:%d:%d::%s:%s", name, want.uid, want.gid, want.home, want.shell), nil
}

func groupOf(groups, group string) (uint64, error) {
	for line := range strings.Lines(groups) {
		f := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(f) == 4 && f[0] == group {
			return parseNumber(f[2])
		}
	}
	return parseNumber(group)
}
