package templatepg

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/quota"
	"skerry.dev/skerry/internal/control/quota/quotapg"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/build"
	"skerry.dev/skerry/internal/control/template/templatepg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

// maxOpen bounds the builds of a team that have not ended.
const maxOpen = 50

// Builds implements build.Store.
type Builds struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// NewBuilds uses the pool.
func NewBuilds(pool *pgxpool.Pool) *Builds { return &Builds{pool: pool, q: sqlcgen.New()} }

var _ build.Store = (*Builds)(nil)

// Create implements build.Store. A build that could not be published is not
// begun.
func (s *Builds) Create(ctx context.Context, b build.Build, entry audit.Entry) (build.Receipt, error) {
	receipt := build.Receipt{Build: b.ID}
	spec, err := json.Marshal(b.Spec)
	if err != nil {
		return receipt, errs.Internal(err)
	}
	err = pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return idempotencypg.Once(ctx, tx, func() (any, error) {
			if err := s.q.LockTeam(ctx, tx, b.TeamID); err != nil {
				return nil, err
			}
			open, err := s.q.CountOpenBuilds(ctx, tx, b.TeamID)
			if err != nil {
				return nil, err
			}
			if open >= maxOpen {
				return nil, errs.Exhausted("too_many_builds", fmt.Sprintf("Your team has %d builds that have not ended, as many as may be. Wait for one, or cancel one.", open))
			}
			var want quota.Want
			if has, err := s.q.HasName(ctx, tx, sqlcgen.HasNameParams{TeamID: b.TeamID, Name: b.Name}); err != nil {
				return nil, err
			} else if !has {
				want.Templates = 1
			}
			want.StoredMB = 1 // how large it will be nobody knows yet
			if err := quotapg.Check(ctx, tx, b.TeamID, want); err != nil {
				return nil, err
			}
			for _, c := range []*id.BuildContext{b.ContextID, b.TarballID} {
				if c == nil {
					continue
				}
				if _, err := s.q.KeepContext(ctx, tx, sqlcgen.KeepContextParams{ID: *c, TeamID: b.TeamID}); errors.Is(err, pgx.ErrNoRows) {
					return nil, build.ErrContextNotFound
				} else if err != nil {
					return nil, err
				}
			}
			if _, err := s.q.InsertBuild(ctx, tx, sqlcgen.InsertBuildParams{
				ID: b.ID, TeamID: b.TeamID, Name: b.Name, Recipe: spec, SecretsSealed: b.Secrets, ContextID: b.ContextID, TarballID: b.TarballID,
				Steps: int32(b.Steps), CreatedByType: b.CreatedByType, CreatedByID: b.CreatedByID, CreatedByName: b.CreatedByName,
			}); err != nil {
				return nil, err
			}
			return receipt, auditpg.Append(ctx, tx, entry)
		})
	})
	return receipt, err
}

// Get implements build.Store.
func (s *Builds) Get(ctx context.Context, b id.Build) (build.Build, error) {
	row, err := s.q.GetBuild(ctx, s.pool, b)
	if errors.Is(err, pgx.ErrNoRows) {
		return build.Build{}, build.ErrNotFound
	}
	if err != nil {
		return build.Build{}, pg.Map(err)
	}
	return buildOf(row)
}

// List implements build.Store.
func (s *Builds) List(ctx context.Context, team id.Team, name string, p page.Request) (page.Page[build.Build], error) {
	params := sqlcgen.ListBuildsParams{TeamID: team, Name: name, MaxRows: int32(p.Limit + 1)}
	if p.Cursor != "" {
		var after position
		if err := page.Decode(p.Cursor, &after); err != nil {
			return page.Page[build.Build]{}, err
		}
		if after.At.IsZero() {
			return page.Page[build.Build]{}, errJunkCursor
		}
		params.AfterAt, params.AfterID = &after.At, &after.ID
	}
	rows, err := s.q.ListBuilds(ctx, s.pool, params)
	if err != nil {
		return page.Page[build.Build]{}, pg.Map(err)
	}
	out := make([]build.Build, len(rows))
	for i, row := range rows {
		if out[i], err = buildOf(row); err != nil {
			return page.Page[build.Build]{}, err
		}
	}
	return page.Of(out, p.Limit, func(b build.Build) any { return position{b.CreatedAt, b.ID.UUID()} })
}

