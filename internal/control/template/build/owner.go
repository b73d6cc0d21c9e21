package build

import (
	"context"
	"strconv"
	"strings"

	"skerry.dev/skerry/internal/control/template/recipe"
	"skerry.dev/skerry/internal/kernel/errs"
)

// maxAccounts bounds what is read of the image's account files, in bytes.
const maxAccounts = 1 << 20

// accounts are the lines of an account file, each split at its colons. The file
// is the image's: what makes no sense is not looked at.
func (j *job) accounts(ctx context.Context, file string) ([][]string, error) {
	raw, err := j.d.Guests.Read(ctx, j.b.TeamID, j.box.ID, file, maxAccounts)
	if errs.CodeOf(err) == errs.CodeNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out [][]string
	for line := range strings.Lines(string(raw)) {
		if fields := strings.Split(strings.TrimSpace(line), ":"); len(fields) >= 3 && fields[0] != "" {
			out = append(out, fields)
		}
	}
	return out, nil
}

// number reads an id; false for a name.
func number(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err == nil
}

// owner finds the numbers of user[:group] in the image. The group of a user
// alone is the user's own.
func (j *job) owner(ctx context.Context, line int, s string) (uid, gid int, err error) {
	user, group, grouped := strings.Cut(s, ":")
	users, err := j.accounts(ctx, "/etc/passwd")
	if err != nil {
		return 0, 0, err
	}
	uid, numeric := number(user)
	gid = uid
	found := numeric
	for _, f := range users {
		if n, ok := number(f[2]); ok && (f[0] == user || numeric && n == uid) {
			uid, found = n, true
			if len(f) > 3 {
				gid, _ = number(f[3])
			}
			break
		}
	}
	if !found {
		return 0, 0, recipe.InvalidAt(line, "the image has no user %q; add it by RUN useradd, or give a number", clip(user))
	}
	if !grouped {
		return uid, gid, nil
	}
	if n, ok := number(group); ok {
		return uid, n, nil
	}
	groups, err := j.accounts(ctx, "/etc/group")
	if err != nil {
		return 0, 0, err
	}
	for _, f := range groups {
		if n, ok := number(f[2]); ok && f[0] == group {
			return uid, n, nil
		}
	}
	return 0, 0, recipe.InvalidAt(line, "the image has no group %q; add it by RUN groupadd, or give a number", clip(group))
}

// userOf finds the name of a user that may be given by a number, as images do,
// with a group that does not count.
func (j *job) userOf(ctx context.Context, line int, s string) (string, error) {
	user, _, _ := strings.Cut(s, ":")
	if user == "" || user == root || user == "0" {
		return root, nil
	}
	users, err := j.accounts(ctx, "/etc/passwd")
	if err != nil {
		return "", err
	}
	for _, f := range users {
		if f[0] == user {
			return user, nil
		}
	}
	n, numeric := number(user)
	for _, f := range users {
		if uid, ok := number(f[2]); ok && numeric && uid == n {
			return f[0], nil
		}
	}
	return "", recipe.InvalidAt(line, "the image has no user %q; add it by RUN useradd", clip(user))
}
