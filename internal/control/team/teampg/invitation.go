package teampg

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/control/team/teampg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

// CreateInvitation implements team.Store.
func (s *Store) CreateInvitation(ctx context.Context, c team.Change, n team.NewInvitation, entry audit.Entry) (team.CreatedInvitation, error) {
	var out team.CreatedInvitation
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return idempotencypg.Once(ctx, tx, func() (any, error) {
			if _, err := s.enter(ctx, tx, c, nil); err != nil {
				return nil, err
			}
			open, err := s.q.CountOpenInvitations(ctx, tx, c.Team)
			if err != nil {
				return nil, err
			}
			if open >= team.MaxOpen {
				return nil, team.ErrTooManyInvitations
			}
			i := n.Invitation
			row, err := s.q.InsertInvitation(ctx, tx, sqlcgen.InsertInvitationParams{
				ID: i.ID, TeamID: c.Team, Email: i.Email, Role: string(i.Role), TokenHash: n.TokenHash, CreatedBy: &c.Actor,
				LifetimeSecs: n.Lifetime.Seconds(),
			})
			if err != nil {
				return nil, err
			}
			i.CreatedAt, i.ExpiresAt = row.CreatedAt, row.ExpiresAt
			out = team.CreatedInvitation{Invitation: i, URL: n.URL}
			return out, auditpg.Append(ctx, tx, entry)
		})
	})
	return out, err
}

// ListInvitations implements team.Store.
func (s *Store) ListInvitations(ctx context.Context, c team.Change, p page.Request) (page.Page[team.Invitation], error) {
	at, last, err := after(p.Cursor)
	if err != nil {
		return page.Page[team.Invitation]{}, err
	}
	t, err := s.Get(ctx, c.Actor, c.Team)
	if err != nil {
		return page.Page[team.Invitation]{}, err
	}
	if err := c.Allow(team.Member{User: c.Actor, Role: t.Role, Active: true}, team.Member{}); err != nil {
		return page.Page[team.Invitation]{}, err
	}
	rows, err := s.q.ListInvitations(ctx, s.pool, sqlcgen.ListInvitationsParams{TeamID: c.Team, AfterAt: at, AfterID: last, MaxRows: int32(p.Limit + 1)})
	if err != nil {
		return page.Page[team.Invitation]{}, pg.Map(err)
	}
	found := make([]team.Invitation, len(rows))
	for i, r := range rows {
		found[i] = team.Invitation{
			ID: r.ID, Team: c.Team, Email: r.Email, Role: principal.Role(r.Role), Creator: r.Creator, CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt,
		}
	}
	return page.Of(found, p.Limit, func(i team.Invitation) any { return position{i.CreatedAt, i.ID.UUID()} })
}

// RevokeInvitation implements team.Store.
func (s *Store) RevokeInvitation(ctx context.Context, c team.Change, invitation id.Invitation, entry func(email string) audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := s.enter(ctx, tx, c, nil); err != nil {
			return err
		}
		email, err := s.q.RevokeInvitation(ctx, tx, sqlcgen.RevokeInvitationParams{ID: invitation, TeamID: c.Team})
		if errors.Is(err, pgx.ErrNoRows) {
			return team.ErrInvitationNotFound
		}
		if err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry(email))
	})
}

// PreviewInvitation implements team.Store.
func (s *Store) PreviewInvitation(ctx context.Context, tokenHash []byte) (team.Preview, error) {
	r, err := s.valid(ctx, s.pool, tokenHash)
	if err != nil {
		return team.Preview{}, pg.Map(err)
	}
	return team.Preview{TeamName: r.TeamName, Role: principal.Role(r.Role), Email: r.Email, ExpiresAt: r.ExpiresAt}, nil
}

func (s *Store) valid(ctx context.Context, db sqlcgen.DBTX, tokenHash []byte) (sqlcgen.PreviewInvitationRow, error) {
	r, err := s.q.PreviewInvitation(ctx, db, tokenHash)
	if errors.Is(err, pgx.ErrNoRows) {
		return r, team.ErrInvitation
	}
	return r, err
}

// AcceptInvitation implements team.Store.
func (s *Store) AcceptInvitation(ctx context.Context, tokenHash []byte, by id.User, entries func(t team.Team, invitation id.Invitation, added team.Member) []audit.Entry) (team.Team, error) {
	var out team.Team
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		seen, err := s.valid(ctx, tx, tokenHash)
		if err != nil {
			return err
		}
		row, err := s.q.LockTeam(ctx, tx, seen.TeamID)
		if errors.Is(err, pgx.ErrNoRows) {
			return team.ErrInvitation
		}
		if err != nil {
			return err
		}
		// All that can end an invitation waits for the lock; what did so before it
		// was had is seen now.
		invitation, err := s.valid(ctx, tx, tokenHash)
		if err != nil {
			return err
		}
		user, err := s.q.GetActiveUser(ctx, tx, by)
		if err != nil {
			return err
		}
		if invitation.Email != "" && invitation.Email != user.Email {
			return team.ErrInvitationForAnother
		}
		role := principal.Role(invitation.Role)
		added, err := s.join(ctx, tx, row.ID, team.Member{User: user.ID, Name: user.Name, Email: user.Email, Role: role, Active: true})
		if err != nil {
			return err
		}
		if err := s.q.SpendInvitation(ctx, tx, sqlcgen.SpendInvitationParams{ID: invitation.ID, AcceptedBy: &by}); err != nil {
			return err
		}
		out = team.Team{ID: row.ID, Name: row.Name, Slug: row.Slug, IsBYOC: row.IsByoc, Role: role, CreatedAt: row.CreatedAt}
		return auditpg.Append(ctx, tx, entries(out, invitation.ID, added)...)
	})
	return out, err
}
