// Package accounthttp serves the accounts' operations.
package accounthttp

import (
	"context"
	"net/http"
	"net/url"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Accounts is the accounts' slice of restapi.Handler.
type Accounts struct {
	service *account.Service
	replays *idempotency.Service
	origin  string // of Skerry's own pages
	secure  bool
}

// New returns the slice.
func New(service *account.Service, replays *idempotency.Service) *Accounts {
	a := &Accounts{service: service, replays: replays}
	if u, err := url.Parse(service.URL()); err == nil {
		a.origin, a.secure = u.Scheme+"://"+u.Host, u.Scheme == "https"
	}
	return a
}

// RefreshCookie is the cookie that holds a browser's refresh token.
const RefreshCookie = "skerry_refresh"

// SessionCookie tells the dashboard that there is a refresh cookie, which it
// cannot see: without one it need not ask who is there. It holds nothing else.
const SessionCookie = "skerry_session"

// SetRefresh hands a session's refresh token to the browser; an empty one takes
// it away.
func (a *Accounts) SetRefresh(ctx context.Context, token string) {
	refresh := &http.Cookie{
		Name: RefreshCookie, Value: token, Path: "/v1/auth", HttpOnly: true, Secure: a.secure, SameSite: http.SameSiteStrictMode,
		MaxAge: int(account.SessionLifetime.Seconds()),
	}
	there := &http.Cookie{Name: SessionCookie, Value: "1", Path: "/", Secure: a.secure, SameSite: http.SameSiteStrictMode, MaxAge: refresh.MaxAge}
	if token == "" {
		refresh.MaxAge, there.MaxAge, there.Value = -1, -1, ""
	}
	web.SetCookie(ctx, refresh)
	web.SetCookie(ctx, there)
}

// Signup implements restapi.Handler.
func (a *Accounts) Signup(ctx context.Context, req *restapi.SignupRequest, _ restapi.SignupParams) (*restapi.AuthResponse, error) {
	made, err := idempotency.Do(ctx, a.replays, func(ctx context.Context) (account.Auth, error) {
		return a.service.Signup(ctx, principal.From(ctx), account.SignupRequest{Email: req.Email, Password: req.Password, Name: req.Name, Invitation: req.Invitation.Or("")})
	})
	return a.loggedIn(ctx, made, err)
}

// Login implements restapi.Handler.
func (a *Accounts) Login(ctx context.Context, req *restapi.LoginRequest) (*restapi.AuthResponse, error) {
	made, err := a.service.Login(ctx, principal.From(ctx), req.Email, req.Password)
	return a.loggedIn(ctx, made, err)
}

// RefreshSession implements restapi.Handler.
func (a *Accounts) RefreshSession(ctx context.Context, _ restapi.RefreshSessionParams) (*restapi.AuthResponse, error) {
	if a.origin == "" || web.Origin(ctx) != a.origin {
		return nil, account.ErrInvalidRefreshToken
	}
	made, err := a.service.Refresh(ctx, principal.From(ctx), web.Cookie(ctx, RefreshCookie))
	if errs.Is(err, account.ErrInvalidRefreshToken.Reason) {
		a.SetRefresh(ctx, "") // it will never work again
	}
	return a.loggedIn(ctx, made, err)
}

// Logout implements restapi.Handler.
func (a *Accounts) Logout(ctx context.Context) error {
	err := a.service.Logout(ctx, principal.From(ctx))
	if err == nil {
		a.SetRefresh(ctx, "")
	}
	return err
}

// SwitchTeam implements restapi.Handler.
func (a *Accounts) SwitchTeam(ctx context.Context, req *restapi.SwitchTeamRequest) (*restapi.AuthResponse, error) {
	to, err := id.ParseTeam(req.TeamID)
	if err != nil {
		return nil, err
	}
	return answer(a.service.SwitchTeam(ctx, principal.From(ctx), to))
}

// GetMe implements restapi.Handler.
func (a *Accounts) GetMe(ctx context.Context) (*restapi.Me, error) {
	return me(a.service.Me(ctx, principal.From(ctx)))
}

// UpdateMe implements restapi.Handler.
func (a *Accounts) UpdateMe(ctx context.Context, req *restapi.UpdateMeRequest) (*restapi.Me, error) {
	return me(a.service.Rename(ctx, principal.From(ctx), req.Name))
}

// DeleteMe implements restapi.Handler.
func (a *Accounts) DeleteMe(ctx context.Context, req *restapi.DeleteMeRequest) error {
	return a.service.Delete(ctx, principal.From(ctx), req.Password.Or(""))
}

// ChangePassword implements restapi.Handler.
func (a *Accounts) ChangePassword(ctx context.Context, req *restapi.ChangePasswordRequest) error {
	return a.service.ChangePassword(ctx, principal.From(ctx), req.CurrentPassword.Or(""), req.NewPassword)
}

// ListSessions implements restapi.Handler.
func (a *Accounts) ListSessions(ctx context.Context, params restapi.ListSessionsParams) (*restapi.SessionList, error) {
	request, err := paging(params.Limit, params.Cursor)
	if err != nil {
		return nil, err
	}
	by := principal.From(ctx)
	found, err := a.service.Sessions(ctx, by, request)
	if err != nil {
		return nil, err
	}
	list := &restapi.SessionList{Items: make([]restapi.Session, len(found.Items))}
	for i, s := range found.Items {
		list.Items[i] = restapi.Session{
			ID: s.ID.String(), Current: s.ID == by.SessionID, UserAgent: s.UserAgent, IP: addressText(s.IP),
			CreatedAt: s.CreatedAt.UTC(), LastUsedAt: s.LastUsedAt.UTC(), ExpiresAt: s.ExpiresAt.UTC(),
		}
	}
	if found.NextCursor != "" {
		list.NextCursor.SetTo(found.NextCursor)
	}
	return list, nil
}

// EndSession implements restapi.Handler.
func (a *Accounts) EndSession(ctx context.Context, params restapi.EndSessionParams) error {
	session, err := id.ParseSession(params.ID)
	if err != nil {
		return err
	}
	return a.service.EndSession(ctx, principal.From(ctx), session)
}

func paging(limit restapi.OptInt, cursor restapi.OptString) (page.Request, error) {
	var n *int
	if v, ok := limit.Get(); ok {
		n = &v
	}
	return page.NewRequest(n, cursor.Or(""))
}

// loggedIn answers a login and leaves the refresh token with the browser.
func (a *Accounts) loggedIn(ctx context.Context, made account.Auth, err error) (*restapi.AuthResponse, error) {
	if err == nil {
		a.SetRefresh(ctx, made.Refresh)
	}
	return answer(made, err)
}

func answer(a account.Auth, err error) (*restapi.AuthResponse, error) {
	if err != nil {
		return nil, err
	}
	return &restapi.AuthResponse{Token: a.Token, ExpiresAt: a.ExpiresAt.UTC(), User: userOf(a.User), Team: teamOf(a.Team)}, nil
}

func me(user account.User, active *team.Team, err error) (*restapi.Me, error) {
	if err != nil {
		return nil, err
	}
	return &restapi.Me{User: userOf(user), Team: teamOf(active)}, nil
}

func userOf(u account.User) restapi.User {
	return restapi.User{ID: u.ID.String(), Email: u.Email, Name: u.Name, IsAdmin: u.IsAdmin}
}

func teamOf(t *team.Team) restapi.NilTeam {
	if t == nil {
		return restapi.NilTeam{Null: true}
	}
	return restapi.NilTeam{Value: restapi.Team{
		ID: t.ID.String(), Name: t.Name, Slug: t.Slug, Role: restapi.TeamRole(t.Role), IsByoc: t.IsBYOC,
	}}
}
