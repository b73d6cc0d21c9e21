package sandboxiotest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/kernel/id"
)

// Link is a way to a guest that can be cut.
type Link struct {
	addr string
	http http.Transport

	dials atomic.Int64
	down  atomic.Bool
	// limit is how many bytes a new connection delivers before it breaks; 0 is
	// all of them. It holds for one connection and is then taken back.
	limit atomic.Int64

	mu    sync.Mutex
	conns map[*linkConn]struct{}
}

// NewLink makes a way to addr. Close it.
func NewLink(addr string) *Link {
	l := &Link{addr: addr, conns: map[*linkConn]struct{}{}}
	l.http = http.Transport{DialContext: l.dial, MaxIdleConnsPerHost: 64, MaxResponseHeaderBytes: 64 << 10}
	return l
}

// RoundTrip implements http.RoundTripper.
func (l *Link) RoundTrip(r *http.Request) (*http.Response, error) { return l.http.RoundTrip(r) }

// Close drops every connection.
func (l *Link) Close() {
	l.Cut()
	l.http.CloseIdleConnections()
}

// Cut breaks every connection there is.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		c.Conn.Close()
	}
}

// Down refuses new connections until it is told otherwise.
func (l *Link) Down(down bool) { l.down.Store(down) }

// CutAfter breaks the next new connection after it delivered n bytes.
func (l *Link) CutAfter(n int64) {
	l.Cut()
	l.http.CloseIdleConnections()
	l.limit.Store(n)
}

// Dials is how many connections were made.
func (l *Link) Dials() int64 { return l.dials.Load() }

func (l *Link) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	if l.down.Load() {
		return nil, errors.New("the link is down")
	}
	l.dials.Add(1)
	var d net.Dialer
	raw, err := d.DialContext(ctx, network, l.addr)
	if err != nil {
		return nil, err
	}
	c := &linkConn{Conn: raw, link: l, left: l.limit.Swap(0)}
	c.limited = c.left > 0
	l.mu.Lock()
	l.conns[c] = struct{}{}
	l.mu.Unlock()
	return c, nil
}

type linkConn struct {
	net.Conn
	link    *Link
	limited bool
	left    int64
}

func (c *linkConn) Read(p []byte) (int, error) {
	if c.limited {
		if c.left <= 0 {
			c.Conn.Close()
			return 0, errors.New("the link was cut")
		}
		p = p[:min(int64(len(p)), c.left)]
	}
	n, err := c.Conn.Read(p)
	c.left -= int64(n)
	return n, err
}

func (c *linkConn) Close() error {
	c.link.mu.Lock()
	delete(c.link.conns, c)
	c.link.mu.Unlock()
	return c.Conn.Close()
}

// Targets is one sandbox that every caller may use.
type Targets struct {
	Transport http.RoundTripper
	Token     string
	Sandbox   id.Sandbox
	// Fail, when it holds an error, is what Target returns.
	Fail atomic.Pointer[error]

	ended chan struct{}
	once  sync.Once
}

// NewTargets makes a sandbox that runs until End.
func NewTargets(transport http.RoundTripper) *Targets {
	return &Targets{Transport: transport, Token: Token, Sandbox: id.NewSandbox(), ended: make(chan struct{})}
}

// End ends the sandbox; safe to repeat.
func (s *Targets) End() { s.once.Do(func() { close(s.ended) }) }

// Target implements sandboxio.Targets.
func (s *Targets) Target(context.Context, principal.Principal, id.Sandbox) (sandboxio.Target, error) {
	if err := s.Fail.Load(); err != nil {
		return sandboxio.Target{}, *err
	}
	return sandboxio.Target{Sandbox: s.Sandbox, Transport: s.Transport, AccessToken: s.Token, Ended: s.ended}, nil
}
