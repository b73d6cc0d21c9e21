// Package accountpg keeps users, their sessions, and the links and codes that
// lead to a session.
package accountpg

import (
	"context"
	"errors"
	"net/netip"
	"time"

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

func (s *Store) inTx(ctx context.Context, fn func(ctx context.Context, tx pgx.Tx) error) error {
	return pg.InTx(ctx, s.pool, fn)
}

// CreateAccount implements account.Store.
func (s *Store) CreateAccount(ctx context.Context, a account.Signup) error {
	return s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return idempotencypg.Once(ctx, tx, func() (any, error) {
			return a.Receipt, s.insertAccount(ctx, tx, a)
		})
	})
}

func (s *Store) insertAccount(ctx context.Context, tx pgx.Tx, a account.Signup) error {
	user := sqlcgen.InsertUserParams{ID: a.User.ID, Email: a.User.Email, Name: a.User.Name, IsAdmin: a.User.IsAdmin, Proven: a.Proven}
	if a.PasswordHash != "" {
		user.PasswordHash = &a.PasswordHash
	}
	_, err := s.q.InsertUser(ctx, tx, user)
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

// UserByEmail implements account.Store.
func (s *Store) UserByEmail(ctx context.Context, email string) (account.Stored, bool, error) {
	return stored(s.q.GetUserByEmail(ctx, s.pool, email))
}

// ProvenByEmail implements account.Store.
func (s *Store) ProvenByEmail(ctx context.Context, email string) (user id.User, proven, found bool, err error) {
	row, err := s.q.IsProven(ctx, s.pool, email)
	if errors.Is(err, pgx.ErrNoRows) {
		return id.User{}, false, false, nil
	}
	return row.ID, row.Proven, err == nil, pg.Map(err)
}

// UserByID implements account.Store.
func (s *Store) UserByID(ctx context.Context, user id.User) (account.Stored, bool, error) {
	row, err := s.q.GetUserByID(ctx, s.pool, user)
	return stored(sqlcgen.GetUserByEmailRow(row), err)
}

func stored(row sqlcgen.GetUserByEmailRow, err error) (account.Stored, bool, error) {
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
	return s.teamOf(ctx, s.pool, user, of)
}

func (s *Store) teamOf(ctx context.Context, db sqlcgen.DBTX, user id.User, of id.Team) (*team.Team, error) {
	return teamFrom(s.q.GetMembership(ctx, db, sqlcgen.GetMembershipParams{UserID: user, TeamID: of}))
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

// Rename implements account.Store.
func (s *Store) Rename(ctx context.Context, user id.User, name string, entry audit.Entry) error {
	return s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		changed, err := s.q.Rename(ctx, tx, sqlcgen.RenameParams{ID: user, Name: name})
		if err != nil || changed == 0 {
			return err
		}
		return auditpg.Append(ctx, tx, entry)
	})
}

// DeleteUser implements account.Store.
func (s *Store) DeleteUser(ctx context.Context, user id.User, log audit.AuditLogger) error {
	return s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.mayLeaveAdmins(ctx, tx, user); err != nil {
			return err
		}
		// Teams before people, as whoever changes a team locks them.
		owned, err := s.lonelyTeams(ctx, tx, user)
		if err != nil {
			return err
		}
		if _, err := s.q.LockUser(ctx, tx, user); errors.Is(err, pgx.ErrNoRows) {
			return account.ErrUserNotFound
		} else if err != nil {
			return err
		}
		memberships, err := s.q.LockMemberships(ctx, tx, user)
		if err != nil {
			return err
		}
		platform := log.UserDeleted(id.PlatformTeamID, user)
		platform.Scope = audit.ScopeAdmin
		entries := []audit.Entry{platform}
		for _, m := range memberships {
			name, lonely := owned[m.TeamID]
			switch {
			case lonely:
				entry, err := s.endTeam(ctx, tx, m.TeamID, name, log)
				if err != nil {
					return err
				}
				entries = append(entries, entry)
			case principal.Role(m.Role) == principal.RoleOwner:
				return account.ErrOwnsTeams // made or handed over this very moment
			}
			entries = append(entries, log.UserDeleted(m.TeamID, user))
		}
		if _, err := s.q.DeleteUser(ctx, tx, user); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entries...)
	})
}

// lonelyTeams locks the living teams that a user owns, and refuses if somebody
// else is in one. It returns their names.
func (s *Store) lonelyTeams(ctx context.Context, tx pgx.Tx, user id.User) (map[id.Team]string, error) {
	rows, err := s.q.LockOwnedTeams(ctx, tx, user)
	if err != nil {
		return nil, err
	}
	lonely := make(map[id.Team]string, len(rows))
	var shared []string
	for _, row := range rows {
		others, err := s.q.CountOthers(ctx, tx, sqlcgen.CountOthersParams{TeamID: row.ID, UserID: user})
		if err != nil {
			return nil, err
		}
		if others > 0 {
			shared = append(shared, row.Name)
		}
		lonely[row.ID] = row.Name
	}
	if len(shared) > 0 {
		return nil, account.ErrOwnsTeams.With("teams", shared)
	}
	return lonely, nil
}

func (s *Store) endTeam(ctx context.Context, tx pgx.Tx, of id.Team, name string, log audit.AuditLogger) (audit.Entry, error) {
	if err := s.q.EndTeam(ctx, tx, of); err != nil {
		return audit.Entry{}, err
	}
	keys, err := s.q.RevokeKeysOfTeam(ctx, tx, of)
	if err != nil {
		return audit.Entry{}, err
	}
	invitations, err := s.q.RevokeInvitationsOfTeam(ctx, tx, of)
	return log.TeamDeleted(of, name, keys, invitations), err
}

// DeleteOld implements account.Store.
func (s *Store) DeleteOld(ctx context.Context, keep time.Duration) (int64, error) {
	sessions, err := s.q.DeleteOldSessions(ctx, s.pool, keep.Seconds())
	if err != nil {
		return 0, pg.Map(err)
	}
	links, err := s.q.DeleteOldTokens(ctx, s.pool)
	if err != nil {
		return 0, pg.Map(err)
	}
	devices, err := s.q.DeleteOldDeviceLogins(ctx, s.pool)
	return sessions + links + devices, pg.Map(err)
}

// address is an IP as a nullable column has it.
func address(ip netip.Addr) *netip.Addr {
	if !ip.IsValid() {
		return nil
	}
	return &ip
}
