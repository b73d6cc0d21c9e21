package artifactpg

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg/sqlcgen"
	"skerry.dev/skerry/internal/pg"
)

var _ artifact.Shelf = (*Store)(nil)

// ExpireUploads implements artifact.Shelf.
func (s *Store) ExpireUploads(ctx context.Context, n int) (int, error) {
	done, err := s.q.ExpireUploads(ctx, s.pool, int32(n))
	return int(done), pg.Map(err)
}

// MarkUnreferenced implements artifact.Shelf. It looks twice: what is locked
// cannot be pointed at, but may have been between the look and the lock.
func (s *Store) MarkUnreferenced(ctx context.Context, grace time.Duration, n int) (int, error) {
	var done int64
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		found, err := s.q.LockUnreferenced(ctx, tx, sqlcgen.LockUnreferencedParams{GraceSecs: seconds(grace), MaxRows: int32(n)})
		if err != nil || len(found) == 0 {
			return err
		}
		done, err = s.q.SetUnreferencedDeleting(ctx, tx, ids(found))
		return err
	})
	return int(done), err
}

// BringAgain implements artifact.Shelf.
func (s *Store) BringAgain(ctx context.Context, n int) (int, error) {
	states, err := s.q.BringStatesAgain(ctx, s.pool, int32(n))
	if err != nil {
		return 0, pg.Map(err)
	}
	engines, err := s.q.BringEnginesAgain(ctx, s.pool, int32(n))
	return int(states + engines), pg.Map(err)
}

// Release implements artifact.Shelf.
func (s *Store) Release(ctx context.Context, n int) (bool, error) {
	found := false
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		found = false
		a, err := s.q.TakeDeleting(ctx, tx)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		found = true
		claims, err := s.q.SomeClaims(ctx, tx, sqlcgen.SomeClaimsParams{ArtifactID: a.ID, MaxRows: int32(n)})
		if err != nil {
			return err
		}
		if err := s.release(ctx, tx, a.ID, a.TeamID, claims); err != nil || len(claims) == n {
			return err
		}
		if a.ManifestDigest != "" {
			if err := s.doom(ctx, tx, content.ManifestKey(a.TeamID, content.Digest(a.ManifestDigest), a.ManifestObject)); err != nil {
				return err
			}
		}
		return errors.Join(
			s.q.ForgetInSnapshots(ctx, tx, &a.ID), s.q.ForgetInTemplates(ctx, tx, &a.ID), s.q.ForgetInEngineBuilds(ctx, tx, &a.ID),
			s.q.ForgetInContexts(ctx, tx, &a.ID), s.q.DeleteArtifact(ctx, tx, a.ID),
		)
	})
	return found, err
}

// PruneKeys implements artifact.Shelf.
func (s *Store) PruneKeys(ctx context.Context, n int) (int, error) {
	done, err := s.q.PruneTeamKeys(ctx, s.pool, int32(n))
	return int(done), pg.Map(err)
}

// TakeDoomed implements artifact.Shelf.
func (s *Store) TakeDoomed(ctx context.Context, lease time.Duration, n int) ([]content.Key, error) {
	names, err := s.q.TakeDoomed(ctx, s.pool, sqlcgen.TakeDoomedParams{LeaseSecs: seconds(lease), MaxRows: int32(n)})
	if err != nil {
		return nil, pg.Map(err)
	}
	keys := make([]content.Key, 0, len(names))
	var broken error
	for _, name := range names {
		k, err := content.ParseKey(name)
		if err != nil {
			broken = errors.Join(broken, fmt.Errorf("a doomed object is called %q: %w", name, err))
			continue
		}
		keys = append(keys, k)
	}
	return keys, broken
}

// Forget implements artifact.Shelf.
func (s *Store) Forget(ctx context.Context, keys []content.Key) error {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.String()
	}
	return pg.Map(s.q.Removed(ctx, s.pool, names))
}
