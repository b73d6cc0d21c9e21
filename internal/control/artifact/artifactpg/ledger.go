package artifactpg

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

var _ transfer.Ledger = (*Store)(nil)

// maxClaims bounds the chunks of an upload, those it will not need after all
// included.
const maxClaims = 2 * content.MaxChunks

// Upload implements transfer.Ledger.
func (s *Store) Upload(ctx context.Context, a id.Artifact, host id.Host) (transfer.Stored, error) {
	row, err := s.uploading(ctx, s.pool, a, host)
	return transfer.Stored{ID: row.ID, Team: row.Team}, err
}

// uploading finds an artifact that host puts there.
func (s *Store) uploading(ctx context.Context, db sqlcgen.DBTX, a id.Artifact, host id.Host) (artifact.Artifact, error) {
	row, by, err := s.look(ctx, db, a, host)
	if errs.Is(err, artifact.ErrNotFound.Reason) {
		return artifact.Artifact{}, artifact.ErrGone
	}
	if err != nil {
		return artifact.Artifact{}, err
	}
	if err := artifact.MayWrite(row, by); err != nil {
		return artifact.Artifact{}, err
	}
	return row, nil
}

// change runs fn with the artifact's row locked, if host still puts it there.
func (s *Store) change(ctx context.Context, a id.Artifact, host id.Host, fn func(ctx context.Context, tx pgx.Tx, row artifact.Artifact) error) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := s.q.LockArtifact(ctx, tx, a); err != nil {
			if errs.Is(notFound(err), artifact.ErrNotFound.Reason) {
				return artifact.ErrGone
			}
			return err
		}
		row, err := s.uploading(ctx, tx, a, host)
		if err != nil {
			return err
		}
		return fn(ctx, tx, row)
	})
}

// Claim implements transfer.Ledger.
func (s *Store) Claim(ctx context.Context, a id.Artifact, host id.Host, chunks []transfer.Piece) ([]content.Key, error) {
	want, err := pieces(chunks)
	if err != nil {
		return nil, err
	}
	var missing []content.Key
	err = s.change(ctx, a, host, func(ctx context.Context, tx pgx.Tx, row artifact.Artifact) error {
		missing = nil
		claimed, err := s.q.CountClaims(ctx, tx, a)
		if err != nil {
			return err
		}
		if claimed+int64(len(want.digests)) > maxClaims {
			return errs.Exhausted("too_many_chunks", fmt.Sprintf("An artifact has at most %d chunks.", content.MaxChunks))
		}
		if err := s.q.AddChunks(ctx, tx, sqlcgen.AddChunksParams{TeamID: row.Team, Digests: want.digests, Sizes: want.sizes}); err != nil {
			return err
		}
		if err := s.q.ClaimChunks(ctx, tx, sqlcgen.ClaimChunksParams{ArtifactID: a, TeamID: row.Team, Digests: want.digests}); err != nil {
			return err
		}
		have, err := s.q.ChunksOf(ctx, tx, sqlcgen.ChunksOfParams{ArtifactID: a, Digests: want.digests})
		if err != nil {
			return err
		}
		for _, c := range have {
			i, _ := slices.BinarySearchFunc(want.digests, c.Digest, bytes.Compare)
			switch {
			case c.SizeBytes != want.sizes[i]:
				return errs.Invalid("chunk_size_mismatch", "A chunk is announced in another size than it has.").With("digest", string(digestOf(c.Digest)))
			case !c.Stored:
				missing = append(missing, content.ChunkKey(row.Team, digestOf(c.Digest), c.Object))
			}
		}
		return s.q.Prolong(ctx, tx, sqlcgen.ProlongParams{ID: a, LeaseSecs: seconds(artifact.Lease)})
	})
	return missing, err
}

// columns are chunks as the queries take them: in ascending order, each once.
type columns struct {
	digests [][]byte
	sizes   []int32
}

func pieces(chunks []transfer.Piece) (columns, error) {
	sizes := make(map[content.Digest]int64, len(chunks))
	for _, c := range chunks {
		if was, ok := sizes[c.Digest]; ok && was != c.Size {
			return columns{}, errs.Invalid("chunk_size_mismatch", "A chunk is announced in two sizes.")
		}
		sizes[c.Digest] = c.Size
	}
	return inOrder(sizes)
}

func inOrder(sizes map[content.Digest]int64) (columns, error) {
	order := make([]content.Digest, 0, len(sizes))
	for d := range sizes {
		order = append(order, d)
	}
	slices.Sort(order)
	out := columns{digests: make([][]byte, len(order)), sizes: make([]int32, len(order))}
	for i, d := range order {
		size := sizes[d]
		if size <= 0 || size > content.MaxChunkBytes {
			return columns{}, errs.Invalid("invalid_chunk", "A chunk has an impossible size.")
		}
		b, err := raw(d)
		if err != nil {
			return columns{}, err
		}
		out.digests[i], out.sizes[i] = b, int32(size)
	}
	return out, nil
}

// Wanted implements transfer.Ledger.
func (s *Store) Wanted(ctx context.Context, a id.Artifact, host id.Host, d content.Digest) (content.Key, int64, error) {
	b, err := raw(d)
	if err != nil {
		return content.Key{}, 0, err
	}
	row, err := s.uploading(ctx, s.pool, a, host)
	if err != nil {
		return content.Key{}, 0, err
	}
	found, err := s.q.ChunksOf(ctx, s.pool, sqlcgen.ChunksOfParams{ArtifactID: a, Digests: [][]byte{b}})
	if err != nil {
		return content.Key{}, 0, pg.Map(err)
	}
	if len(found) == 0 {
		return content.Key{}, 0, errs.FailedPrecondition("chunk_not_claimed", "Announce a chunk before it is put.")
	}
	return content.ChunkKey(row.Team, d, found[0].Object), int64(found[0].SizeBytes), nil
}

