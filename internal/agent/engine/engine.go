// Package engine is the seam between the agent and what isolates: gVisor, a
// microVM, or the scriptable fake of the tests. An engine turns a prepared
// bundle of image, network slot and limits into one running instance; it knows
// nothing of sandboxes, teams or the control plane.
package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// InstanceID names one instance for its whole life: exactly 32 lower-case hex
// digits. The length is fixed because runsc matches ids by prefix. An instance
// id is never used twice.
type InstanceID string

// Handle is what an engine needs to find an instance again after the agent was
// restarted: versioned JSON, opaque to everybody else, kept in the journal.
type Handle json.RawMessage

// Resources bound an instance. What is given here is what the guest sees.
type Resources struct {
	CPUMillis    int // thousandths of a CPU
	MemoryBytes  int64
	DiskBytes    int64
	MaxProcesses int // the guest's limit; the host's fuse is set higher
}

// Network is the slot an instance is plugged into. It is ready, and its rules
// are in force, before Prepare is called.
type Network struct {
	NamespacePath string // network namespace with the guest's interface
	GuestAddr     string // "10.88.0.2", the guest's address
	PrefixLen     int
	Gateway       string // the slot's gateway; DNS answers there
}

// Spec is everything an instance is made from.
type Spec struct {
	ID InstanceID
	// RootDir is the read-only root tree, shared by all instances of a template.
	RootDir string
	// RootLayers are what RootDir consists of, the top one first, for engines that
	// cannot hand a directory to their guests: EROFS files, and small directories.
	RootLayers []string
	// WorkDir is a directory of this instance alone, empty at Prepare. All that
	// the engine writes for the instance lives below it.
	WorkDir   string
	Hostname  string
	Args      []string // PID 1 and its arguments, a path inside RootDir
	Env       []string
	Stdin     []byte // at most 60 KiB, read by PID 1 from descriptor 0, then end of file
	Resources Resources
	Network   Network
}

// Capabilities say what an engine offers on this machine.
type Capabilities struct {
	Name    string // "gvisor", "microvm", "fake"
	Version string // exact build; a checkpoint restores only on an equal one
	// Digest is the SHA-256 of the program, hex; empty where there is none.
	Digest string
	// Builds are others whose checkpoints can be restored here; see Builder.
	Builds  []Build
	Healthy bool
	Reasons []string // why it is not healthy, each with its remedy
	// Checkpoint tells whether Checkpoint, Restore work.
	Checkpoint bool
	// CPUFeatures of this machine as guests see them; see CheckpointInfo.Fits.
	CPUFeatures []string
}

// Exit is how an instance ended.
type Exit struct {
	// Reason is one of the Exit… constants.
	Reason string
	Code   int // PID 1's exit code where it is known, else -1
	At     time.Time
}

// Reasons of an exit.
const (
	ExitExited      = "exited"         // PID 1 ended by itself
	ExitKilled      = "killed"         // by a signal from outside
	ExitOutOfMemory = "out_of_memory"  // the kernel ended the instance at its memory limit
	ExitCrashed     = "engine_crashed" // the engine failed
	ExitHostRestart = "host_restarted" // the machine went down under it
	ExitUnknown     = "unknown"        // it is gone and nobody saw how
)

// Stats are live figures of one instance, the engine's own overhead included.
type Stats struct {
	CPUTime     time.Duration
	MemoryBytes int64
	DiskBytes   int64 // written by the instance, on the host
	Processes   int   // tasks on the host
}

// Found is one instance that really exists on the machine.
type Found struct {
	ID      InstanceID
	Running bool
}

// CheckpointOptions choose what Checkpoint keeps.
type CheckpointOptions struct {
	Dir          string // fresh, empty directory the image is written to
	LeaveRunning bool
	DiskOnly     bool
}

// Errors an engine returns, wrapped.
var (
	// ErrNotFound: there is no such instance.
	ErrNotFound = errors.New("engine: no such instance")
	// ErrUnsupported: this engine, or this machine, cannot do that.
	ErrUnsupported = errors.New("engine: not supported")
	// ErrNoBuild is an ErrUnsupported: the build that made the checkpoint is not
	// kept on this machine.
	ErrNoBuild = fmt.Errorf("%w: the build that made the checkpoint is not on this machine", ErrUnsupported)
	// ErrExited: the instance ended before or during the call.
	ErrExited = errors.New("engine: instance has exited")
)

