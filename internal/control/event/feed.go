package event

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/logkey"
	"skerry.dev/skerry/internal/kernel/observe"
)

const (
	// readEvery is how late a change is seen at most, beside the time of a query.
	// All who watch on a server share one query, and there is none while nobody
	// does.
	readEvery = 300 * time.Millisecond
	readBatch = 1000
	// buffered is how far a watcher may fall behind before it has to begin again.
	buffered = 1024
	// Retention is how long an event can be gone back to.
	Retention  = 24 * time.Hour
	pruneEvery = 10 * time.Minute
	readWithin = 5 * time.Second
)

// Feed reads the outbox and hands each event to those who watch its team, or all
// teams.
type Feed struct {
	store Store
	log   *slog.Logger
	wake  chan struct{} // somebody began to watch

	mu       sync.Mutex
	watchers map[audience]map[*Watcher]struct{}
}

// audience is what is watched: one team, or the whole platform.
type audience struct {
	team id.Team // none when all
	all  bool
}

// Watcher is one who watches.
type Watcher struct {
	feed *Feed
	of   audience
	// Events are those after From, in order. It is closed when the watcher fell
	// too far behind; the way on is to go back to the last event that was seen.
	Events chan Event
	began  chan Position
	begun  bool
}

// NewFeed reads from store once Run runs.
func NewFeed(store Store, log *slog.Logger) *Feed {
	return &Feed{store: store, log: log, wake: make(chan struct{}, 1), watchers: map[audience]map[*Watcher]struct{}{}}
}

// Watch begins to watch a team until Close.
func (f *Feed) Watch(team id.Team) *Watcher { return f.watch(audience{team: team}) }

// WatchAll begins to watch all teams, and what belongs to none, until Close.
func (f *Feed) WatchAll() *Watcher { return f.watch(audience{all: true}) }

func (f *Feed) watch(of audience) *Watcher {
	w := &Watcher{feed: f, of: of, Events: make(chan Event, buffered), began: make(chan Position, 1)}
	f.mu.Lock()
	if f.watchers[of] == nil {
		f.watchers[of] = map[*Watcher]struct{}{}
	}
	f.watchers[of][w] = struct{}{}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
	return w
}

// From waits until the feed has taken the watcher in, and says after which
// position its events begin.
func (w *Watcher) From(ctx context.Context) (Position, error) {
	select {
	case p := <-w.began:
		return p, nil
	case <-ctx.Done():
		return Position{}, context.Cause(ctx)
	}
}

// Close stops watching. It may be repeated.
func (w *Watcher) Close() {
	w.feed.mu.Lock()
	defer w.feed.mu.Unlock()
	w.feed.drop(w)
}

// drop is called with mu held.
func (f *Feed) drop(w *Watcher) {
	delete(f.watchers[w.of], w)
	if len(f.watchers[w.of]) == 0 {
		delete(f.watchers, w.of)
	}
}

// Run reads while somebody watches, and prunes, until ctx ends.
func (f *Feed) Run(ctx context.Context) error {
	var prune sync.WaitGroup
	prune.Go(func() { f.pruneLoop(ctx) })
	defer prune.Wait()
	ticker := time.NewTicker(readEvery)
	defer ticker.Stop()
	reading := false
	var at Position
	for {
		if f.watched() {
			err := observe.Round(ctx, "event_feed", func(ctx context.Context) (err error) {
				at, err = f.read(ctx, at, reading)
				return err
			})
			if err == nil {
				reading = true
			} else if ctx.Err() == nil {
				f.log.WarnContext(ctx, "cannot read what changed; watchers wait", logkey.Error, err)
			}
		} else {
			// Nobody has seen anything: the next one begins at the end of then.
			reading = false
			select {
			case <-ctx.Done():
				return nil
			case <-f.wake:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-f.wake:
		}
	}
}

func (f *Feed) watched() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watchers) > 0
}

// read hands on what is new since at and returns where it came to. New watchers
// begin at its end.
func (f *Feed) read(ctx context.Context, at Position, reading bool) (Position, error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	if !reading {
		var err error
		if at, err = f.store.End(ctx); err != nil {
			return at, err
		}
	}
	for {
		events, err := f.store.After(ctx, at, readBatch)
		if err != nil {
			return at, err
		}
		f.hand(events)
		if len(events) > 0 {
			at = events[len(events)-1].At
		}
		if len(events) < readBatch {
			f.begin(at)
			return at, nil
		}
	}
}

func (f *Feed) hand(events []Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range events {
		f.give(audience{team: e.Team}, e)
		f.give(audience{all: true}, e)
	}
}

// give is called with mu held.
func (f *Feed) give(to audience, e Event) {
	for w := range f.watchers[to] {
		if !w.begun {
			continue
		}
		select {
		case w.Events <- e:
		default:
			close(w.Events)
			f.drop(w)
		}
	}
}

func (f *Feed) begin(at Position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, watchers := range f.watchers {
		for w := range watchers {
			if !w.begun {
				w.begun = true
				w.began <- at
			}
		}
	}
}

func (f *Feed) pruneLoop(ctx context.Context) {
	ticker := time.NewTicker(pruneEvery)
	defer ticker.Stop()
	for {
		for ctx.Err() == nil {
			var n int64
			err := observe.Round(ctx, "event_retention", func(ctx context.Context) (err error) {
				n, err = f.store.Prune(ctx, Retention)
				return err
			})
			if err != nil && ctx.Err() == nil {
				f.log.WarnContext(ctx, "cannot prune old events", logkey.Error, err)
			}
			if err != nil || n == 0 {
				break
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
