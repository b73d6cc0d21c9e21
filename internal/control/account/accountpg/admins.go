package accountpg

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/account/accountpg/sqlcgen"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

// MakeAdmin implements account.Store.
func (s *Store) MakeAdmin(ctx context.Context, user id.User, newHash string, log audit.AuditLogger) error {
	return s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		before, err := s.q.GetUserByID(ctx, tx, user)
		if errors.Is(err, pgx.ErrNoRows) {
			return account.ErrUserNotFound
		}
		if err != nil {
			return err
		}
		was, err := s.q.LockForAdmin(ctx, tx, user)
		if err != nil {
			return err
		}
		var entries []audit.Entry
		if !was.IsAdmin || !was.IsActive {
			if err := s.q.MakeAdmin(ctx, tx, user); err != nil {
				return err
			}
			entries = append(entries, log.AdminGranted(user, before.Email))
		}
		if newHash != "" {
			if _, err := s.q.ReplacePassword(ctx, tx, sqlcgen.ReplacePasswordParams{ID: user, NewHash: newHash}); err != nil {
				return err
			}
			if err := s.endAccess(ctx, tx, user, id.Session{}, account.ReasonPasswordReset); err != nil {
				return err
			}
			entries = append(entries, log.PasswordReset(user, before.Email))
			if !was.IsAdmin {
				revoked, err := s.takeOver(ctx, tx, user, log)
				if err != nil {
					return err
				}
				entries = append(entries, revoked...)
			}
		}
		if len(entries) == 0 {
			return nil
		}
		return auditpg.Append(ctx, tx, entries...)
	})
}

// takeOver ends what whoever made an account could still get in by.
func (s *Store) takeOver(ctx context.Context, tx pgx.Tx, user id.User, log audit.AuditLogger) ([]audit.Entry, error) {
	keys, err := s.q.RevokeKeysOfOwner(ctx, tx, user)
	if err != nil {
		return nil, err
	}
	entries := make([]audit.Entry, len(keys))
	for i, key := range keys {
		entries[i] = log.APIKeyRevoked(key.TeamID, key.ID, key.Name)
	}
	for _, drop := range []func(context.Context, sqlcgen.DBTX, id.User) error{
		s.q.RevokeInvitationsOfOwner, s.q.DeleteIdentities,
		func(ctx context.Context, db sqlcgen.DBTX, user id.User) error {
			return s.q.DeleteOAuthLinks(ctx, db, &user)
		},
	} {
		if err := drop(ctx, tx, user); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// ListUsers implements account.Store.
func (s *Store) ListUsers(ctx context.Context, search string, p page.Request) (page.Page[account.AdminUser], error) {
	from, err := after(p)
	if err != nil {
		return page.Page[account.AdminUser]{}, err
	}
	rows, err := s.q.ListUsers(ctx, s.pool, sqlcgen.ListUsersParams{Search: search, BeforeAt: from.At, BeforeID: from.ID, MaxRows: int32(p.Limit + 1)})
	if err != nil {
		return page.Page[account.AdminUser]{}, pg.Map(err)
	}
	users := make([]account.AdminUser, len(rows))
	for i, row := range rows {
		users[i] = adminUser(sqlcgen.GetAdminUserRow(row))
	}
	return page.Of(users, p.Limit, func(u account.AdminUser) any { return position{At: u.CreatedAt, ID: u.ID.UUID()} })
}

func adminUser(row sqlcgen.GetAdminUserRow) account.AdminUser {
	u := account.AdminUser{
		User:     account.User{ID: row.ID, Email: row.Email, Name: row.Name, IsAdmin: row.IsAdmin},
		IsActive: row.IsActive, EmailProven: row.EmailProven, CreatedAt: row.CreatedAt,
	}
	if row.LastLoginAt.Unix() > 0 { // the query's word for never
		u.LastLoginAt = row.LastLoginAt
	}
	return u
}

// mayLeaveAdmins locks all active admins, in one order for everybody, and
// refuses when user is the only one. Two who remove each other do so one after
// the other, and the second sees what the first did.
func (s *Store) mayLeaveAdmins(ctx context.Context, tx pgx.Tx, user id.User) error {
	admins, err := s.q.LockActiveAdmins(ctx, tx)
	if err != nil {
		return err
	}
	if len(admins) == 1 && slices.Contains(admins, user) {
		return account.ErrLastAdmin
	}
	return nil
}

// SetAdmin implements account.Store.
func (s *Store) SetAdmin(ctx context.Context, user id.User, enabled bool, entry func(string) audit.Entry) (account.AdminUser, error) {
	return s.set(ctx, user, enabled, entry, func(ctx context.Context, tx pgx.Tx) (int64, error) {
		return s.q.SetAdmin(ctx, tx, sqlcgen.SetAdminParams{ID: user, Enabled: enabled})
	})
}

// SetActive implements account.Store.
func (s *Store) SetActive(ctx context.Context, user id.User, enabled bool, entry func(string) audit.Entry) (account.AdminUser, error) {
	return s.set(ctx, user, enabled, entry, func(ctx context.Context, tx pgx.Tx) (int64, error) {
		changed, err := s.q.SetActive(ctx, tx, sqlcgen.SetActiveParams{ID: user, Enabled: enabled})
		if err == nil && changed > 0 && !enabled {
			err = s.endAccess(ctx, tx, user, id.Session{}, account.ReasonDisabled)
		}
		return changed, err
	})
}

func (s *Store) set(ctx context.Context, user id.User, enabled bool, entry func(string) audit.Entry,
	change func(context.Context, pgx.Tx) (int64, error),
) (account.AdminUser, error) {
	var out account.AdminUser
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if !enabled {
			if err := s.mayLeaveAdmins(ctx, tx, user); err != nil {
				return err
			}
		}
		changed, err := change(ctx, tx)
		if err != nil {
			return err
		}
		row, err := s.q.GetAdminUser(ctx, tx, user)
		if errors.Is(err, pgx.ErrNoRows) {
			return account.ErrUserNotFound
		}
		if err != nil {
			return err
		}
		out = adminUser(row)
		if changed == 0 {
			return nil
		}
		return auditpg.Append(ctx, tx, entry(out.Email))
	})
	return out, err
}
