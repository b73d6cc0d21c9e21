package sandboxpg_test

import (
	"context"
	"testing"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// BenchmarkCreateDelete is what the control plane adds to an agent that needs no
// time at all.
func BenchmarkCreateDelete(b *testing.B) {
	w := sandboxtest.NewWorld(b, pgtest.New(b), 64, 1<<17)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	b.Run("create", func(b *testing.B) {
		for b.Loop() {
			x := create(b, w, s, request())
			b.StopTimer()
			if err := s.Service.Delete(ctx, w.User(), x.ID); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("delete", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			x := create(b, w, s, request())
			b.StartTimer()
			if err := s.Service.Delete(ctx, w.User(), x.ID); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("guest", func(b *testing.B) {
		x := create(b, w, s, request())
		for b.Loop() {
			call, done := context.WithCancel(ctx)
			if _, err := s.Service.Guest(call, w.User(), x.ID); err != nil {
				b.Fatal(err)
			}
			done()
		}
	})
}
