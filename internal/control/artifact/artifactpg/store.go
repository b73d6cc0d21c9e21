// Package artifactpg keeps the rows of artifacts in PostgreSQL. It is the ledger
// of those that move bytes, and has verbs for the transactions of other rooms.
//
// Whoever changes an artifact locks its row first, then chunks in the order of
// their digests. Claiming a chunk and collecting it take the same lock, so that
// one of them comes second and sees what the other did.
package artifactpg

import (
	"context"
	"encoding/hex"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// Store implements the room's stores and transfer.Ledger.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

var _ artifact.Rows = (*Store)(nil)

// New uses the pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

// Look implements artifact.Rows.
func (s *Store) Look(ctx context.Context, a id.Artifact, asker id.Host) (artifact.Artifact, artifact.Asker, error) {
	return s.look(ctx, s.pool, a, asker)
}

func (s *Store) look(ctx context.Context, db sqlcgen.DBTX, a id.Artifact, asker id.Host) (artifact.Artifact, artifact.Asker, error) {
	params := sqlcgen.LookParams{ID: a}
	if u := asker.UUID(); !asker.IsZero() {
		params.Asker = &u
	}
	row, err := s.q.Look(ctx, db, params)
	if err != nil {
		return artifact.Artifact{}, artifact.Asker{}, notFound(err)
	}
	out := artifact.Artifact{
		ID: row.ID, Team: row.TeamID, Kind: artifact.Kind(row.Kind), Status: artifact.Status(row.Status), FromBYOC: row.MadeOnByoc,
		ManifestDigest: content.Digest(row.ManifestDigest), ManifestObject: row.ManifestObject,
		SizeBytes: row.SizeBytes, StoredBytes: row.StoredBytes, SentBytes: row.SentBytes, CreatedAt: row.CreatedAt,
	}
	if row.HostID != nil {
		out.Host = *row.HostID
	}
	by := artifact.Asker{Host: asker, BYOC: row.AskerType == "byoc", Team: id.Team{}.FromUUID(row.AskerTeam), Trusted: row.AskerTrusted}
	return out, by, nil
}

// TeamKey implements artifact.Rows.
func (s *Store) TeamKey(ctx context.Context, team id.Team, fresh []byte) ([]byte, error) {
	sealed, err := s.q.TeamKey(ctx, s.pool, team)
	if err == nil {
		return sealed, nil
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return nil, pg.Map(err)
	}
	if err := s.q.AddTeamKey(ctx, s.pool, sqlcgen.AddTeamKeyParams{TeamID: team, Sealed: fresh}); err != nil {
		return nil, pg.Map(err)
	}
	sealed, err = s.q.TeamKey(ctx, s.pool, team) // of several that made one at once
	return sealed, pg.Map(err)
}

func notFound(err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return artifact.ErrNotFound
	}
	return pg.Map(err)
}

// raw is a digest as the database has it.
func raw(d content.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	return hex.DecodeString(string(d))
}

func digestOf(b []byte) content.Digest { return content.Digest(hex.EncodeToString(b)) }

func ids(artifacts []id.Artifact) []uuid.UUID {
	out := make([]uuid.UUID, len(artifacts))
	for i, a := range artifacts {
		out[i] = a.UUID()
	}
	return out
}
