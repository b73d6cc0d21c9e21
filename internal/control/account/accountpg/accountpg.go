// Package accountpg keeps users and sessions.
package accountpg

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/account/accountpg/sqlcgen"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// Store implements account.Store.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// New returns the store on a pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

// CreateAccount implements account.Store.
func (s *Store) CreateAccount(ctx context.Context, a account.Signup) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return idempotencypg.Once(ctx, tx, func() (any, error) {
			return a.Receipt, s.insertAccount(ctx, tx, a)
		})
	})
}

func (s *Store) insertAccount(ctx context.Context, tx pgx.Tx, a account.Signup) error {
	_, err := s.q.InsertUser(ctx, tx, sqlcgen.InsertUserParams{
		ID: a.User.ID, Email: a.User.Email, Name: a.User.Name, PasswordHash: &a.PasswordHash, IsAdmin: a.User.IsAdmin,
	})
	if pg.Violates(err) == "users_email_key" {
		return account.ErrEmailTaken.Because(err)
	}
	if err != nil {
		return err
	}
	if _, err := s.q.InsertTeam(ctx, tx, sqlcgen.InsertTeamParams{ID: a.Team.ID, Name: a.Team.Name, Slug: a.Team.Slug}); err != nil {
		return err
	}
	if err := s.q.InsertMembership(ctx, tx, sqlcgen.InsertMembershipParams{
		UserID: a.User.ID, TeamID: a.Team.ID, Role: string(a.Team.Role), IsDefault: true,
	}); err != nil {
		return err
	}
	if a.Session != nil {
		if err := s.insertSession(ctx, tx, *a.Session, a.Entries[0].Actor); err != nil {
			return err
		}
	}
	return auditpg.Append(ctx, tx, a.Entries...)
}

func (s *Store) insertSession(ctx context.Context, tx pgx.Tx, session account.Session, by principal.Principal) error {
	var ip *netip.Addr
	if by.IP.IsValid() {
		ip = &by.IP
	}
	return s.q.InsertSession(ctx, tx, sqlcgen.InsertSessionParams{
		ID: session.ID, UserID: session.User, TeamID: session.Team, UserAgent: by.UserAgent, Ip: ip,
		LifetimeSeconds: account.SessionLifetime.Seconds(),
	})
}

// UserByEmail implements account.Store.
func (s *Store) UserByEmail(ctx context.Context, email string) (account.Stored, bool, error) {
	row, err := s.q.GetUserByEmail(ctx, s.pool, email)
	if errors.Is(err, pgx.ErrNoRows) {
		return account.Stored{}, false, nil
	}
	if err != nil {
		return account.Stored{}, false, pg.Map(err)
	}
	user := account.Stored{User: account.User{ID: row.ID, Email: row.Email, Name: row.Name, IsAdmin: row.IsAdmin}, IsActive: row.IsActive}
	if row.PasswordHash != nil {
		user.PasswordHash = *row.PasswordHash
	}
	return user, true, nil
}

// GetDefaultTeamForUser implements account.Store.
func (s *Store) GetDefaultTeamForUser(ctx context.Context, user id.User) (*team.Team, error) {
	row, err := s.q.GetDefaultTeamForUser(ctx, s.pool, user)
	return teamFrom(sqlcgen.GetMembershipRow(row), err)
}

// TeamOf implements account.Store.
func (s *Store) TeamOf(ctx context.Context, user id.User, of id.Team) (*team.Team, error) {
	return teamFrom(s.q.GetMembership(ctx, s.pool, sqlcgen.GetMembershipParams{UserID: user, TeamID: of}))
}

func teamFrom(row sqlcgen.GetMembershipRow, err error) (*team.Team, error) {
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, pg.Map(err)
	}
	return &team.Team{
		ID: row.ID, Name: row.Name, Slug: row.Slug, IsBYOC: row.IsByoc, Role: principal.Role(row.Role), CreatedAt: row.CreatedAt,
	}, nil
}

// CreateSession implements account.Store.
func (s *Store) CreateSession(ctx context.Context, session account.Session, by principal.Principal, oldHash, newHash string, entry audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if newHash != "" {
			if _, err := s.q.UpdatePasswordHash(ctx, tx, sqlcgen.UpdatePasswordHashParams{ID: session.User, OldHash: &oldHash, NewHash: &newHash}); err != nil {
				return err
			}
		}
		if err := s.insertSession(ctx, tx, session, by); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry)
	})
}

// RecordFailure implements account.Store.
func (s *Store) RecordFailure(ctx context.Context, entry audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return auditpg.Append(ctx, tx, entry)
	})
}

// EndSession implements account.Store.
func (s *Store) EndSession(ctx context.Context, session id.Session, entry audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		ended, err := s.q.EndSession(ctx, tx, session)
		if err != nil || ended == 0 {
			return err
		}
		return auditpg.Append(ctx, tx, entry)
	})
}

// PrincipalOf implements account.Store.
func (s *Store) PrincipalOf(ctx context.Context, session id.Session) (principal.Principal, bool, error) {
	row, err := s.q.GetSessionPrincipal(ctx, s.pool, session)
	if errors.Is(err, pgx.ErrNoRows) {
		return principal.Principal{}, false, nil
	}
	if err != nil {
		return principal.Principal{}, false, pg.Map(err)
	}
	p := principal.Principal{
		Kind: principal.KindUser, UserID: row.UserID, UserName: row.Name, Email: row.Email, IsAdmin: row.IsAdmin, SessionID: session,
	}
	// Without a living team there is none: the zero id would be the platform's.
	if row.HasTeam && row.TeamID != nil {
		p.HasTeam, p.TeamID, p.Role = true, *row.TeamID, principal.Role(row.Role)
	}
	return p, true, nil
}

// LivingSessions implements account.Store.
func (s *Store) LivingSessions(ctx context.Context, sessions []id.Session) (map[id.Session]principal.Standing, error) {
	ids := make([]uuid.UUID, len(sessions))
	for i, session := range sessions {
		ids[i] = session.UUID()
	}
	rows, err := s.q.LivingSessions(ctx, s.pool, ids)
	if err != nil {
		return nil, pg.Map(err)
	}
	living := make(map[id.Session]principal.Standing, len(rows))
	for _, row := range rows {
		standing := principal.Standing{IsAdmin: row.IsAdmin}
		if row.HasTeam && row.TeamID != nil {
			standing.HasTeam, standing.TeamID, standing.Role = true, *row.TeamID, principal.Role(row.Role)
		}
		living[row.ID] = standing
	}
	return living, nil
}

// MakeAdmin implements account.Store.
func (s *Store) MakeAdmin(ctx context.Context, user id.User, newHash string, granted, reset audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		changed, err := s.q.MakeAdmin(ctx, tx, user)
		if err != nil {
			return err
		}
		if changed > 0 {
			if err := auditpg.Append(ctx, tx, granted); err != nil {
				return err
			}
		}
		if newHash == "" {
			return nil
		}
		if err := s.q.ReplacePassword(ctx, tx, sqlcgen.ReplacePasswordParams{ID: user, NewHash: newHash}); err != nil {
			return err
		}
		if err := s.q.EndSessionsOf(ctx, tx, user); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, reset)
	})
}

// DeleteOldSessions implements account.Store.
func (s *Store) DeleteOldSessions(ctx context.Context, keep time.Duration) (int64, error) {
	n, err := s.q.DeleteOldSessions(ctx, s.pool, keep.Seconds())
	return n, pg.Map(err)
}
