package sdk

import (
	"context"
	"errors"
	"net/http"
	"time"

	"skerry.dev/skerry/gen/restapi"
)

// Login is a session that has begun, or gone on. Its Token lives for minutes;
// Refresh, which is as good as a password until the session ends, gets the next.
type Login struct {
	restapi.AuthResponse
	Refresh string
}

// DeviceLogin is a login that waits for somebody to approve it in a browser.
type DeviceLogin = restapi.DeviceLogin

// Login proves who you are with a password; the answer's Token goes into
// WithToken.
func (c *Client) Login(ctx context.Context, email, password string) (*Login, error) {
	return c.loggedIn(ctx, "", func(ctx context.Context) (*restapi.AuthResponse, error) {
		return c.api.Login(ctx, &restapi.LoginRequest{Email: email, Password: password})
	})
}

// StartDeviceLogin begins a login without a password: show the answer's UserCode
// and VerificationURL, and call AwaitDeviceLogin. The name tells whoever approves
// what asks.
func (c *Client) StartDeviceLogin(ctx context.Context, name string) (*DeviceLogin, error) {
	d, err := c.api.StartDeviceLogin(ctx, &restapi.DeviceLoginRequest{ClientName: optString(name)})
	return d, c.explain(err)
}

// AwaitDeviceLogin asks until somebody has decided, the code has expired or ctx
// ends. A server that is away for a moment is asked again.
func (c *Client) AwaitDeviceLogin(ctx context.Context, d *DeviceLogin) (*Login, error) {
	interval := max(time.Duration(d.IntervalSec)*time.Second, time.Second)
	for {
		timer := time.NewTimer(interval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
		login, err := c.loggedIn(ctx, "", func(ctx context.Context) (*restapi.AuthResponse, error) {
			return c.api.PollDeviceLogin(ctx, &restapi.DeviceTokenRequest{DeviceCode: d.DeviceCode})
		})
		var refused *Error
		var away *UnreachableError
		switch {
		case Is(err, "authorization_pending"), errors.As(err, &away) && time.Now().Before(d.ExpiresAt):
		case errors.As(err, &refused) && (refused.Status == http.StatusTooManyRequests || refused.Status == http.StatusServiceUnavailable):
			interval = max(interval, refused.RetryAfter)
		default:
			return login, err
		}
	}
}

// Refresh goes on with the session of a refresh token. The token that was given
// works until the answer's Refresh is used, so that an answer may be lost; one
// that is older ends the session. A session that has ended is the error
// "invalid_refresh_token".
func (c *Client) Refresh(ctx context.Context, refresh string) (*Login, error) {
	return c.loggedIn(ctx, refresh, func(ctx context.Context) (*restapi.AuthResponse, error) {
		return c.api.RefreshSession(ctx, restapi.RefreshSessionParams{XSkerryRefresh: restapi.RefreshSessionXSkerryRefresh1})
	})
}

// Logout ends the session of the client's token.
func (c *Client) Logout(ctx context.Context) error { return c.explain(c.api.Logout(ctx)) }

// SwitchTeam makes another team the session's active one. Its refresh token
// stays as it is and is not part of the answer.
func (c *Client) SwitchTeam(ctx context.Context, team string) (*Login, error) {
	return c.loggedIn(ctx, "", func(ctx context.Context) (*restapi.AuthResponse, error) {
		return c.api.SwitchTeam(ctx, &restapi.SwitchTeamRequest{TeamID: team})
	})
}

// refreshCookie is where the server puts and looks for a refresh token.
const refreshCookie = "skerry_refresh"

// visit is what one call carries of the cookie, and what its answer set.
type visit struct{ sends, got string }

type visitKey struct{}

// loggedIn makes a call whose answer carries a session.
func (c *Client) loggedIn(ctx context.Context, refresh string, call func(context.Context) (*restapi.AuthResponse, error)) (*Login, error) {
	v := &visit{sends: refresh}
	a, err := call(context.WithValue(ctx, visitKey{}, v))
	if err != nil {
		return nil, c.explain(err)
	}
	return &Login{AuthResponse: *a, Refresh: v.got}, nil
}

// leave puts the cookie on a request as a page of the server's own would.
func (v *visit) leave(r *http.Request) {
	if v.sends != "" {
		r.AddCookie(&http.Cookie{Name: refreshCookie, Value: v.sends}) //nolint:gosec // a request's cookie has no attributes
		r.Header.Set("Origin", r.URL.Scheme+"://"+r.URL.Host)
	}
}

func (v *visit) take(answer *http.Response) {
	for _, cookie := range answer.Cookies() {
		if cookie.Name == refreshCookie {
			v.got = cookie.Value
		}
	}
}
