// Package fake is a scriptable engine without any isolation: instances are
// records in memory, their guests HTTP handlers. The World holds all of it and
// outlives engine objects, as sandboxes outlive the agent; tests make a new
// Engine on the same World to play a restart of the agent.
package fake

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
)

// Methods faults can be scripted for and steps are counted of.
const (
	Probe      = "Probe"
	Prepare    = "Prepare"
	Start      = "Start"
	Checkpoint = "Checkpoint"
	Restore    = "Restore"
	Freeze     = "Freeze"
	Hold       = "Hold"
	Thaw       = "Thaw"
	Resize     = "Resize"
	Stop       = "Stop"
	Destroy    = "Destroy"
	Recover    = "Recover"
	Inventory  = "Inventory"
	Wait       = "Wait"
	Stats      = "Stats"
	Dial       = "Dial"
)

// Fault is what happens instead of, or before, a method's work. Its fields are
// applied in this order.
type Fault struct {
	// Block, when not nil, holds the call until it is closed or the call's
	// context ends.
	Block <-chan struct{}
	// Exit ends the instance the call is about.
	Exit *engine.Exit
	// Panic panics with this value: the agent dies on this line.
	Panic any
	// Err is returned and nothing done; with After set it is done first, as when
	// the answer is lost.
	Err   error
	After bool
	// Times is how many calls it applies to; 0 is every one.
	Times int
	// ID narrows it to one instance; empty is all.
	ID engine.InstanceID
}

// World is what really exists.
type World struct {
	mu        sync.Mutex
	handler   func(*Instance) http.Handler // nil is DefaultGuest
	version   string
	features  []string // of the processor
	reasons   []string
	faults    map[string][]*Fault
	steps     map[string]int
	instances map[engine.InstanceID]*Instance
	ended     map[engine.InstanceID]engine.Exit // of destroyed ones
	endedIDs  []engine.InstanceID
}

// maxEnded is how many exits of destroyed instances are remembered.
const maxEnded = 1024

// NewWorld returns an empty world.
func NewWorld() *World {
	return &World{
		version: "fake-1", features: []string{"fpu", "sse"}, faults: map[string][]*Fault{}, steps: map[string]int{},
		instances: map[engine.InstanceID]*Instance{}, ended: map[engine.InstanceID]engine.Exit{},
	}
}

// SetHandler sets what makes the guest of each instance that starts from now
// on. Return a Guest to listen on chosen ports only.
func (w *World) SetHandler(f func(*Instance) http.Handler) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.handler = f
}

// SetVersion changes the engine's version: checkpoints of another one are
// refused.
func (w *World) SetVersion(v string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.version = v
}

// SetCPUFeatures changes the machine's processor: checkpoints of one with more
// features are refused.
func (w *World) SetCPUFeatures(features ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.features = features
}

// SetUnhealthy makes Probe report reasons; none makes it healthy.
func (w *World) SetUnhealthy(reasons ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reasons = reasons
}

// Script adds a fault to a method. Of several the oldest that applies is taken.
func (w *World) Script(method string, f Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults[method] = append(w.faults[method], &f)
}

// Unscript removes all faults.
func (w *World) Unscript() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = map[string][]*Fault{}
}

// Steps tells how often a method was called.
func (w *World) Steps(method string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.steps[method]
}

// Instance returns a living or ended instance that was not destroyed.
func (w *World) Instance(id engine.InstanceID) (*Instance, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i, ok := w.instances[id]
	return i, ok
}

// Instances lists what exists.
func (w *World) Instances() []engine.InstanceID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.SortedFunc(maps.Keys(w.instances), func(a, b engine.InstanceID) int { return strings.Compare(string(a), string(b)) })
}

// Reboot plays a restart of the machine: everything that ran is gone with the
// reason host_restarted.
func (w *World) Reboot() {
	w.mu.Lock()
	all := slices.Collect(maps.Values(w.instances))
	w.mu.Unlock()
	for _, i := range all {
		i.End(engine.Exit{Reason: engine.ExitHostRestart, Code: -1})
	}
}

// step counts a call and applies a fault. The returned function is run when
// the method's work is done.
func (w *World) step(ctx context.Context, method string, id engine.InstanceID) (after func(error) error, err error) {
	w.mu.Lock()
	w.steps[method]++
	var hit *Fault
	for i, f := range w.faults[method] {
		if f.ID != "" && f.ID != id {
			continue
		}
		hit = f
		if f.Times == 1 {
			w.faults[method] = slices.Delete(w.faults[method], i, i+1)
		} else if f.Times > 1 {
			f.Times--
		}
		break
	}
	instance := w.instances[id]
	w.mu.Unlock()
	pass := func(err error) error { return err }
	if hit == nil {
		return pass, ctx.Err()
	}
	if hit.Block != nil {
		select {
		case <-hit.Block:
		case <-ctx.Done():
			return pass, ctx.Err()
		}
	}
	if hit.Exit != nil && instance != nil {
		instance.End(*hit.Exit)
	}
	if hit.Panic != nil {
		panic(hit.Panic)
	}
	if hit.After {
		return func(err error) error {
			if err == nil {
				err = hit.Err
			}
			return err
		}, nil
	}
	return pass, hit.Err
}

// get returns the instance, ErrNotFound when there is none.
func (w *World) get(id engine.InstanceID) (*Instance, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i, ok := w.instances[id]; ok {
		return i, nil
	}
	return nil, fmt.Errorf("%w: %s", engine.ErrNotFound, id)
}

// remember keeps the exit of a destroyed instance, for those who still wait.
func (w *World) remember(id engine.InstanceID, x engine.Exit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.endedIDs) >= maxEnded {
		delete(w.ended, w.endedIDs[0])
		w.endedIDs = w.endedIDs[1:]
	}
	w.ended[id] = x
	w.endedIDs = append(w.endedIDs, id)
}

// now is in the real world: the fake's exits are compared with real clocks.
func now() time.Time { return time.Now().UTC() }
