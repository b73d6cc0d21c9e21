package artifactpg

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg/sqlcgen"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

var _ artifact.EngineRows = (*Store)(nil)

// RecordEngines implements artifact.EngineRows.
func (s *Store) RecordEngines(ctx context.Context) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error { return s.q.RecordEngines(ctx, tx) })
}

// TakeEngineUpload implements artifact.EngineRows.
func (s *Store) TakeEngineUpload(ctx context.Context, lease time.Duration) (artifact.EngineUpload, bool, error) {
	var e artifact.EngineUpload
	found := false
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		found = false
		row, err := s.q.TakeEngineUpload(ctx, tx)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		found = true
		e = artifact.EngineUpload{
			Team: row.TeamID, Engine: row.Engine, Version: row.Version, Arch: row.Arch, Digest: row.Digest,
			Host: host.Ref{ID: row.HostID, Address: row.Address, Generation: row.Generation, Online: true},
		}
		if row.ArtifactID != nil {
			goesOn, err := Again(ctx, tx, *row.ArtifactID, row.HostID, lease)
			if err != nil {
				return err
			}
			if goesOn {
				e.Artifact = *row.ArtifactID
			}
		}
		if e.Artifact.IsZero() {
			e.Artifact = id.NewArtifact()
			if err := Begin(ctx, tx, artifact.New{ID: e.Artifact, Team: e.Team, Kind: artifact.KindEngine, Host: row.HostID, Lease: lease}); err != nil {
				return err
			}
		}
		return s.q.SetEngineUpload(ctx, tx, sqlcgen.SetEngineUploadParams{
			TeamID: e.Team, Engine: e.Engine, Version: e.Version, Arch: e.Arch, ArtifactID: &e.Artifact, Secs: seconds(lease),
		})
	})
	return e, found, err
}

// EngineUploaded implements artifact.EngineRows.
func (s *Store) EngineUploaded(ctx context.Context, e artifact.EngineUpload, again time.Duration) error {
	return pg.Map(s.q.EngineUploaded(ctx, s.pool, sqlcgen.EngineUploadedParams{
		TeamID: e.Team, Engine: e.Engine, Version: e.Version, Arch: e.Arch, ArtifactID: &e.Artifact, Secs: seconds(again),
	}))
}

// PruneEngines implements artifact.EngineRows.
func (s *Store) PruneEngines(ctx context.Context, unseen time.Duration, n int) (int, error) {
	done, err := s.q.PruneEngines(ctx, s.pool, sqlcgen.PruneEnginesParams{UnseenSecs: seconds(unseen), MaxRows: int32(n)})
	return int(done), pg.Map(err)
}
