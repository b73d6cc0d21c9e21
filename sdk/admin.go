package sdk

import (
	"context"
	"iter"

	"skerry.dev/skerry/gen/restapi"
)

// What the API shows platform admins of users.
type (
	AdminUser   = restapi.AdminUser
	OneTimeLink = restapi.OneTimeLink
)

// Users walks all users, newest first, for platform admins. A search is part of
// an email or a name.
func (c *Client) Users(ctx context.Context, search string) iter.Seq2[AdminUser, error] {
	return walk(c, func(cursor restapi.OptString) ([]AdminUser, restapi.OptString, error) {
		l, err := c.api.AdminListUsers(ctx, restapi.AdminListUsersParams{Cursor: cursor, Search: optString(search)})
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// SetUserAdmin makes a user a platform admin, or no longer; for platform admins.
func (c *Client) SetUserAdmin(ctx context.Context, user string, enabled bool) (*AdminUser, error) {
	u, err := c.api.AdminSetUserAdmin(ctx, &restapi.EnabledRequest{Enabled: enabled}, restapi.AdminSetUserAdminParams{ID: user})
	return u, c.explain(err)
}

// SetUserActive disables a user from the next request on, or enables one again;
// for platform admins.
func (c *Client) SetUserActive(ctx context.Context, user string, enabled bool) (*AdminUser, error) {
	u, err := c.api.AdminSetUserActive(ctx, &restapi.EnabledRequest{Enabled: enabled}, restapi.AdminSetUserActiveParams{ID: user})
	return u, c.explain(err)
}

// CreateResetLink makes a link with which a user sets a new password; for
// platform admins. It is in this answer alone.
func (c *Client) CreateResetLink(ctx context.Context, user string) (*OneTimeLink, error) {
	l, err := c.api.AdminCreateResetLink(ctx, restapi.AdminCreateResetLinkParams{ID: user})
	return l, c.explain(err)
}
