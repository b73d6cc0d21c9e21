package accountpg

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/account/accountpg/sqlcgen"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// endAccess ends all of a user's sessions but one, and what could become one.
// Call it after the change of the user's row: what is opened side by side waits
// for that, and is refused.
func (s *Store) endAccess(ctx context.Context, tx pgx.Tx, user id.User, but id.Session, reason string) error {
	if _, err := s.q.EndSessionsOf(ctx, tx, sqlcgen.EndSessionsOfParams{UserID: user, But: but, EndReason: reason}); err != nil {
		return err
	}
	if err := s.q.DropPendingLogins(ctx, tx, user.UUID()); err != nil {
		return err
	}
	if err := s.q.DeleteOAuthLinks(ctx, tx, &user); err != nil {
		return err
	}
	return s.q.DropResetLinks(ctx, tx, user)
}

// ChangePassword implements account.Store.
func (s *Store) ChangePassword(ctx context.Context, user id.User, oldHash, newHash string, keep id.Session, entry audit.Entry) error {
	return s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		changed, err := s.q.ChangePassword(ctx, tx, sqlcgen.ChangePasswordParams{ID: user, OldHash: oldHash, NewHash: newHash})
		if err != nil {
			return err
		}
		if changed == 0 {
			return account.ErrCredentialsMoved
		}
		if err := s.endAccess(ctx, tx, user, keep, account.ReasonPasswordChanged); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry)
	})
}

// CreateLink implements account.Store.
func (s *Store) CreateLink(ctx context.Context, link account.Link, receipt func(time.Time) any, entry audit.Entry) (time.Time, error) {
	var expires time.Time
	insert := func(ctx context.Context, tx pgx.Tx) (err error) {
		expires, err = s.q.InsertAccountToken(ctx, tx, sqlcgen.InsertAccountTokenParams{
			TokenHash: link.Hash, Kind: string(link.Kind), UserID: link.User, Email: link.Email, LifetimeSeconds: account.LinkLifetime.Seconds(),
		})
		if err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry)
	}
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if receipt == nil {
			return insert(ctx, tx)
		}
		return idempotencypg.Once(ctx, tx, func() (any, error) {
			err := insert(ctx, tx)
			return receipt(expires), err
		})
	})
	return expires, err
}

// FindLink implements account.Store.
func (s *Store) FindLink(ctx context.Context, kind account.LinkKind, hash []byte) (account.User, bool, error) {
	row, err := s.q.GetAccountToken(ctx, s.pool, sqlcgen.GetAccountTokenParams{TokenHash: hash, Kind: string(kind)})
	if errors.Is(err, pgx.ErrNoRows) {
		return account.User{}, false, nil
	}
	if err != nil {
		return account.User{}, false, pg.Map(err)
	}
	user, found, err := s.UserByID(ctx, row.UserID)
	return user.User, found, err
}

// UsePasswordLink implements account.Store.
func (s *Store) UsePasswordLink(ctx context.Context, hash []byte, user id.User, newHash string, entry audit.Entry) error {
	return s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.spend(ctx, tx, hash); err != nil {
			return err
		}
		changed, err := s.q.ReplacePassword(ctx, tx, sqlcgen.ReplacePasswordParams{ID: user, NewHash: newHash})
		if err != nil {
			return err
		}
		if changed == 0 { // disabled meanwhile
			return account.ErrInvalidLink
		}
		if err := s.q.DropIdentitiesOfUnproven(ctx, tx, user); err != nil {
			return err
		}
		if err := s.endAccess(ctx, tx, user, id.Session{}, account.ReasonPasswordReset); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry)
	})
}

// UseEmailLink implements account.Store.
func (s *Store) UseEmailLink(ctx context.Context, hash []byte, user id.User, entry audit.Entry) error {
	return s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.spend(ctx, tx, hash); err != nil {
			return err
		}
		proven, err := s.q.ProveEmail(ctx, tx, user)
		if err != nil || proven == 0 {
			return err
		}
		return auditpg.Append(ctx, tx, entry)
	})
}

func (s *Store) spend(ctx context.Context, tx pgx.Tx, hash []byte) error {
	spent, err := s.q.UseAccountToken(ctx, tx, hash)
	if err == nil && spent == 0 {
		err = account.ErrInvalidLink
	}
	return err
}
