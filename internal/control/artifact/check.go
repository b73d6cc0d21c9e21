package artifact

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/id"
)

// Ledger is what a check needs of the room's store. Walks are in pages; an empty
// one is the end.
type Ledger interface {
	// StoredChunks are chunks that the store has to have, and their sizes, those
	// after a key; the zero one is before all.
	StoredChunks(ctx context.Context, after artifact.Key, n int) ([]artifact.Info, error)
	// ReadyManifests are the manifests it has to have, of artifacts after one.
	ReadyManifests(ctx context.Context, after id.Artifact, n int) ([]artifact.Key, id.Artifact, error)
	// Teams are all there ever were, after one; nil is before all.
	Teams(ctx context.Context, after *id.Team, n int) ([]id.Team, error)
	// Known are those of a team's blobs that a row stands for, or that are about to
	// be removed.
	Known(ctx context.Context, team id.Team, keys []artifact.Key) (map[artifact.Key]bool, error)
	// Doubt notes that chunks are not in the store, or not what they should be: they
	// are brought again by whoever has them next.
	Doubt(ctx context.Context, chunks []artifact.Key) error
}

// Depth is how closely the store is looked at.
type Depth struct {
	// Contents are read and compared with their digests, not only found in their
	// size.
	Contents bool
	// Mend notes what is missing or damaged, so that it is brought again; else
	// nothing is changed.
	Mend bool
}

// Fault is what a check found of one blob.
type Fault struct {
	Key artifact.Key
	// Missing: a row stands for it and the store does not have it, or in another
	// size. Damaged: it has other bytes. Else the store has it and nothing stands for
	// it.
	Missing, Damaged bool
}

// Checked is how much a check looked at.
type Checked struct {
	Objects int64 // in the store
	Bytes   int64
	Missing int64
	Damaged int64
	Unknown int64
}

const checkPage = 500

// Check compares the store with the rows, both ways, while everything goes on: no
// blob is removed within the hour after its row, and none is put before it has
// one. told is called for each fault.
func Check(ctx context.Context, rows Ledger, store artifact.Store, depth Depth, told func(Fault)) (Checked, error) {
	c := checker{rows: rows, store: store, depth: depth, told: told}
	err := errors.Join(c.chunks(ctx), c.manifests(ctx), c.unknown(ctx))
	return c.Checked, err
}

type checker struct {
	Checked

	rows  Ledger
	store artifact.Store
	depth Depth
	told  func(Fault)
}

func (c *checker) chunks(ctx context.Context) error {
	for after := (artifact.Key{}); ; {
		page, err := c.rows.StoredChunks(ctx, after, checkPage)
		if err != nil || len(page) == 0 {
			return err
		}
		if err := c.there(ctx, page); err != nil {
			return err
		}
		after = page[len(page)-1].Key
	}
}

func (c *checker) manifests(ctx context.Context) error {
	for after := (id.Artifact{}); ; {
		keys, last, err := c.rows.ReadyManifests(ctx, after, checkPage)
		if err != nil || len(keys) == 0 {
			return err
		}
		page := make([]artifact.Info, len(keys))
		for i, k := range keys {
			page[i].Key = k
		}
		if err := c.there(ctx, page); err != nil {
			return err
		}
		after = last
	}
}

// there asks the store for each; a size of 0 is any.
func (c *checker) there(ctx context.Context, want []artifact.Info) error {
	found := make([]Fault, len(want))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, w := range want {
		group.Go(func() error {
			found[i].Key = w.Key
			info, err := c.store.Stat(gctx, w.Key)
			if errors.Is(err, artifact.ErrNotFound) || err == nil && w.Size != 0 && info.Size != w.Size {
				found[i].Missing = true
				return nil
			}
			if err != nil || !c.depth.Contents {
				return err
			}
			sound, err := artifact.Sound(gctx, c.store, w.Key)
			found[i].Damaged = err == nil && !sound
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	var lost []artifact.Key
	for _, f := range found {
		switch {
		case f.Missing:
			c.Missing++
		case f.Damaged:
			c.Damaged++
		default:
			continue
		}
		c.told(f)
		if f.Key.Kind == artifact.KindChunk {
			lost = append(lost, f.Key)
		}
	}
	if !c.depth.Mend || len(lost) == 0 {
		return nil
	}
	return c.rows.Doubt(ctx, lost)
}

func (c *checker) unknown(ctx context.Context) error {
	for after := (*id.Team)(nil); ; {
		teams, err := c.rows.Teams(ctx, after, checkPage)
		if err != nil || len(teams) == 0 {
			return err
		}
		for _, team := range teams {
			for _, kind := range []artifact.Kind{artifact.KindChunk, artifact.KindManifest} {
				if err := c.listed(ctx, artifact.Prefix{Team: team, Kind: kind}); err != nil {
					return fmt.Errorf("list %s of team %s: %w", kind, team, err)
				}
			}
		}
		after = &teams[len(teams)-1]
	}
}

func (c *checker) listed(ctx context.Context, p artifact.Prefix) error {
	for after := ""; ; {
		infos, err := c.store.List(ctx, p, after, checkPage)
		if err != nil || len(infos) == 0 {
			return err
		}
		keys := make([]artifact.Key, len(infos))
		for i, info := range infos {
			keys[i] = info.Key
			c.Objects++
			c.Bytes += info.Size
		}
		known, err := c.rows.Known(ctx, p.Team, keys)
		if err != nil {
			return err
		}
		for _, k := range keys {
			if !known[k] {
				c.Unknown++
				c.told(Fault{Key: k})
			}
		}
		if len(infos) < checkPage {
			return nil
		}
		after = keys[len(keys)-1].Name()
	}
}
