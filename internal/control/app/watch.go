package app

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
	"skerry.dev/skerry/internal/telemetry"
)

// listenMetrics opens the listener for those who watch; nil for none.
func listenMetrics(ctx context.Context, address string) (net.Listener, error) {
	if address == "" {
		return nil, nil //nolint:nilnil // none is wanted
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("SKERRY_METRICS_LISTEN: %w", err)
	}
	return l, nil
}

// serveMetrics answers those who watch until ctx ends; the API's own look at
// health is theirs too.
func (c *control) serveMetrics(ctx context.Context, tel *telemetry.Telemetry, l net.Listener) func() {
	if l == nil {
		return func() {}
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	tel.Registry().MustRegister(newFigures(c.pool))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := tel.Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.api.ServeHTTP(w, r) })); err != nil {
			c.log.ErrorContext(ctx, "metrics are served no more", "error", err)
		}
	}()
	return func() {
		stop()
		<-ended
	}
}

// steps tells how far operations have come, and how long after they were
// opened.
func steps(o observe.Observer) func(sandbox.Step, sandbox.Operation) error {
	return func(s sandbox.Step, op sandbox.Operation) error {
		after := time.Duration(-1)
		if !op.CreatedAt.IsZero() {
			after = max(time.Since(op.CreatedAt), 0) // by the database's clock
		}
		o.Moved(string(op.Kind), string(s), after)
		return nil
	}
}

// watchedStore tells of the statuses that sandboxes reach by this server's hand,
// and of those that are started.
type watchedStore struct {
	sandbox.Store
	o       observe.Observer
	started func()
}

func (w watchedStore) moved(x sandbox.Sandbox, err error) {
	if err == nil {
		w.o.Moved("sandbox", string(x.Status), -1)
	}
}

// CreatePending implements sandbox.Store.
func (w watchedStore) CreatePending(ctx context.Context, n sandbox.NewSandbox, lease sandbox.Lease, place sandbox.Placer, entry func(id.Host) audit.Entry) (sandbox.Sandbox, error) {
	x, err := w.Store.CreatePending(ctx, n, lease, place, entry)
	w.moved(x, err)
	if err == nil {
		w.started()
	}
	return x, err
}

// Begin implements sandbox.Store.
func (w watchedStore) Begin(ctx context.Context, b sandbox.Begin) (sandbox.Sandbox, sandbox.Operation, bool, error) {
	x, op, begun, err := w.Store.Begin(ctx, b)
	if begun {
		w.moved(x, err)
	}
	return x, op, begun, err
}

// Apply implements sandbox.Store.
func (w watchedStore) Apply(ctx context.Context, t sandbox.Transition) (sandbox.Sandbox, error) {
	x, err := w.Store.Apply(ctx, t)
	w.moved(x, err)
	return x, err
}

// Adopt implements sandbox.Store.
func (w watchedStore) Adopt(ctx context.Context, a sandbox.Adopt) (sandbox.Sandbox, error) {
	x, err := w.Store.Adopt(ctx, a)
	w.moved(x, err)
	return x, err
}

// Died implements sandbox.Store.
func (w watchedStore) Died(ctx context.Context, which id.Sandbox, incarnation int64, reason string, data map[string]any) (sandbox.Sandbox, error) {
	x, err := w.Store.Died(ctx, which, incarnation, reason, data)
	w.moved(x, err)
	return x, err
}

// BeginDelete implements sandbox.Store.
func (w watchedStore) BeginDelete(ctx context.Context, d sandbox.Delete) (sandbox.Sandbox, sandbox.Operation, error) {
	x, op, err := w.Store.BeginDelete(ctx, d)
	if !op.ID.IsZero() {
		w.moved(x, err)
	}
	return x, op, err
}
