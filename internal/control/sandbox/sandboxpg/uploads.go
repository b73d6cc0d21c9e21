package sandboxpg

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// TakeUpload implements sandbox.Store.
func (s *Store) TakeUpload(ctx context.Context, lease time.Duration, busy []id.Host, after *time.Duration) (sandbox.Upload, error) {
	var out sandbox.Upload
	p := sqlcgen.TakeUploadParams{Busy: bare(busy)}
	if after != nil {
		secs := after.Seconds()
		p.AfterSecs = &secs
	}
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		out = sandbox.Upload{}
		row, err := s.q.TakeUpload(ctx, tx, p)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		out = sandbox.Upload{
			State: row.ID, Team: row.TeamID, Host: host.Ref{ID: row.HostID, Address: row.Address, Online: true}, SizeBytes: row.SizeBytes, Digest: row.Digest,
			Stored: row.ArtifactStatus == string(artifact.StatusReady),
		}
		if err := s.uploadAs(ctx, tx, &out, row.ArtifactID, lease); err != nil {
			return err
		}
		return s.q.SetUpload(ctx, tx, sqlcgen.SetUploadParams{ID: out.State, ArtifactID: &out.Artifact, LeaseSecs: lease.Seconds()})
	})
	if err != nil {
		return sandbox.Upload{}, err
	}
	return out, nil
}

// uploadAs goes on with the upload that was begun, or begins one.
func (s *Store) uploadAs(ctx context.Context, tx pgx.Tx, u *sandbox.Upload, begun *id.Artifact, lease time.Duration) error {
	if begun != nil {
		u.Artifact = *begun
		if u.Stored {
			return nil
		}
		if goesOn, err := artifactpg.Again(ctx, tx, *begun, u.Host.ID, 0); err != nil || goesOn {
			return err
		}
	}
	u.Artifact = id.NewArtifact()
	return artifactpg.Begin(ctx, tx, artifact.New{ID: u.Artifact, Team: u.Team, Kind: artifact.KindState, Host: u.Host.ID})
}

// RenewUpload implements sandbox.Store.
func (s *Store) RenewUpload(ctx context.Context, u sandbox.Upload, lease time.Duration) (bool, error) {
	n, err := s.q.RenewUpload(ctx, s.pool, sqlcgen.RenewUploadParams{ID: u.State, ArtifactID: &u.Artifact, LeaseSecs: lease.Seconds()})
	return n > 0, pg.Map(err)
}

// Uploaded implements sandbox.Store.
func (s *Store) Uploaded(ctx context.Context, u sandbox.Upload) (bool, error) {
	n, err := s.q.Uploaded(ctx, s.pool, sqlcgen.UploadedParams{ID: u.State, ArtifactID: &u.Artifact})
	if err != nil || n > 0 {
		return n > 0, pg.Map(err)
	}
	// Noted before by another server, or not wanted any more: then there is nothing
	// to be tried again either.
	still, err := s.q.RenewUpload(ctx, s.pool, sqlcgen.RenewUploadParams{ID: u.State, ArtifactID: &u.Artifact})
	return still == 0, pg.Map(err)
}

// UploadFailed implements sandbox.Store.
func (s *Store) UploadFailed(ctx context.Context, u sandbox.Upload, why string, pause time.Duration) error {
	return pg.Map(s.q.UploadFailed(ctx, s.pool, sqlcgen.UploadFailedParams{ID: u.State, ArtifactID: &u.Artifact, Error: why, PauseSecs: pause.Seconds()}))
}

var errNotHere = errs.FailedPrecondition("state_not_here", "The host does not have the saved state, and it is not in the store. Start from it where it is.")

