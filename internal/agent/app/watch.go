package app

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/kernel/observe"
	"skerry.dev/skerry/internal/telemetry"
)

// silence is how old the last answer to a heartbeat may be for the agent to be
// of use.
const silence = 90 * time.Second

// watch is who looks at the agent from outside: metrics, traces, health.
type watch struct {
	observer observe.Observer
	calls    []connect.Interceptor
	inside   atomic.Pointer[inside] // nil until there is something to see
}

// inside is what is looked at.
type inside struct {
	cfg      Config
	manager  *manager.Manager
	identity *identity.Identity
	states   *state.Store
	networks manager.Networks
}

// beWatched begins it, from the first moment on: what keeps an agent from
// coming up is seen too. end ends it; the context is that of all the agent does.
func (c *Config) beWatched(ctx context.Context) (watched context.Context, end func(), err error) {
	tel, err := telemetry.New(ctx, telemetry.Config{Program: "agent", Version: c.Version, Metrics: c.MetricsListen != "", Log: c.Logger})
	if err != nil {
		return ctx, nil, fmt.Errorf("agent: %w", err)
	}
	w := &watch{observer: tel.Observer()}
	c.watch = w
	var serving sync.WaitGroup
	serve, stop := context.WithCancel(context.WithoutCancel(ctx))
	end = func() {
		stop()
		serving.Wait()
		tel.Close(ctx)
	}
	if w.calls, err = tel.Handler("agent"); err != nil {
		end()
		return ctx, nil, fmt.Errorf("agent: %w", err)
	}
	if c.MetricsListen != "" {
		var lc net.ListenConfig
		ln, err := lc.Listen(ctx, "tcp", c.MetricsListen)
		if err != nil {
			end()
			return ctx, nil, fmt.Errorf("SKERRY_AGENT_METRICS_LISTEN: %w", err)
		}
		tel.Registry().MustRegister(newFigures(w))
		log := c.Logger
		serving.Go(func() {
			if err := tel.Serve(serve, ln, w.health()); err != nil {
				log.Error("metrics are served no more", "err", err)
			}
		})
	}
	return observe.With(ctx, w.observer), end, nil
}

// see shows the agent's inside.
func (w *watch) see(cfg Config, m *manager.Manager, me *identity.Identity, states *state.Store, nets manager.Networks) {
	w.inside.Store(&inside{cfg: cfg, manager: m, identity: me, states: states, networks: nets})
}

// health answers /healthz, that the process is there, and /readyz, whether it is
// of use: it knows its sandboxes, and the control plane has answered of late.
func (w *watch) health() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(rw http.ResponseWriter, _ *http.Request) {
		answer(rw, http.StatusOK, map[string]any{"status": "ok"})
	})
	mux.HandleFunc("/readyz", func(rw http.ResponseWriter, _ *http.Request) {
		parts := map[string]string{"sandboxes": "failing", "control_plane": "failing"}
		in := w.inside.Load()
		if in != nil {
			parts["sandboxes"] = "ok"
			if at := in.identity.Heard(); !at.IsZero() && time.Since(at) < silence {
				parts["control_plane"] = "ok"
			}
		}
		status, word := http.StatusOK, "ok"
		for _, part := range parts {
			if part != "ok" {
				status, word = http.StatusServiceUnavailable, "unavailable"
			}
		}
		answer(rw, status, map[string]any{"status": word, "parts": parts})
	})
	return mux
}

func answer(w http.ResponseWriter, status int, body map[string]any) {
	raw, _ := json.Marshal(body) // strings only
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(append(raw, '\n')) // the client may leave
}
