package artifactpg

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
)

// linger is how long after its row a blob is removed: an upload to it that was
// let in before (a presigned address is good for minutes, and what was begun
// under it goes on) must be over by then.
const linger = time.Hour

// release takes chunks away from an artifact whose row is locked. Those that no
// other one has are no more, in the same transaction.
func (s *Store) release(ctx context.Context, tx pgx.Tx, a id.Artifact, team id.Team, digests [][]byte) error {
	if len(digests) == 0 {
		return nil
	}
	if err := s.q.LockChunks(ctx, tx, sqlcgen.LockChunksParams{TeamID: team, Digests: digests}); err != nil {
		return err
	}
	if err := s.q.Unclaim(ctx, tx, sqlcgen.UnclaimParams{ArtifactID: a, Digests: digests}); err != nil {
		return err
	}
	gone, err := s.q.DeleteUnclaimed(ctx, tx, sqlcgen.DeleteUnclaimedParams{TeamID: team, Digests: digests})
	if err != nil {
		return err
	}
	keys := make([]content.Key, len(gone))
	for i, c := range gone {
		keys[i] = content.ChunkKey(c.TeamID, digestOf(c.Digest), c.Object)
	}
	return s.doom(ctx, tx, keys...)
}

// doom has blobs removed from the store.
func (s *Store) doom(ctx context.Context, tx pgx.Tx, keys ...content.Key) error {
	if len(keys) == 0 {
		return nil
	}
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.String()
	}
	return s.q.Doom(ctx, tx, sqlcgen.DoomParams{Keys: names, LingerSecs: seconds(linger)})
}
