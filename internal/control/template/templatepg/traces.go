package templatepg

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg"
	"skerry.dev/skerry/internal/control/template/build"
	"skerry.dev/skerry/internal/control/template/templatepg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// LastLine implements build.Store.
func (s *Builds) LastLine(ctx context.Context, b id.Build) (int, int64, error) {
	row, err := s.q.LastLine(ctx, s.pool, b)
	return int(row.Seq), row.Bytes, pg.Map(err)
}

// AddLines implements build.Store.
func (s *Builds) AddLines(ctx context.Context, lease build.Lease, b id.Build, lines []build.Line) error {
	p := sqlcgen.InsertLinesParams{BuildID: b}
	for _, l := range lines {
		p.Seqs, p.Steps, p.Ats = append(p.Seqs, int32(l.Seq)), append(p.Steps, int32(l.Step)), append(p.Ats, l.At)
		p.Streams, p.Lines = append(p.Streams, l.Stream), append(p.Lines, l.Text)
	}
	return s.driven(ctx, lease, b, func(ctx context.Context, tx pgx.Tx, _ sqlcgen.Build) error { return s.q.InsertLines(ctx, tx, p) })
}

// Lines implements build.Store.
func (s *Builds) Lines(ctx context.Context, b id.Build, after, limit int) ([]build.Line, error) {
	rows, err := s.q.ListLines(ctx, s.pool, sqlcgen.ListLinesParams{BuildID: b, After: int32(after), MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]build.Line, len(rows))
	for i, r := range rows {
		out[i] = build.Line{Seq: int(r.Seq), Step: int(r.Step), At: r.At, Stream: r.Stream, Text: r.Line}
	}
	return out, nil
}

// Heads implements build.Store.
func (s *Builds) Heads(ctx context.Context, builds []id.Build) (map[id.Build]build.Head, error) {
	rows, err := s.q.BuildHeads(ctx, s.pool, uuids(builds))
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make(map[id.Build]build.Head, len(rows))
	for _, r := range rows {
		out[r.ID] = build.Head{Status: build.Status(r.Status), Seq: int(r.Seq)}
	}
	return out, nil
}

// Layers implements build.Store.
func (s *Builds) Layers(ctx context.Context, team id.Team, keys [][32]byte, since *time.Time) ([]build.Layer, error) {
	raw := make([][]byte, len(keys))
	for i := range keys {
		raw[i] = keys[i][:]
	}
	rows, err := s.q.FindLayers(ctx, s.pool, sqlcgen.FindLayersParams{TeamID: team, Keys: raw, Since: since})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]build.Layer, 0, len(rows))
	for _, r := range rows {
		if len(r.Key) == 32 {
			out = append(out, build.Layer{Key: [32]byte(r.Key), State: r.SnapshotID})
		}
	}
	// Those that a build comes by are kept, whether or not it goes on from them.
	return out, pg.Map(s.q.UseLayers(ctx, s.pool, sqlcgen.UseLayersParams{TeamID: team, Keys: raw}))
}

// PutLayer implements build.Store.
func (s *Builds) PutLayer(ctx context.Context, lease build.Lease, b id.Build, l build.Layer) error {
	return s.driven(ctx, lease, b, func(ctx context.Context, tx pgx.Tx, row sqlcgen.Build) error {
		return s.q.PutLayer(ctx, tx, sqlcgen.PutLayerParams{TeamID: row.TeamID, Key: l.Key[:], SnapshotID: l.State})
	})
}

// BeginContext implements build.Store.
func (s *Builds) BeginContext(ctx context.Context, c build.Context, n artifact.New, life time.Duration, most int) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.q.LockTeam(ctx, tx, c.TeamID); err != nil {
			return err
		}
		there, err := s.q.CountContexts(ctx, tx, c.TeamID)
		if err != nil {
			return err
		}
		if there >= int64(most) {
			return errs.Exhausted("too_many_contexts", fmt.Sprintf("Your team has uploaded %d archives within a day, as many as may be. Wait until the first ones are gone.", there))
		}
		if err := artifactpg.Begin(ctx, tx, n); err != nil {
			return err
		}
		return s.q.InsertContext(ctx, tx, sqlcgen.InsertContextParams{ID: c.ID, TeamID: c.TeamID, ArtifactID: &n.ID, LifeSecs: life.Seconds()})
	})
}

