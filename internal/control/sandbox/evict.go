package sandbox

import (
	"context"
	"log/slog"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Bounds of making room on hosts.
const (
	evictEvery = 15 * time.Second
	evictHosts = 50  // in one pass
	evictMost  = 100 // copies of one host in one pass
)

// DefaultDiskWatermark is the share of a host's disk that is to be free.
const DefaultDiskWatermark = 0.15

// FullHost is a host with less free disk than it is to have.
type FullHost struct {
	ID      id.Host
	Lacking int64 // bytes
}

// SpareCopy is one of a state that is in the store, on a host that does not need
// it.
type SpareCopy struct {
	State     id.Snapshot
	SizeBytes int64
}

// Evictor has hosts whose disk is nearly full remove copies of saved states that
// are in the store, the longest unused first. Several servers may each run one: a
// copy is given up under the locks of whoever could begin to use it.
type Evictor struct {
	store Store
	share float64
	log   *slog.Logger
}

// NewEvictor makes the loop; share is what is to be free.
func NewEvictor(store Store, share float64, log *slog.Logger) *Evictor {
	return &Evictor{store: store, share: share, log: log}
}

// Run makes room until ctx ends.
func (e *Evictor) Run(ctx context.Context) error {
	ticker := time.NewTicker(evictEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := observe.Round(ctx, "copy_eviction", e.Pass); err != nil && ctx.Err() == nil {
			e.log.WarnContext(ctx, "cannot make room on hosts", "error", err)
		}
	}
}

// Pass is one bounded look. A host that was told before is left alone until it
// has done that.
func (e *Evictor) Pass(ctx context.Context) error {
	full, err := e.store.FullHosts(ctx, e.share, evictHosts)
	if err != nil {
		return err
	}
	for _, h := range full {
		spare, err := e.store.SpareCopies(ctx, h.ID, evictMost)
		if err != nil {
			return err
		}
		freed, n := int64(0), 0
		for _, c := range spare {
			if freed >= h.Lacking {
				break
			}
			given, err := e.store.GiveUpCopy(ctx, h.ID, c.State)
			if err != nil {
				return err
			}
			if given {
				observe.From(ctx).Moved("state_copy", "given_up", -1)
				freed += c.SizeBytes
				n++
			}
		}
		level := slog.LevelInfo
		if freed < h.Lacking {
			level = slog.LevelWarn
		}
		e.log.Log(ctx, level, "the disk of a host is nearly full; copies of what is in the store go", "host_id", h.ID.String(),
			"copies", n, "bytes", freed, "lacking_bytes", h.Lacking)
	}
	return nil
}
