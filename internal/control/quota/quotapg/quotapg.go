// Package quotapg keeps teams' limits and checks them.
package quotapg

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/quota"
	"skerry.dev/skerry/internal/control/quota/quotapg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// Check refuses, in the transaction that makes something, what would take the
// team over one of its limits: errs.Exhausted with reason quota_exceeded. It
// locks the team's row until the end of the transaction, so that of two creates
// one counts the other's; call it before anything else is locked, right after
// idempotencypg.Once began. A team that was deleted meanwhile is
// principal.ErrNoTeam. The platform has no limits.
func Check(ctx context.Context, tx pgx.Tx, team id.Team, want quota.Want) error {
	if team == id.PlatformTeamID {
		return nil
	}
	q := sqlcgen.New()
	_, err := q.LockTeam(ctx, tx, team)
	if errors.Is(err, pgx.ErrNoRows) {
		return principal.ErrNoTeam
	}
	if err != nil {
		return err
	}
	row, err := q.GetLimits(ctx, tx, sqlcgen.GetLimitsParams{
		TeamID:      team,
		OfSandboxes: want.Sandboxes > 0 || want.CPUMillis > 0 || want.MemoryMB > 0 || want.DiskMB > 0,
		OfStored:    want.StoredMB > 0, OfKeys: want.APIKeys > 0, OfHosts: want.Hosts > 0, OfTemplates: want.Templates > 0,
	})
	if err != nil {
		return err
	}
	return limits(row).Allow(team, want)
}

// Store implements quota.Store.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// New returns the store on a pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

// Limits implements quota.Store.
func (s *Store) Limits(ctx context.Context, team id.Team) (quota.Limits, error) {
	row, err := s.all(ctx, s.pool, team)
	if err != nil {
		return quota.Limits{}, pg.Map(err)
	}
	return limits(row), nil
}

// SetLimits implements quota.Store.
func (s *Store) SetLimits(ctx context.Context, team id.Team, to quota.Override, entry func(from quota.Override) audit.Entry) (quota.Limits, error) {
	var out quota.Limits
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := s.q.LockTeam(ctx, tx, team); errors.Is(err, pgx.ErrNoRows) {
			return quota.ErrTeamNotFound
		} else if err != nil {
			return err
		}
		before, err := s.all(ctx, tx, team)
		if err != nil {
			return err
		}
		from := override(before)
		out = quota.Limits{Limit: quota.Defaults().With(to), Used: limits(before).Used}
		if from.Equal(to) {
			return nil
		}
		if err := s.q.SetLimits(ctx, tx, sqlcgen.SetLimitsParams{
			TeamID: team, Sandboxes: narrow(to.Sandboxes), CpuMillis: to.CPUMillis, MemoryMb: to.MemoryMB, DiskMb: to.DiskMB, StoredMb: to.StoredMB,
			ApiKeys: narrow(to.APIKeys), Hosts: narrow(to.Hosts), Templates: narrow(to.Templates),
		}); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry(from))
	})
	return out, err
}

func (s *Store) all(ctx context.Context, db sqlcgen.DBTX, team id.Team) (sqlcgen.GetLimitsRow, error) {
	row, err := s.q.GetLimits(ctx, db, sqlcgen.GetLimitsParams{
		TeamID: team, OfSandboxes: true, OfStored: true, OfKeys: true, OfHosts: true, OfTemplates: true,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return row, quota.ErrTeamNotFound
	}
	return row, err
}

func limits(r sqlcgen.GetLimitsRow) quota.Limits {
	return quota.Limits{
		Limit: quota.Defaults().With(override(r)),
		Used: quota.Amounts{
			Sandboxes: r.Sandboxes, CPUMillis: r.CpuMillis, MemoryMB: r.MemoryMb, DiskMB: r.DiskMb, StoredMB: r.StoredMb,
			APIKeys: r.ApiKeys, Hosts: r.Hosts, Templates: r.Templates,
		},
	}
}

func override(r sqlcgen.GetLimitsRow) quota.Override {
	return quota.Override{
		Sandboxes: wide(r.MaxSandboxes), CPUMillis: r.MaxCpuMillis, MemoryMB: r.MaxMemoryMb, DiskMB: r.MaxDiskMb, StoredMB: r.MaxStoredMb,
		APIKeys: wide(r.MaxApiKeys), Hosts: wide(r.MaxHosts), Templates: wide(r.MaxTemplates),
	}
}

// narrow fits what Override.Validate bounds.
func narrow(v *int64) *int32 {
	if v == nil {
		return nil
	}
	n := int32(*v)
	return &n
}

func wide(v *int32) *int64 {
	if v == nil {
		return nil
	}
	n := int64(*v)
	return &n
}