// Put implements transfer.Ledger.
func (s *Store) Put(ctx context.Context, a id.Artifact, chunks []content.Key) error {
	return s.believe(ctx, a, chunks, true)
}

// Lost implements transfer.Ledger.
func (s *Store) Lost(ctx context.Context, a id.Artifact, chunks []content.Key) error {
	return s.believe(ctx, a, chunks, false)
}

// believe notes whether chunks are in the store.
func (s *Store) believe(ctx context.Context, a id.Artifact, chunks []content.Key, stored bool) error {
	params := sqlcgen.SetStoredParams{ArtifactID: a, Digests: make([][]byte, len(chunks)), Objects: make([]int64, len(chunks)), Stored: stored}
	for i, k := range chunks {
		b, err := raw(k.Digest)
		if err != nil {
			return err
		}
		params.Digests[i], params.Objects[i] = b, k.Object
	}
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.q.SetStored(ctx, tx, params); err != nil {
			return err
		}
		return s.q.Prolong(ctx, tx, sqlcgen.ProlongParams{ID: a, LeaseSecs: seconds(artifact.Lease)})
	})
}

// Name implements transfer.Ledger.
func (s *Store) Name(ctx context.Context, a id.Artifact, host id.Host, digest content.Digest) (content.Key, error) {
	if err := digest.Validate(); err != nil {
		return content.Key{}, err
	}
	var key content.Key
	err := s.change(ctx, a, host, func(ctx context.Context, tx pgx.Tx, row artifact.Artifact) error {
		object, err := s.q.NameManifest(ctx, tx, sqlcgen.NameManifestParams{ID: a, Digest: string(digest), LeaseSecs: seconds(artifact.Lease)})
		if err != nil {
			return err
		}
		key = content.ManifestKey(row.Team, digest, object)
		if row.ManifestDigest == "" || row.ManifestDigest == digest {
			return nil
		}
		return s.doom(ctx, tx, row.Manifest())
	})
	return key, err
}

// Complete implements transfer.Ledger.
func (s *Store) Complete(ctx context.Context, a id.Artifact, host id.Host, m content.Manifest, digest content.Digest) error {
	sizes, err := m.Pieces()
	if err != nil {
		return err
	}
	want, err := inOrder(sizes)
	if err != nil {
		return err
	}
	err = s.change(ctx, a, host, func(ctx context.Context, tx pgx.Tx, row artifact.Artifact) error {
		if row.ManifestDigest != digest {
			return artifact.ErrGone // it was named anew meanwhile
		}
		good, err := s.q.CountGood(ctx, tx, sqlcgen.CountGoodParams{ArtifactID: a, Digests: want.digests, Sizes: want.sizes})
		if err != nil {
			return err
		}
		if missing := int64(len(want.digests)) - good; missing > 0 {
			return errs.FailedPrecondition("chunks_missing", fmt.Sprintf("%d chunks of the manifest are not in the store. Ask which, and store them first.", missing)).
				With("missing", missing)
		}
		surplus, err := s.q.Surplus(ctx, tx, sqlcgen.SurplusParams{ArtifactID: a, Digests: want.digests})
		if err != nil {
			return err
		}
		if err := s.release(ctx, tx, row.ID, row.Team, surplus); err != nil {
			return err
		}
		stored := int64(0)
		for _, n := range sizes {
			stored += n
		}
		return s.q.SetReady(ctx, tx, sqlcgen.SetReadyParams{ID: a, SizeBytes: m.Size, StoredBytes: stored})
	})
	if errs.Is(err, artifact.ErrGone.Reason) {
		// Said again by someone whose first answer was lost.
		row, by, lookErr := s.look(ctx, s.pool, a, host)
		if lookErr == nil && row.Status == artifact.StatusReady && row.Host == host && row.ManifestDigest == digest && (host.IsZero() || by.Trusted) {
			return nil
		}
	}
	return err
}

// Progress implements transfer.Ledger.
func (s *Store) Progress(ctx context.Context, a id.Artifact, done int64) error {
	return pg.Map(s.q.Progress(ctx, s.pool, sqlcgen.ProgressParams{ID: a, Done: max(done, 0), LeaseSecs: seconds(artifact.Lease)}))
}

// Ready implements transfer.Ledger.
func (s *Store) Ready(ctx context.Context, a id.Artifact, host id.Host) (transfer.Stored, error) {
	row, by, err := s.look(ctx, s.pool, a, host)
	if err != nil {
		return transfer.Stored{}, err
	}
	if err := artifact.MayRead(row, by); err != nil {
		return transfer.Stored{}, err
	}
	return transfer.Stored{ID: row.ID, Team: row.Team, Manifest: row.Manifest()}, nil
}

// Keys implements transfer.Ledger.
func (s *Store) Keys(ctx context.Context, a id.Artifact, chunks []content.Digest) (map[content.Digest]content.Key, error) {
	digests := make([][]byte, len(chunks))
	for i, d := range chunks {
		b, err := raw(d)
		if err != nil {
			return nil, err
		}
		digests[i] = b
	}
	rows, err := s.q.ChunksOf(ctx, s.pool, sqlcgen.ChunksOfParams{ArtifactID: a, Digests: digests})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make(map[content.Digest]content.Key, len(rows))
	for _, r := range rows {
		d := digestOf(r.Digest)
		out[d] = content.ChunkKey(r.TeamID, d, r.Object)
	}
	return out, nil
}
