package sandboxio

import (
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	pb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Bounds of a command, in bytes unless the name says otherwise.
const (
	maxCommand = 128 << 10 // one string of a Linux command line
	maxArgs    = 4096      // how many
	maxPath    = 4096
	maxExecID  = 128
	maxTimeout = 100 * 24 * time.Hour // the wire has ten digits of milliseconds
	maxSide    = 1<<16 - 1            // columns or rows of a terminal
)

// Command is what is to run.
type Command struct {
	// Cmd is a program, or with nil Args a line for `/bin/bash -l -c`.
	Cmd  string
	Args []string
	Env  map[string]string
	Cwd  string // empty is the default working directory
	User string // empty is the default user
	// Timeout kills the command; 0 is never.
	Timeout time.Duration
}

// Size of a terminal, in characters.
type Size struct{ Cols, Rows uint32 }

// Seconds turns a timeout_sec of the API into a Timeout: more than zero, rounded
// up to a millisecond.
func Seconds(s float64) (time.Duration, error) {
	if math.IsNaN(s) || s <= 0 || s > maxTimeout.Seconds() {
		return 0, errs.Field("timeout_sec", fmt.Sprintf("timeout_sec must be more than 0 and at most %.0f; leave it out for no limit.", maxTimeout.Seconds()))
	}
	return time.Duration(math.Ceil(s*1000)) * time.Millisecond, nil
}

// check refuses what the guest or its kernel would silently drop or cut.
func (c Command) check() error {
	if c.Cmd == "" || len(c.Cmd) >= maxCommand || !sendable(c.Cmd) {
		return errs.Field("cmd", fmt.Sprintf("cmd must be 1 to %d bytes of UTF-8 without a zero byte.", maxCommand-1))
	}
	if len(c.Args) > maxArgs {
		return errs.Field("args", fmt.Sprintf("args may have %d items at most.", maxArgs))
	}
	for _, a := range c.Args {
		if len(a) >= maxCommand || !sendable(a) {
			return errs.Field("args", fmt.Sprintf("Each of args must be at most %d bytes of UTF-8 without a zero byte.", maxCommand-1))
		}
	}
	for k, v := range c.Env {
		if k == "" || strings.Contains(k, "=") || !sendable(k) || !sendable(v) || len(k)+len(v) >= maxCommand {
			return errs.Field("env", fmt.Sprintf("Names in env must not be empty nor contain '='; names and values are UTF-8 without a zero byte, together below %d bytes.", maxCommand))
		}
	}
	if len(c.Cwd) > maxPath || !sendable(c.Cwd) {
		return errs.Invalid("invalid_cwd", fmt.Sprintf("cwd must be at most %d bytes of UTF-8 without a zero byte.", maxPath)).With("field", "cwd")
	}
	if c.Timeout < 0 || c.Timeout > maxTimeout {
		return errs.Field("timeout_sec", "timeout_sec is out of range.")
	}
	return nil
}

func (c Command) config() *pb.ProcessConfig {
	cfg := &pb.ProcessConfig{Cmd: c.Cmd, Args: c.Args, Envs: c.Env}
	if c.Args == nil {
		cfg.Cmd, cfg.Args = "/bin/bash", []string{"-l", "-c", c.Cmd}
	}
	if c.Cwd != "" {
		cfg.Cwd = &c.Cwd
	}
	return cfg
}

func (s Size) check() error {
	if s.Cols < 1 || s.Rows < 1 || s.Cols > maxSide || s.Rows > maxSide {
		return errs.Field("tty", fmt.Sprintf("A terminal has 1 to %d columns and rows.", maxSide))
	}
	return nil
}

func (s Size) pty() *pb.PTY {
	return &pb.PTY{Size: &pb.PTY_Size{Cols: s.Cols, Rows: s.Rows}}
}

// sendable reports whether s can be part of a request and of an execve.
func sendable(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

func checkExecID(s string) error {
	ok := s != "" && len(s) <= maxExecID
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-'
	}
	if !ok {
		return errs.Field("attach", "attach must be the exec_id of a start message.")
	}
	return nil
}
