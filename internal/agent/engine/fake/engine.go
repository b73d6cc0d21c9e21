package fake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
)

// Engine is one agent's view of a world; it keeps nothing itself.
type Engine struct{ w *World }

var _ engine.Engine = (*Engine)(nil)

// New returns an engine on the world.
func New(w *World) *Engine { return &Engine{w: w} }

type handle struct {
	Version int               `json:"version"`
	ID      engine.InstanceID `json:"id"`
}

const handleVersion = 1

func encode(id engine.InstanceID) engine.Handle {
	b, _ := json.Marshal(handle{Version: handleVersion, ID: id}) // cannot fail
	return b
}

func decode(h engine.Handle) (engine.InstanceID, error) {
	var v handle
	if err := json.Unmarshal(h, &v); err != nil {
		return "", fmt.Errorf("fake: unreadable handle: %w", err)
	}
	if v.Version != handleVersion {
		return "", fmt.Errorf("fake: handle of version %d", v.Version)
	}
	return v.ID, validID(v.ID)
}

func validID(id engine.InstanceID) error {
	if len(id) != 32 || strings.Trim(string(id), "0123456789abcdef") != "" {
		return fmt.Errorf("fake: instance id %q: exactly 32 lower-case hex digits", id)
	}
	return nil
}

// enter decodes a handle, counts the step and finds the instance.
func (e *Engine) enter(ctx context.Context, method string, h engine.Handle) (*Instance, func(error) error, error) {
	id, err := decode(h)
	if err != nil {
		return nil, nil, err
	}
	after, err := e.w.step(ctx, method, id)
	if err != nil {
		return nil, nil, err
	}
	i, err := e.w.get(id)
	return i, after, err
}

// Probe implements engine.Engine.
func (e *Engine) Probe(ctx context.Context) engine.Capabilities {
	_, err := e.w.step(ctx, Probe, "")
	c := e.capabilities()
	if err != nil {
		c.Reasons = append(c.Reasons, err.Error())
	}
	c.Healthy = len(c.Reasons) == 0
	return c
}

// Prepare implements engine.Engine.
func (e *Engine) Prepare(ctx context.Context, spec engine.Spec) (engine.Handle, error) {
	r := spec.Resources
	switch {
	case validID(spec.ID) != nil:
		return nil, validID(spec.ID)
	case len(spec.Args) == 0 || !filepath.IsAbs(spec.WorkDir):
		return nil, errors.New("fake: no program for PID 1, or no WorkDir")
	case r.CPUMillis <= 0 || r.MemoryBytes <= 0 || r.DiskBytes <= 0 || r.MaxProcesses <= 0:
		return nil, errors.New("fake: every resource must be limited")
	}
	after, err := e.w.step(ctx, Prepare, spec.ID)
	if err != nil {
		return nil, err
	}
	if err := e.destroy(spec.ID); err != nil {
		return nil, err
	}
	// A file, as real engines write some: Destroy owes its removal.
	if err := os.WriteFile(filepath.Join(spec.WorkDir, "fake.json"), encode(spec.ID), 0o600); err != nil {
		return nil, fmt.Errorf("fake: %w", err)
	}
	e.w.mu.Lock()
	e.w.instances[spec.ID] = newInstance(spec)
	e.w.mu.Unlock()
	return encode(spec.ID), after(nil)
}

// Start implements engine.Engine.
func (e *Engine) Start(ctx context.Context, h engine.Handle) (engine.Handle, error) {
	i, after, err := e.enter(ctx, Start, h)
	if err != nil {
		return nil, err
	}
	return encode(i.Spec.ID), after(e.run(i, nil))
}

