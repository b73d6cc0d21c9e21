// Package templatepg keeps templates in PostgreSQL.
package templatepg

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/quota"
	"skerry.dev/skerry/internal/control/quota/quotapg"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/templatepg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

// Store implements template.Store.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// New uses the pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

// ResolveName implements template.Store.
func (s *Store) ResolveName(ctx context.Context, team id.Team, name string) (template.Template, error) {
	row, err := s.q.ResolveByName(ctx, s.pool, sqlcgen.ResolveByNameParams{Name: name, TeamID: team})
	return one(row, err)
}

// ByID implements template.Store.
func (s *Store) ByID(ctx context.Context, tpl id.Template) (template.Template, bool, error) {
	row, err := s.q.ByID(ctx, s.pool, tpl)
	t, err := one(row, err)
	return t, row.DeletedAt != nil, err
}

// errJunkCursor is a cursor that decodes and names no position.
var errJunkCursor = errs.Invalid("invalid_cursor", "Use the next_cursor of the previous page as it was given, or leave cursor out.")

type position struct {
	At time.Time `json:"at"`
	ID uuid.UUID `json:"id"`
}

// List implements template.Store.
func (s *Store) List(ctx context.Context, team id.Team, p page.Request) (page.Page[template.Template], error) {
	params := sqlcgen.ListParams{TeamID: team, MaxRows: int32(p.Limit + 1)}
	if p.Cursor != "" {
		var after position
		if err := page.Decode(p.Cursor, &after); err != nil {
			return page.Page[template.Template]{}, err
		}
		if after.At.IsZero() {
			return page.Page[template.Template]{}, errJunkCursor
		}
		params.AfterAt, params.AfterID = &after.At, &after.ID
	}
	rows, err := s.q.List(ctx, s.pool, params)
	if err != nil {
		return page.Page[template.Template]{}, pg.Map(err)
	}
	out := make([]template.Template, len(rows))
	for i, row := range rows {
		out[i] = fromRow(row)
	}
	return page.Of(out, p.Limit, func(t template.Template) any { return position{t.CreatedAt, t.ID.UUID()} })
}

// Delete implements template.Store.
func (s *Store) Delete(ctx context.Context, team id.Team, tpl id.Template, entry audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		n, err := s.q.DeleteTemplate(ctx, tx, sqlcgen.DeleteTemplateParams{ID: tpl, TeamID: team})
		if err != nil {
			return err
		}
		if n == 0 {
			return template.ErrNotFound
		}
		return auditpg.Append(ctx, tx, entry)
	})
}

// BeginImage implements template.Store.
func (s *Store) BeginImage(ctx context.Context, n artifact.New) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error { return artifactpg.Begin(ctx, tx, n) })
}

// Publish implements template.Store.
func (s *Store) Publish(ctx context.Context, t template.Template, entry audit.Entry) (template.Template, error) {
	var out template.Template
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.q.LockTeam(ctx, tx, t.TeamID); err != nil {
			return err
		}
		if err := s.q.RetireByName(ctx, tx, sqlcgen.RetireByNameParams{TeamID: t.TeamID, Name: t.Name}); err != nil {
			return err
		}
		if err := quotapg.Check(ctx, tx, t.TeamID, quota.Want{Templates: 1}); err != nil {
			return err
		}
		if err := artifactpg.Use(ctx, tx, t.Artifact); err != nil {
			return err
		}
		row, err := s.q.Insert(ctx, tx, sqlcgen.InsertParams{
			ID: t.ID, TeamID: t.TeamID, Name: t.Name, ImageDigest: string(t.ImageDigest),
			ImageSizeBytes: t.ImageSizeBytes, ManifestDigest: string(t.ManifestDigest),
			ArtifactID: &t.Artifact, BuiltOn: t.BuiltOn.UUID(),
		})
		if err != nil {
			return err
		}
		out = fromRow(row)
		return auditpg.Append(ctx, tx, entry)
	})
	return out, err
}

func one(row sqlcgen.Template, err error) (template.Template, error) {
	if errors.Is(err, pgx.ErrNoRows) {
		return template.Template{}, template.ErrNotFound
	}
	if err != nil {
		return template.Template{}, pg.Map(err)
	}
	return fromRow(row), nil
}

func fromRow(r sqlcgen.Template) template.Template {
	var env map[string]string
	// The column is an object of texts, and only this room writes it.
	_ = json.Unmarshal(r.Env, &env)
	t := template.Template{
		ID: r.ID, TeamID: r.TeamID, Name: r.Name, Status: r.Status, Error: r.Error,
		ImageDigest: content.Digest(r.ImageDigest), ImageSizeBytes: r.ImageSizeBytes, ManifestDigest: content.Digest(r.ManifestDigest),
		Engine: r.Engine, CPUMillis: int64(r.CpuMillis), MemoryMB: int64(r.MemoryMb), DiskMB: int64(r.DiskMb),
		Arch:        r.Arch,
		DefaultUser: r.DefaultUser, DefaultWorkdir: r.DefaultWorkdir, CreatedAt: r.CreatedAt,
		Env: env, Start: r.StartCmd, Ready: r.ReadyCmd, StateID: r.StateID, BuildID: r.BuildID,
	}
	if r.ArtifactID != nil {
		t.Artifact = *r.ArtifactID
	}
	return t
}
