package manager_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/fake"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// world is a machine: what exists on it outlives every agent.
type world struct {
	sim *fake.World

	mu     sync.Mutex
	slots  map[int]engine.InstanceID
	images map[string]manager.Holding
	// daemon is what hosts ship, daemons what they keep else; programs are by name.
	daemon   string
	daemons  map[string]bool
	programs string
	fail     map[string]error         // by call name
	block    map[string]chan struct{} // by call name, until closed or ctx ends
	called   map[string]int
	inits    []greeting
	idle     atomic.Int64 // what every daemon says, in nanoseconds
	disk     state.FS     // below the states
}

// greeting is a daemon's configuration and the secret it came with.
type greeting struct {
	secret string
	in     guestapi.Init
}

func newWorld() *world {
	return &world{
		sim: fake.NewWorld(), slots: map[int]engine.InstanceID{}, images: map[string]manager.Holding{}, daemons: map[string]bool{},
		fail: map[string]error{}, block: map[string]chan struct{}{}, called: map[string]int{}, disk: state.Disk{},
	}
}

// kill ends a running instance from outside.
func (w *world) kill(i engine.InstanceID, reason string) {
	if in, ok := w.sim.Instance(i); ok {
		in.End(engine.Exit{Reason: reason, Code: -1})
	}
}

func (w *world) set(call string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail[call] = err
}

func (w *world) hold(call string) (release func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := make(chan struct{})
	w.block[call] = c
	return sync.OnceFunc(func() {
		w.mu.Lock()
		delete(w.block, call)
		w.mu.Unlock()
		close(c)
	})
}

func (w *world) calls(call string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.called[call]
}

// empty fails the test unless nothing of any sandbox is left.
func (w *world) empty(t *testing.T, dir string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.sim.Instances()); n+len(w.slots)+len(w.images) != 0 {
		t.Errorf("LL-01: left behind: %d instances, %d slots, %d images", n, len(w.slots), len(w.images))
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "instances")); len(left) != 0 {
		t.Errorf("LL-01: %d working directories left behind", len(left))
	}
}

var errDead = errors.New("the agent is dead")

// view is one agent's hands on the world; a dead agent's do nothing.
type view struct {
	*world
	dead atomic.Bool
}

func (v *view) call(ctx context.Context, name string) error {
	v.mu.Lock()
	v.called[name]++
	err, block := v.fail[name], v.block[name]
	v.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if v.dead.Load() {
		return errDead
	}
	return err
}

// mortal is the fake engine in an agent's hands.
type mortal struct {
	*fake.Engine
	view *view
}

func (e mortal) Prepare(ctx context.Context, s engine.Spec) (engine.Handle, error) {
	if err := e.view.call(ctx, "prepare"); err != nil {
		return nil, err
	}
	return e.Engine.Prepare(ctx, s)
}

func (e mortal) Start(ctx context.Context, h engine.Handle) (engine.Handle, error) {
	if err := e.view.call(ctx, "start"); err != nil {
		return nil, err
	}
	return e.Engine.Start(ctx, h)
}

func (e mortal) Checkpoint(ctx context.Context, h engine.Handle, o engine.CheckpointOptions) error {
	if err := e.view.call(ctx, "checkpoint"); err != nil {
		return err
	}
	return e.Engine.Checkpoint(ctx, h, o)
}

func (e mortal) Restore(ctx context.Context, h engine.Handle, dir string) (engine.Handle, error) {
	if err := e.view.call(ctx, "restore"); err != nil {
		return nil, err
	}
	return e.Engine.Restore(ctx, h, dir)
}

func (e mortal) RootTar(ctx context.Context, h engine.Handle, w io.Writer) error {
	if err := e.view.call(ctx, "root tar"); err != nil {
		return err
	}
	return e.Engine.RootTar(ctx, h, w)
}

func (e mortal) Thaw(ctx context.Context, h engine.Handle) error {
	if err := e.view.call(ctx, "thaw"); err != nil {
		return err
	}
	return e.Engine.Thaw(ctx, h)
}

