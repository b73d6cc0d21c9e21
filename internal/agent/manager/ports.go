package manager

import (
	"context"
	"net"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/guest/guestapi"
)

// Slot is a network slot an instance is plugged into.
type Slot struct {
	Index int
	Net   engine.Network
}

// OwnedSlot is a slot somebody holds.
type OwnedSlot struct {
	Index int
	Owner engine.InstanceID
}

// Networks hands out network slots.
type Networks interface {
	// Acquire returns a slot whose rules are in force. Repeated for the same
	// owner it returns the same slot.
	Acquire(ctx context.Context, owner engine.InstanceID, internet bool) (Slot, error)
	// Adopt claims the slot a running instance already holds.
	Adopt(ctx context.Context, index int, owner engine.InstanceID) (Slot, error)
	// Release takes a slot back and succeeds on a released one. The instance's
	// processes are gone.
	Release(ctx context.Context, index int) error
	// Slots lists the owned slots, adopted or not.
	Slots() []OwnedSlot
}

// Daemon names a build of the guest daemon.
type Daemon struct {
	Digest string // SHA-256 of the program, hex; empty is the one that this host ships
	// File has it, should the host not keep it; empty where nobody has it.
	File string
}

// Tree is a root tree.
type Tree struct {
	Dir    string
	Daemon string    // digest of the one in it
	Layers [2]string // what it consists of, the top one first
}

// Holding is what a living owner has: an image's tree with a daemon.
type Holding struct{ Image, Daemon string }

// Images hands out read-only root trees.
type Images interface {
	// Acquire fetches and mounts what is missing; it may take minutes. Repeated
	// for the same owner it counts once; with another daemon the owner has that
	// tree instead. Reason, where the daemon is not to be had: guest_build_missing.
	Acquire(ctx context.Context, img journal.Image, daemon Daemon, owner string) (Tree, error)
	// Release gives the tree back and succeeds on what is not held.
	Release(ctx context.Context, digest, owner string) error
	// DaemonFile is the program of a daemon that somebody holds a tree with, or that
	// this host ships. It is never written to.
	DaemonFile(daemon string) string
	// Recover is called once, with what each living owner holds, and unmounts what
	// nobody owns.
	Recover(ctx context.Context, owners map[string]Holding) error
}

// Guest is the agent's end of one sandbox's daemon.
type Guest interface {
	// Await returns when the daemon answers, or with ctx.
	Await(ctx context.Context) error
	// Init configures the daemon. It may be repeated. A new init secret in it is
	// used from then on.
	Init(ctx context.Context, in guestapi.Init) error
	// Run runs a program inside, without arguments, as the default user, and returns
	// at its end, whatever that is; also when there is no such program.
	Run(ctx context.Context, path string) error
	// Follow begins to forward the daemon's events until Close.
	Follow()
	// Idle is how long nothing has gone on inside; it costs the guest a request,
	// which is not activity.
	Idle(ctx context.Context) (time.Duration, error)
	// Ahead opens a connection to the daemon that the next Dial of its port takes,
	// or nobody for a moment.
	Ahead(ctx context.Context)
	// Dial opens a connection to a port inside, cut by Close.
	Dial(ctx context.Context, port int) (net.Conn, error)
	// Close cuts every open connection at once and waits for what Follow began.
	Close()
}

// GuestOptions are what a Guest is made from.
type GuestOptions struct {
	Dial       func(ctx context.Context, port int) (net.Conn, error)
	InitSecret string
	// AccessToken opens what the daemon's callers may see.
	AccessToken string
	// After is the last event already forwarded.
	After int64
	// OnEvent takes one event; an error makes the guest link try it again later.
	OnEvent func(guestapi.Event) error
}