// AskCancel implements build.Store.
func (s *Builds) AskCancel(ctx context.Context, team id.Team, b id.Build, entry audit.Entry) (build.Build, error) {
	var out build.Build
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		row, err := s.q.LockBuild(ctx, tx, b)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && row.TeamID != team {
			return build.ErrNotFound
		}
		if err != nil {
			return err
		}
		if row.FinishedAt != nil || row.CancelAskedAt != nil {
			out, err = buildOf(row)
			return err
		}
		if row.LeaseOwner == nil && row.SandboxID == nil && row.Status == string(build.StatusQueued) {
			row, err = s.q.FinishBuild(ctx, tx, sqlcgen.FinishBuildParams{
				ID: b, Status: string(build.StatusCanceled), Reason: "canceled", Error: "The build was canceled before it began.",
			})
		} else {
			row, err = s.q.AskCancel(ctx, tx, b)
		}
		if err != nil {
			return err
		}
		if out, err = buildOf(row); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry)
	})
	return out, err
}

// TakeDue implements build.Store.
func (s *Builds) TakeDue(ctx context.Context, lease build.Lease, limit int) ([]build.Build, error) {
	rows, err := s.q.TakeBuilds(ctx, s.pool, sqlcgen.TakeBuildsParams{Owner: lease.Owner, LeaseSecs: lease.For.Seconds(), MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]build.Build, 0, len(rows))
	for _, row := range rows {
		b, err := buildOf(row)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// Renew implements build.Store.
func (s *Builds) Renew(ctx context.Context, lease build.Lease, held []id.Build) ([]build.Held, error) {
	rows, err := s.q.RenewBuilds(ctx, s.pool, sqlcgen.RenewBuildsParams{Owner: lease.Owner, LeaseSecs: lease.For.Seconds(), Ids: uuids(held)})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]build.Held, len(rows))
	for i, r := range rows {
		out[i] = build.Held{ID: r.ID, Canceled: r.Canceled}
	}
	return out, nil
}

// Yield implements build.Store.
func (s *Builds) Yield(ctx context.Context, lease build.Lease, b id.Build, pause time.Duration, counts bool) error {
	return pg.Map(s.q.YieldBuild(ctx, s.pool, sqlcgen.YieldBuildParams{ID: b, Owner: lease.Owner, PauseSecs: pause.Seconds(), Counts: counts}))
}

// driven does what only who drives a build may do.
func (s *Builds) driven(ctx context.Context, lease build.Lease, b id.Build, do func(ctx context.Context, tx pgx.Tx, row sqlcgen.Build) error) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		row, err := s.q.HoldBuild(ctx, tx, sqlcgen.HoldBuildParams{ID: b, Owner: lease.Owner})
		if errors.Is(err, pgx.ErrNoRows) {
			return build.ErrOvertaken
		}
		if err != nil {
			return err
		}
		return do(ctx, tx, row)
	})
}

// SetStep implements build.Store.
func (s *Builds) SetStep(ctx context.Context, lease build.Lease, b id.Build, step, steps int) error {
	return s.driven(ctx, lease, b, func(ctx context.Context, tx pgx.Tx, _ sqlcgen.Build) error {
		return s.q.SetBuildStep(ctx, tx, sqlcgen.SetBuildStepParams{ID: b, Step: int32(step), Steps: int32(steps)})
	})
}

// SetBase implements build.Store.
func (s *Builds) SetBase(ctx context.Context, lease build.Lease, b id.Build, base *id.Template) error {
	return s.driven(ctx, lease, b, func(ctx context.Context, tx pgx.Tx, _ sqlcgen.Build) error {
		return s.q.SetBuildBase(ctx, tx, sqlcgen.SetBuildBaseParams{ID: b, BaseID: base})
	})
}

// SetSandbox implements build.Store.
func (s *Builds) SetSandbox(ctx context.Context, lease build.Lease, b id.Build, x *id.Sandbox) error {
	return s.driven(ctx, lease, b, func(ctx context.Context, tx pgx.Tx, _ sqlcgen.Build) error {
		return s.q.SetBuildSandbox(ctx, tx, sqlcgen.SetBuildSandboxParams{ID: b, SandboxID: x})
	})
}

// BeginImage implements build.Store. Nothing points at it yet: an artifact is
// not collected before it is ten minutes old.
func (s *Builds) BeginImage(ctx context.Context, lease build.Lease, b id.Build, n artifact.New) error {
	return s.driven(ctx, lease, b, func(ctx context.Context, tx pgx.Tx, _ sqlcgen.Build) error { return artifactpg.Begin(ctx, tx, n) })
}

