package app

import (
	"context"
	"io"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/observe"
)

// do makes one call to a part, under a span where there is a trace. The spans'
// names, as the part's, are for people: "gvisor start".
func (w *watch) do(ctx context.Context, part, name string, call func(context.Context) error) error {
	ctx, span := w.observer.Begin(ctx, part+" "+name)
	began := time.Now()
	err := call(ctx)
	w.observer.Called(part, name, observe.Result(err), time.Since(began))
	span.End(err)
	return err
}

func (w *watch) engines(all map[string]engine.Engine) map[string]engine.Engine {
	out := make(map[string]engine.Engine, len(all))
	for name, e := range all {
		out[name] = watchedEngine{Engine: e, w: w, part: name}
	}
	return out
}

func (w *watch) networks(n manager.Networks) manager.Networks { return watchedNetworks{n, w} }

func (w *watch) images(i manager.Images) manager.Images { return watchedImages{i, w} }

func (w *watch) guests(make func(manager.GuestOptions) manager.Guest) func(manager.GuestOptions) manager.Guest {
	return func(o manager.GuestOptions) manager.Guest { return watchedGuest{make(o), w} }
}

// watchedEngine passes all on; Wait and Dial, which last as long as others want
// or fail because nobody listens, are not told of.
type watchedEngine struct {
	engine.Engine
	w    *watch
	part string
}

func (e watchedEngine) handle(ctx context.Context, name string, call func(context.Context) (engine.Handle, error)) (h engine.Handle, err error) {
	err = e.w.do(ctx, e.part, name, func(ctx context.Context) (err error) {
		h, err = call(ctx)
		return err
	})
	return h, err
}

// StartWithDisk implements engine.DiskBooter where the engine does.
func (e watchedEngine) StartWithDisk(ctx context.Context, h engine.Handle, path string) (engine.Handle, error) {
	return e.handle(ctx, "start with disk", func(ctx context.Context) (engine.Handle, error) { return engine.StartWithDisk(ctx, e.Engine, h, path) })
}

// RootTar implements engine.RootArchiver where the engine does.
func (e watchedEngine) RootTar(ctx context.Context, h engine.Handle, out io.Writer) error {
	return e.w.do(ctx, e.part, "root tar", func(ctx context.Context) error { return engine.RootTar(ctx, e.Engine, h, out) })
}

// Prepare implements engine.Engine.
func (e watchedEngine) Prepare(ctx context.Context, spec engine.Spec) (engine.Handle, error) {
	return e.handle(ctx, "prepare", func(ctx context.Context) (engine.Handle, error) { return e.Engine.Prepare(ctx, spec) })
}

// Start implements engine.Engine.
func (e watchedEngine) Start(ctx context.Context, h engine.Handle) (engine.Handle, error) {
	return e.handle(ctx, "start", func(ctx context.Context) (engine.Handle, error) { return e.Engine.Start(ctx, h) })
}

// Restore implements engine.Engine.
func (e watchedEngine) Restore(ctx context.Context, h engine.Handle, dir string) (engine.Handle, error) {
	return e.handle(ctx, "restore", func(ctx context.Context) (engine.Handle, error) { return e.Engine.Restore(ctx, h, dir) })
}

// Recover implements engine.Engine.
func (e watchedEngine) Recover(ctx context.Context, h engine.Handle) (engine.Handle, error) {
	return e.handle(ctx, "recover", func(ctx context.Context) (engine.Handle, error) { return e.Engine.Recover(ctx, h) })
}

// Checkpoint implements engine.Engine.
func (e watchedEngine) Checkpoint(ctx context.Context, h engine.Handle, o engine.CheckpointOptions) error {
	return e.w.do(ctx, e.part, "checkpoint", func(ctx context.Context) error { return e.Engine.Checkpoint(ctx, h, o) })
}

// Freeze implements engine.Engine.
func (e watchedEngine) Freeze(ctx context.Context, h engine.Handle) error {
	return e.w.do(ctx, e.part, "freeze", func(ctx context.Context) error { return e.Engine.Freeze(ctx, h) })
}

// Hold implements engine.Holder where the engine does.
func (e watchedEngine) Hold(ctx context.Context, h engine.Handle) error {
	return e.w.do(ctx, e.part, "hold", func(ctx context.Context) error { return engine.Hold(ctx, e.Engine, h) })
}

// Thaw implements engine.Engine.
func (e watchedEngine) Thaw(ctx context.Context, h engine.Handle) error {
	return e.w.do(ctx, e.part, "thaw", func(ctx context.Context) error { return e.Engine.Thaw(ctx, h) })
}

// Resize implements engine.Engine.
func (e watchedEngine) Resize(ctx context.Context, h engine.Handle, r engine.Resources) error {
	return e.w.do(ctx, e.part, "resize", func(ctx context.Context) error { return e.Engine.Resize(ctx, h, r) })
}

// Stop implements engine.Engine.
func (e watchedEngine) Stop(ctx context.Context, h engine.Handle) error {
	return e.w.do(ctx, e.part, "stop", func(ctx context.Context) error { return e.Engine.Stop(ctx, h) })
}

// Destroy implements engine.Engine.
func (e watchedEngine) Destroy(ctx context.Context, id engine.InstanceID) error {
	return e.w.do(ctx, e.part, "destroy", func(ctx context.Context) error { return e.Engine.Destroy(ctx, id) })
}

// Inventory implements engine.Engine.
func (e watchedEngine) Inventory(ctx context.Context) (found []engine.Found, err error) {
	err = e.w.do(ctx, e.part, "inventory", func(ctx context.Context) (err error) {
		found, err = e.Engine.Inventory(ctx)
		return err
	})
	return found, err
}

type watchedNetworks struct {
	manager.Networks
	w *watch
}

// Acquire implements manager.Networks.
func (n watchedNetworks) Acquire(ctx context.Context, owner engine.InstanceID, internet bool) (s manager.Slot, err error) {
	err = n.w.do(ctx, "network", "acquire", func(ctx context.Context) (err error) {
		s, err = n.Networks.Acquire(ctx, owner, internet)
		return err
	})
	return s, err
}

// Release implements manager.Networks.
func (n watchedNetworks) Release(ctx context.Context, index int) error {
	return n.w.do(ctx, "network", "release", func(ctx context.Context) error { return n.Networks.Release(ctx, index) })
}

type watchedImages struct {
	manager.Images
	w *watch
}

// Acquire implements manager.Images.
func (i watchedImages) Acquire(ctx context.Context, img journal.Image, daemon manager.Daemon, owner string) (tree manager.Tree, err error) {
	err = i.w.do(ctx, "image", "acquire", func(ctx context.Context) (err error) {
		tree, err = i.Images.Acquire(ctx, img, daemon, owner)
		return err
	})
	return tree, err
}

type watchedGuest struct {
	manager.Guest
	w *watch
}

// Await implements manager.Guest.
func (g watchedGuest) Await(ctx context.Context) error {
	return g.w.do(ctx, "guest", "await", g.Guest.Await)
}

// Init implements manager.Guest.
func (g watchedGuest) Init(ctx context.Context, in guestapi.Init) error {
	return g.w.do(ctx, "guest", "init", func(ctx context.Context) error { return g.Guest.Init(ctx, in) })
}

// Idle implements manager.Guest.
func (g watchedGuest) Idle(ctx context.Context) (idle time.Duration, err error) {
	err = g.w.do(ctx, "guest", "idle", func(ctx context.Context) (err error) {
		idle, err = g.Guest.Idle(ctx)
		return err
	})
	return idle, err
}
