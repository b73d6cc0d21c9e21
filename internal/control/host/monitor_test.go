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
	mu        sync.Mutex
	slow      id.Host
	took      time.Duration // each look at another
	count     map[id.Host]int
	missing   []time.Time
	forgotten int
}

func (p *passes) MarkMissing(context.Context, time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.missing = append(p.missing, time.Now())
	return nil
}

func (p *passes) Forget(id.Host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgotten++
}

func (p *passes) ReconcileHost(ctx context.Context, h Ref) error {
	p.mu.Lock()
	p.count[h.ID]++
	p.mu.Unlock()
	if h.ID == p.slow {
		<-ctx.Done()
	} else if p.took > 0 {
		select {
		case <-time.After(p.took):
		case <-ctx.Done():
		}
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

// Two servers lose the database for five minutes and get it back, one after the
// other: neither judges hosts, nor what runs there, before it saw a full window.
func TestRC07_AnOutageOfTheDatabaseIsNobodysFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		var stores []*silentStore
		var looks []*passes
		for range 2 {
			store, p := &silentStore{hosts: []Ref{{ID: id.NewHost()}}}, &passes{count: map[id.Host]int{}}
			m := NewHostMonitor(store, p, slog.New(slog.DiscardHandler))
			stores, looks = append(stores, store), append(looks, p)
			go func() { done <- m.Run(ctx) }()
		}
		pass(StaleAfter + time.Minute)
		for i := range stores {
			stores[i].set(true)
		}
		pass(5 * time.Minute)
		down := time.Now()
		var back [2]time.Time
		for i := range stores {
			stores[i].set(false)
			back[i] = time.Now()
			pass(20 * time.Second)
		}
		pass(StaleAfter + time.Minute)
		synctest.Wait()
		for i := range stores {
			stores[i].mu.Lock()
			looks[i].mu.Lock()
			again := 0
			for _, verdicts := range [][]time.Time{stores[i].judged, looks[i].missing} {
				if len(verdicts) == 0 || verdicts[0].After(down) {
					t.Errorf("server %d never judged before", i)
				}
				for _, at := range verdicts {
					if at.After(down.Add(-5*time.Minute)) && at.Before(back[i].Add(StaleAfter)) {
						t.Errorf("server %d judged %s after the database was back", i, at.Sub(back[i]))
					}
					if at.After(back[i]) {
						again++
					}
				}
			}
			if again == 0 {
				t.Errorf("server %d judges nobody any more", i)
			}
			looks[i].mu.Unlock()
			stores[i].mu.Unlock()
		}
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A thousand hosts of which each look takes a second, and one that hangs: all
// have their turn each interval. Those that leave are forgotten.
func TestRC06_AThousandHostsHaveTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &silentStore{}
		for range 1000 {
			store.hosts = append(store.hosts, Ref{ID: id.NewHost()})
		}
		p := &passes{count: map[id.Host]int{}, slow: store.hosts[0].ID, took: time.Second}
		m := NewHostMonitor(store, p, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		pass(5*time.Minute + 20*time.Second)
		synctest.Wait()
		p.mu.Lock()
		least := p.count[store.hosts[1].ID]
		for _, h := range store.hosts[1:] {
			least = min(least, p.count[h.ID])
		}
		if least < 8 {
			t.Errorf("one was looked at %d times in 5 minutes", least)
		}
		p.mu.Unlock()
		store.mu.Lock()
		store.hosts = store.hosts[:10]
		store.mu.Unlock()
		pass(time.Minute)
		synctest.Wait()
		m.mu.Lock()
		if len(m.last) > 10 || len(m.active) > 10 {
			t.Errorf("%d hosts are remembered of 10", len(m.last))
		}
		m.mu.Unlock()
		p.mu.Lock()
		if p.forgotten != 990 {
			t.Errorf("the reconciler was told of %d that left", p.forgotten)
		}
		p.mu.Unlock()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// sleepyStore stands still in one look, as a stopped process or machine does.
type sleepyStore struct {
	silentStore
	sleep time.Duration
}

func (s *sleepyStore) MarkStale(ctx context.Context, after time.Duration, why string, entry func(Host) audit.Entry) ([]Host, error) {
	s.mu.Lock()
	d := s.sleep
	s.sleep = 0
	s.mu.Unlock()
	if d > 0 {
		pass(d)
		return nil, nil
	}
	return s.silentStore.MarkStale(ctx, after, why, entry)
}

func TestH7_WhoSleptJudgesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sleep = 10 * time.Minute
		store := &sleepyStore{sleep: sleep}
		m := NewHostMonitor(store, &passes{count: map[id.Host]int{}}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		start := time.Now()
		go func() { done <- m.Run(ctx) }()
		pass(StaleAfter + sleep + 2*StaleAfter)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		awake := start.Add(StaleAfter + sleep)
		if len(store.judged) == 0 || store.judged[0].Before(awake.Add(StaleAfter)) {
			t.Errorf("awake at %s, first verdict at %s", awake, store.judged)
		}
	})
}
