package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netns"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/kernel/errs"
)

const defaultMaxSlots = 1024

// Config says what a Manager may use.
type Config struct {
	// Tag is the agent instance's own: exactly six lower-case hex digits.
	Tag string
	// CIDR is the IPv4 range the slots are cut from, a /30 each. The zero value
	// picks a /16 in 10.64.0.0/10 that no route of this machine touches and keeps
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

// ErrNoSlot is returned by Adopt and SetPolicy for a slot that does not exist
// or belongs to somebody else.
var ErrNoSlot = errors.New("network: no such slot of this owner")

// slot is one built place. Fields but open are guarded by the Manager.
type slot struct {
	index   int
	addr    addresses
	owner   engine.InstanceID // empty: free
	policy  Policy
	adopted bool
	leaving bool // on its way to the keeper, who destroys it
	dns     *forwarder
	open    atomic.Bool // the forwarder answers
}

// Manager owns the slots of one tag. Safe for concurrent use; calls about one
// instance are made one at a time.
type Manager struct {
	tag       tag
	max, want int
	log       *slog.Logger
	rules     *rules
	upstreams *upstreams
	uplinkMTU atomic.Int64

	stop    context.CancelFunc
	workers sync.WaitGroup
	wake    chan struct{} // for the keeper: something to build or to destroy

	mu      sync.Mutex
	closed  bool
	slots   map[int]*slot // owned, warm or being built
	owners  map[engine.InstanceID]*slot
	warm    []*slot // oldest first
	retired []*slot // released, still to be destroyed
	unused  []int   // indexes below next that hold nothing, oldest first
	next    int     // indexes from here on were never used
}

// New takes over what exists under cfg.Tag, puts the rules in force in one
// transaction and starts the forwarder. Guests that run are not disturbed:
// their policy is read back from the links.
func New(ctx context.Context, cfg Config) (*Manager, error) {
	t, err := parseTag(cfg.Tag)
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, err
	}
	cidr, err := chooseRange(t, cfg.CIDR, cfg.StateDir)
	if err != nil {
		return nil, err
	}
	up, err := newUpstreams(cfg.DNSUpstreams, cfg.ResolvConf)
	if err != nil {
		return nil, err
	}
	if cfg.MaxSlots <= 0 {
		cfg.MaxSlots = defaultMaxSlots
	}
	m := &Manager{
		tag: t, max: min(cfg.MaxSlots, capacity(cidr)), log: cfg.Logger, upstreams: up,
		rules: &rules{tag: t, cidr: cidr, denied: cfg.Denied},
		wake:  make(chan struct{}, 1),
		slots: make(map[int]*slot), owners: make(map[engine.InstanceID]*slot),
	}
	m.want = min(cfg.WarmSlots, m.max)
	if err := m.openUplinks(); err != nil {
		return nil, err
	}
	if err := m.takeOver(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	m.stop = stop
	m.workers.Add(2)
	go m.guard(run)
	go m.keep(run)
	m.poke()
	return m, nil
}

// takeOver reads the state of the tag back from the links and loads the rules.
func (m *Manager) takeOver(ctx context.Context) error {
	links, err := tagLinks(m.tag)
	if err != nil {
		return err
	}
	spaces, err := tagNamespaces(m.tag)
	if err != nil {
		return err
	}
	known := make(map[int]bool)
	for index, link := range links {
		s := &slot{index: index, addr: slotAddresses(m.rules.cidr, index)}
		owner, policy, owned := parseAlias(link.Attrs().Alias)
		if owned && !hasAddress(link, s.addr.gateway) {
			return errs.FailedPrecondition("network_range_changed",
				fmt.Sprintf("Running sandboxes use another network range than %s. End them before changing it.", m.rules.cidr))
		}
		whole := spaces[index] != "" && index < m.max && hasAddress(link, s.addr.gateway)
		if owned {
			s.owner, s.policy = engine.InstanceID(owner), policy
			m.owners[s.owner] = s
		} else if whole && link.Attrs().Alias == aliasFree {
			m.warm = append(m.warm, s)
		} else {
			continue
		}
		known[index] = true
		m.slots[index] = s
		m.next = max(m.next, index+1)
	}
	if err := m.rules.load(ctx, m.bindings()); err != nil {
		return err
	}
	for index := range m.slots {
		if err := m.serveDNS(m.slots[index]); err != nil {
			return err
		}
	}
	// Half-built and half-destroyed ones go the way of released slots.
	for index := range links {
		spaces[index] = m.tag.nsPath(index)
	}
	for index := range spaces {
		if !known[index] {
			m.retired = append(m.retired, &slot{index: index, addr: slotAddresses(m.rules.cidr, index), leaving: true})
			m.next = max(m.next, index+1)
		}
	}
	held := make(map[int]bool)
	for _, s := range m.retired {
		held[s.index] = true
	}
	for index := range m.next {
		if !known[index] && !held[index] {
			m.unused = append(m.unused, index)
		}
	}
	return nil
}

// bindings is what the rules must know. Called with and without rules locked,
// never with m.mu held.
func (m *Manager) bindings() []binding {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]binding, 0, len(m.slots))
	for _, s := range m.slots {
		if !s.leaving {
			out = append(out, m.binding(s))
		}
	}
	return out
}

