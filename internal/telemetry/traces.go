package telemetry

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"skerry.dev/skerry/internal/kernel/observe"
)

// observer implements observe.Observer.
type observer struct{ t *Telemetry }

// Begin implements observe.Observer.
func (o observer) Begin(ctx context.Context, name string) (context.Context, observe.Span) {
	if o.t.tracer == nil || !trace.SpanContextFromContext(ctx).IsValid() {
		return observe.Nobody{}.Begin(ctx, name)
	}
	ctx, s := o.t.tracer.Start(ctx, name)
	return ctx, span{s}
}

// Serve implements observe.Observer.
func (o observer) Serve(ctx context.Context, name, traceparent string) (context.Context, observe.Span) {
	if o.t.tracer == nil {
		return observe.Nobody{}.Serve(ctx, name, traceparent)
	}
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer), trace.WithNewRoot()}
	if traceparent != "" {
		from := o.t.carrier.Extract(context.Background(), propagation.MapCarrier{"traceparent": traceparent})
		if said := trace.SpanContextFromContext(from); said.IsValid() {
			options = append(options, trace.WithLinks(trace.Link{SpanContext: said}))
		}
	}
	ctx, s := o.t.tracer.Start(ctx, name, options...)
	return ctx, span{s}
}

// Follow implements observe.Observer.
func (o observer) Follow(ctx, from context.Context) context.Context {
	return trace.ContextWithSpanContext(ctx, trace.SpanContextFromContext(from))
}

// Round implements observe.Observer.
func (o observer) Round(loop string, took time.Duration, err error) {
	if m := o.t.metrics; m != nil {
		m.round(loop, took, err)
	}
}

// Moved implements observe.Observer.
func (o observer) Moved(machine, state string, after time.Duration) {
	if m := o.t.metrics; m != nil {
		m.moves.WithLabelValues(machine, state).Inc()
		if after >= 0 {
			m.moved.WithLabelValues(machine, state).Observe(after.Seconds())
		}
	}
}

// Called implements observe.Observer.
func (o observer) Called(part, call, result string, took time.Duration) {
	if m := o.t.metrics; m != nil {
		m.calls.WithLabelValues(part, call, result).Inc()
		m.called.WithLabelValues(part, call).Observe(took.Seconds())
	}
}

// Answered implements observe.Observer.
func (o observer) Answered(operation string, status int, took time.Duration) {
	if m := o.t.metrics; m != nil {
		if operation == "" {
			operation = "none"
		}
		m.requests.WithLabelValues(operation, strconv.Itoa(status)).Inc()
		m.answered.WithLabelValues(operation).Observe(took.Seconds())
	}
}

type span struct{ trace.Span }

// Rename implements observe.Span.
func (s span) Rename(name string) { s.SetName(name) }

// Set implements observe.Span.
func (s span) Set(key, value string) { s.SetAttributes(attribute.String("skerry."+key, value)) }

// End implements observe.Span.
func (s span) End(err error) {
	if err != nil {
		s.SetStatus(codes.Error, "")
		s.SetAttributes(attribute.String("skerry.reason", observe.Result(err)))
	}
	s.Span.End()
}

// counter counts the spans that end; the difference to what was sent is what
// was dropped.
type counter struct{ metrics *metrics }

func (counter) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

func (c counter) OnEnd(sdktrace.ReadOnlySpan) {
	if c.metrics != nil {
		c.metrics.spans.Inc()
	}
}

func (counter) Shutdown(context.Context) error   { return nil }
func (counter) ForceFlush(context.Context) error { return nil }

// discreet sends spans without the words of errors, which may hold what a user
// wrote, and without events, which hold the same.
type discreet struct {
	sdktrace.SpanExporter
	metrics *metrics
}

func (d *discreet) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	said := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, s := range spans {
		said[i] = silent{s}
	}
	err := d.SpanExporter.ExportSpans(ctx, said)
	if d.metrics != nil {
		d.metrics.exported.WithLabelValues(observe.Result(err)).Add(float64(len(spans)))
	}
	return err
}

type silent struct{ sdktrace.ReadOnlySpan }

func (s silent) Status() sdktrace.Status {
	return sdktrace.Status{Code: s.ReadOnlySpan.Status().Code}
}

func (silent) Events() []sdktrace.Event { return nil }

// Log returns a handler that adds to each line the trace it belongs to.
func (t *Telemetry) Log(next slog.Handler) slog.Handler {
	if t.tracer == nil {
		return next
	}
	return logHandler{next}
}

type logHandler struct{ slog.Handler }

func (h logHandler) Handle(ctx context.Context, r slog.Record) error {
	if s := trace.SpanContextFromContext(ctx); s.IsValid() {
		r = r.Clone()
		r.AddAttrs(slog.String("trace_id", s.TraceID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return logHandler{h.Handler.WithAttrs(attrs)}
}

func (h logHandler) WithGroup(name string) slog.Handler { return logHandler{h.Handler.WithGroup(name)} }
