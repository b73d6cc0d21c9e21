// Package edge serves the sandbox origin: what runs inside sandboxes, to whom
// its team lets reach it, and nothing else of Skerry. It finds the sandbox and
// the port by the host's name or by two headers, decides in one place whether
// the request may pass, and carries the bytes both ways unchanged for as long
// as the sandbox runs and the access lasts.
//
// Whatever comes from outside and from inside is hostile: to Skerry, and to the
// pages of other sandboxes in the same browser.
package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/port"
	"skerry.dev/skerry/internal/kernel/lifecycle"
)

// DefaultMaxOpen bounds the requests that one server carries at a time.
const DefaultMaxOpen = 10_000

const (
	// askers is how many requests ask the database at a time, askWithin how long
	// one waits for its turn.
	askers    = 4
	askWithin = 5 * time.Second
)

// Config is what the edge needs of the rest. All but MaxOpen and Trusted are
// required.
type Config struct {
	Origin    port.Origin
	Secret    keyring.Secret
	Accesses  Accesses
	Sandboxes Sandboxes
	Hosts     Hosts
	// Trusted tells whether X-Forwarded-For of this peer is believed; nil is nobody.
	Trusted func(remoteAddr string) bool
	// MaxOpen bounds the requests that are carried at a time; 0 is the default.
	MaxOpen int
	Log     *slog.Logger
}

// Edge carries requests into sandboxes. It is safe for concurrent use.
type Edge struct {
	cfg     Config
	routes  *routes
	open    open
	count   atomic.Int64
	asking  chan struct{}
	buffers buffers
}

// New returns an edge; Run must run for routes to be swept and for streams to
// end with their access.
func New(c Config) *Edge {
	if c.MaxOpen <= 0 {
		c.MaxOpen = DefaultMaxOpen
	}
	if c.Trusted == nil {
		c.Trusted = func(string) bool { return false }
	}
	return &Edge{cfg: c, routes: newRoutes(c.Sandboxes, c.Hosts), asking: make(chan struct{}, askers)}
}

// Run looks after what is open until ctx ends.
func (e *Edge) Run(ctx context.Context) error {
	defer e.routes.close()
	g, _ := lifecycle.NewGroup(ctx)
	g.Go(e.recheck)
	g.Go(e.routes.run)
	return g.Wait()
}

// Serve answers on listener until ctx ends; then everything open is cut. It
// returns when all handlers have.
func (e *Edge) Serve(ctx context.Context, listener net.Listener) error {
	base, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(nil)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:           e,
		Protocols:         &protocols,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		// `OPTIONS *` has no port to go to either way.
		ErrorLog:    slog.NewLogLogger(e.cfg.Log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return base },
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve sandboxes' ports: %w", err)
	case <-ctx.Done():
	}
	cut(errStopping)
	waiting, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*severWithin)
	defer cancel()
	err := server.Shutdown(waiting)
	if err != nil {
		err = server.Close()
	}
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	e.open.wait()
	return err
}
