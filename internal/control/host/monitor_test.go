package host

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/kernel/id"
)

// silentStore has hosts that never send a heartbeat.
type silentStore struct {
	Store // the rest is not called

	mu     sync.Mutex
	hosts  []Ref
	broken bool
	judged []time.Time
}

func (s *silentStore) ListActiveHosts(context.Context) ([]Ref, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return nil, errors.New("database away")
	}
	return s.hosts, nil
}

func (s *silentStore) MarkStale(context.Context, time.Duration, string, func(Host) audit.Entry) ([]Host, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return nil, errors.New("database away")
	}
	s.judged = append(s.judged, time.Now())
	return nil, nil
}

func (s *silentStore) set(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
}

type passes struct {
	mu    sync.Mutex
	slow  id.Host
	count map[id.Host]int
}

func (p *passes) MarkMissing(context.Context, time.Duration) error { return nil }

func (p *passes) Forget(id.Host) {}

func (p *passes) ReconcileHost(ctx context.Context, h Ref) error {
	p.mu.Lock()
	p.count[h.ID]++
	p.mu.Unlock()
	if h.ID == p.slow {
		<-ctx.Done()
	}
	return ctx.Err()
}

// pass lets time go by in the bubble of synctest.
func pass(d time.Duration) { <-time.After(d) }

func TestH7_NoVerdictBeforeAFullWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &silentStore{}
		m := NewHostMonitor(store, &passes{count: map[id.Host]int{}}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		start := time.Now()
		go func() { done <- m.Run(ctx) }()
		pass(StaleAfter + time.Minute)
		synctest.Wait()
		store.mu.Lock()
		if len(store.judged) == 0 || store.judged[0].Sub(start) < StaleAfter {
			t.Errorf("first verdict after %v", store.judged)
		}
		store.mu.Unlock()
		store.set(true)
		pass(10 * time.Minute)
		store.set(false)
		back := time.Now()
		store.mu.Lock()
		before := len(store.judged)
		store.mu.Unlock()
		pass(StaleAfter + time.Minute)
		synctest.Wait()
		store.mu.Lock()
		if len(store.judged) == before || store.judged[before].Sub(back) < StaleAfter {
			t.Error("judged before a full window after the database was back")
		}
		store.mu.Unlock()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestRC06_OneSlowHostDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &silentStore{}
		for range 20 {
			store.hosts = append(store.hosts, Ref{ID: id.NewHost()})
		}
		p := &passes{count: map[id.Host]int{}, slow: store.hosts[0].ID}
		m := NewHostMonitor(store, p, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		pass(5*time.Minute + time.Second)
		synctest.Wait()
		p.mu.Lock()
		for _, h := range store.hosts[1:] {
			if p.count[h.ID] < 10 {
				t.Errorf("host %s was looked at %d times in 5 minutes", h.ID, p.count[h.ID])
			}
		}
		if p.count[p.slow] < 5 {
			t.Errorf("the slow one %d times", p.count[p.slow])
		}
		p.mu.Unlock()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}