// run starts the guest, from an image when there is one.
func (e *Engine) run(i *Instance, img *image) error {
	e.w.mu.Lock()
	handler := e.w.handler
	e.w.mu.Unlock()
	if handler == nil {
		handler = DefaultGuest
	}
	guest := handler(i)
	var ports map[int]bool
	if p, ok := guest.(interface{ Ports() []int }); ok {
		ports = map[int]bool{}
		for _, port := range p.Ports() {
			ports[port] = true
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.exit.Reason != "" {
		return fmt.Errorf("%w: %s", engine.ErrExited, i.Spec.ID)
	}
	if i.started {
		return nil
	}
	if img != nil {
		i.memory, i.files = img.memory, copyFiles(img.files)
	}
	i.boot(guest, ports)
	return nil
}

// Stop implements engine.Engine.
func (e *Engine) Stop(ctx context.Context, h engine.Handle) error {
	i, after, err := e.enter(ctx, Stop, h)
	if err != nil {
		return err
	}
	i.kill()
	return after(nil)
}

// kill ends it and waits for its goroutines.
func (i *Instance) kill() {
	i.End(engine.Exit{Reason: engine.ExitKilled, Code: -1})
	i.mu.Lock()
	g := i.guest
	i.mu.Unlock()
	if g != nil {
		g.wg.Wait()
	}
}

// Destroy implements engine.Engine.
func (e *Engine) Destroy(ctx context.Context, id engine.InstanceID) error {
	if err := validID(id); err != nil {
		return err
	}
	after, err := e.w.step(ctx, Destroy, id)
	if err != nil {
		return err
	}
	return after(e.destroy(id))
}

func (e *Engine) destroy(id engine.InstanceID) error {
	i, err := e.w.get(id)
	if err != nil {
		return nil //nolint:nilerr // destroying nothing succeeds
	}
	i.kill()
	if err := os.Remove(filepath.Join(i.Spec.WorkDir, "fake.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("fake: %w", err)
	}
	i.mu.Lock()
	exit := i.exit
	i.mu.Unlock()
	if exit.Reason != "" {
		e.w.remember(id, exit)
	}
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	delete(e.w.instances, id)
	return nil
}

// Recover implements engine.Engine.
func (e *Engine) Recover(ctx context.Context, h engine.Handle) (engine.Handle, error) {
	i, after, err := e.enter(ctx, Recover, h)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	ended := i.exit.Reason != ""
	i.mu.Unlock()
	if ended {
		return nil, fmt.Errorf("%w: %s", engine.ErrExited, i.Spec.ID)
	}
	return encode(i.Spec.ID), after(nil)
}

// Inventory implements engine.Engine.
func (e *Engine) Inventory(ctx context.Context) ([]engine.Found, error) {
	after, err := e.w.step(ctx, Inventory, "")
	if err != nil {
		return nil, err
	}
	var out []engine.Found
	for _, id := range e.w.Instances() {
		if i, ok := e.w.Instance(id); ok {
			out = append(out, engine.Found{ID: id, Running: i.Running()})
		}
	}
	return out, after(nil)
}

// Wait implements engine.Engine.
func (e *Engine) Wait(ctx context.Context, h engine.Handle) (engine.Exit, error) {
	i, after, err := e.enter(ctx, Wait, h)
	if errors.Is(err, engine.ErrNotFound) {
		id, _ := decode(h)
		e.w.mu.Lock()
		defer e.w.mu.Unlock()
		if x, ok := e.w.ended[id]; ok {
			return x, nil
		}
	}
	if err != nil {
		return engine.Exit{}, err
	}
	i.mu.Lock()
	started := i.started
	i.mu.Unlock()
	if !started {
		return engine.Exit{}, fmt.Errorf("%w: %s was never started", engine.ErrNotFound, i.Spec.ID)
	}
	select {
	case <-i.done:
		return i.exit, after(nil)
	case <-ctx.Done():
		return engine.Exit{}, ctx.Err()
	}
}

// Freeze implements engine.Engine.
func (e *Engine) Freeze(ctx context.Context, h engine.Handle) error {
	return e.live(ctx, Freeze, h, func(i *Instance) error { i.setFrozen(true); return nil })
}

// Hold implements engine.Holder.
func (e *Engine) Hold(ctx context.Context, h engine.Handle) error {
	return e.live(ctx, Hold, h, func(i *Instance) error { i.setFrozen(true); return nil })
}

// Thaw implements engine.Engine.
func (e *Engine) Thaw(ctx context.Context, h engine.Handle) error {
	return e.live(ctx, Thaw, h, func(i *Instance) error { i.setFrozen(false); return nil })
}

// Resize implements engine.Engine; memory and disk are fixed, as with gVisor.
func (e *Engine) Resize(ctx context.Context, h engine.Handle, r engine.Resources) error {
	return e.live(ctx, Resize, h, func(i *Instance) error {
		if old := i.Spec.Resources; r.MemoryBytes != old.MemoryBytes || r.DiskBytes != old.DiskBytes {
			return fmt.Errorf("%w: memory and disk of a running instance", engine.ErrUnsupported)
		}
		i.Spec.Resources = r
		return nil
	})
}

// live runs f under the lock of a running instance.
func (e *Engine) live(ctx context.Context, method string, h engine.Handle, f func(*Instance) error) error {
	i, after, err := e.enter(ctx, method, h)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.running() {
		return fmt.Errorf("%w: %s", engine.ErrExited, i.Spec.ID)
	}
	return after(f(i))
}

// Stats implements engine.Engine with plausible figures: time that is not
// frozen counts as CPU time.
func (e *Engine) Stats(ctx context.Context, h engine.Handle) (engine.Stats, error) {
	var s engine.Stats
	err := e.live(ctx, Stats, h, func(i *Instance) error {
		s = engine.Stats{CPUTime: i.cpu, MemoryBytes: 8<<20 + int64(len(i.memory)), Processes: 1}
		select {
		case <-i.thawed:
			s.CPUTime += time.Since(i.began)
		default:
		}
		for _, b := range i.files {
			s.DiskBytes += int64(len(b))
		}
		return nil
	})
	return s, err
}

// Dial implements engine.Engine. A guest whose handler has a method Ports
// listens on those only, else on all.
func (e *Engine) Dial(ctx context.Context, h engine.Handle, port int) (net.Conn, error) {
	i, after, err := e.enter(ctx, Dial, h)
	if err != nil {
		return nil, err
	}
	if err := after(nil); err != nil {
		return nil, err
	}
	return i.dial(ctx, port)
}

// image is a checkpoint's description; memory and disk lie beside it.
type image struct {
	engine.CheckpointInfo
	memory []byte
	files  map[string][]byte
}

const (
	memoryFile = "memory.img"
	diskFile   = "disk.img"
)

// capabilities of the world now; w.mu is not held.
func (e *Engine) capabilities() engine.Capabilities {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	return engine.Capabilities{
		Name: "fake", Version: e.w.version, Checkpoint: true,
		CPUFeatures: slices.Clone(e.w.features), Reasons: slices.Clone(e.w.reasons),
	}
}

// Checkpoint implements engine.Engine.
func (e *Engine) Checkpoint(ctx context.Context, h engine.Handle, opts engine.CheckpointOptions) error {
	return e.live(ctx, Checkpoint, h, func(i *Instance) error {
		entries, err := os.ReadDir(opts.Dir)
		if err != nil {
			return fmt.Errorf("fake: %w", err)
		}
		if len(entries) > 0 {
			return fmt.Errorf("fake: %s is not empty", opts.Dir)
		}
		if err := e.write(i, opts); err != nil {
			for _, name := range []string{memoryFile, diskFile, engine.CheckpointFile} {
				_ = os.Remove(filepath.Join(opts.Dir, name))
			}
			return fmt.Errorf("fake: %w", err)
		}
		if !opts.LeaveRunning {
			i.setFrozen(true)
		}
		return nil
	})
}

func (e *Engine) write(i *Instance, opts engine.CheckpointOptions) error {
	c := e.capabilities()
	disk, err := json.Marshal(i.files)
	if err == nil {
		err = os.WriteFile(filepath.Join(opts.Dir, diskFile), disk, 0o600)
	}
	if err == nil && !opts.DiskOnly {
		err = os.WriteFile(filepath.Join(opts.Dir, memoryFile), i.memory, 0o600)
	}
	info := engine.CheckpointInfo{
		Format: engine.CheckpointFormat, Engine: c.Name, Version: c.Version, CPUFeatures: c.CPUFeatures,
		Memory: !opts.DiskOnly, DiskBytes: i.Spec.Resources.DiskBytes,
	}
	if err == nil {
		info.Files, err = engine.FilesOf(opts.Dir)
	}
	if err == nil {
		err = engine.WriteCheckpointAs(opts.Dir, info)
	}
	return err
}

// Restore implements engine.Engine.
func (e *Engine) Restore(ctx context.Context, h engine.Handle, dir string) (engine.Handle, error) {
	i, after, err := e.enter(ctx, Restore, h)
	if err != nil {
		return nil, err
	}
	img, err := read(dir, e.capabilities())
	if err != nil {
		return nil, err
	}
	if img.DiskBytes != i.Spec.Resources.DiskBytes {
		return nil, fmt.Errorf("fake: the checkpoint has a disk of %d bytes, not %d: %w", img.DiskBytes, i.Spec.Resources.DiskBytes, engine.ErrUnsupported)
	}
	return encode(i.Spec.ID), after(e.run(i, img))
}

func read(dir string, c engine.Capabilities) (*image, error) {
	info, err := engine.ReadCheckpoint(dir)
	if err == nil {
		err = info.Fits(c)
	}
	if err == nil {
		err = info.Whole(dir)
	}
	if err != nil {
		return nil, err
	}
	img := image{CheckpointInfo: info}
	disk, err := os.ReadFile(filepath.Join(dir, diskFile))
	if err == nil {
		err = json.Unmarshal(disk, &img.files)
	}
	if err == nil && info.Memory {
		img.memory, err = os.ReadFile(filepath.Join(dir, memoryFile))
	}
	if err != nil {
		return nil, fmt.Errorf("fake: %w", err)
	}
	return &img, nil
}

// Guest is a handler that listens on chosen ports only.
type Guest struct {
	http.Handler
	Listen []int
}

// Ports are those it listens on.
func (g Guest) Ports() []int { return g.Listen }
