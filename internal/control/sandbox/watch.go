package sandbox

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
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
	subs map[id.Sandbox]*watched
}

// watched is a sandbox that somebody waits for.
type watched struct {
	by map[*subscription]struct{}
	// seen is the UpdatedAt of what Run told all of by; zero when one of them
	// was not told yet.
	seen time.Time
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
	return &Watch{store: store, log: log, subs: map[id.Sandbox]*watched{}}
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
		w.subs[x] = &watched{by: map[*subscription]struct{}{}}
	}
	w.subs[x].by[s] = struct{}{}
	w.subs[x].seen = time.Time{}
}

func (w *Watch) remove(x id.Sandbox, s *subscription) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if on := w.subs[x]; on != nil {
		delete(on.by, s)
		if len(on.by) == 0 {
			delete(w.subs, x)
		}
	}
}

// Publish tells a change that was just committed.
func (w *Watch) Publish(x Sandbox) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tell(x)
}

// tell is called with mu held; what it returns is nil when nobody waits any
// more.
func (w *Watch) tell(x Sandbox) *watched {
	on := w.subs[x.ID]
	if on == nil {
		return nil
	}
	for s := range on.by {
		if s.ended != nil {
			if x.Incarnation != s.incarnation || !lasts(x.Status) {
				close(s.ended)
				delete(on.by, s)
			}
			continue
		}
		select {
		case <-s.told:
		default:
		}
		s.told <- x
	}
	if len(on.by) == 0 {
		delete(w.subs, x.ID)
		return nil
	}
	return on
}

// lasts: an incarnation in s is there. A pause may fail, or be refused because
// something goes on; what is open stays open until its host cuts it.
func lasts(s Status) bool { return usable(s) || s == StatusPausing }

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
		for _, batch := range w.batches() {
			err := observe.Round(ctx, "sandbox_watch", func(ctx context.Context) error { return w.look(ctx, batch) })
			if err != nil && ctx.Err() == nil {
				w.log.WarnContext(ctx, "cannot read watched sandboxes", "error", err)
			}
		}
	}
}

func (w *Watch) look(ctx context.Context, batch map[id.Sandbox]time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	seen, err := w.store.Seen(ctx, batch)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range seen {
		// Only what is told here counts as seen: it may be older than what was
		// published meanwhile, and is then told again.
		if on := w.tell(x); on != nil {
			on.seen = x.UpdatedAt
		}
	}
	return nil
}

// batches are all that are waited for, with what was last seen of them.
func (w *Watch) batches() []map[id.Sandbox]time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []map[id.Sandbox]time.Time
	for x, on := range w.subs {
		if len(all) == 0 || len(all[len(all)-1]) == watchBatch {
			all = append(all, make(map[id.Sandbox]time.Time, min(len(w.subs), watchBatch)))
		}
		all[len(all)-1][x] = on.seen
	}
	return all
}
