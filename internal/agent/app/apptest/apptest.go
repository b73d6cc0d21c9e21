// Package apptest is a simulated machine for agents: the fake engine's world
// with network slots and images that are only counted. Like the world, it
// outlives the agents that run on it.
package apptest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/fake"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/artifact/transfer"
)

// Machine is what one host really holds.
type Machine struct {
	World *fake.World

	mu     sync.Mutex
	slots  map[int]engine.InstanceID
	images map[string]string
}

// NewMachine returns an empty machine.
func NewMachine() *Machine {
	return &Machine{World: fake.NewWorld(), slots: map[int]engine.InstanceID{}, images: map[string]string{}}
}

// Options let an agent run on the machine.
func (m *Machine) Options() app.Options {
	return app.Options{
		Engines:  map[string]engine.Engine{"fake": fake.New(m.World)},
		Networks: Networks{m}, Images: Images{m},
	}
}

// Held counts what exists: instances, network slots, images in use.
func (m *Machine) Held() (instances, slots, images int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.World.Instances()), len(m.slots), len(m.images)
}

// Networks implements manager.Networks.
type Networks struct{ m *Machine }

// Acquire implements manager.Networks.
func (n Networks) Acquire(_ context.Context, owner engine.InstanceID, _ bool) (manager.Slot, error) {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	index := 0
	for i, o := range n.m.slots {
		if o == owner {
			return slot(i), nil
		}
	}
	for n.m.slots[index] != "" {
		index++
	}
	n.m.slots[index] = owner
	return slot(index), nil
}

func slot(index int) manager.Slot {
	return manager.Slot{Index: index, Net: engine.Network{GuestAddr: "10.0.0.2", PrefixLen: 30, Gateway: "10.0.0.1"}}
}

// Adopt implements manager.Networks.
func (n Networks) Adopt(_ context.Context, index int, owner engine.InstanceID) (manager.Slot, error) {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	if n.m.slots[index] != owner {
		return manager.Slot{}, errors.New("apptest: the slot is not the owner's")
	}
	return slot(index), nil
}

// Release implements manager.Networks.
func (n Networks) Release(_ context.Context, index int) error {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	delete(n.m.slots, index)
	return nil
}

// Slots implements manager.Networks.
func (n Networks) Slots() []manager.OwnedSlot {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	var out []manager.OwnedSlot
	for _, i := range slices.Sorted(maps.Keys(n.m.slots)) {
		out = append(out, manager.OwnedSlot{Index: i, Owner: n.m.slots[i]})
	}
	return out
}

// Images implements manager.Images.
type Images struct{ m *Machine }

// Acquire implements manager.Images.
func (i Images) Acquire(_ context.Context, img journal.Image, _ manager.Daemon, owner string) (manager.Tree, error) {
	i.m.mu.Lock()
	defer i.m.mu.Unlock()
	i.m.images[owner] = img.Digest
	return manager.Tree{Dir: "/"}, nil
}

// DaemonFile implements manager.Images: there are none.
func (Images) DaemonFile(string) string { return "" }

// Fetch implements carry.Images: every image is there.
func (Images) Fetch(context.Context, journal.Image, transfer.Progress) error { return nil }

// Release implements manager.Images.
func (i Images) Release(_ context.Context, _, owner string) error {
	i.m.mu.Lock()
	defer i.m.mu.Unlock()
	delete(i.m.images, owner)
	return nil
}

// Recover implements manager.Images.
func (i Images) Recover(_ context.Context, owners map[string]manager.Holding) error {
	i.m.mu.Lock()
	defer i.m.mu.Unlock()
	maps.DeleteFunc(i.m.images, func(owner, _ string) bool {
		_, known := owners[owner]
		return !known
	})
	return nil
}
