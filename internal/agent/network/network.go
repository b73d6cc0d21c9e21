package network

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"skerry.dev/skerry/internal/agent/engine"
)

// Config says what a Manager may use.
type Config struct {
	// Tag is the agent instance's own: exactly six lower-case hex digits.
	Tag string
	// CIDR is the IPv4 range the slots are cut from, a /30 each. The zero value
	// picks a /16 in 10.0.0.0/8 that no route of this machine touches and keeps
	// it in StateDir.
	CIDR netip.Prefix
	// MaxSlots bounds the slots; 0 is 1024, never more than CIDR holds.
	MaxSlots int
	// WarmSlots is how many free slots are kept built.
	WarmSlots int
	// DNSUpstreams are resolvers, "10.0.0.2" or "10.0.0.2:5353". Empty: those of
	// ResolvConf, read again when it changes.
	DNSUpstreams []string
	// ResolvConf is the host's resolver file; empty is /etc/resolv.conf.
	ResolvConf string
	// Denied are destinations no sandbox may reach, besides the private and
	// reserved ranges that are always denied.
	Denied []netip.Prefix
	// StateDir holds the one small file kept.
	StateDir string
	Logger   *slog.Logger
}

// Policy is what a slot's guest may reach. The zero value reaches nothing.
type Policy struct {
	// Internet opens the public internet and the DNS forwarder. Private ranges,
	// the host and other slots stay closed.
	Internet bool
}

// Slot is a place an instance is plugged into.
type Slot struct {
	Index int
	Net   engine.Network
}

// Info describes an owned slot.
type Info struct {
	Slot
	Owner  engine.InstanceID
	Policy Policy
	// Adopted is false for an owner found at New and not yet claimed by Adopt:
	// a slot to be released once recovery is over.
	Adopted bool
}

// ErrNoSlot is returned by Adopt for a slot that does not exist or belongs to
// somebody else.
var ErrNoSlot = errors.New("network: no such slot of this owner")

var errNotYet = errors.New("network: not there yet")

// Manager owns the slots of one tag. Safe for concurrent use.
type Manager struct{}

// New takes over what exists under cfg.Tag, puts the rules in force in one
// transaction and starts the forwarder. Guests that run are not disturbed:
// their policy is read back from the links.
func New(ctx context.Context, cfg Config) (*Manager, error) { return nil, errNotYet }

// Acquire gives owner a slot whose rules are in force. Repeated for the same
// owner it returns the same slot with the policy set anew.
func (m *Manager) Acquire(ctx context.Context, owner engine.InstanceID, p Policy) (Slot, error) {
	return Slot{}, errNotYet
}

// Adopt claims the slot a running instance already holds, after a restart of
// the agent. ErrNoSlot when the slot is not owner's.
func (m *Manager) Adopt(ctx context.Context, index int, owner engine.InstanceID) (Slot, error) {
	return Slot{}, errNotYet
}

// SetPolicy changes what an owned slot may reach. Open connections that the new
// policy forbids are cut at their next packet.
func (m *Manager) SetPolicy(ctx context.Context, index int, p Policy) error { return errNotYet }

// Release takes the slot back. The engine's process must be gone. Released or
// unknown slots succeed. The slot is cut off when Release returns; it is
// cleaned and used again in the background.
func (m *Manager) Release(ctx context.Context, index int) error { return errNotYet }

// Slots lists the owned slots, adopted or not.
func (m *Manager) Slots() []Info { return nil }

// Leaks lists what carries the tag and belongs to no slot, and owned slots
// nobody has adopted.
func (m *Manager) Leaks(ctx context.Context) ([]string, error) { return nil, errNotYet }

// Close stops the forwarder and the goroutines. Slots stay as they are, for
// guests outlive the agent.
func (m *Manager) Close() error { return errNotYet }

// Purge closes the manager and removes everything of its tag.
func (m *Manager) Purge(ctx context.Context) error { return errNotYet }

// Purge removes everything made under tag on this machine: links, namespaces,
// the table. It needs no Manager and succeeds on nothing.
func Purge(ctx context.Context, tag string) error { return errNotYet }

// Blockers names rules of other firewalls on this machine that would stop
// traffic of sandboxes, each with its remedy; nil when there are none.
func Blockers(ctx context.Context) ([]string, error) { return nil, errNotYet }
