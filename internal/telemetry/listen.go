package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// scrapesAtOnce bounds the answers under way, scrapeWithin each of them.
const (
	scrapesAtOnce = 4
	scrapeWithin  = 10 * time.Second
)

// handler is /metrics, and health for /healthz and /readyz.
func (t *Telemetry) handler(health http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeWithin, ErrorHandling: promhttp.ContinueOnError,
		ErrorLog: slog.NewLogLogger(t.cfg.Log.Handler(), slog.LevelWarn),
	}))
	mux.Handle("GET /healthz", health)
	mux.Handle("GET /readyz", health)
	return mux
}

// Serve answers /metrics, and /healthz and /readyz by health, until ctx ends. It
// closes ln. There is no authentication: the address decides who may look.
func (t *Telemetry) Serve(ctx context.Context, ln net.Listener, health http.Handler) error {
	server := &http.Server{
		Handler: t.handler(health), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 2 * scrapeWithin, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(t.cfg.Log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve metrics: %w", err)
	case <-ctx.Done():
	}
	err := server.Close()
	if end := <-served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	return err
}
