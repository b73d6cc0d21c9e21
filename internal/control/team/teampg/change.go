package teampg

import (
	"context"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/apikey"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/control/team/teampg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// Create implements team.Store.
func (s *Store) Create(ctx context.Context, owner id.User, t team.Team, entry audit.Entry) (team.Team, error) {
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return idempotencypg.Once(ctx, tx, func() (any, error) {
			if full, err := s.ownsMost(ctx, tx, owner); err != nil {
				return nil, err
			} else if full {
				return nil, team.ErrTooManyTeams
			}
			var err error
			t.CreatedAt, err = s.q.InsertTeam(ctx, tx, sqlcgen.InsertTeamParams{ID: t.ID, Name: t.Name, Slug: t.Slug})
			if pg.Violates(err) == "teams_slug_key" {
				return nil, team.ErrSlugTaken.Because(err)
			}
			if err != nil {
				return nil, err
			}
			if _, err := s.q.InsertMember(ctx, tx, sqlcgen.InsertMemberParams{UserID: owner, TeamID: t.ID, Role: string(principal.RoleOwner)}); err != nil {
				return nil, err
			}
			return t, auditpg.Append(ctx, tx, entry)
		})
	})
	return t, err
}

// ownsMost tells whether a user owns as many living teams as one may, and keeps
// the answer true until the end of the transaction.
func (s *Store) ownsMost(ctx context.Context, tx pgx.Tx, user id.User) (bool, error) {
	if _, err := s.q.LockUser(ctx, tx, user); err != nil {
		return false, err
	}
	owned, err := s.q.CountOwned(ctx, tx, user)
	return owned >= team.MaxOwned, err
}

// Rename implements team.Store.
func (s *Store) Rename(ctx context.Context, c team.Change, name string, entry func(before team.Team) audit.Entry) (team.Team, error) {
	var out team.Team
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		found, err := s.enter(ctx, tx, c, nil)
		if err != nil {
			return err
		}
		out = found.team
		out.Name = name
		if found.team.Name == name {
			return nil
		}
		if err := s.q.RenameTeam(ctx, tx, sqlcgen.RenameTeamParams{ID: c.Team, Name: name}); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry(found.team))
	})
	return out, err
}

// Delete implements team.Store.
func (s *Store) Delete(ctx context.Context, c team.Change, entry func(t team.Team, keys, invitations int64) audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		found, err := s.enter(ctx, tx, c, nil)
		if err != nil {
			return err
		}
		if err := s.q.DeleteTeam(ctx, tx, c.Team); err != nil {
			return err
		}
		keys, err := s.q.RevokeTeamKeys(ctx, tx, c.Team)
		if err != nil {
			return err
		}
		invitations, err := s.q.RevokeTeamInvitations(ctx, tx, c.Team)
		if err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry(found.team, keys, invitations))
	})
}

// Transfer implements team.Store.
func (s *Store) Transfer(ctx context.Context, c team.Change, target id.User, entry func(target team.Member) audit.Entry) (team.Team, error) {
	var out team.Team
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		found, err := s.enter(ctx, tx, c, &target)
		if err != nil {
			return err
		}
		// Else the bound of what one may make would be none of what one may own.
		if full, err := s.ownsMost(ctx, tx, target); err != nil {
			return err
		} else if full {
			return team.ErrTargetOwnsMost
		}
		// In this order: at no moment are there two.
		if err := s.setRole(ctx, tx, c.Team, c.Actor, principal.RoleAdmin); err != nil {
			return err
		}
		if err := s.setRole(ctx, tx, c.Team, target, principal.RoleOwner); err != nil {
			return err
		}
		out = found.team
		out.Role = principal.RoleAdmin
		return auditpg.Append(ctx, tx, entry(found.target))
	})
	return out, err
}

func (s *Store) setRole(ctx context.Context, tx pgx.Tx, of id.Team, user id.User, role principal.Role) error {
	return s.q.SetRole(ctx, tx, sqlcgen.SetRoleParams{TeamID: of, UserID: user, Role: string(role)})
}

// depart ends a membership and the invitations that would lead back.
func (s *Store) depart(ctx context.Context, tx pgx.Tx, of id.Team, user id.User) (invitations int64, err error) {
	if err := s.q.DeleteMember(ctx, tx, sqlcgen.DeleteMemberParams{TeamID: of, UserID: user}); err != nil {
		return 0, err
	}
	return s.q.RevokeInvitationsOf(ctx, tx, sqlcgen.RevokeInvitationsOfParams{TeamID: of, CreatedBy: &user})
}

