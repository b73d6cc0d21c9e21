package build

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// feedEvery is how late those who follow a build learn what it said on another
// server; of what is driven here they are told at once.
const feedEvery = 250 * time.Millisecond

// Feed tells those who follow builds that there is more to read. It asks once
// for all of them; what there is, each reads for itself.
type Feed struct {
	store Store
	log   *slog.Logger

	mu      sync.Mutex
	watched map[id.Build]*watched
}

type watched struct {
	by   map[chan struct{}]struct{}
	seen Head
}

// NewFeed reads from store.
func NewFeed(store Store, log *slog.Logger) *Feed {
	return &Feed{store: store, log: log, watched: map[id.Build]*watched{}}
}

// watch returns a channel on which the build's changes are told until stop is
// called. Watch first, then read: nothing is missed.
func (f *Feed) watch(b id.Build) (told <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.watched[b]
	if w == nil {
		w = &watched{by: map[chan struct{}]struct{}{}}
		f.watched[b] = w
	}
	w.by[ch] = struct{}{}
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if delete(w.by, ch); len(w.by) == 0 && f.watched[b] == w {
			delete(f.watched, b)
		}
	}
}

// Hint says that a build has changed.
func (f *Feed) Hint(b id.Build) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.watched[b]; w != nil {
		w.tell()
	}
}

func (w *watched) tell() {
	for ch := range w.by {
		select {
		case ch <- struct{}{}:
		default: // told already
		}
	}
}

// Run looks until ctx ends.
func (f *Feed) Run(ctx context.Context) error {
	ticker := time.NewTicker(feedEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := observe.Round(ctx, "build_feed", f.Pass); err != nil && ctx.Err() == nil {
			f.log.WarnContext(ctx, "cannot look how far builds are", "error", err)
		}
	}
}

// Pass is one look.
func (f *Feed) Pass(ctx context.Context) error {
	f.mu.Lock()
	builds := make([]id.Build, 0, len(f.watched))
	for b := range f.watched {
		builds = append(builds, b)
	}
	f.mu.Unlock()
	if len(builds) == 0 {
		return nil
	}
	heads, err := f.store.Heads(ctx, builds)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for b, h := range heads {
		if w := f.watched[b]; w != nil && w.seen != h {
			w.seen = h
			w.tell()
		}
	}
	return nil
}
