package edge

import (
	"context"
	"net/http"
	"sync"
	"time"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	// routeIdle is how long a route is kept that nobody takes.
	routeIdle  = 30 * time.Second
	sweepEvery = 10 * time.Second
	// maxRoutes bounds how many are kept; others are found anew each time.
	maxRoutes = 10_000
)

// Sandboxes finds running sandboxes; sandbox.Service does.
type Sandboxes interface {
	// Reach returns the running incarnation of a team's sandbox; in a transition
	// that leads to running it waits, bounded. With wake a paused one that asked
	// for it is resumed. Ended is watched until watch is over. Errors:
	// sandbox_not_found, invalid_state, and those of a resume.
	Reach(ctx, watch context.Context, team id.Team, x id.Sandbox, wake bool) (sandbox.Guest, error)
}

// Hosts lead into sandboxes; hostlink.HostClientPool does.
type Hosts interface {
	// Port returns the way to a port of one incarnation, where HTTP/1.1 is spoken
	// or, with http2, HTTP/2 without encryption. The host part of a request's URL
	// is of no account.
	Port(h host.Ref, x id.Sandbox, incarnation int64, port int, http2 bool) (http.RoundTripper, error)
}

// route is the way to one incarnation. It is never wrong, only over: whatever
// it is used for names the incarnation, and hosts refuse another.
type route struct {
	guest sandbox.Guest
	hosts Hosts
	// ctx ends with the incarnation, or with the last use.
	ctx    context.Context
	cancel context.CancelCauseFunc
	used   time.Time // by routes.mu
	users  int       // by routes.mu
}

func (r *route) port(number int, http2 bool) (http.RoundTripper, error) {
	return r.hosts.Port(r.guest.Host, r.guest.Sandbox, r.guest.Incarnation, number, http2)
}

// routes keeps what was found for as long as it lasts.
type routes struct {
	sandboxes Sandboxes
	hosts     Hosts

	mu     sync.Mutex
	closed bool
	known  map[id.Sandbox]*route
	wg     sync.WaitGroup
}

func newRoutes(s Sandboxes, h Hosts) *routes {
	return &routes{sandboxes: s, hosts: h, known: map[id.Sandbox]*route{}}
}

// take returns the way to a sandbox; leave must be called once it is not
// needed any more.
func (r *routes) take(ctx context.Context, team id.Team, x id.Sandbox, wake bool) (found *route, leave func(), err error) {
	r.mu.Lock()
	if found = r.known[x]; found != nil && found.ctx.Err() == nil {
		defer r.mu.Unlock()
		return found, r.enter(found), nil
	}
	r.mu.Unlock()
	watch, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	guest, err := r.sandboxes.Reach(ctx, watch, team, x, wake)
	if err != nil {
		cancel(nil)
		return nil, nil, err
	}
	found = &route{guest: guest, hosts: r.hosts, ctx: watch, cancel: cancel}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		cancel(errStopping)
		return nil, nil, errStopping
	}
	r.wg.Go(func() {
		select {
		case <-guest.Ended:
			r.drop(found)
			cancel(errEnded)
		case <-watch.Done():
		}
	})
	if _, taken := r.known[x]; taken || len(r.known) < maxRoutes {
		r.known[x] = found // one that was found at the same time ends with its users
	}
	return found, r.enter(found), nil
}

// enter is called with mu held.
func (r *routes) enter(found *route) (leave func()) {
	found.users++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		found.users--
		found.used = time.Now()
		if found.users == 0 && r.known[found.guest.Sandbox] != found {
			found.cancel(nil)
		}
	}
}

// drop forgets a route; who is under way on it stays so.
func (r *routes) drop(gone *route) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known[gone.guest.Sandbox] == gone {
		delete(r.known, gone.guest.Sandbox)
	}
	if gone.users == 0 {
		gone.cancel(nil)
	}
}

// run sweeps until ctx ends.
func (r *routes) run(ctx context.Context) error {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			r.sweep(now)
		}
	}
}

func (r *routes) sweep(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for x, found := range r.known {
		if found.users == 0 && now.Sub(found.used) > routeIdle {
			delete(r.known, x)
			found.cancel(nil)
		}
	}
}

// close ends all; none is found from then on.
func (r *routes) close() {
	r.mu.Lock()
	r.closed = true
	for x, found := range r.known {
		delete(r.known, x)
		found.cancel(errStopping)
	}
	r.mu.Unlock()
	r.wg.Wait()
}