// Needs implements sandbox.Store.
func (s *Store) Needs(ctx context.Context, h id.Host, state id.Snapshot) (sandbox.Needs, error) {
	row, err := s.q.NeedsOf(ctx, s.pool, sqlcgen.NeedsOfParams{SnapshotID: state, HostID: h})
	if errors.Is(err, pgx.ErrNoRows) {
		return sandbox.Needs{}, sandbox.ErrStateNotFound
	}
	if err != nil {
		return sandbox.Needs{}, pg.Map(err)
	}
	var out sandbox.Needs
	if row.Stored && row.ArtifactID != nil {
		out.Stored = &sandbox.Carried{
			What: "state", Cargo: host.StateCargo{ID: state, Digest: row.Digest, SizeBytes: row.SizeBytes}, From: *row.ArtifactID, Size: row.SizeBytes,
		}
	}
	if !row.Here {
		if out.State = out.Stored; out.State == nil {
			return out, errNotHere
		}
	}
	engines, err := host.ParseEngines(row.Engines)
	if err != nil {
		return out, err
	}
	for _, e := range engines {
		if e.Name == row.Engine && !e.Runs(row.EngineVersion) {
			out.Engine, err = s.engineBuild(ctx, row)
			return out, err
		}
	}
	return out, nil
}

// engineBuild is where a host finds the build that saved a state; nil where it
// cannot, and the host has the last word.
func (s *Store) engineBuild(ctx context.Context, n sqlcgen.NeedsOfRow) (*sandbox.Carried, error) {
	b, err := s.q.EngineBuild(ctx, s.pool, sqlcgen.EngineBuildParams{TeamID: n.TeamID, Engine: n.Engine, Version: n.EngineVersion, Arch: n.Arch})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, pg.Map(err)
	}
	return &sandbox.Carried{What: "engine", Cargo: host.EngineCargo{Engine: n.Engine, Version: n.EngineVersion, Digest: b.Digest}, From: b.ArtifactID}, nil
}

// BringCopy implements sandbox.Store.
func (s *Store) BringCopy(ctx context.Context, state id.Snapshot, h id.Host) error {
	n, err := s.q.BringCopy(ctx, s.pool, sqlcgen.BringCopyParams{SnapshotID: state, HostID: h})
	if err == nil && n == 0 {
		return errNotHere
	}
	return pg.Map(err)
}

// CopyMade implements sandbox.Store.
func (s *Store) CopyMade(ctx context.Context, state id.Snapshot, h id.Host) error {
	return pg.Map(s.q.CopyMade(ctx, s.pool, sqlcgen.CopyMadeParams{SnapshotID: state, HostID: h}))
}

// CopyLost implements sandbox.Store.
func (s *Store) CopyLost(ctx context.Context, state id.Snapshot, h id.Host) error {
	return pg.Map(s.q.CopyLost(ctx, s.pool, sqlcgen.CopyLostParams{SnapshotID: state, HostID: h}))
}

// Progress implements sandbox.Store.
func (s *Store) Progress(ctx context.Context, op id.Operation, p sandbox.Progress, more time.Duration) error {
	raw, err := json.Marshal(p)
	if err != nil {
		return err
	}
	_, err = s.q.Progress(ctx, s.pool, sqlcgen.ProgressParams{ID: op, Progress: raw, LimitSecs: more.Seconds()})
	return pg.Map(err)
}

// Departures implements sandbox.Store.
func (s *Store) Departures(ctx context.Context, h id.Host) ([]sandbox.Departure, error) {
	rows, err := s.q.DeparturesOf(ctx, s.pool, h)
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.Departure, len(rows))
	for i, r := range rows {
		out[i] = sandbox.Departure{Key: sandbox.Key{Sandbox: r.SandboxID, Incarnation: r.Incarnation}, State: r.StateID}
	}
	return out, nil
}

// Departed implements sandbox.Store.
func (s *Store) Departed(ctx context.Context, h id.Host, d sandbox.Departure) error {
	return pg.Map(s.q.Departed(ctx, s.pool, sqlcgen.DepartedParams{SandboxID: d.Sandbox, HostID: h, Incarnation: d.Incarnation}))
}
