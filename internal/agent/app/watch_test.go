package app

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/observe"
	"skerry.dev/skerry/internal/telemetry/telemetrytest"
)

// TestO4_AnAgentThatIsNotUpIsSeen: it lives and is of no use, and says both.
func TestO4_AnAgentThatIsNotUpIsSeen(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Version: "1.2.3", MetricsListen: address, Logger: slog.New(slog.DiscardHandler)}
	ctx, end, err := cfg.beWatched(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if observe.From(ctx) == observe.Observer(observe.Nobody{}) {
		t.Error("nobody listens to what the agent does")
	}
	telemetrytest.Check(t, telemetrytest.Scrape(t, "http://"+address+"/metrics"))
	for path, want := range map[string]int{"/healthz": http.StatusOK, "/readyz": http.StatusServiceUnavailable} {
		res, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s answers %d, want %d", path, res.StatusCode, want)
		}
	}
	if _, _, err := (&Config{MetricsListen: address, Logger: cfg.Logger}).beWatched(t.Context()); err == nil {
		t.Error("a second one has the same address")
	}
	http.DefaultClient.CloseIdleConnections()
	end()
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("it is still served")
	}
}

// heard writes down the calls it is told of.
type heard struct {
	observe.Nobody
	results []string
}

func (h *heard) Called(part, call, result string, _ time.Duration) {
	h.results = append(h.results, part+" "+call+" "+result)
}

type failing struct{ engine.Engine }

func (failing) Start(context.Context, engine.Handle) (engine.Handle, error) {
	return nil, errs.Unavailable("engine_failed", "canary")
}
func (failing) Destroy(context.Context, engine.InstanceID) error { return errors.New("canary") }
func (failing) Stop(ctx context.Context, _ engine.Handle) error  { return ctx.Err() }

// TestO4_CallsArePassedOn: with their errors, of which one word is told.
func TestO4_CallsArePassedOn(t *testing.T) {
	h := &heard{}
	e := (&watch{observer: h}).engines(map[string]engine.Engine{"gvisor": failing{}})["gvisor"]
	if _, err := e.Start(t.Context(), nil); errs.As(err).Reason != "engine_failed" {
		t.Errorf("the error became %v", err)
	}
	if err := e.Destroy(t.Context(), ""); err == nil {
		t.Error("the error was lost")
	}
	ended, cancel := context.WithCancel(t.Context())
	if err := e.Stop(ended, nil); err != nil {
		t.Error(err)
	}
	cancel()
	if err := e.Stop(ended, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("the error became %v", err)
	}
	want := []string{"gvisor start engine_failed", "gvisor destroy error", "gvisor stop ok", "gvisor stop canceled"}
	if len(h.results) != len(want) {
		t.Fatalf("told of %v", h.results)
	}
	for i := range want {
		if h.results[i] != want[i] {
			t.Errorf("told of %q, want %q", h.results[i], want[i])
		}
	}
}