// CompleteContext implements build.Store. Only what is in the store is complete.
func (s *Builds) CompleteContext(ctx context.Context, c build.Context, life time.Duration) (build.Context, error) {
	var out build.Context
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := artifactpg.Use(ctx, tx, c.Artifact); err != nil {
			return err
		}
		row, err := s.q.CompleteContext(ctx, tx, sqlcgen.CompleteContextParams{ID: c.ID, SizeBytes: c.SizeBytes, Digest: c.Digest, LifeSecs: life.Seconds()})
		if errors.Is(err, pgx.ErrNoRows) {
			return build.ErrContextNotFound
		}
		out = contextOf(row)
		return err
	})
	return out, err
}

// DropContext implements build.Store.
func (s *Builds) DropContext(ctx context.Context, c id.BuildContext) error {
	return pg.Map(s.q.DropContext(ctx, s.pool, c))
}

// Context implements build.Store.
func (s *Builds) Context(ctx context.Context, c id.BuildContext) (build.Context, error) {
	row, err := s.q.GetContext(ctx, s.pool, c)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && row.ArtifactID == nil {
		return build.Context{}, build.ErrContextNotFound
	}
	if err != nil {
		return build.Context{}, pg.Map(err)
	}
	return contextOf(row), nil
}

func contextOf(r sqlcgen.BuildContext) build.Context {
	c := build.Context{ID: r.ID, TeamID: r.TeamID, SizeBytes: r.SizeBytes, Digest: r.Digest, ExpiresAt: r.ExpiresAt}
	if r.ArtifactID != nil {
		c.Artifact = *r.ArtifactID
	}
	return c
}

// LeftSandboxes implements build.Store.
func (s *Builds) LeftSandboxes(ctx context.Context, limit int) ([]id.Sandbox, error) {
	out, err := s.q.LeftSandboxes(ctx, s.pool, int32(limit))
	return out, pg.Map(err)
}

// LeftStates implements build.Store.
func (s *Builds) LeftStates(ctx context.Context, age time.Duration, limit int) ([]build.Left, error) {
	rows, err := s.q.LeftStates(ctx, s.pool, sqlcgen.LeftStatesParams{AgeSecs: age.Seconds(), MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]build.Left, len(rows))
	for i, r := range rows {
		out[i] = build.Left{Team: r.TeamID, State: r.ID}
	}
	return out, nil
}

// ForgetLayers implements build.Store.
func (s *Builds) ForgetLayers(ctx context.Context, share int, age time.Duration) (int, error) {
	n, err := s.q.ForgetLayers(ctx, s.pool, sqlcgen.ForgetLayersParams{Share: int32(share), AgeSecs: age.Seconds()})
	return int(n), pg.Map(err)
}

// logRows is how many lines one pass removes for each build that it may.
const logRows = 100

// Prune implements build.Store. Builds stay as long again as their logs, so that
// what ran for them is forgotten before.
func (s *Builds) Prune(ctx context.Context, age time.Duration, limit int) (int, error) {
	total := 0
	for _, prune := range []func() (int64, error){
		func() (int64, error) { return s.q.DropContexts(ctx, s.pool, int32(limit)) },
		func() (int64, error) {
			return s.q.PruneLogs(ctx, s.pool, sqlcgen.PruneLogsParams{AgeSecs: age.Seconds(), MaxRows: int32(limit * logRows)})
		},
		func() (int64, error) {
			return s.q.PruneBuilds(ctx, s.pool, sqlcgen.PruneBuildsParams{AgeSecs: 2 * age.Seconds(), MaxRows: int32(limit)})
		},
		func() (int64, error) { return s.q.RetireOfDeletedTeams(ctx, s.pool, int32(limit)) },
		func() (int64, error) {
			return s.q.PruneTemplates(ctx, s.pool, sqlcgen.PruneTemplatesParams{AgeSecs: age.Seconds(), MaxRows: int32(limit)})
		},
	} {
		n, err := prune()
		if err != nil {
			return total, pg.Map(err)
		}
		total += int(n)
	}
	return total, nil
}
