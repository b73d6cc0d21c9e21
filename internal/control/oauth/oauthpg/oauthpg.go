// Package oauthpg keeps identities and logins under way.
package oauthpg

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/oauth"
	"skerry.dev/skerry/internal/control/oauth/oauthpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// Store implements oauth.Store.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// New uses the pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

// Begin implements oauth.Store.
func (s *Store) Begin(ctx context.Context, stateHash []byte, p oauth.Pending, lifetime time.Duration) error {
	return pg.Map(s.q.BeginLogin(ctx, s.pool, sqlcgen.BeginLoginParams{
		StateHash: stateHash, Provider: p.Provider, Sealed: p.Sealed, LinkUser: p.LinkUser, UserCode: p.UserCode, LifetimeSecs: lifetime.Seconds(),
	}))
}

// Spend implements oauth.Store.
func (s *Store) Spend(ctx context.Context, stateHash []byte) (oauth.Pending, bool, error) {
	row, err := s.q.SpendLogin(ctx, s.pool, stateHash)
	if errors.Is(err, pgx.ErrNoRows) {
		return oauth.Pending{}, false, nil
	}
	return oauth.Pending{Provider: row.Provider, Sealed: row.Sealed, LinkUser: row.LinkUser, UserCode: row.UserCode}, row.Fresh, pg.Map(err)
}

// Prune implements oauth.Store.
func (s *Store) Prune(ctx context.Context) error {
	_, err := s.q.PruneLogins(ctx, s.pool)
	return pg.Map(err)
}

// UserOf implements oauth.Store.
func (s *Store) UserOf(ctx context.Context, provider string, claim oauth.Claim) (id.User, bool, error) {
	user, err := s.q.UserOfIdentity(ctx, s.pool, sqlcgen.UserOfIdentityParams{Email: claim.Email, Provider: provider, Subject: claim.Subject})
	if errors.Is(err, pgx.ErrNoRows) {
		return id.User{}, false, nil
	}
	return user, err == nil, pg.Map(err)
}

// Link implements oauth.Store.
func (s *Store) Link(ctx context.Context, user id.User, in *id.Session, provider string, claim oauth.Claim, entry audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		held, err := s.q.LockUser(ctx, tx, user)
		if err != nil {
			return err
		}
		if !held.IsActive {
			return account.ErrDisabled
		}
		if in != nil {
			// Whoever ends the user's sessions has changed the user's row before.
			lives, err := s.q.HoldSession(ctx, tx, sqlcgen.HoldSessionParams{ID: *in, UserID: user})
			if err == nil && lives == 0 {
				err = account.ErrSessionEnded
			}
			if err != nil {
				return err
			}
		}
		added, err := s.q.InsertIdentity(ctx, tx, sqlcgen.InsertIdentityParams{Provider: provider, Subject: claim.Subject, UserID: user, Email: claim.Email})
		if pg.Violates(err) == "user_identities_user" {
			return oauth.ErrAlreadyLinked
		}
		if err != nil {
			return err
		}
		if added == 0 {
			owner, err := s.q.IdentityOwner(ctx, tx, sqlcgen.IdentityOwnerParams{Provider: provider, Subject: claim.Subject})
			if err != nil {
				return err
			}
			if owner != user {
				return oauth.ErrIdentityTaken
			}
			return nil
		}
		if claim.EmailVerified && claim.Email == held.Email {
			if err := s.q.ProveEmail(ctx, tx, sqlcgen.ProveEmailParams{ID: user, Email: claim.Email}); err != nil {
				return err
			}
		}
		return auditpg.Append(ctx, tx, entry)
	})
}

// Unlink implements oauth.Store.
func (s *Store) Unlink(ctx context.Context, user id.User, provider string, entry audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		held, err := s.q.LockUser(ctx, tx, user)
		if err != nil {
			return err
		}
		linked, err := s.q.ListIdentities(ctx, tx, user)
		if err != nil {
			return err
		}
		removed, err := s.q.DeleteIdentity(ctx, tx, sqlcgen.DeleteIdentityParams{UserID: user, Provider: provider})
		switch {
		case err != nil:
			return err
		case removed == 0:
			return oauth.ErrNotLinked
		case len(linked) == 1 && !held.HasPassword:
			return oauth.ErrOnlyWayIn
		}
		return auditpg.Append(ctx, tx, entry)
	})
}

// Identities implements oauth.Store.
func (s *Store) Identities(ctx context.Context, user id.User) ([]oauth.Identity, error) {
	rows, err := s.q.ListIdentities(ctx, s.pool, user)
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]oauth.Identity, len(rows))
	for i, r := range rows {
		out[i] = oauth.Identity{Provider: r.Provider, Subject: r.Subject, Email: r.Email, CreatedAt: r.CreatedAt}
	}
	return out, nil
}