func (e mortal) Hold(ctx context.Context, h engine.Handle) error {
	if err := e.view.call(ctx, "hold"); err != nil {
		return err
	}
	return e.Engine.Hold(ctx, h)
}

func (e mortal) Destroy(ctx context.Context, i engine.InstanceID) error {
	if err := e.view.call(ctx, "destroy"); err != nil {
		return err
	}
	return e.Engine.Destroy(ctx, i)
}

func (e mortal) Recover(ctx context.Context, h engine.Handle) (engine.Handle, error) {
	if err := e.view.call(ctx, "recover"); err != nil {
		return nil, err
	}
	return e.Engine.Recover(ctx, h)
}

func (e mortal) Inventory(ctx context.Context) ([]engine.Found, error) {
	if err := e.view.call(ctx, "inventory"); err != nil {
		return nil, err
	}
	return e.Engine.Inventory(ctx)
}

func (e mortal) Wait(ctx context.Context, h engine.Handle) (engine.Exit, error) {
	exit, err := e.Engine.Wait(ctx, h)
	if e.view.dead.Load() {
		return engine.Exit{}, errDead
	}
	return exit, err
}

// files is the disk in an agent's hands.
type files struct{ v *view }

func (f files) do(change func() error) error {
	if f.v.dead.Load() {
		return errDead
	}
	return change()
}

func (f files) Mkdir(path string) error {
	return f.do(func() error { return f.v.disk.Mkdir(path) })
}

func (f files) WriteFile(path string, data []byte) error {
	return f.do(func() error { return f.v.disk.WriteFile(path, data) })
}
func (f files) Sync(path string) error { return f.do(func() error { return f.v.disk.Sync(path) }) }
func (f files) Rename(from, to string) error {
	return f.do(func() error { return f.v.disk.Rename(from, to) })
}

func (f files) Link(from, to string) error {
	return f.do(func() error { return f.v.disk.Link(from, to) })
}

func (f files) Remove(path string) error { return f.do(func() error { return f.v.disk.Remove(path) }) }

func (f files) Truncate(path string) error {
	return f.do(func() error { return f.v.disk.Truncate(path) })
}
func (f files) Free(path string) (int64, error) { return f.v.disk.Free(path) }

type networks struct{ *view }

