// Package telemetry listens to what the parts of a program tell (package
// observe), counts it for Prometheus, and sends traces by OTLP where the
// environment names a receiver. Nothing here ever holds up the work that is
// told of: counting is in memory, and spans wait in a queue of fixed length,
// beyond which they are dropped and counted.
package telemetry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/otelconnect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"skerry.dev/skerry/internal/kernel/observe"
)

const (
	// flushWithin bounds how long the last spans may take at the end.
	flushWithin = 3 * time.Second
	// complainEvery bounds how often a receiver that does not take spans is told
	// of in the log.
	complainEvery = time.Minute
)

// Config says what to listen for.
type Config struct {
	// Program is "server" or "agent".
	Program string
	Version string
	// Metrics says that somebody will fetch them. Traces are decided by the
	// environment: see Check.
	Metrics bool
	Log     *slog.Logger
}

// Telemetry is one program's. All of it may be off.
type Telemetry struct {
	cfg      Config
	registry *prometheus.Registry
	metrics  *metrics // nil: off
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer // nil: off
	carrier  propagation.TraceContext
	complain atomic.Int64 // unix nanoseconds of the last complaint
}

// Check lists what is wrong with the OTEL_… variables that would otherwise be
// passed over in silence.
func Check() error {
	var faults []error
	for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"} {
		v := os.Getenv(name)
		if u, err := url.Parse(v); v != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			// The value may hold credentials.
			faults = append(faults, fmt.Errorf("%s: must be a URL such as http://collector:4318", name))
		}
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"} {
		if v := os.Getenv(name); v != "" && v != "http/protobuf" {
			faults = append(faults, fmt.Errorf("%s: only http/protobuf is spoken, not %q", name, v))
		}
	}
	if v := os.Getenv("OTEL_TRACES_EXPORTER"); v != "" && v != "otlp" && v != "none" {
		faults = append(faults, fmt.Errorf("OTEL_TRACES_EXPORTER: must be otlp or none, not %q", v))
	}
	return errors.Join(faults...)
}

// tracing reports whether the environment wants traces.
func tracing() bool {
	return (os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "") &&
		!strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") && os.Getenv("OTEL_TRACES_EXPORTER") != "none"
}

// New begins to listen. Close ends it.
func New(ctx context.Context, cfg Config) (*Telemetry, error) {
	if err := Check(); err != nil {
		return nil, err
	}
	t := &Telemetry{cfg: cfg, registry: prometheus.NewRegistry()}
	if cfg.Metrics {
		t.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
		t.metrics = newMetrics(t.registry)
		t.metrics.build.WithLabelValues(cfg.Program, cfg.Version).Set(1)
	}
	if !tracing() {
		return t, nil
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	about, err := resource.New(
		ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(
			attribute.String("service.name", "skerry-"+cfg.Program), attribute.String("service.version", cfg.Version),
			attribute.String("service.instance.id", instance()),
		),
		resource.WithFromEnv(), // the operator's word is last
	)
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithResource(about),
		sdktrace.WithSpanProcessor(counter{metrics: t.metrics}),
		sdktrace.WithBatcher(&discreet{SpanExporter: exporter, metrics: t.metrics}),
	)
	t.tracer = t.provider.Tracer("skerry")
	otel.SetErrorHandler(otel.ErrorHandlerFunc(t.failed))
	return t, nil
}

func instance() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// failed is told of what the exporter could not do; it goes on by itself.
func (t *Telemetry) failed(err error) {
	now, last := time.Now().UnixNano(), t.complain.Load()
	if last != 0 && now-last < int64(complainEvery) || !t.complain.CompareAndSwap(last, now) {
		return
	}
	t.cfg.Log.Warn("traces cannot be sent; spans are dropped", "error", err)
}

// Close sends what is left, for a bounded time.
func (t *Telemetry) Close(ctx context.Context) {
	if t.provider == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushWithin)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.failed(err)
	}
}

// Observer is what the program's parts tell.
func (t *Telemetry) Observer() observe.Observer {
	if t.metrics == nil && t.tracer == nil {
		return observe.Nobody{}
	}
	return observer{t}
}

// Registry is where further metrics are added; nil when nobody fetches any.
func (t *Telemetry) Registry() prometheus.Registerer {
	if t.metrics == nil {
		return nil
	}
	return t.registry
}

// connectOptions: hosts and servers prove who they are, so a span from the other
// end is believed.
func (t *Telemetry) connectOptions() []otelconnect.Option {
	return []otelconnect.Option{
		otelconnect.WithTracerProvider(t.provider), otelconnect.WithPropagator(t.carrier), otelconnect.WithoutMetrics(), otelconnect.WithTrustRemote(),
	}
}
