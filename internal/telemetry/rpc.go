package telemetry

import (
	"context"
	"path"
	"strings"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/otelconnect"
	"go.opentelemetry.io/otel/trace"

	"skerry.dev/skerry/internal/kernel/observe"
)

// Client returns what makes calls of a Connect client be counted under part, and
// traced where they belong to a trace. Nothing when all is off.
func (t *Telemetry) Client(part string) ([]connect.Interceptor, error) {
	return t.interceptors(part, otelconnect.WithFilter(func(ctx context.Context, _ connect.Spec) bool {
		return trace.SpanContextFromContext(ctx).IsValid()
	}))
}

// Handler returns the same for the calls a Connect server answers; what their
// work tells, it tells to this. A call that comes without a trace begins none:
// only polls do.
func (t *Telemetry) Handler(part string) ([]connect.Interceptor, error) {
	return t.interceptors(part, otelconnect.WithFilter(func(ctx context.Context, _ connect.Spec) bool {
		traced, _ := ctx.Value(tracedKey{}).(bool)
		return traced
	}))
}

func (t *Telemetry) interceptors(part string, filter otelconnect.Option) ([]connect.Interceptor, error) {
	if t.metrics == nil && t.tracer == nil {
		return nil, nil
	}
	all := []connect.Interceptor{calls{part: part, observer: t.Observer()}}
	if t.tracer != nil {
		traced, err := otelconnect.NewInterceptor(append(t.connectOptions(), filter)...)
		if err != nil {
			return nil, err
		}
		all = append(all, traced)
	}
	return all, nil
}

// tracedKey marks a served call that belongs to a trace.
type tracedKey struct{}

// calls counts calls and has those that are served tell what they do.
type calls struct {
	part     string
	observer observe.Observer
}

var _ connect.Interceptor = calls{}

func (c calls) told(ctx context.Context, traceparent string) context.Context {
	ctx = observe.With(ctx, c.observer)
	if traceparent != "" {
		ctx = context.WithValue(ctx, tracedKey{}, true)
	}
	return ctx
}

func (c calls) ended(procedure string, began time.Time, err error) {
	result := "ok"
	if err != nil {
		result = connect.CodeOf(err).String()
	}
	c.observer.Called(c.part, path.Base(procedure), strings.ToLower(result), time.Since(began))
}

// WrapUnary implements connect.Interceptor.
func (c calls) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if !req.Spec().IsClient {
			ctx = c.told(ctx, req.Header().Get("Traceparent"))
		}
		began := time.Now()
		res, err := next(ctx, req)
		c.ended(req.Spec().Procedure, began, err)
		return res, err
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (calls) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (c calls) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		began := time.Now()
		err := next(c.told(ctx, conn.RequestHeader().Get("Traceparent")), conn)
		c.ended(conn.Spec().Procedure, began, err)
		return err
	}
}