// Leave implements team.Store.
func (s *Store) Leave(ctx context.Context, c team.Change, entry func(actor team.Member, invitations int64) audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		found, err := s.enter(ctx, tx, c, nil)
		if err != nil {
			return err
		}
		invitations, err := s.depart(ctx, tx, c.Team, c.Actor)
		if err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry(found.actor, invitations))
	})
}

// AddMember implements team.Store.
func (s *Store) AddMember(ctx context.Context, c team.Change, email string, role principal.Role, entry func(added team.Member) audit.Entry) (team.Member, error) {
	var out team.Member
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := s.enter(ctx, tx, c, nil); err != nil {
			return err
		}
		user, err := s.q.GetActiveUserByEmail(ctx, tx, email)
		if errors.Is(err, pgx.ErrNoRows) {
			return team.ErrUserNotFound
		}
		if err != nil {
			return err
		}
		out, err = s.join(ctx, tx, c.Team, team.Member{User: user.ID, Name: user.Name, Email: user.Email, Role: role, Active: true})
		if err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry(out))
	})
	return out, err
}

// join makes a user a member, or answers ErrAlreadyMember.
func (s *Store) join(ctx context.Context, tx pgx.Tx, to id.Team, m team.Member) (team.Member, error) {
	var err error
	m.JoinedAt, err = s.q.InsertMember(ctx, tx, sqlcgen.InsertMemberParams{UserID: m.User, TeamID: to, Role: string(m.Role)})
	if errors.Is(err, pgx.ErrNoRows) {
		return team.Member{}, team.ErrAlreadyMember
	}
	return m, err
}

// UpdateMember implements team.Store.
func (s *Store) UpdateMember(ctx context.Context, c team.Change, target id.User, role principal.Role, entry func(before team.Member) audit.Entry) (team.Member, error) {
	var out team.Member
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		found, err := s.enter(ctx, tx, c, &target)
		if err != nil {
			return err
		}
		out = found.target
		out.Role = role
		if found.target.Role == role {
			return nil
		}
		if err := s.setRole(ctx, tx, c.Team, target, role); err != nil {
			return err
		}
		if role == principal.RoleMember {
			if _, err := s.q.RevokeInvitationsOf(ctx, tx, sqlcgen.RevokeInvitationsOfParams{TeamID: c.Team, CreatedBy: &target}); err != nil {
				return err
			}
		}
		return auditpg.Append(ctx, tx, entry(found.target))
	})
	return out, err
}

// RemoveMember implements team.Store.
func (s *Store) RemoveMember(ctx context.Context, c team.Change, target id.User, revoke bool, entries func(target team.Member, r team.Removed, invitations int64) []audit.Entry) (team.Removed, error) {
	var out team.Removed
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		found, err := s.enter(ctx, tx, c, &target)
		if err != nil {
			return err
		}
		invitations, err := s.depart(ctx, tx, c.Team, target)
		if err != nil {
			return err
		}
		rows, err := s.q.KeysMadeBy(ctx, tx, sqlcgen.KeysMadeByParams{TeamID: c.Team, CreatedBy: &target})
		if err != nil {
			return err
		}
		out = team.Removed{Keys: make([]apikey.Key, len(rows)), Revoked: revoke}
		ids := make([]uuid.UUID, len(rows))
		for i, r := range rows {
			ids[i] = r.ID.UUID()
			out.Keys[i] = apikey.Key{
				ID: r.ID, TeamID: c.Team, Name: r.Name, Prefix: r.KeyPrefix, CreatedBy: target, Creator: found.target.Name,
				CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt, LastUsedAt: r.LastUsedAt,
			}
			for _, scope := range r.Scopes {
				out.Keys[i].Scopes = append(out.Keys[i].Scopes, principal.Scope(scope))
			}
		}
		if revoke && len(ids) > 0 {
			if err := s.q.RevokeKeys(ctx, tx, ids); err != nil {
				return err
			}
		}
		return auditpg.Append(ctx, tx, entries(found.target, out, invitations)...)
	})
	return out, err
}
