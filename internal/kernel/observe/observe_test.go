package observe_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"skerry.dev/skerry/internal/kernel/observe"
)

// listener writes down what it is told.
type listener struct {
	observe.Nobody
	rounds   []error
	followed bool
}

func (l *listener) Round(_ string, _ time.Duration, err error) { l.rounds = append(l.rounds, err) }

func (l *listener) Follow(ctx, _ context.Context) context.Context {
	l.followed = true
	return ctx
}

func TestRoundsAreToldButThoseCutShort(t *testing.T) {
	l := &listener{}
	ctx, cancel := context.WithCancel(observe.With(t.Context(), l))
	broken := errors.New("broken")
	for _, want := range []error{nil, broken} {
		if err := observe.Round(ctx, "loop", func(context.Context) error { return want }); !errors.Is(err, want) {
			t.Errorf("the turn's error became %v", err)
		}
	}
	cancel()
	_ = observe.Round(ctx, "loop", func(ctx context.Context) error { return ctx.Err() })
	if len(l.rounds) != 2 || l.rounds[0] != nil || !errors.Is(l.rounds[1], broken) {
		t.Errorf("told of %v, want success and failure alone", l.rounds)
	}
}

func TestFollowTakesTheObserverAlong(t *testing.T) {
	l := &listener{}
	type other struct{}
	from := context.WithValue(observe.With(t.Context(), l), other{}, "the caller's")
	ctx := observe.Follow(context.Background(), from)
	if observe.From(ctx) != observe.Observer(l) || !l.followed {
		t.Error("the observer stayed behind")
	}
	if ctx.Value(other{}) != nil {
		t.Error("more of the caller went along than who listens")
	}
	if observe.Follow(context.Background(), t.Context()) != context.Background() {
		t.Error("a context without an observer became another")
	}
}

// TestO4_NobodyCostsNothing: without telemetry a piece of work costs no memory.
func TestO4_NobodyCostsNothing(t *testing.T) {
	ctx := t.Context()
	turn := func(context.Context) error { return nil }
	if n := testing.AllocsPerRun(1000, func() {
		inner, span := observe.Begin(ctx, "work")
		span.Set("key", "value")
		_ = observe.Round(inner, "loop", turn)
		observe.From(inner).Called("part", "call", "ok", time.Second)
		span.End(nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkNobody(b *testing.B) {
	ctx := context.WithValue(b.Context(), "deep", 1) //nolint:staticcheck // only to be looked through
	for b.Loop() {
		inner, span := observe.Begin(ctx, "work")
		observe.From(inner).Called("part", "call", "ok", time.Second)
		span.End(nil)
	}
}
