package recipe

import (
	"maps"
	"path"
	"strings"

	"skerry.dev/skerry/internal/kernel/errs"
)

// Base is what the steps begin with.
type Base struct {
	Env map[string]string
	// User is empty for root, Workdir for /.
	User, Workdir string
}

// Action is a step with everything decided: what runs, as whom, where.
type Action struct {
	Kind Kind
	Line int
	Text string
	// Env is of every command from here on; shared between actions, not to be
	// changed.
	Env     map[string]string
	User    string
	Workdir string // absolute; of Workdir the one it makes
	Command Command
	Copy    Files
}

// Command is what runs: a line for /bin/sh, or a program with its arguments.
type Command struct {
	Shell string
	Args  []string
}

// Files is what a COPY brings where.
type Files struct {
	// Sources are patterns relative to the context, without a leading slash.
	Sources []string
	// Dest is absolute and clean; IntoDir when it names a directory that sources
	// go into.
	Dest    string
	IntoDir bool
	// Chown is user[:group], names or numbers; empty is root.
	Chown string
}

// Plan is a recipe of which nothing is left to be decided.
type Plan struct {
	Actions []Action
	// End is what sandboxes of the template begin with.
	End Base
	// Start and Ready are nil for none.
	Start, Ready *Command
}

const maxPath = 4096

// Plan decides what the steps do when they begin with base.
func (r Recipe) Plan(base Base) (Plan, error) {
	env := maps.Clone(base.Env)
	if env == nil {
		env = map[string]string{}
	}
	user, dir := base.User, absolute("/", base.Workdir)
	if user == "" {
		user = "root"
	}
	var p Plan
	for _, s := range r.Steps {
		a := Action{Kind: s.Kind, Line: s.Line, Text: s.Text, Command: Command{Shell: s.Shell, Args: s.Args}}
		var err error
		switch s.Kind {
		case Env:
			env, err = s.set(env)
		case Workdir:
			var to string
			if to, err = s.one(env); err == nil {
				dir = absolute(dir, to)
			}
		case User:
			user, err = s.user(env)
		case Copy:
			a.Copy, err = s.files(env, dir)
		}
		if err != nil {
			return Plan{}, err
		}
		if len(dir) > maxPath {
			return Plan{}, fault(s.Line, "the directory's name is longer than %d bytes", maxPath)
		}
		a.Env, a.User, a.Workdir = env, user, dir
		p.Actions = append(p.Actions, a)
	}
	p.End = Base{Env: env, User: user, Workdir: dir}
	p.Start, p.Ready = command(r.Start), command(r.Ready)
	return p, nil
}

func command(s *Step) *Command {
	if s == nil {
		return nil
	}
	return &Command{Shell: s.Shell, Args: s.Args}
}

// absolute is a path as it is seen from a directory.
func absolute(dir, p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join("/", dir, p)
}

const (
	maxEnv      = 256
	maxEnvBytes = 128 << 10
)

// set is env with the step's variables; each sees those before the line alone.
func (s Step) set(env map[string]string) (map[string]string, error) {
	out := maps.Clone(env)
	for _, p := range s.Pairs {
		v, err := expand(s.Line, p.value, env, false)
		if err != nil {
			return nil, err
		}
		out[p.name] = v
	}
	total := 0
	for k, v := range out {
		total += len(k) + len(v)
	}
	if len(out) > maxEnv || total > maxEnvBytes {
		return nil, fault(s.Line, "the environment has more than %d variables or %d bytes", maxEnv, maxEnvBytes)
	}
	return out, nil
}

func (s Step) one(env map[string]string) (string, error) {
	v, err := expand(s.Line, s.Arg, env, false)
	if err == nil && v == "" {
		return "", fault(s.Line, "%s comes to nothing: a variable in it is not set", s.Kind)
	}
	return v, err
}

func (s Step) user(env map[string]string) (string, error) {
	v, err := s.one(env)
	switch {
	case err != nil:
		return "", err
	case strings.Contains(v, ":"):
		return "", fault(s.Line, "USER takes a user alone; its groups are those of /etc/group")
	case len(v) > 64 || strings.ContainsAny(v, " \t/"):
		return "", fault(s.Line, "%q is no name of a user", clip(v))
	}
	return v, nil
}

func (s Step) files(env map[string]string, dir string) (Files, error) {
	var f Files
	for _, w := range s.Sources {
		v, err := expand(s.Line, w, env, true)
		if err != nil {
			return f, err
		}
		if v == "" {
			return f, fault(s.Line, "a source of COPY comes to nothing: a variable in it is not set")
		}
		clean := strings.TrimPrefix(path.Clean("/"+v), "/")
		if outside(v) {
			return f, fault(s.Line, "%q lies outside the context; COPY takes files from inside it", clip(v))
		}
		if clean == "" {
			clean = "."
		}
		if _, err := path.Match(clean, ""); err != nil {
			return f, fault(s.Line, "%q is no pattern: a [ is not closed", clip(v))
		}
		f.Sources = append(f.Sources, clean)
	}
	dest, err := expand(s.Line, s.Dest, env, false)
	if err != nil {
		return f, err
	}
	if dest == "" {
		return f, fault(s.Line, "the destination of COPY comes to nothing: a variable in it is not set")
	}
	f.IntoDir = strings.HasSuffix(dest, "/") || dest == "." || strings.HasSuffix(dest, "/.")
	if f.Dest = absolute(dir, dest); len(f.Dest) > maxPath {
		return f, fault(s.Line, "the destination is longer than %d bytes", maxPath)
	}
	if len(f.Sources) > 1 && !f.IntoDir {
		return f, fault(s.Line, "with several sources the destination is a directory: write %s/", clip(dest))
	}
	if f.Chown, err = expand(s.Line, s.Chown, env, false); err != nil {
		return f, err
	}
	user, group, given := strings.Cut(f.Chown, ":")
	if s.Chown.text != "" && (user == "" || given && group == "" || strings.Contains(group, ":")) {
		return f, fault(s.Line, "write --chown=user or --chown=user:group")
	}
	return f, nil
}

// outside reports whether a path leaves where it begins.
func outside(p string) bool {
	clean := path.Clean(strings.TrimLeft(p, "/"))
	return clean == ".." || strings.HasPrefix(clean, "../")
}

// InvalidAt is the error of a line that shows only when the recipe is followed.
func InvalidAt(line int, format string, args ...any) *errs.Error {
	return fault(line, format, args...)
}
