package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/shim"
	"skerry.dev/skerry/internal/guest/vmapi"
)

const (
	// stopWithin bounds how long the kernel may take to end killed processes.
	stopWithin = 10 * time.Second
	// bootWithin bounds a start on a machine that has more to do.
	bootWithin = 3 * time.Minute
)

func validate(s *engine.Spec) error {
	r := s.Resources
	switch {
	case validID(s.ID) != nil:
		return validID(s.ID)
	case !filepath.IsAbs(s.WorkDir):
		return errors.New("microvm: WorkDir must be an absolute path")
	case len(s.RootLayers) == 0 || len(s.RootLayers) > 8:
		return fmt.Errorf("microvm: %d layers of the root tree, 1 to 8 are needed", len(s.RootLayers))
	case len(s.Args) == 0:
		return errors.New("microvm: no program for PID 1")
	case r.CPUMillis <= 0 || r.MemoryBytes <= 0 || r.DiskBytes <= 0 || r.MaxProcesses <= 0:
		return errors.New("microvm: every resource must be limited")
	case s.Network.NamespacePath == "" || s.Network.GuestAddr == "":
		return errors.New("microvm: a network slot is required")
	case len(s.Stdin) > shim.MaxStdin:
		return fmt.Errorf("microvm: %d bytes for PID 1's input, at most %d", len(s.Stdin), shim.MaxStdin)
	}
	return nil
}

// Prepare implements engine.Engine.
func (e *Engine) Prepare(ctx context.Context, spec engine.Spec) (h engine.Handle, err error) {
	if err := validate(&spec); err != nil {
		return nil, err
	}
	ctx, done, err := e.begin(ctx, spec.ID, true)
	if err != nil {
		return nil, err
	}
	defer done()
	old, err := e.load(spec.ID)
	if err != nil && !errors.Is(err, engine.ErrNotFound) {
		return nil, err
	}
	if err := e.destroy(ctx, spec.ID, old); err != nil {
		return nil, err
	}
	r := &record{
		Version: recordVersion, ID: spec.ID, WorkDir: spec.WorkDir, BootID: e.bootID,
		Resources: spec.Resources, Network: spec.Network,
		Machine: machine{MemoryBytes: max(spec.Resources.MemoryBytes&^(1<<20-1), 64<<20), CPUs: (spec.Resources.CPUMillis + 999) / 1000},
	}
	if r.Roots, r.Machine.RootBytes, err = e.imagesOf(ctx, spec.RootLayers); err != nil {
		return nil, err
	}
	start, err := json.Marshal(vmapi.Start{
		Roots: len(spec.RootLayers), DiskBytes: fsBytes(spec.Resources), ShmBytes: spec.Resources.MemoryBytes / 2 &^ (block - 1),
		MaxProcesses: spec.Resources.MaxProcesses, Hostname: spec.Hostname, Args: spec.Args, Env: spec.Env, Stdin: spec.Stdin,
	})
	if err != nil {
		return nil, err
	}
	if len(start) > vmapi.MaxRequest-4<<10 {
		return nil, fmt.Errorf("microvm: arguments, environment and input of PID 1 are %d bytes, too much for one message", len(start))
	}
	// The record comes first: whatever happens next can be found and removed.
	if err := e.save(r); err != nil {
		return nil, err
	}
	// May hold a secret; gone as soon as the instance has it.
	if err := os.WriteFile(r.path(startFile), start, 0o600); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("microvm: %w", err), e.destroy(ctx, r.ID, r))
	}
	return e.handle(r)
}

// alive tells whether the instance's own machine runs.
func (e *Engine) alive(r *record) bool {
	return r.started() && r.BootID == e.bootID && shim.Alive(r.Process)
}

// Stop implements engine.Engine.
func (e *Engine) Stop(ctx context.Context, h engine.Handle) error {
	r, err := e.find(h)
	if err != nil {
		return err
	}
	ctx, done, err := e.begin(ctx, r.ID, true)
	if err != nil {
		return err
	}
	defer done()
	e.hangUp(r.ID)
	return e.kill(ctx, r.ID)
}

