package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"skerry.dev/skerry/internal/guest/passwd"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// envMark names the variable by which a process that broke away from its
	// session is still known as part of its command.
	envMark = "SKERRY_EXEC_ID"
)

// environment merges the layers; a later one wins. The mark comes last and
// cannot be chosen by the caller.
func environment(u passwd.User, sandbox, command map[string]string, id string, tty bool) []string {
	env := map[string]string{
		"PATH": defaultPath, "HOME": u.Home, "USER": u.Name, "LOGNAME": u.Name, "E2B_SANDBOX": "true",
	}
	if tty {
		env["TERM"] = "xterm-256color"
	}
	for _, layer := range []map[string]string{sandbox, command} {
		for k, v := range layer {
			if k != "" && !strings.ContainsAny(k, "=\x00") && !strings.Contains(v, "\x00") {
				env[k] = v
			}
		}
	}
	env[envMark] = id
	list := make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list
}

// workdir resolves where a command starts and makes sure that it is there.
func workdir(u passwd.User, fallback, asked string) (string, error) {
	base := u.Home
	if fallback != "" {
		base = expand(u, u.Home, fallback)
	}
	dir := base
	if asked != "" {
		dir = expand(u, base, asked)
	}
	fi, err := os.Stat(dir)
	switch {
	case err == nil && fi.IsDir():
		return dir, nil
	case err == nil:
		return "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("cwd '%s' is not a directory", dir))
	case asked == "" && fallback == "" && errors.Is(err, fs.ErrNotExist):
		// An account without a home still runs commands, as a login would.
		return "/", nil
	default:
		return "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("cwd '%s' does not exist", dir))
	}
}

func expand(u passwd.User, base, p string) string {
	switch {
	case p == "~":
		return u.Home
	case strings.HasPrefix(p, "~/"):
		return filepath.Join(u.Home, p[2:])
	case filepath.IsAbs(p):
		return filepath.Clean(p)
	default:
		return filepath.Join(base, p)
	}
}

// lookup finds the program the way a shell of that environment would.
func lookup(cmd, dir string, env []string) (string, error) {
	if cmd == "" || strings.Contains(cmd, "\x00") {
		return "", connect.NewError(connect.CodeInvalidArgument, errors.New("cmd must name a program"))
	}
	if strings.Contains(cmd, "/") {
		if !filepath.IsAbs(cmd) {
			cmd = filepath.Join(dir, cmd)
		}
		return cmd, nil
	}
	var search string
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = v
		}
	}
	for _, p := range filepath.SplitList(search) {
		if !filepath.IsAbs(p) {
			p = filepath.Join(dir, p)
		}
		full := filepath.Join(p, cmd)
		if fi, err := os.Stat(full); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return full, nil
		}
	}
	return "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("error starting process '%s': executable file not found in $PATH", cmd))
}