// Engine isolates. All methods are safe for concurrent use, also for different
// instances at once; calls about one instance are made one at a time, but for
// Stats, Dial, Wait and Destroy, which may come at any moment.
//
// Order of life: Prepare, then Start or Restore, then any of Checkpoint,
// Freeze, Thaw, Resize, Stats, Dial; Stop ends the guest, Destroy removes every
// trace. After a crash of the agent, Recover is called with the last handle.
//
// The instance outlives the process that called Start: it is not a child of
// the agent and does not notice the agent's end.
type Engine interface {
	// Probe says what works here. It starts nothing that stays, and never fails:
	// what is wrong is in Reasons.
	Probe(ctx context.Context) Capabilities

	// Prepare does everything that can be done before the start and returns the
	// handle. A failure leaves nothing behind. Repeated for the same id it
	// starts over.
	Prepare(ctx context.Context, spec Spec) (Handle, error)

	// Start runs PID 1. When it returns nil the instance runs, limits and
	// network rules in force since its first instruction; whether anything
	// inside answers is for the caller to find out with Dial. Repeated for a
	// running instance it succeeds without effect; ErrExited for one that ended.
	// After a failure it may be tried again.
	Start(ctx context.Context, h Handle) (Handle, error)

	// Checkpoint writes the instance's state to opts.Dir, which is then described
	// by its CheckpointInfo; making the files safe on disk is the caller's. On
	// failure the instance keeps running as before and the directory is empty;
	// a full disk is a syscall.ENOSPC. With LeaveRunning false nothing runs in the
	// instance since the image was taken, and the caller ends it with Stop once
	// the image is safe, or lets it go on with Thaw. A caller who gives up (ctx) waits all the same until the
	// instance is as before; only Destroy does not wait.
	Checkpoint(ctx context.Context, h Handle, opts CheckpointOptions) error

	// Restore is Start from a checkpoint directory, which any number of restores
	// may read at once and which may be removed when it returns. A checkpoint
	// that is not whole by its sizes, or that does not fit (CheckpointInfo.Fits,
	// ErrUnsupported), is refused before anything is started, and the instance
	// may still be started or restored from another. Memory and CPU may differ
	// from the source's, the disk may not. Processes, memory and listening
	// sockets come back as they were, the wall clock is right; host name and
	// environment are still the source's; time has passed on every other clock.
	Restore(ctx context.Context, h Handle, dir string) (Handle, error)

	// Freeze stops all execution without freeing memory or using any CPU, Thaw
	// goes on, also after a Checkpoint. Both are idempotent. Freeze is for what
	// can be replaced: an engine may lose one in some hundred. See Holder for what
	// cannot.
	Freeze(ctx context.Context, h Handle) error
	Thaw(ctx context.Context, h Handle) error

	// Resize changes the limits of a running instance where the engine can
	// (ErrUnsupported where it cannot, the instance unchanged).
	Resize(ctx context.Context, h Handle, r Resources) error

	// Stop ends the guest at once and returns when its processes are gone, within
	// a few seconds whatever the guest does. Its traces stay until Destroy.
	Stop(ctx context.Context, h Handle) error

	// Destroy removes every trace of id: processes, mounts, cgroups, what the
	// engine wrote below WorkDir (the directory itself is the caller's). It
	// cancels a call about the instance that is in flight. It succeeds on nothing, on a half-prepared instance and when
	// repeated, and needs no handle so that orphans can be removed.
	Destroy(ctx context.Context, id InstanceID) error

	// Recover finds an instance again after the agent was restarted and returns
	// its current handle. ErrNotFound when nothing of it is left, ErrExited when
	// it is no longer running (Destroy is still owed). Bounded by ctx.
	Recover(ctx context.Context, h Handle) (Handle, error)

	// Inventory lists what really exists on this machine under this engine's own
	// state directory, known to the caller or not.
	Inventory(ctx context.Context) ([]Found, error)

	// Wait blocks until the instance has ended and says how. It returns at once
	// for an ended one, also after Destroy as long as the engine remembers it;
	// ctx's error when ctx ends first; ErrNotFound for one that never started.
	Wait(ctx context.Context, h Handle) (Exit, error)

	// Stats reads live figures; it costs no process start.
	Stats(ctx context.Context, h Handle) (Stats, error)

	// Dial opens a TCP connection to a port inside the instance. Never an
	// address: several instances may have the same one in namespaces of their
	// own. A port nobody listens on is an ordinary dial error, at once. The
	// connection fails when the instance ends, not by a time-out.
	Dial(ctx context.Context, h Handle, port int) (net.Conn, error)
}
