// Package sandboxtest is what tests of the sandbox room share: hosts whose
// agents keep their promises in memory, and rows to start from.
package sandboxtest

import (
	"context"
	"sync"
	"time"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Version of the engine that the hosts have.
const Version = "fake-1"

// Agents keep the contract of agent.v1 without any host: calls may be repeated,
// a destroy leaves a tombstone, an older incarnation is refused.
type Agents struct {
	mu    sync.Mutex
	hosts map[id.Host]*machine

	// Before is called at the beginning of each call, without a lock; its error
	// is the call's. After is called when the effect is done and the answer is
	// still out. Both may be nil; set them before the first call.
	Before, After func(ctx context.Context, call string, x id.Sandbox) error

	// stored is what the store has, by artifact; complete is told of each.
	stored   map[string]sandbox.Held
	complete func(ctx context.Context, a string) error
	// transfers counts what was really moved.
	transfers map[string]int
	stripped  bool // the store has no daemons either
}

type machine struct {
	instances map[id.Sandbox]*sandbox.Instance
	tombs     map[id.Sandbox]int64
	launches  map[id.Sandbox]sandbox.Launch
	states    map[id.Snapshot]sandbox.Held
	active    map[id.Sandbox]time.Time // zero: something goes on
	deadlines map[id.Sandbox]time.Time
	pauses    map[id.Sandbox]int
	version   string
	builds    map[string]bool      // others of its engine
	bare      map[id.Snapshot]bool // states without the daemon in their memory
}

// NewAgents has no instance on any host.
func NewAgents() *Agents {
	return &Agents{hosts: map[id.Host]*machine{}, stored: map[string]sandbox.Held{}, transfers: map[string]int{}}
}

func (a *Agents) machine(h id.Host) *machine {
	m := a.hosts[h]
	if m == nil {
		m = &machine{
			instances: map[id.Sandbox]*sandbox.Instance{}, tombs: map[id.Sandbox]int64{}, launches: map[id.Sandbox]sandbox.Launch{},
			states: map[id.Snapshot]sandbox.Held{}, active: map[id.Sandbox]time.Time{}, deadlines: map[id.Sandbox]time.Time{}, pauses: map[id.Sandbox]int{},
			version: Version, builds: map[string]bool{}, bare: map[id.Snapshot]bool{},
		}
		a.hosts[h] = m
	}
	return m
}

func hook(ctx context.Context, f func(context.Context, string, id.Sandbox) error, call string, x id.Sandbox) error {
	if f == nil {
		return ctx.Err()
	}
	return f(ctx, call, x)
}

// CreateSandbox implements sandbox.Agents.
func (a *Agents) CreateSandbox(ctx context.Context, h host.Ref, l sandbox.Launch) (sandbox.Launched, error) {
	x := l.Sandbox
	if err := hook(ctx, a.Before, "create", x.ID); err != nil {
		return sandbox.Launched{}, err
	}
	a.mu.Lock()
	m := a.machine(h.ID)
	if x.Incarnation <= m.tombs[x.ID] {
		a.mu.Unlock()
		return sandbox.Launched{}, errs.FailedPrecondition("stale_incarnation", "A newer command was seen.")
	}
	if err := m.start(l); err != nil {
		a.mu.Unlock()
		return sandbox.Launched{}, err
	}
	a.mu.Unlock()
	return sandbox.Launched{EngineVersion: m.version}, hook(ctx, a.After, "create", x.ID)
}

// start makes an instance, or lets a paused one go on.
func (m *machine) start(l sandbox.Launch) error {
	x := l.Sandbox
	in := m.instances[x.ID]
	switch {
	case in != nil && in.Phase == sandbox.PhaseRunning && in.Incarnation == x.Incarnation:
		return nil // done before
	case in != nil && in.Phase == sandbox.PhasePaused && in.Incarnation < x.Incarnation && l.State != nil:
		if *l.State != in.State {
			return errs.FailedPrecondition("not_its_state", "It is paused with another state.")
		}
	case in != nil:
		return errs.FailedPrecondition("not_paused", "It is "+string(in.Phase)+".")
	}
	var state id.Snapshot
	if l.State != nil {
		state = *l.State
		held, ok := m.states[state]
		switch {
		case !ok:
			return errs.NotFound("unknown_state", "There is no such state.")
		case held.Digest == Damaged:
			return errs.FailedPrecondition("state_damaged", "The saved state on this host is damaged and was not used.")
		case m.bare[state] && !l.DiskOnly:
			return errs.FailedPrecondition("guest_build_missing", "The daemon in the saved state is gone. Try again without memory.")
		case held.EngineVersion != m.version && !m.builds[held.EngineVersion]:
			return errs.FailedPrecondition("state_incompatible", "It was saved under another engine.")
		}
	}
	m.instances[x.ID] = &sandbox.Instance{Sandbox: x.ID, Incarnation: x.Incarnation, Phase: sandbox.PhaseRunning, State: state}
	m.launches[x.ID], m.active[x.ID], m.deadlines[x.ID] = l, time.Now(), l.Deadline
	return nil
}

// PauseSandbox implements sandbox.Agents.
func (a *Agents) PauseSandbox(ctx context.Context, h host.Ref, p sandbox.Pause) (sandbox.Saved, error) {
	return a.save(ctx, h, p, "pause", true)
}

// CheckpointSandbox implements sandbox.Agents.
func (a *Agents) CheckpointSandbox(ctx context.Context, h host.Ref, p sandbox.Pause) (sandbox.Saved, error) {
	return a.save(ctx, h, p, "checkpoint", false)
}

func (a *Agents) save(ctx context.Context, h host.Ref, p sandbox.Pause, call string, end bool) (sandbox.Saved, error) {
	if err := hook(ctx, a.Before, call, p.Sandbox); err != nil {
		return sandbox.Saved{}, err
	}
	a.mu.Lock()
	saved, err := a.machine(h.ID).save(p, end)
	a.mu.Unlock()
	if err != nil {
		return sandbox.Saved{}, err
	}
	return saved, hook(ctx, a.After, call, p.Sandbox)
}

func (m *machine) save(p sandbox.Pause, end bool) (sandbox.Saved, error) {
	in := m.instances[p.Sandbox]
	switch {
	case p.Incarnation <= m.tombs[p.Sandbox]:
		return sandbox.Saved{}, errs.FailedPrecondition("stale_incarnation", "A newer command was seen.")
	case in == nil || in.Incarnation != p.Incarnation:
		return sandbox.Saved{}, errs.NotFound("sandbox_not_found", "There is no such sandbox here.")
	case in.State == p.State && (in.Phase == sandbox.PhasePaused || !end):
		return m.states[p.State].Saved, nil // done before
	case in.Phase != sandbox.PhaseRunning:
		return sandbox.Saved{}, errs.FailedPrecondition("not_running", "It is "+string(in.Phase)+".")
	case p.IfIdleFor > 0 && m.idle(p.Sandbox) < p.IfIdleFor:
		return sandbox.Saved{}, errs.FailedPrecondition("not_idle", "Something goes on.")
	}
	held, ok := m.states[p.State]
	if !ok {
		held = sandbox.Held{ID: p.State, Sandbox: p.Sandbox, Saved: sandbox.Saved{EngineVersion: m.version, Memory: p.Memory, SizeBytes: 1 << 20, Digest: "d1" + p.State.String()}}
		m.states[p.State] = held
	}
	in.State = p.State
	if end {
		in.Phase = sandbox.PhasePaused
		m.pauses[p.Sandbox]++
	}
	return held.Saved, nil
}

func (m *machine) idle(x id.Sandbox) time.Duration {
	if m.active[x].IsZero() {
		return 0
	}
	return time.Since(m.active[x])
}

// DeleteState implements sandbox.Agents. What a paused one lives from is not
// given up.
func (a *Agents) DeleteState(ctx context.Context, h host.Ref, state id.Snapshot) error {
	if err := hook(ctx, a.Before, "delete_state", id.Sandbox{}); err != nil {
		return err
	}
	a.mu.Lock()
	m := a.machine(h.ID)
	for _, in := range m.instances {
		if in.Phase == sandbox.PhasePaused && in.State == state {
			a.mu.Unlock()
			return errs.FailedPrecondition("state_in_use", "A paused sandbox lives from it.")
		}
	}
	delete(m.states, state)
	a.mu.Unlock()
	return hook(ctx, a.After, "delete_state", id.Sandbox{})
}

// SetDeadlines implements sandbox.Agents.
func (a *Agents) SetDeadlines(ctx context.Context, h host.Ref, deadlines []sandbox.Deadline) error {
	if err := hook(ctx, a.Before, "deadlines", id.Sandbox{}); err != nil {
		return err
	}
	a.mu.Lock()
	m := a.machine(h.ID)
	for _, d := range deadlines {
		if in := m.instances[d.Sandbox]; in != nil && in.Incarnation == d.Incarnation {
			m.deadlines[d.Sandbox] = d.At
		}
	}
	a.mu.Unlock()
	return hook(ctx, a.After, "deadlines", id.Sandbox{})
}

// Stats implements sandbox.Agents.
func (a *Agents) Stats(ctx context.Context, h host.Ref, x id.Sandbox, incarnation int64) (sandbox.Stats, error) {
	if err := hook(ctx, a.Before, "stats", x); err != nil {
		return sandbox.Stats{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.machine(h.ID)
	if in := m.instances[x]; in == nil || in.Incarnation != incarnation || in.Phase != sandbox.PhaseRunning {
		return sandbox.Stats{}, errs.NotFound("sandbox_not_found", "There is no such sandbox here.")
	}
	return sandbox.Stats{CPUTime: time.Second, MemoryBytes: 1 << 20, DiskBytes: 2 << 20, Processes: 3, Idle: m.idle(x)}, nil
}

// Logs implements sandbox.Agents.
func (a *Agents) Logs(ctx context.Context, _ host.Ref, x id.Sandbox, _ int64) (sandbox.Logs, error) {
	return sandbox.Logs{Text: "console"}, hook(ctx, a.Before, "logs", x)
}

// DestroySandbox implements sandbox.Agents.
func (a *Agents) DestroySandbox(ctx context.Context, h host.Ref, x id.Sandbox, incarnation int64, _ string) error {
	if err := hook(ctx, a.Before, "destroy", x); err != nil {
		return err
	}
	a.mu.Lock()
	m := a.machine(h.ID)
	m.tombs[x] = max(m.tombs[x], incarnation)
	if in := m.instances[x]; in != nil && in.Incarnation <= incarnation {
		delete(m.instances, x)
	}
	a.mu.Unlock()
	return hook(ctx, a.After, "destroy", x)
}

// Inventory implements sandbox.Agents.
func (a *Agents) Inventory(ctx context.Context, h host.Ref) (sandbox.Inventory, error) {
	if err := hook(ctx, a.Before, "inventory", id.Sandbox{}); err != nil {
		return sandbox.Inventory{}, err
	}
	a.mu.Lock()
	out := sandbox.Inventory{Generation: 1}
	for _, in := range a.machine(h.ID).instances {
		out.Instances = append(out.Instances, *in)
	}
	for _, st := range a.machine(h.ID).states {
		out.States = append(out.States, st)
	}
	a.mu.Unlock()
	return out, hook(ctx, a.After, "inventory", id.Sandbox{})
}

// Forget implements sandbox.Agents.
func (a *Agents) Forget(host.Ref, id.Sandbox, int64) {}

// Exit has a sandbox's engine die by itself, where one runs, and says which
// incarnation that was; 0 for none.
func (a *Agents) Exit(x id.Sandbox, reason string) (incarnation int64) {
	a.change(x, func(m *machine) {
		if in := m.instances[x]; in.Phase == sandbox.PhaseRunning {
			in.Phase, in.EndReason = sandbox.PhaseExited, reason
			incarnation = in.Incarnation
		}
	})
	return incarnation
}

// Lose takes an instance away without a word.
func (a *Agents) Lose(x id.Sandbox) { a.change(x, func(m *machine) { delete(m.instances, x) }) }

// PauseAlone has the host pause a sandbox without being told.
func (a *Agents) PauseAlone(x id.Sandbox, reason string) id.Snapshot {
	state := id.NewSnapshot()
	a.change(x, func(m *machine) {
		in := m.instances[x]
		if in.Phase != sandbox.PhaseRunning {
			return
		}
		m.states[state] = sandbox.Held{ID: state, Sandbox: x, Saved: sandbox.Saved{EngineVersion: Version, Memory: true, SizeBytes: 1, Digest: "d2"}}
		in.Phase, in.State, in.PausedReason = sandbox.PhasePaused, state, reason
	})
	return state
}

// Busy has something go on in a sandbox from now on, or end now.
func (a *Agents) Busy(x id.Sandbox, busy bool) {
	a.change(x, func(m *machine) {
		m.active[x] = time.Now()
		if busy {
			m.active[x] = time.Time{}
		}
	})
}

// Phase is what the host holds of a sandbox; empty for nothing.
func (a *Agents) Phase(x id.Sandbox) (phase sandbox.Phase, incarnation int64) {
	a.change(x, func(m *machine) { phase, incarnation = m.instances[x].Phase, m.instances[x].Incarnation })
	return phase, incarnation
}

// Pauses is how often a sandbox was paused.
func (a *Agents) Pauses(x id.Sandbox) (n int) {
	a.change(x, func(m *machine) { n = m.pauses[x] })
	return n
}

// Deadline is what a sandbox's host was last told.
func (a *Agents) Deadline(x id.Sandbox) (at time.Time) {
	a.change(x, func(m *machine) { at = m.deadlines[x] })
	return at
}

// HasState reports whether any host has a state.
func (a *Agents) HasState(state id.Snapshot) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.hosts {
		if _, ok := m.states[state]; ok {
			return true
		}
	}
	return false
}

// States is how many states all hosts have.
func (a *Agents) States() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, m := range a.hosts {
		n += len(m.states)
	}
	return n
}

// Put makes an instance that nobody commanded.
func (a *Agents) Put(h id.Host, in sandbox.Instance) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.machine(h).instances[in.Sandbox] = &in
}

func (a *Agents) change(x id.Sandbox, do func(*machine)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.hosts {
		if m.instances[x] != nil {
			do(m)
		}
	}
}

// Has reports whether any instance of a sandbox exists.
func (a *Agents) Has(x id.Sandbox) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.hosts {
		if m.instances[x] != nil {
			return true
		}
	}
	return false
}

// Count is how many instances exist on all hosts.
func (a *Agents) Count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, m := range a.hosts {
		n += len(m.instances)
	}
	return n
}

// Launch is what a sandbox was started with.
func (a *Agents) Launch(x id.Sandbox) (sandbox.Launch, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.hosts {
		if l, ok := m.launches[x]; ok {
			return l, true
		}
	}
	return sandbox.Launch{}, false
}
