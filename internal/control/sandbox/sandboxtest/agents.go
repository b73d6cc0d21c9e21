// Package sandboxtest is what tests of the sandbox room share: hosts whose
// agents keep their promises in memory, and rows to start from.
package sandboxtest

import (
	"context"
	"sync"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Agents keep the contract of agent.v1 without any host: calls may be repeated,
// a destroy leaves a tombstone, an older incarnation is refused.
type Agents struct {
	mu    sync.Mutex
	hosts map[id.Host]*machine

	// Before is called at the beginning of each call, without a lock; its error
	// is the call's. After is called when the effect is done and the answer is
	// still out. Both may be nil; set them before the first call.
	Before, After func(ctx context.Context, call string, x id.Sandbox) error
}

type machine struct {
	instances map[id.Sandbox]*sandbox.Instance
	tombs     map[id.Sandbox]int64
	launches  map[id.Sandbox]sandbox.Launch
}

// NewAgents has no instance on any host.
func NewAgents() *Agents { return &Agents{hosts: map[id.Host]*machine{}} }

func (a *Agents) machine(h id.Host) *machine {
	m := a.hosts[h]
	if m == nil {
		m = &machine{instances: map[id.Sandbox]*sandbox.Instance{}, tombs: map[id.Sandbox]int64{}, launches: map[id.Sandbox]sandbox.Launch{}}
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
	if m.instances[x.ID] == nil {
		m.instances[x.ID] = &sandbox.Instance{Sandbox: x.ID, Incarnation: x.Incarnation, Phase: sandbox.PhaseRunning}
		m.launches[x.ID] = l
	}
	a.mu.Unlock()
	return sandbox.Launched{EngineVersion: "fake-1"}, hook(ctx, a.After, "create", x.ID)
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
	a.mu.Unlock()
	return out, hook(ctx, a.After, "inventory", id.Sandbox{})
}

// Forget implements sandbox.Agents.
func (a *Agents) Forget(host.Ref, id.Sandbox, int64) {}

// Exit has a sandbox's engine die by itself.
func (a *Agents) Exit(x id.Sandbox, reason string) {
	a.change(x, func(m *machine) { m.instances[x].Phase, m.instances[x].EndReason = sandbox.PhaseExited, reason })
}

// Lose takes an instance away without a word.
func (a *Agents) Lose(x id.Sandbox) { a.change(x, func(m *machine) { delete(m.instances, x) }) }

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