func (n networks) Acquire(ctx context.Context, owner engine.InstanceID, _ bool) (manager.Slot, error) {
	if err := n.call(ctx, "acquire_slot"); err != nil {
		return manager.Slot{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := 0; ; i++ {
		if _, taken := n.slots[i]; !taken {
			n.slots[i] = owner
			return manager.Slot{Index: i}, nil
		}
	}
}

func (n networks) Adopt(_ context.Context, index int, owner engine.InstanceID) (manager.Slot, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.slots[index] != owner {
		return manager.Slot{}, errors.New("not yours")
	}
	return manager.Slot{Index: index}, nil
}

func (n networks) Release(ctx context.Context, index int) error {
	if err := n.call(ctx, "release_slot"); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.slots, index)
	return nil
}

func (n networks) Slots() []manager.OwnedSlot {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []manager.OwnedSlot
	for i, o := range n.slots {
		out = append(out, manager.OwnedSlot{Index: i, Owner: o})
	}
	return out
}

type images struct{ *view }

func (im images) Acquire(ctx context.Context, img journal.Image, daemon manager.Daemon, owner string) (manager.Tree, error) {
	if err := im.call(ctx, "acquire_image"); err != nil {
		return manager.Tree{}, err
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	tree := manager.Tree{Dir: "/root-" + daemon.Digest, Daemon: daemon.Digest}
	switch {
	case daemon.Digest == "":
		tree = manager.Tree{Dir: "/root", Daemon: im.daemon}
	case daemon.Digest != im.daemon && !im.daemons[daemon.Digest] && !contains(daemon.File, daemon.Digest):
		return manager.Tree{}, errs.FailedPrecondition("guest_build_missing", "It is not here.")
	}
	im.images[owner] = manager.Holding{Image: img.Digest, Daemon: tree.Daemon}
	return tree, nil
}

// contains tells whether a file says just that.
func contains(file, text string) bool {
	b, err := os.ReadFile(file)
	return err == nil && string(b) == text
}

func (im images) DaemonFile(daemon string) string { return filepath.Join(im.programs, daemon) }

func (im images) Release(ctx context.Context, _, owner string) error {
	if err := im.call(ctx, "release_image"); err != nil {
		return err
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	delete(im.images, owner)
	return nil
}

func (im images) Recover(_ context.Context, owners map[string]manager.Holding) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	for o, h := range owners {
		im.images[o] = h
	}
	for o := range im.images {
		if _, known := owners[o]; !known {
			delete(im.images, o)
		}
	}
	return nil
}

// daemon is a guest link without a guest.
type daemon struct {
	*view
	opts   manager.GuestOptions
	closed atomic.Bool
}

func (d *daemon) Await(ctx context.Context) error { return d.call(ctx, "await") }

func (d *daemon) Init(ctx context.Context, in guestapi.Init) error {
	if err := d.call(ctx, "init"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inits = append(d.inits, greeting{d.opts.InitSecret, in})
	return nil
}

func (d *daemon) Ahead(context.Context) {}

func (d *daemon) Idle(ctx context.Context) (time.Duration, error) {
	err := d.call(ctx, "idle")
	return time.Duration(d.idle.Load()), err
}

func (d *daemon) Run(ctx context.Context, _ string) error { return d.call(ctx, "run") }

func (d *daemon) Follow() {}
func (d *daemon) Close()  { d.closed.Store(true) }
func (d *daemon) Dial(ctx context.Context, port int) (net.Conn, error) {
	if d.closed.Load() {
		return nil, errors.New("closed")
	}
	return d.opts.Dial(ctx, port)
}

// agent is one life of an agent on a data directory.
type agent struct {
	*manager.Manager
	view    *view
	journal *journal.Journal
	states  *state.Store
	mu      sync.Mutex
	links   []*daemon
	step    atomic.Pointer[func(manager.Step)]
}

// boot starts an agent on dir. It is stopped at the end of the test.
func boot(t testing.TB, w *world, dir string, change ...func(*manager.Config)) *agent {
	t.Helper()
	j, err := journal.Open(filepath.Join(dir, "journal.db"), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.sim.Reboot) // guests are goroutines
	a := &agent{view: &view{world: w}, journal: j}
	states, err := state.Open(filepath.Join(dir, "states"), files{a.view}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a.states = states
	cfg := manager.Config{
		Journal: j, Engines: map[string]engine.Engine{"fake": mortal{fake.New(w.sim), a.view}}, Versions: map[string]string{"fake": "fake-1"},
		Networks: networks{a.view}, Images: images{a.view}, InstancesDir: filepath.Join(dir, "instances"),
		NewGuest: func(o manager.GuestOptions) manager.Guest {
			d := &daemon{view: a.view, opts: o}
			a.mu.Lock()
			a.links = append(a.links, d)
			a.mu.Unlock()
			return d
		},
		States:    states,
		GuestArgs: []string{"/guest"}, BootID: "boot-1", RetryInterval: 5 * time.Millisecond,
		Step: func(s manager.Step) {
			if f := a.step.Load(); f != nil {
				(*f)(s)
			}
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	a.Manager = manager.New(cfg)
	if err := a.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.stop)
	return a
}

// die ends the agent as kill -9 does: from this moment nothing it does has an
// effect on the world or the journal's file.
func (a *agent) die() {
	a.view.dead.Store(true)
	_ = a.journal.Close()
}

// stop ends it in order.
func (a *agent) stop() {
	a.Close()
	_ = a.journal.Close()
}

func spec(sandbox id.Sandbox, incarnation uint64) journal.Spec {
	return journal.Spec{
		Sandbox: sandbox, Incarnation: incarnation, Engine: "fake", Image: journal.Image{Digest: "d1"},
		Resources: journal.Resources{CPUMillis: 1000, MemoryBytes: 1 << 20, DiskBytes: 1 << 20, MaxProcesses: 10},
		Env:       map[string]string{"A": "b"},
	}
}