func (m *Manager) binding(s *slot) binding {
	return binding{link: m.tag.link(s.index), addr: s.addr, internet: s.owner != "" && s.policy.Internet}
}

// Acquire gives owner a slot whose rules are in force. Repeated for the same
// owner it returns the same slot with the policy set anew.
func (m *Manager) Acquire(ctx context.Context, owner engine.InstanceID, p Policy) (Slot, error) {
	if owner == "" {
		return Slot{}, errs.Field("owner", "A slot needs an owner.")
	}
	s, found, err := m.claim(owner)
	if err != nil {
		return Slot{}, err
	}
	if found == toBuild {
		err = m.build(ctx, s)
	}
	if err == nil {
		err = m.apply(ctx, s, p)
	}
	if err != nil {
		// A slot somebody may be plugged into is never taken away by a failure.
		if found != owned {
			m.retire(s)
		}
		return Slot{}, err
	}
	m.poke()
	return m.describe(s), nil
}

// What claim found.
type found int

const (
	owned   found = iota // the owner's own slot
	warm                 // a free one
	toBuild              // a place to build one
)

// claim finds a slot in constant time: owner's own, a warm one, or an index
// that is still to be built.
func (m *Manager) claim(owner engine.InstanceID) (s *slot, how found, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, 0, errs.Unavailable("agent_closing", "The agent is shutting down. Try again.")
	}
	if s = m.owners[owner]; s != nil {
		s.adopted = true
		return s, owned, nil
	}
	how = toBuild
	if len(m.warm) > 0 {
		s, m.warm = m.warm[0], m.warm[1:]
		how = warm
	} else if s = m.reserve(); s == nil {
		return nil, 0, errs.Exhausted("network_slots_exhausted", "All network slots of this host are in use.").With("limit", m.max)
	}
	s.owner, s.policy, s.adopted = owner, Policy{}, true
	m.owners[owner] = s
	return s, how, nil
}

// reserve takes an index that holds nothing; nil when there is none. m.mu held.
func (m *Manager) reserve() *slot {
	var index int
	switch {
	case len(m.slots)+len(m.retired) >= m.max:
		return nil
	case len(m.unused) > 0:
		index, m.unused = m.unused[0], m.unused[1:]
	default:
		index = m.next
		m.next++
	}
	s := &slot{index: index, addr: slotAddresses(m.rules.cidr, index)}
	m.slots[index] = s
	return s
}

// build makes a reserved slot. On failure the caller retires it.
func (m *Manager) build(ctx context.Context, s *slot) error {
	if err := m.openUplinks(); err != nil {
		return err
	}
	if err := m.rules.put(ctx, binding{link: m.tag.link(s.index), addr: s.addr}, true, m.bindings); err != nil {
		return err
	}
	if err := m.buildLink(s.index); err != nil {
		return err
	}
	return m.serveDNS(s)
}

