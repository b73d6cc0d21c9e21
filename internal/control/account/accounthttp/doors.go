package accounthttp

import (
	"context"
	"net/netip"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
)

// RequestPasswordReset implements restapi.Handler.
func (a *Accounts) RequestPasswordReset(ctx context.Context, req *restapi.EmailRequest) error {
	return a.service.RequestPasswordReset(ctx, principal.From(ctx), req.Email)
}

// ConfirmPasswordReset implements restapi.Handler.
func (a *Accounts) ConfirmPasswordReset(ctx context.Context, req *restapi.PasswordResetRequest) error {
	return a.service.ConfirmPasswordReset(ctx, principal.From(ctx), req.Token, req.Password)
}

// RequestEmailProof implements restapi.Handler.
func (a *Accounts) RequestEmailProof(ctx context.Context) error {
	return a.service.RequestEmailProof(ctx, principal.From(ctx))
}

// ConfirmEmail implements restapi.Handler.
func (a *Accounts) ConfirmEmail(ctx context.Context, req *restapi.TokenRequest) error {
	return a.service.ConfirmEmail(ctx, principal.From(ctx), req.Token)
}

// StartDeviceLogin implements restapi.Handler.
func (a *Accounts) StartDeviceLogin(ctx context.Context, req *restapi.DeviceLoginRequest) (*restapi.DeviceLogin, error) {
	d, err := idempotency.Do(ctx, a.replays, func(ctx context.Context) (account.StartedDeviceLogin, error) {
		return a.service.StartDeviceLogin(ctx, principal.From(ctx), req.ClientName.Or(""))
	})
	if err != nil {
		return nil, err
	}
	return &restapi.DeviceLogin{
		DeviceCode: d.DeviceCode, UserCode: d.UserCode, VerificationURL: d.VerificationURL, ExpiresAt: d.ExpiresAt.UTC(),
		IntervalSec: int(account.DevicePollInterval.Seconds()),
	}, nil
}

// PollDeviceLogin implements restapi.Handler.
func (a *Accounts) PollDeviceLogin(ctx context.Context, req *restapi.DeviceTokenRequest) (*restapi.AuthResponse, error) {
	made, err := a.service.PollDeviceLogin(ctx, principal.From(ctx), req.DeviceCode)
	return a.loggedIn(ctx, made, err)
}

// GetDeviceLogin implements restapi.Handler.
func (a *Accounts) GetDeviceLogin(ctx context.Context, params restapi.GetDeviceLoginParams) (*restapi.DeviceLoginInfo, error) {
	d, err := a.service.DeviceLogin(ctx, principal.From(ctx), params.UserCode)
	if err != nil {
		return nil, err
	}
	return &restapi.DeviceLoginInfo{
		UserCode: d.UserCode, ClientName: d.ClientName, IP: addressText(d.IP), CreatedAt: d.CreatedAt.UTC(), ExpiresAt: d.ExpiresAt.UTC(),
	}, nil
}

// DecideDeviceLogin implements restapi.Handler.
func (a *Accounts) DecideDeviceLogin(ctx context.Context, req *restapi.DecideDeviceLoginRequest, params restapi.DecideDeviceLoginParams) error {
	return a.service.DecideDeviceLogin(ctx, principal.From(ctx), params.UserCode, req.Approve)
}

// AdminListUsers implements restapi.Handler.
func (a *Accounts) AdminListUsers(ctx context.Context, params restapi.AdminListUsersParams) (*restapi.AdminUserList, error) {
	request, err := paging(params.Limit, params.Cursor)
	if err != nil {
		return nil, err
	}
	found, err := a.service.Users(ctx, params.Search.Or(""), request)
	if err != nil {
		return nil, err
	}
	list := &restapi.AdminUserList{Items: make([]restapi.AdminUser, len(found.Items))}
	for i, u := range found.Items {
		list.Items[i] = adminUserOf(u)
	}
	if found.NextCursor != "" {
		list.NextCursor.SetTo(found.NextCursor)
	}
	return list, nil
}

// AdminSetUserAdmin implements restapi.Handler.
func (a *Accounts) AdminSetUserAdmin(ctx context.Context, req *restapi.EnabledRequest, params restapi.AdminSetUserAdminParams) (*restapi.AdminUser, error) {
	user, err := id.ParseUser(params.ID)
	if err != nil {
		return nil, err
	}
	return adminAnswer(a.service.SetAdmin(ctx, principal.From(ctx), user, req.Enabled))
}

// AdminSetUserActive implements restapi.Handler.
func (a *Accounts) AdminSetUserActive(ctx context.Context, req *restapi.EnabledRequest, params restapi.AdminSetUserActiveParams) (*restapi.AdminUser, error) {
	user, err := id.ParseUser(params.ID)
	if err != nil {
		return nil, err
	}
	return adminAnswer(a.service.SetActive(ctx, principal.From(ctx), user, req.Enabled))
}

// AdminCreateResetLink implements restapi.Handler.
func (a *Accounts) AdminCreateResetLink(ctx context.Context, params restapi.AdminCreateResetLinkParams) (*restapi.OneTimeLink, error) {
	user, err := id.ParseUser(params.ID)
	if err != nil {
		return nil, err
	}
	link, err := idempotency.Do(ctx, a.replays, func(ctx context.Context) (account.OneTimeLink, error) {
		return a.service.CreateResetLink(ctx, principal.From(ctx), user)
	})
	if err != nil {
		return nil, err
	}
	return &restapi.OneTimeLink{URL: link.URL, ExpiresAt: link.ExpiresAt.UTC()}, nil
}

func adminAnswer(u account.AdminUser, err error) (*restapi.AdminUser, error) {
	if err != nil {
		return nil, err
	}
	out := adminUserOf(u)
	return &out, nil
}

func adminUserOf(u account.AdminUser) restapi.AdminUser {
	out := restapi.AdminUser{
		ID: u.ID.String(), Email: u.Email, Name: u.Name, IsAdmin: u.IsAdmin, IsActive: u.IsActive, EmailProven: u.EmailProven, CreatedAt: u.CreatedAt.UTC(),
	}
	if !u.LastLoginAt.IsZero() {
		out.LastLoginAt.SetTo(u.LastLoginAt.UTC())
	}
	return out
}

func addressText(ip netip.Addr) string {
	if !ip.IsValid() {
		return ""
	}
	return ip.String()
}