// kill ends all processes of the instance, in whatever state it is.
func (e *Engine) kill(ctx context.Context, id engine.InstanceID) error {
	if _, err := e.shim.End(ctx, string(id), stopWithin); err != nil {
		return fmt.Errorf("microvm: stop %s: %w", id, err)
	}
	return e.cg.killAll(ctx, string(id))
}

// Destroy implements engine.Engine.
func (e *Engine) Destroy(ctx context.Context, id engine.InstanceID) error {
	if err := validID(id); err != nil {
		return err
	}
	ctx, done, err := e.begin(ctx, id, true)
	if err != nil {
		return err
	}
	defer done()
	r, err := e.load(id)
	if err != nil && !errors.Is(err, engine.ErrNotFound) {
		return err
	}
	return e.destroy(ctx, id, r)
}

// destroy removes all traces; r is nil where no record is.
func (e *Engine) destroy(ctx context.Context, id engine.InstanceID, r *record) error {
	e.hangUp(id)
	if err := e.sweep(ctx, id, r); err != nil {
		return err
	}
	if r != nil {
		for _, name := range files {
			if err := os.RemoveAll(r.path(name)); err != nil {
				return fmt.Errorf("microvm: %w", err)
			}
		}
	}
	// Last: as long as anything is left, the record leads to it.
	for _, path := range []string{e.recordPath(id) + ".new", e.recordPath(id)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("microvm: %w", err)
		}
	}
	return nil
}

// sweep ends what runs of an instance and gives its slot back, so that it can be
// started as if for the first time.
func (e *Engine) sweep(ctx context.Context, id engine.InstanceID, r *record) error {
	if err := e.kill(ctx, id); err != nil {
		return err
	}
	if err := e.cg.remove(ctx, string(id)); err != nil {
		return err
	}
	if r == nil || !r.Launched {
		return nil
	}
	return returnSlot(r.Network)
}

// Recover implements engine.Engine.
func (e *Engine) Recover(ctx context.Context, h engine.Handle) (engine.Handle, error) {
	r, err := decode(h)
	if err != nil {
		return nil, err
	}
	ctx, done, err := e.begin(ctx, r.ID, false)
	if err != nil {
		return nil, err
	}
	defer done()
	if r, err = e.load(r.ID); err != nil {
		return nil, err
	}
	if !r.Ready && r.BootID == e.bootID {
		if r.Launched { // nobody was told that it runs, and nobody knows how far it came
			err = e.unlaunch(ctx, r)
		}
		if err != nil {
			return nil, err
		}
		return e.handle(r) // prepared, never started: Start goes on
	}
	if !e.alive(r) {
		return nil, fmt.Errorf("%w: %s", engine.ErrExited, r.ID)
	}
	// The shim may have been replaced meanwhile.
	console := &shim.Console{FIFO: r.path(consoleFIFO), Log: r.path(consoleLog)}
	if err := e.shim.Watch(ctx, r.Process, console); err != nil {
		return nil, err
	}
	if r.Saving {
		if err := e.goOn(ctx, r); err != nil {
			return nil, err
		}
	}
	return e.handle(r)
}

// Inventory implements engine.Engine. It looks at everything an instance
// leaves: records and cgroups.
func (e *Engine) Inventory(_ context.Context) ([]engine.Found, error) {
	ids := map[engine.InstanceID]bool{}
	entries, err := os.ReadDir(filepath.Join(e.cfg.StateDir, "instances"))
	if err != nil {
		return nil, fmt.Errorf("microvm: %w", err)
	}
	names := e.cg.instances()
	for _, entry := range entries {
		n, _, _ := strings.Cut(entry.Name(), ".")
		names = append(names, n)
	}
	for _, n := range names {
		if id := engine.InstanceID(n); validID(id) == nil {
			ids[id] = true
		}
	}
	var out []engine.Found
	for id := range ids {
		r, err := e.load(id)
		out = append(out, engine.Found{ID: id, Running: err == nil && e.alive(r) || len(e.cg.pids(string(id))) > 0})
	}
	slices.SortFunc(out, func(a, b engine.Found) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out, nil
}