// apply puts owner and policy in force: first the state a crash is recovered
// from, then the rules, then the forwarder.
func (m *Manager) apply(ctx context.Context, s *slot, p Policy) error {
	m.mu.Lock()
	s.policy = p
	owner, b := s.owner, m.binding(s)
	m.mu.Unlock()
	if !p.Internet {
		s.open.Store(false)
	}
	if err := setAlias(b.link, ownedAlias(string(owner), p)); err != nil {
		return fmt.Errorf("marking %s as owned: %w", b.link, err)
	}
	if err := m.rules.put(ctx, b, true, m.bindings); err != nil {
		return err
	}
	s.open.Store(p.Internet)
	return nil
}

// Adopt claims the slot a running instance already holds, after a restart of
// the agent. ErrNoSlot when the slot is not owner's.
func (m *Manager) Adopt(_ context.Context, index int, owner engine.InstanceID) (Slot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.slots[index]
	if s == nil || s.leaving || owner == "" || s.owner != owner {
		return Slot{}, fmt.Errorf("%w: %d, %s", ErrNoSlot, index, owner)
	}
	s.adopted = true
	return m.describe(s), nil
}

// Rewire puts the guest's end of an owned slot back to how it was built. gVisor
// takes the addresses out of the namespace when it starts, so a second start in
// the same slot needs this first. Nothing may run in the slot: the host's kernel
// would answer in the guest's place.
func (m *Manager) Rewire(_ context.Context, index int, owner engine.InstanceID) error {
	m.mu.Lock()
	s := m.slots[index]
	known := s != nil && !s.leaving && owner != "" && s.owner == owner
	m.mu.Unlock()
	if !known {
		return fmt.Errorf("%w: %d, %s", ErrNoSlot, index, owner)
	}
	ns, err := netns.GetFromPath(m.tag.nsPath(index))
	if err != nil {
		return err
	}
	defer ns.Close()
	return wireGuest(ns, s.addr)
}

// SetPolicy changes what an owned slot may reach. Open connections that the new
// policy forbids are cut at their next packet.
func (m *Manager) SetPolicy(ctx context.Context, index int, p Policy) error {
	m.mu.Lock()
	s := m.slots[index]
	m.mu.Unlock()
	if s == nil || s.owner == "" {
		return fmt.Errorf("%w: %d", ErrNoSlot, index)
	}
	return m.apply(ctx, s, p)
}

// Release takes the slot back. The engine's process must be gone. Released or
// unknown slots succeed. The slot is destroyed and its place used again in the
// background; an agent that dies meanwhile goes on when it comes back.
func (m *Manager) Release(_ context.Context, index int) error {
	m.mu.Lock()
	s := m.slots[index]
	m.mu.Unlock()
	if s != nil && s.owner != "" {
		m.retire(s)
	}
	return nil
}

// retire hands a slot to the keeper, who destroys it. It cannot fail: what the
// kernel refuses the keeper repeats.
func (m *Manager) retire(s *slot) {
	m.mu.Lock()
	if s.leaving {
		m.mu.Unlock()
		return
	}
	s.leaving = true
	delete(m.owners, s.owner)
	m.mu.Unlock()
	s.open.Store(false)
	if err := setAlias(m.tag.link(s.index), aliasReleased); err != nil {
		m.log.Debug("released slot has no link to mark", "slot", s.index, "err", err)
	}
	m.mu.Lock()
	delete(m.slots, s.index)
	m.retired = append(m.retired, s)
	m.mu.Unlock()
	m.poke()
}

func (m *Manager) describe(s *slot) Slot {
	return Slot{Index: s.index, Net: engine.Network{
		NamespacePath: m.tag.nsPath(s.index), GuestAddr: s.addr.guest.String(),
		PrefixLen: slotBits, Gateway: s.addr.gateway.String(),
	}}
}

// Slots lists the owned slots, adopted or not.
func (m *Manager) Slots() []Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Info, 0, len(m.owners))
	for _, s := range m.owners {
		out = append(out, Info{Slot: m.describe(s), Owner: s.owner, Policy: s.policy, Adopted: s.adopted})
	}
	return out
}

// Usage is how many slots there are, by what they are for, and how many there
// may be.
type Usage struct{ Used, Warm, Max int }

// Usage counts the slots.
func (m *Manager) Usage() Usage {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Usage{Used: len(m.owners), Warm: len(m.warm), Max: m.max}
}
