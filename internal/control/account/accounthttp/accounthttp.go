// Package accounthttp serves the accounts' operations.
package accounthttp

import (
	"context"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
)

// Accounts is the accounts' slice of restapi.Handler.
type Accounts struct {
	service *account.Service
	replays *idempotency.Service
}

// New returns the slice.
func New(service *account.Service, replays *idempotency.Service) *Accounts {
	return &Accounts{service: service, replays: replays}
}

// Signup implements restapi.Handler.
func (a *Accounts) Signup(ctx context.Context, req *restapi.SignupRequest, _ restapi.SignupParams) (*restapi.AuthResponse, error) {
	made, err := idempotency.Do(ctx, a.replays, func(ctx context.Context) (account.Auth, error) {
		return a.service.Signup(ctx, principal.From(ctx), account.SignupRequest{Email: req.Email, Password: req.Password, Name: req.Name})
	})
	return answer(made, err)
}

// Login implements restapi.Handler.
func (a *Accounts) Login(ctx context.Context, req *restapi.LoginRequest) (*restapi.AuthResponse, error) {
	return answer(a.service.Login(ctx, principal.From(ctx), req.Email, req.Password))
}

// Logout implements restapi.Handler.
func (a *Accounts) Logout(ctx context.Context) error {
	return a.service.Logout(ctx, principal.From(ctx))
}

// GetMe implements restapi.Handler.
func (a *Accounts) GetMe(ctx context.Context) (*restapi.Me, error) {
	user, active, err := a.service.Me(ctx, principal.From(ctx))
	if err != nil {
		return nil, err
	}
	return &restapi.Me{User: userOf(user), Team: teamOf(active)}, nil
}

func answer(a account.Auth, err error) (*restapi.AuthResponse, error) {
	if err != nil {
		return nil, err
	}
	return &restapi.AuthResponse{Token: a.Token, ExpiresAt: a.ExpiresAt.UTC(), User: userOf(a.User), Team: teamOf(a.Team)}, nil
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
