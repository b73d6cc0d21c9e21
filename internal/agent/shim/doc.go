// Package shim is the small process that stands between the agent and the
// engine processes, one per agent data directory, so that sandboxes outlive
// the agent. It starts engine clients, becomes the parent of what they leave
// running (it is a child subreaper), writes down how each of these ended and
// drains their consoles. The agent comes and goes and talks to it over a unix
// socket.
//
// If the shim itself is killed the engine processes live on, as children of
// init. The next shim finds its list on disk and follows them by pidfd; of
// those it learns that they ended, and on Linux 6.15 and later also how.
//
// Nothing here knows what an engine or a sandbox is: a key is a name, a process
// is a pid with its start time.
package shim

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
)

// maxSocketPath is what fits into a unix socket address on Linux, less the
// closing zero byte.
const maxSocketPath = 107

// Config is shared by the shim and by those who start it.
type Config struct {
	// Dir holds the shim's lock, its exit log and its list of processes; made
	// with mode 0700.
	Dir string
	// Socket is where the shim listens; empty is Dir/shim.sock. At most 107
	// bytes.
	Socket string
	// MaxExits is how many exit records are kept; 0 is 4096.
	MaxExits int
	// Logger of the shim process; nil discards.
	Logger *slog.Logger

	// Command is the argument vector Ensure starts a shim with; it must end in
	// Main with an equal Dir and Socket.
	Command []string
	// Env is the environment of that process.
	Env []string
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" || !filepath.IsAbs(c.Dir) {
		return c, errors.New("shim: the directory must be an absolute path")
	}
	if c.Socket == "" {
		c.Socket = filepath.Join(c.Dir, "shim.sock")
	}
	if len(c.Socket) > maxSocketPath {
		return c, fmt.Errorf("shim: socket path %q has %d bytes, at most %d fit: choose a shorter one", c.Socket, len(c.Socket), maxSocketPath)
	}
	if c.MaxExits <= 0 {
		c.MaxExits = 4096
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}
