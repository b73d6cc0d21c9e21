package rpcserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"skerry.dev/skerry/gen/agentrpc/agent/v1/agentv1connect"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/rpcerr"
)

const (
	maxMessage = 4 << 20
	// graceTimeout bounds how long calls in flight may go on at the end.
	graceTimeout = 10 * time.Second
)

// Config wires a server.
type Config struct {
	Facts     Facts
	Sandboxes Sandboxes
	Carrier   Carrier
	Imager    Imager
	BuildBase BuildBase
	// TLS must demand and verify client certificates. Required.
	TLS *tls.Config
	// MaxTunnels into one sandbox; 0 is DefaultMaxTunnels.
	MaxTunnels int
	// Watchers are what all calls pass through.
	Watchers []connect.Interceptor
	Logger   *slog.Logger
}

// Server serves one listener.
type Server struct {
	http    *http.Server
	tunnels *tunnels
	tls     *tls.Config
}

// New checks the configuration and returns a server that does not listen yet.
func New(cfg Config) (*Server, error) {
	if cfg.TLS == nil || (cfg.TLS.GetConfigForClient == nil && cfg.TLS.ClientAuth != tls.RequireAndVerifyClientCert) {
		return nil, errors.New("rpcserver: mutual TLS is required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	mux.Handle(agentv1connect.NewAgentServiceHandler(
		&service{facts: cfg.Facts, sandboxes: cfg.Sandboxes, carrier: cfg.Carrier, imager: cfg.Imager, build: cfg.BuildBase},
		connect.WithReadMaxBytes(maxMessage), connect.WithInterceptors(cfg.Watchers...),
		connect.WithRecover(func(_ context.Context, spec connect.Spec, _ http.Header, panicked any) error {
			cfg.Logger.Error("a call panicked", "op", spec.Procedure, "err", fmt.Sprint(panicked))
			return rpcerr.ToConnect(errs.Internal(fmt.Errorf("panic: %v", panicked)))
		}),
	))
	tun := newTunnels(cfg.Sandboxes, cfg.MaxTunnels, cfg.Logger)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect {
			tun.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
	return &Server{
		tunnels: tun, tls: cfg.TLS,
		http: &http.Server{
			Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
			MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
			HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 250},
		},
	}, nil
}

// Serve answers on ln until ctx ends, and returns when every call and tunnel
// has ended. It closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- s.http.Serve(tls.NewListener(ln, s.tls)) }()
	select {
	case err := <-failed:
		s.tunnels.close()
		return fmt.Errorf("rpcserver: %w", err)
	case <-ctx.Done():
	}
	s.tunnels.close()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), graceTimeout)
	defer cancel()
	if err := s.http.Shutdown(grace); err != nil {
		_ = s.http.Close()
	}
	<-failed
	return nil
}
