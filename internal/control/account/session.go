package account

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"strings"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Why sessions ended.
const (
	reasonLogout          = "logout"
	reasonEnded           = "ended"
	reasonTokenReused     = "token_reused"
	ReasonPasswordChanged = "password_changed"
	ReasonPasswordReset   = "password_reset"
	ReasonDisabled        = "disabled"
)

var (
	// ErrInvalidRefreshToken is the one answer to all that is wrong with a
	// refresh.
	ErrInvalidRefreshToken = errs.Unauthenticated("invalid_refresh_token", "This session cannot be refreshed. Log in again.")
	// ErrTeamNotFound and ErrNotMember are why a session stays in its team.
	ErrTeamNotFound = errs.NotFound("team_not_found", "There is no such team.")
	ErrNotMember    = errs.Forbidden("not_a_member", "You are no member of this team. Ask its owner or an admin to add you.")

	errSessionNotFound = errs.NotFound("session_not_found", "There is no such session of yours.")
)

const (
	refreshPrefix  = "srt_"
	refreshPurpose = "session-refresh"
)

// refreshToken derives a session's n-th refresh token: srt_<session>.<n>.<mac>.
func (s *Service) refreshToken(session id.Session, n int64) string {
	return refreshPrefix + session.UUID().String() + "." + strconv.FormatInt(n, 10) + "." +
		base64.RawURLEncoding.EncodeToString(s.refreshMAC(session, n))
}

func (s *Service) refreshMAC(session id.Session, n int64) []byte {
	u := session.UUID()
	var counter [8]byte
	binary.BigEndian.PutUint64(counter[:], uint64(n))
	return s.signer.Derive(refreshPurpose, u[:], counter[:])
}

// parseRefresh reads a refresh token that was derived here; ok is false for any
// other text.
func (s *Service) parseRefresh(token string) (session id.Session, n int64, ok bool) {
	rest, ok := strings.CutPrefix(token, refreshPrefix)
	if !ok {
		return session, 0, false
	}
	parts := strings.Split(rest, ".")
	if len(parts) != 3 {
		return session, 0, false
	}
	session, err := id.Session{}.ParseBare(parts[0])
	if err != nil {
		return session, 0, false
	}
	if n, err = strconv.ParseInt(parts[1], 10, 64); err != nil || n < 1 {
		return session, 0, false
	}
	// The whole text is compared, so that each token has one spelling.
	return session, n, hmac.Equal([]byte(token), []byte(s.refreshToken(session, n)))
}

// hashOf is what is kept of a secret text.
func hashOf(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}

// Refresh answers a refresh token with a fresh token and the next refresh
// token. The token before the current one gets the current one again, as often
// as it comes: an answer may have been lost, or a second tab was faster. One
// that is older has a successor that was used, so somebody else has a copy: the
// session ends.
func (s *Service) Refresh(ctx context.Context, by principal.Principal, token string) (Auth, error) {
	session, presented, ok := s.parseRefresh(token)
	if !ok {
		return Auth{}, ErrInvalidRefreshToken
	}
	r, found, err := s.store.AdvanceRefresh(ctx, session, presented, hashOf(token), hashOf(s.refreshToken(session, presented+1)))
	if err != nil {
		return Auth{}, err
	}
	switch {
	case !found:
		return Auth{}, ErrInvalidRefreshToken
	case r.Counter <= presented:
		// From the future, or not the one that is kept: the database was restored,
		// or the server's secret is another.
		return Auth{}, ErrInvalidRefreshToken
	case r.Counter > presented+1:
		entry := audit.By(by).SessionTokenReused(auditTeam(r.Team), session, r.User.ID)
		if _, err := s.store.EndSession(ctx, r.User.ID, session, reasonTokenReused, entry); err != nil {
			return Auth{}, err
		}
		return Auth{}, ErrInvalidRefreshToken
	}
	answer, err := s.auth(r.User, r.Team, session)
	if err != nil {
		return Auth{}, err
	}
	answer.Refresh = s.refreshToken(session, r.Counter)
	return answer, nil
}

// Logout ends the caller's session; the next request with its token is refused.
func (s *Service) Logout(ctx context.Context, by principal.Principal) error {
	_, err := s.store.EndSession(ctx, by.UserID, by.SessionID, reasonLogout, audit.By(by).LoggedOut(trailOf(by), by.SessionID))
	return err
}

// trailOf is the team in whose trail a user's doings belong.
func trailOf(by principal.Principal) id.Team {
	if !by.HasTeam {
		return id.PlatformTeamID
	}
	return by.TeamID
}

// Sessions lists where the caller is logged in.
func (s *Service) Sessions(ctx context.Context, by principal.Principal, p page.Request) (page.Page[SessionInfo], error) {
	return s.store.ListSessions(ctx, by.UserID, p)
}

// EndSession ends one of the caller's sessions.
func (s *Service) EndSession(ctx context.Context, by principal.Principal, session id.Session) error {
	ended, err := s.store.EndSession(ctx, by.UserID, session, reasonEnded, audit.By(by).SessionEnded(trailOf(by), session))
	if err == nil && !ended {
		err = errSessionNotFound
	}
	return err
}

// SwitchTeam makes another team the session's active one. The default team, in
// which logins begin, stays what it is.
func (s *Service) SwitchTeam(ctx context.Context, by principal.Principal, to id.Team) (Auth, error) {
	active, err := s.store.SwitchTeam(ctx, by.UserID, by.SessionID, to, audit.By(by).TeamSwitched(to, by.SessionID))
	if err != nil {
		return Auth{}, err
	}
	return s.auth(userOf(by), &active, by.SessionID)
}

// userOf is the user behind a principal that was read for this request.
func userOf(by principal.Principal) User {
	return User{ID: by.UserID, Email: by.Email, Name: by.UserName, IsAdmin: by.IsAdmin}
}

// Me returns the caller and the active team, nil without one.
func (s *Service) Me(ctx context.Context, by principal.Principal) (User, *team.Team, error) {
	if !by.HasTeam {
		return userOf(by), nil, nil
	}
	active, err := s.store.TeamOf(ctx, by.UserID, by.TeamID)
	return userOf(by), active, err
}
