// Package observe is how the parts of a program tell what they do, for metrics
// and traces, without knowing who listens. Who listens rides in the context,
// like the span it belongs to; where nobody does, all of this does nothing.
//
// Every name that is told (of a loop, a machine, a state, a call) is a constant
// of the code. Ids and what users chose belong to spans, by Set, and secrets to
// neither.
package observe

import (
	"context"
	"errors"
	"time"

	"skerry.dev/skerry/internal/kernel/errs"
)

// Observer is told. Its methods are safe for concurrent use, never wait and
// never fail.
type Observer interface {
	// Round is told of one turn of a loop that went on for took. Any err is a
	// failure.
	Round(loop string, took time.Duration, err error)
	// Moved is told that a state machine reached a state, and how long after its
	// beginning; negative where that is not known.
	Moved(machine, state string, after time.Duration)
	// Called is told of a call to a part of the program or the machine; result is
	// Result's.
	Called(part, call, result string, took time.Duration)
	// Answered is told of a request to the API; operation is "" for one that
	// names none.
	Answered(operation string, status int, took time.Duration)

	// Begin starts a span under the one of ctx; without one there is none: what
	// nobody asked for is not traced.
	Begin(ctx context.Context, name string) (context.Context, Span)
	// Serve starts the span of a request from outside. Its traceparent, which
	// anybody can make up, becomes a link and never the parent.
	Serve(ctx context.Context, name, traceparent string) (context.Context, Span)
	// Follow returns ctx with the span of from, which may be over before ctx is.
	Follow(ctx, from context.Context) context.Context
}

// Span is one piece of work in a trace. It is used by one goroutine.
type Span interface {
	Rename(name string)
	// Set adds what the work is about: an id, a status. Never a secret, nor what
	// a user wrote.
	Set(key, value string)
	// End ends it. Of an error only its Result is kept.
	End(err error)
}

type key struct{}

// With returns a context whose work is told to o.
func With(ctx context.Context, o Observer) context.Context { return context.WithValue(ctx, key{}, o) }

// From returns who listens to the work of ctx; never nil.
func From(ctx context.Context) Observer {
	if o, ok := ctx.Value(key{}).(Observer); ok {
		return o
	}
	return Nobody{}
}

// Begin is From(ctx).Begin.
func Begin(ctx context.Context, name string) (context.Context, Span) {
	return From(ctx).Begin(ctx, name)
}

// Follow returns ctx with the observer and the span of from: for work that a
// caller set off and that outlives the call.
func Follow(ctx, from context.Context) context.Context {
	o, ok := from.Value(key{}).(Observer)
	if !ok {
		return ctx
	}
	return o.Follow(With(ctx, o), from)
}

// Round runs one turn of a loop and tells of it. A turn that the end of ctx cut
// short is none.
func Round(ctx context.Context, loop string, turn func(context.Context) error) error {
	began := time.Now()
	err := turn(ctx)
	if err == nil || ctx.Err() == nil {
		From(ctx).Round(loop, time.Since(began), err)
	}
	return err
}

// Result is one word for how a call ended: "ok", the reason of a typed error,
// "canceled", "timeout" or "error".
func Result(err error) string {
	var typed *errs.Error
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &typed):
		return typed.Reason
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "error"
}

// Nobody listens to nothing.
type Nobody struct{}

var _ Observer = Nobody{}

// Round implements Observer.
func (Nobody) Round(string, time.Duration, error) {}

// Moved implements Observer.
func (Nobody) Moved(string, string, time.Duration) {}

// Called implements Observer.
func (Nobody) Called(string, string, string, time.Duration) {}

// Answered implements Observer.
func (Nobody) Answered(string, int, time.Duration) {}

// Begin implements Observer.
func (Nobody) Begin(ctx context.Context, _ string) (context.Context, Span) { return ctx, noSpan{} }

// Serve implements Observer.
func (Nobody) Serve(ctx context.Context, _, _ string) (context.Context, Span) { return ctx, noSpan{} }

// Follow implements Observer.
func (Nobody) Follow(ctx, _ context.Context) context.Context { return ctx }

type noSpan struct{}

func (noSpan) Rename(string)      {}
func (noSpan) Set(string, string) {}
func (noSpan) End(error)          {}
