package gvisor

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/shim"
)

// Freeze implements engine.Engine: the sentry holds the guest's tasks, and the
// cgroup freezer the sentry, which alone would go on burning some CPU.
//
// With an engine that lacks our patch for it (tools/runsc/0002) the freezer is
// not harmless: one thaw in some hundred ends a guest's process with a fault it
// did not make. With the patch none in 3000 did. Checkpoint holds the tasks only.
func (e *Engine) Freeze(ctx context.Context, h engine.Handle) error {
	return e.withRunning(ctx, h, func(ctx context.Context, r *record) error {
		if e.cg.frozen(string(r.ID)) {
			return nil
		}
		if err := e.pause(ctx, r); err != nil {
			return err
		}
		return e.cg.setFrozen(ctx, string(r.ID), true)
	})
}

// Thaw implements engine.Engine.
func (e *Engine) Thaw(ctx context.Context, h engine.Handle) error {
	return e.withRunning(ctx, h, func(ctx context.Context, r *record) error {
		if err := e.cg.setFrozen(ctx, string(r.ID), false); err != nil {
			return err
		}
		return e.unpause(ctx, r)
	})
}

// Resize implements engine.Engine: CPU and processes change at once, memory and
// disk are fixed when the sentry starts.
func (e *Engine) Resize(ctx context.Context, h engine.Handle, res engine.Resources) error {
	return e.withRunning(ctx, h, func(_ context.Context, r *record) error {
		if res.MemoryBytes != r.Resources.MemoryBytes || res.DiskBytes != r.Resources.DiskBytes {
			return fmt.Errorf("%w: memory and disk of a running instance", engine.ErrUnsupported)
		}
		if res.CPUMillis <= 0 || res.MaxProcesses <= 0 {
			return fmt.Errorf("gvisor: every resource must be limited")
		}
		id, old := string(r.ID), r.Resources
		err := e.cg.setCPU(id, res.CPUMillis)
		if err == nil {
			err = e.cg.setPids(id, pidsFuse(res))
		}
		if err == nil {
			r.Resources = res
			err = e.save(r)
		}
		if err != nil {
			_ = e.cg.setCPU(id, old.CPUMillis)
			_ = e.cg.setPids(id, pidsFuse(old))
		}
		return err
	})
}

// withRunning runs f in the instance's turn; ErrExited when it does not run.
func (e *Engine) withRunning(ctx context.Context, h engine.Handle, f func(context.Context, *record) error) error {
	r, err := decode(h)
	if err != nil {
		return err
	}
	ctx, done, err := e.begin(ctx, r.ID, false)
	if err != nil {
		return err
	}
	defer done()
	if r, err = e.load(r.ID); err != nil {
		return err
	}
	if !e.alive(r) {
		return fmt.Errorf("%w: %s", engine.ErrExited, r.ID)
	}
	return f(ctx, r)
}

// Stats implements engine.Engine from the cgroup's files.
func (e *Engine) Stats(_ context.Context, h engine.Handle) (engine.Stats, error) {
	r, err := e.find(h)
	if err != nil {
		return engine.Stats{}, err
	}
	if !e.alive(r) {
		return engine.Stats{}, fmt.Errorf("%w: %s", engine.ErrExited, r.ID)
	}
	u, err := e.cg.usage(string(r.ID))
	if err != nil {
		return engine.Stats{}, err
	}
	return engine.Stats{CPUTime: u.cpu, MemoryBytes: u.memory, Processes: u.tasks, DiskBytes: diskBytes(r.Process)}, nil
}

// diskBytes is what the overlay's file takes on the host. It has no name any
// more; the sentry's descriptor leads to it.
func diskBytes(p shim.Process) int64 {
	dir := fmt.Sprintf("/proc/%d/fd", p.PID)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		target, err := os.Readlink(path)
		if err != nil || !strings.Contains(target, "/runsc-filestore-") {
			continue
		}
		var st syscall.Stat_t
		if syscall.Stat(path, &st) == nil && shim.Alive(p) {
			return st.Blocks * 512
		}
	}
	return 0
}

// Dial implements engine.Engine. The guest's TCP stack dies with the sentry
// without a word to its peers; so the connection is closed from here when the
// instance ends.
func (e *Engine) Dial(ctx context.Context, h engine.Handle, port int) (net.Conn, error) {
	r, err := e.find(h)
	if err != nil {
		return nil, err
	}
	if !e.alive(r) {
		return nil, fmt.Errorf("%w: %s", engine.ErrExited, r.ID)
	}
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("gvisor: port %d", port)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(r.GuestAddr, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("gvisor: not a TCP connection: %T", c)
	}
	tracked := &conn{TCPConn: tcp, engine: e, id: r.ID}
	if !e.track(tracked, r.Process) {
		_ = tcp.Close()
		return nil, fmt.Errorf("%w: %s", engine.ErrExited, r.ID)
	}
	return tracked, nil
}

// conn is a connection into an instance that knows its instance's end.
type conn struct {
	*net.TCPConn
	engine *Engine
	id     engine.InstanceID
	once   sync.Once
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() { c.engine.forget(c) })
	return c.TCPConn.Close()
}

// connSet are the open connections of one instance; the watcher that waits for
// the instance's end lives as long as there are any.
type connSet struct {
	open map[*conn]struct{}
	stop context.CancelFunc
}

func (e *Engine) track(c *conn, p shim.Process) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return false
	}
	set := e.conns[c.id]
	if set == nil {
		ctx, stop := context.WithCancel(e.ctx)
		set = &connSet{open: map[*conn]struct{}{}, stop: stop}
		e.conns[c.id] = set
		e.wg.Go(func() {
			defer stop()
			_, err := e.shim.Wait(ctx, p)
			if err != nil && ctx.Err() == nil {
				e.cfg.Logger.Warn("cannot follow an instance", "instance_id", c.id, "error", err)
			}
			if err == nil || e.ctx.Err() != nil {
				e.closeSet(c.id, set)
			}
		})
	}
	set.open[c] = struct{}{}
	return true
}

func (e *Engine) forget(c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	set := e.conns[c.id]
	if set == nil {
		return
	}
	delete(set.open, c)
	if len(set.open) == 0 {
		delete(e.conns, c.id)
		set.stop()
	}
}

// hangUp closes all connections into an instance.
func (e *Engine) hangUp(id engine.InstanceID) {
	e.mu.Lock()
	set := e.conns[id]
	e.mu.Unlock()
	if set != nil {
		e.closeSet(id, set)
	}
}

func (e *Engine) closeSet(id engine.InstanceID, set *connSet) {
	e.mu.Lock()
	if e.conns[id] == set {
		delete(e.conns, id)
	}
	set.stop()
	var open []*conn
	for c := range set.open {
		open = append(open, c)
	}
	e.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}