// AddImage implements build.Store.
func (s *Builds) AddImage(ctx context.Context, lease build.Lease, b id.Build, t template.Template) (template.Template, error) {
	var out template.Template
	env, err := json.Marshal(t.Env)
	if err != nil || t.Env == nil {
		env = json.RawMessage("{}")
	}
	err = s.driven(ctx, lease, b, func(ctx context.Context, tx pgx.Tx, _ sqlcgen.Build) error {
		if err := artifactpg.Use(ctx, tx, t.Artifact); err != nil {
			return err
		}
		row, err := s.q.InsertHidden(ctx, tx, sqlcgen.InsertHiddenParams{
			ID: t.ID, TeamID: t.TeamID, Name: t.Name, ImageDigest: string(t.ImageDigest), ImageSizeBytes: t.ImageSizeBytes, ManifestDigest: string(t.ManifestDigest),
			ArtifactID: &t.Artifact, Arch: t.Arch, Engine: t.Engine, CpuMillis: int32(t.CPUMillis), MemoryMb: int32(t.MemoryMB), DiskMb: int32(t.DiskMB),
			DefaultUser: t.DefaultUser, DefaultWorkdir: t.DefaultWorkdir, Env: env,
		})
		out = fromRow(row)
		return err
	})
	return out, err
}

// Finish implements build.Store.
func (s *Builds) Finish(ctx context.Context, lease build.Lease, b id.Build, o build.Outcome) error {
	return s.driven(ctx, lease, b, func(ctx context.Context, tx pgx.Tx, row sqlcgen.Build) error {
		if o.Template != nil {
			if err := s.publish(ctx, tx, row, o); err != nil {
				return err
			}
		}
		if _, err := s.q.FinishBuild(ctx, tx, sqlcgen.FinishBuildParams{
			ID: b, Status: string(o.Status), Reason: o.Reason, Error: o.Error, TemplateID: o.Template,
		}); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, o.Audit)
	})
}

// publish makes a build's template visible, in place of the one of its name.
func (s *Builds) publish(ctx context.Context, tx pgx.Tx, row sqlcgen.Build, o build.Outcome) error {
	if err := s.q.LockTeam(ctx, tx, row.TeamID); err != nil {
		return err
	}
	made, err := s.q.ByID(ctx, tx, *o.Template)
	if err != nil {
		return err
	}
	if made.ArtifactID == nil || made.TeamID != row.TeamID || made.Name != row.Name {
		return errs.Internal(fmt.Errorf("%s is no template of %s", made.ID, row.ID))
	}
	if err := artifactpg.Use(ctx, tx, *made.ArtifactID); err != nil {
		return err
	}
	if err := s.q.RetireByName(ctx, tx, sqlcgen.RetireByNameParams{TeamID: row.TeamID, Name: row.Name}); err != nil {
		return err
	}
	if err := quotapg.Check(ctx, tx, row.TeamID, quota.Want{Templates: 1}); err != nil {
		return err
	}
	_, err = s.q.Unhide(ctx, tx, sqlcgen.UnhideParams{ID: made.ID, StateID: o.State, StartCmd: o.Start, ReadyCmd: o.Ready, BuildID: &row.ID})
	return err
}

// Running implements build.Store.
func (s *Builds) Running(ctx context.Context, b id.Build) ([]id.Sandbox, error) {
	out, err := s.q.BuildSandboxes(ctx, s.pool, &b)
	return out, pg.Map(err)
}

// Builders implements build.Store.
func (s *Builds) Builders(ctx context.Context, team id.Team) ([]host.Ref, error) {
	rows, err := s.q.ListBuilderHosts(ctx, s.pool, team)
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]host.Ref, len(rows))
	for i, r := range rows {
		out[i] = host.Ref{ID: r.ID, Address: r.Address, Online: true}
	}
	return out, nil
}

func uuids(builds []id.Build) []uuid.UUID {
	out := make([]uuid.UUID, len(builds))
	for i, b := range builds {
		out[i] = b.UUID()
	}
	return out
}

func buildOf(r sqlcgen.Build) (build.Build, error) {
	out := build.Build{
		ID: r.ID, TeamID: r.TeamID, Name: r.Name, Status: build.Status(r.Status), Secrets: r.SecretsSealed, ContextID: r.ContextID, TarballID: r.TarballID,
		BaseID: r.BaseID, TemplateID: r.TemplateID, SandboxID: r.SandboxID, Step: int(r.Step), Steps: int(r.Steps), Reason: r.Reason, Error: r.Error,
		CancelAsked: r.CancelAskedAt != nil, Attempts: int(r.Attempts), CreatedByType: r.CreatedByType, CreatedByID: r.CreatedByID, CreatedByName: r.CreatedByName,
		CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt,
	}
	if err := json.Unmarshal(r.Recipe, &out.Spec); err != nil {
		return out, fmt.Errorf("recipe of %s: %w", r.ID, err)
	}
	return out, nil
}
