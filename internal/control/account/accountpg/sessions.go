package accountpg

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/account/accountpg/sqlcgen"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

func (s *Store) insertSession(ctx context.Context, tx pgx.Tx, session account.Session, by principal.Principal) error {
	return s.q.InsertSession(ctx, tx, sqlcgen.InsertSessionParams{
		ID: session.ID, UserID: session.User, TeamID: session.Team, UserAgent: by.UserAgent, Ip: address(by.IP),
		RefreshHash: session.RefreshHash, LifetimeSeconds: account.SessionLifetime.Seconds(),
	})
}

// CreateSession implements account.Store.
func (s *Store) CreateSession(ctx context.Context, login account.Login, oldHash, newHash string) error {
	return s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.openSession(ctx, tx, login, oldHash, newHash); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, login.Entry)
	})
}

// openSession writes a session under a lock of its user, so that whoever ends
// all of the user's sessions either sees this one or keeps it from being.
func (s *Store) openSession(ctx context.Context, tx pgx.Tx, login account.Login, oldHash, newHash string) error {
	user := login.Session.User
	var held int64
	var err error
	switch {
	case newHash != "":
		held, err = s.q.RenewPasswordHash(ctx, tx, sqlcgen.RenewPasswordHashParams{ID: user, OldHash: oldHash, NewHash: newHash})
	case oldHash != "":
		held, err = s.q.HoldCredentials(ctx, tx, sqlcgen.HoldCredentialsParams{ID: user, OldHash: oldHash})
	default:
		held, err = s.q.HoldUser(ctx, tx, user)
	}
	if err != nil {
		return err
	}
	if held == 0 {
		return account.ErrCredentialsMoved
	}
	return s.insertSession(ctx, tx, login.Session, login.By)
}

// RecordFailure implements account.Store.
func (s *Store) RecordFailure(ctx context.Context, entry audit.Entry) error {
	return s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return auditpg.Append(ctx, tx, entry)
	})
}

// EndSession implements account.Store.
func (s *Store) EndSession(ctx context.Context, user id.User, session id.Session, reason string, entry audit.Entry) (bool, error) {
	var ended int64
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		ended, err = s.q.EndSession(ctx, tx, sqlcgen.EndSessionParams{ID: session, UserID: user, EndReason: reason})
		if err != nil || ended == 0 {
			return err
		}
		return auditpg.Append(ctx, tx, entry)
	})
	return ended > 0, err
}

// errJunkCursor is a cursor that decodes and names no position.
var errJunkCursor = errs.Invalid("invalid_cursor", "Use the next_cursor of the previous page as it was given, or leave cursor out.")

// position is where a page ends, in a list with the newest first.
type position struct {
	At time.Time `json:"at"`
	ID uuid.UUID `json:"id"`
}

// after reads a cursor; the first page begins before everything.
func after(p page.Request) (position, error) {
	from := position{At: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), ID: uuid.Max}
	if p.Cursor == "" {
		return from, nil
	}
	var read position
	if err := page.Decode(p.Cursor, &read); err != nil {
		return from, err
	}
	if read.At.IsZero() || read.At.Year() > from.At.Year() {
		return from, errJunkCursor
	}
	return read, nil
}

// ListSessions implements account.Store.
func (s *Store) ListSessions(ctx context.Context, user id.User, p page.Request) (page.Page[account.SessionInfo], error) {
	from, err := after(p)
	if err != nil {
		return page.Page[account.SessionInfo]{}, err
	}
	rows, err := s.q.ListSessions(ctx, s.pool, sqlcgen.ListSessionsParams{UserID: user, BeforeAt: from.At, BeforeID: from.ID, MaxRows: int32(p.Limit + 1)})
	if err != nil {
		return page.Page[account.SessionInfo]{}, pg.Map(err)
	}
	sessions := make([]account.SessionInfo, len(rows))
	for i, row := range rows {
		sessions[i] = account.SessionInfo{
			ID: row.ID, UserAgent: row.UserAgent, CreatedAt: row.CreatedAt, LastUsedAt: row.RefreshedAt, ExpiresAt: row.ExpiresAt,
		}
		if row.Ip != nil {
			sessions[i].IP = *row.Ip
		}
	}
	return page.Of(sessions, p.Limit, func(s account.SessionInfo) any { return position{At: s.CreatedAt, ID: s.ID.UUID()} })
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

// AdvanceRefresh implements account.Store.
func (s *Store) AdvanceRefresh(ctx context.Context, session id.Session, presented int64, presentedHash, nextHash []byte) (account.Refreshing, bool, error) {
	var r account.Refreshing
	found := false
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		found = false
		if _, err := s.q.AdvanceRefresh(ctx, tx, sqlcgen.AdvanceRefreshParams{
			ID: session, Presented: presented, PresentedHash: presentedHash, NextHash: nextHash, LifetimeSeconds: account.SessionLifetime.Seconds(),
		}); err != nil {
			return err
		}
		row, err := s.q.GetRefreshing(ctx, tx, session)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		r = account.Refreshing{User: account.User{ID: row.UserID, Email: row.Email, Name: row.Name, IsAdmin: row.IsAdmin}, Counter: row.RefreshCounter}
		found = true
		if row.TeamID != nil {
			r.Team, err = s.teamOf(ctx, tx, row.UserID, *row.TeamID)
		}
		return err
	})
	return r, found, err
}

// SwitchTeam implements account.Store.
func (s *Store) SwitchTeam(ctx context.Context, user id.User, session id.Session, to id.Team, entry audit.Entry) (team.Team, error) {
	var active *team.Team
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		row, err := s.q.HoldMembership(ctx, tx, sqlcgen.HoldMembershipParams{UserID: user, TeamID: to})
		if active, err = teamFrom(sqlcgen.GetMembershipRow(row), err); err != nil {
			return err
		}
		if active == nil {
			lives, err := s.q.TeamLives(ctx, tx, to)
			if err == nil && lives && to != id.PlatformTeamID {
				return account.ErrNotMember
			}
			return errors.Join(err, account.ErrTeamNotFound)
		}
		switched, err := s.q.SwitchTeam(ctx, tx, sqlcgen.SwitchTeamParams{ID: session, UserID: user, TeamID: to.UUID()})
		if err != nil {
			return err
		}
		if switched == 0 {
			return account.ErrSessionEnded
		}
		return auditpg.Append(ctx, tx, entry)
	})
	if err != nil {
		return team.Team{}, err
	}
	return *active, nil
}
