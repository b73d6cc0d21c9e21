package app

import (
	"context"
	"net"
	"sync"
	"time"
)

// connections are all that are open to the daemon, those included that became
// tunnels. A copy of the sandbox starts with its source's, whose other ends it
// never had.
type connections struct {
	mu   sync.Mutex
	open map[*tracked]struct{}
}

// Track returns a listener whose connections the daemon can close. Server is to
// serve it with ConnContext.
func (d *Daemon) Track(ln net.Listener) net.Listener {
	return &trackingListener{Listener: ln, to: &d.conns}
}

// ConnContext tells requests which connection they came on; for http.Server.
func (d *Daemon) ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

type connKey struct{}

type trackingListener struct {
	net.Listener
	to *connections
}

// Accept implements net.Listener.
func (l *trackingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c, nil
	}
	t := &tracked{TCPConn: tcp, by: l.to}
	l.to.mu.Lock()
	defer l.to.mu.Unlock()
	if l.to.open == nil {
		l.to.open = make(map[*tracked]struct{})
	}
	l.to.open[t] = struct{}{}
	return t, nil
}

// tracked is a connection that leaves the set when it is closed.
type tracked struct {
	*net.TCPConn
	by *connections
}

// Close implements net.Conn.
func (t *tracked) Close() error {
	t.by.mu.Lock()
	delete(t.by.open, t)
	t.by.mu.Unlock()
	return t.TCPConn.Close()
}

// closeBut closes all but the one ctx's request came on. What they were in the
// middle of ends with an error.
func (c *connections) closeBut(ctx context.Context) {
	c.mu.Lock()
	var others []*tracked
	for t := range c.open {
		if ctx.Value(connKey{}) != net.Conn(t) {
			others = append(others, t)
		}
	}
	c.mu.Unlock()
	for _, t := range others {
		// No lingering: nobody is there to be told.
		_ = t.SetLinger(0)
		_ = t.Close()
	}
}

// activity is when the sandbox was last used, by the clock that is not set: the
// wall clock may be moved by hours.
type activity struct {
	began time.Time

	mu    sync.Mutex
	users int           // calls in progress
	last  time.Duration // since began, when the last one ended
}

func newActivity() *activity { return &activity{began: time.Now()} }

// use counts as use until the returned function is called.
func (a *activity) use() (end func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.users++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.users--
		a.last = time.Since(a.began)
	}
}

// touch counts as a use at this moment.
func (a *activity) touch() { a.use()() }

// idle is how long nobody used the sandbox.
func (a *activity) idle() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.users > 0 {
		return 0
	}
	return max(0, time.Since(a.began)-a.last)
}
