package sandbox

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
)

// watchEvery is how late a change made by another server is seen at most. Those
// made here are told at once.
const watchEvery = 500 * time.Millisecond

// watchBatch bounds one query of the poll.
const watchBatch = 500

// Watch tells those who wait for a sandbox when it changes. Being told is a
// hint: the truth is the row, which Run reads for all that are waited for.
type Watch struct {
	store Store
	log   *slog.Logger

	mu   sync.Mutex
	subs map[id.Sandbox]map[*subscription]struct{}
}

type subscription struct {
	// told holds the newest sight of the sandbox; capacity 1.
	told chan Sandbox
	// ended is closed when incarnation is no longer usable; nil for those who
	// want every change.
	ended       chan struct{}
	incarnation int64
}

// NewWatch reads from store.
func NewWatch(store Store, log *slog.Logger) *Watch {
	return &Watch{store: store, log: log, subs: map[id.Sandbox]map[*subscription]struct{}{}}
}

// changes subscribes to a sandbox until stop is called. Subscribe first, then
// read the row: nothing is missed.
func (w *Watch) changes(x id.Sandbox) (told <-chan Sandbox, stop func()) {
	s := &subscription{told: make(chan Sandbox, 1)}
	w.add(x, s)
	return s.told, func() { w.remove(x, s) }
}

// ended returns a channel that is closed when the incarnation has ended, and
// forgotten when ctx is over.
func (w *Watch) ended(ctx context.Context, x id.Sandbox, incarnation int64) <-chan struct{} {
	s := &subscription{ended: make(chan struct{}), incarnation: incarnation}
	w.add(x, s)
	context.AfterFunc(ctx, func() { w.remove(x, s) })
	return s.ended
}

func (w *Watch) add(x id.Sandbox, s *subscription) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.subs[x] == nil {
		w.subs[x] = map[*subscription]struct{}{}
	}
	w.subs[x][s] = struct{}{}
}

func (w *Watch) remove(x id.Sandbox, s *subscription) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.subs[x], s)
	if len(w.subs[x]) == 0 {
		delete(w.subs, x)
	}
}

// Publish tells a change that was just committed.
func (w *Watch) Publish(x Sandbox) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.subs[x.ID] {
		if s.ended != nil {
			if x.Incarnation != s.incarnation || !usable(x.Status) {
				close(s.ended)
				delete(w.subs[x.ID], s)
			}
			continue
		}
		select {
		case <-s.told:
		default:
		}
		s.told <- x
	}
	if len(w.subs[x.ID]) == 0 {
		delete(w.subs, x.ID)
	}
}

// usable: the guest daemon of a sandbox in s can be spoken to.
func usable(s Status) bool { return s == StatusRunning || s == StatusSnapshotting }

// Run polls for what other servers and agents changed, until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		for batch := range w.batches() {
			if err := w.look(ctx, batch); err != nil && ctx.Err() == nil {
				w.log.WarnContext(ctx, "cannot read watched sandboxes", "error", err)
			}
		}
	}
}

func (w *Watch) look(ctx context.Context, batch []id.Sandbox) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	seen, err := w.store.Seen(ctx, batch)
	if err != nil {
		return err
	}
	for _, x := range seen {
		w.Publish(x)
	}
	return nil
}

func (w *Watch) batches() func(yield func([]id.Sandbox) bool) {
	w.mu.Lock()
	all := make([]id.Sandbox, 0, len(w.subs))
	for x := range w.subs {
		all = append(all, x)
	}
	w.mu.Unlock()
	return func(yield func([]id.Sandbox) bool) {
		for len(all) > 0 {
			n := min(len(all), watchBatch)
			if !yield(all[:n]) {
				return
			}
			all = all[n:]
		}
	}
}
