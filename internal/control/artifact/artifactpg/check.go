package artifactpg

import (
	"context"

	"github.com/google/uuid"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

var _ artifact.Ledger = (*Store)(nil)

// StoredChunks implements artifact.Ledger.
func (s *Store) StoredChunks(ctx context.Context, after content.Key, n int) ([]content.Info, error) {
	params := sqlcgen.StoredChunksParams{AfterTeam: after.Team.UUID(), AfterDigest: []byte{}, MaxRows: int32(n)}
	if after.Digest != "" {
		b, err := raw(after.Digest)
		if err != nil {
			return nil, err
		}
		params.AfterDigest = b
	}
	rows, err := s.q.StoredChunks(ctx, s.pool, params)
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]content.Info, len(rows))
	for i, r := range rows {
		out[i] = content.Info{Key: content.ChunkKey(r.TeamID, digestOf(r.Digest), r.Object), Size: int64(r.SizeBytes)}
	}
	return out, nil
}

// ReadyManifests implements artifact.Ledger.
func (s *Store) ReadyManifests(ctx context.Context, after id.Artifact, n int) ([]content.Key, id.Artifact, error) {
	rows, err := s.q.ReadyManifests(ctx, s.pool, sqlcgen.ReadyManifestsParams{AfterID: after.UUID(), MaxRows: int32(n)})
	if err != nil || len(rows) == 0 {
		return nil, after, pg.Map(err)
	}
	keys := make([]content.Key, len(rows))
	for i, r := range rows {
		keys[i] = content.ManifestKey(r.TeamID, content.Digest(r.ManifestDigest), r.ManifestObject)
	}
	return keys, rows[len(rows)-1].ID, nil
}

// Teams implements artifact.Ledger.
func (s *Store) Teams(ctx context.Context, after *id.Team, n int) ([]id.Team, error) {
	params := sqlcgen.TeamsAfterParams{First: after == nil, MaxRows: int32(n), AfterID: uuid.UUID{}}
	if after != nil {
		params.AfterID = after.UUID()
	}
	teams, err := s.q.TeamsAfter(ctx, s.pool, params)
	return teams, pg.Map(err)
}

// Doubt implements artifact.Ledger.
func (s *Store) Doubt(ctx context.Context, chunks []content.Key) error {
	var params sqlcgen.DoubtParams
	for _, k := range chunks {
		b, err := raw(k.Digest)
		if err != nil {
			return err
		}
		params.Teams, params.Digests, params.Objects = append(params.Teams, k.Team.UUID()), append(params.Digests, b), append(params.Objects, k.Object)
	}
	_, err := s.q.Doubt(ctx, s.pool, params)
	return pg.Map(err)
}

// Known implements artifact.Ledger.
func (s *Store) Known(ctx context.Context, team id.Team, keys []content.Key) (map[content.Key]bool, error) {
	params := sqlcgen.KnownObjectsParams{TeamID: team, Keys: make([]string, len(keys)), Digests: make([][]byte, len(keys)), Objects: make([]int64, len(keys))}
	for i, k := range keys {
		b, err := raw(k.Digest)
		if err != nil {
			return nil, err
		}
		params.Keys[i], params.Digests[i], params.Objects[i] = k.String(), b, k.Object
	}
	names, err := s.q.KnownObjects(ctx, s.pool, params)
	if err != nil {
		return nil, pg.Map(err)
	}
	known := make(map[content.Key]bool, len(names))
	for _, name := range names {
		k, err := content.ParseKey(name)
		if err != nil {
			return nil, err
		}
		known[k] = true
	}
	return known, nil
}
