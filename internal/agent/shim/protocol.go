package shim

import (
	"errors"
	"time"
)

// protocolVersion grows when an older peer could misunderstand a newer one. An
// agent may be newer than the shim it finds running, so fields are only added.
const protocolVersion = 1

// maxMessage bounds one request or answer on the wire.
const maxMessage = 4 << 20

// MaxStdin is how many bytes Spawn can hand to a process: what a pipe holds, so
// that nobody has to stay around to feed it.
const MaxStdin = 60 << 10

// Errors that cross the socket.
var (
	// ErrBusy refuses a shutdown while processes live, or a second spawn under a
	// key that is being spawned.
	ErrBusy = errors.New("shim: processes are alive")
	// ErrGone is a process that does not exist (any more), or whose pid belongs
	// to another one now.
	ErrGone = errors.New("shim: no such process")
	// ErrInterrupted is a spawn whose outcome is unknown because the shim went
	// away under it. What it may have started must be cleaned up by its cgroup.
	ErrInterrupted = errors.New("shim: the shim went away during the call")
)

// Process is a process that cannot be mistaken for another one.
type Process struct {
	Key   string `json:"key"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // field 22 of /proc/<pid>/stat, clock ticks since boot
}

// Console is a bounded log of what a process writes to descriptors 1 and 2.
type Console struct {
	// FIFO is a path the shim makes a named pipe at. The process holds both ends
	// of it, so that a dead shim neither breaks its writes nor blocks them before
	// the pipe is full, and the next shim can go on draining.
	FIFO string `json:"fifo"`
	// Log is written and rotated once to Log+".1"; both together stay below
	// MaxBytes (0 is 2 MiB).
	Log      string `json:"log"`
	MaxBytes int64  `json:"max_bytes,omitempty"`
}

// Spawn starts a client process and waits for its end. When the client leaves
// a process running and says so in PIDFile, that one is watched from then on.
type Spawn struct {
	Key  string   `json:"key"`
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	// Stdin, at most MaxStdin bytes, is read from descriptor 0, then end of file.
	Stdin []byte `json:"stdin,omitempty"`
	// Console takes descriptors 1 and 2. Without one the tail of both is returned.
	Console *Console `json:"console,omitempty"`
	// PIDFile is read after the client has ended with status 0.
	PIDFile string `json:"pid_file,omitempty"`
	// Timeout ends the client; 0 is 60 s.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Spawned is how the client ended and what it left running.
type Spawned struct {
	Code     int     `json:"code"` // exit code, 128+n after signal n
	Output   string  `json:"output,omitempty"`
	Process  Process `json:"process,omitzero"`
	TimedOut bool    `json:"timed_out,omitempty"`
}

// Exit is one ended process.
type Exit struct {
	Seq int64 `json:"seq"`
	Process
	At time.Time `json:"at"`
	// Known is false when nobody could see how the process ended.
	Known  bool `json:"known"`
	Code   int  `json:"code"`   // exit code, -1 when unknown or ended by a signal
	Signal int  `json:"signal"` // the signal that ended it, else 0
}

// Info describes a running shim.
type Info struct {
	Protocol int   `json:"protocol"`
	PID      int   `json:"pid"`
	Watched  int   `json:"watched"`
	LastSeq  int64 `json:"last_seq"`
}

const (
	opInfo     = "info"
	opSpawn    = "spawn"
	opWatch    = "watch"
	opWait     = "wait"
	opSignal   = "signal"
	opEnd      = "end"
	opList     = "list"
	opExits    = "exits"
	opShutdown = "shutdown"
)

// request is one line on a connection of its own; its answer is one line.
type request struct {
	Op      string        `json:"op"`
	Spawn   *Spawn        `json:"spawn,omitempty"`
	Process Process       `json:"process,omitzero"`
	Console *Console      `json:"console,omitempty"`
	Signal  int           `json:"signal,omitempty"`
	Since   int64         `json:"since,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
	Force   bool          `json:"force,omitempty"`
}

type response struct {
	Error     string    `json:"error,omitempty"`
	Kind      string    `json:"kind,omitempty"` // busy, gone
	Info      *Info     `json:"info,omitempty"`
	Spawned   *Spawned  `json:"spawned,omitempty"`
	Exit      *Exit     `json:"exit,omitempty"`
	Exits     []Exit    `json:"exits,omitempty"`
	Processes []Process `json:"processes,omitempty"`
}

func failed(err error) response {
	r := response{Error: err.Error()}
	switch {
	case errors.Is(err, ErrBusy):
		r.Kind = "busy"
	case errors.Is(err, ErrGone):
		r.Kind = "gone"
	}
	return r
}

type remoteError struct {
	text string
	kind error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

func (r response) err() error {
	if r.Error == "" {
		return nil
	}
	e := &remoteError{text: r.Error}
	switch r.Kind {
	case "busy":
		e.kind = ErrBusy
	case "gone":
		e.kind = ErrGone
	}
	return e
}
