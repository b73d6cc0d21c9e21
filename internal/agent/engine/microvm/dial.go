package microvm

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/shim"
)

// Dial implements engine.Engine. The guest's TCP stack dies with the machine
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
		return nil, fmt.Errorf("microvm: port %d", port)
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(r.Network.GuestAddr, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("microvm: %w", err)
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("microvm: not a TCP connection: %T", c)
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
