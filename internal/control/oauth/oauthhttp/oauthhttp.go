// Package oauthhttp serves the way to a provider and back.
package oauthhttp

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/oauth"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/errs"
)

// cookiePath is where a browser sends the state's cookie.
const cookiePath = "/v1/auth/oauth/"

// Handlers is the room's slice of the REST handler.
type Handlers struct {
	service    *oauth.Service
	policy     account.SignupPolicy
	setRefresh func(ctx context.Context, token string)
	url        string
	secure     bool
}

// stateCookieName is the cookie that ties a login to the browser that began it.
const stateCookieName = "skerry_oauth"

// maxUserCode bounds what is kept of a device login to go on to.
const maxUserCode = 32

// New returns the slice. setRefresh gives a browser the refresh cookie of its new
// session; url is the platform's own.
func New(service *oauth.Service, policy account.SignupPolicy, setRefresh func(ctx context.Context, token string), url string) *Handlers {
	url = strings.TrimRight(url, "/")
	return &Handlers{service: service, policy: policy, setRefresh: setRefresh, url: url, secure: strings.HasPrefix(url, "https://")}
}

// ListAuthProviders implements restapi.Handler.
func (h *Handlers) ListAuthProviders(context.Context) (*restapi.AuthProviders, error) {
	kind, domains := h.policy.Describe()
	out := &restapi.AuthProviders{Password: true, Signup: restapi.AuthProvidersSignup(kind), Domains: append([]string{}, domains...), Providers: []restapi.AuthProvider{}}
	for _, p := range h.service.Providers() {
		out.Providers = append(out.Providers, restapi.AuthProvider{ID: p.ID(), Name: p.Name(), URL: h.url + cookiePath + p.ID()})
	}
	return out, nil
}

// Start serves GET /v1/auth/oauth/{provider}.
func (h *Handlers) Start(w http.ResponseWriter, r *http.Request) {
	device := r.URL.Query().Get("device")
	if len(device) > maxUserCode {
		device = "" // none of ours
	}
	target, state, err := h.service.Start(r.Context(), r.PathValue("provider"), nil, device)
	if err != nil {
		web.WriteError(w, r, err)
		return
	}
	web.SetCookie(r.Context(), h.stateCookie(state))
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, target, http.StatusFound)
}

// stateCookie must come along when the provider sends the browser back, which is
// a navigation from another site: Lax, not Strict.
func (h *Handlers) stateCookie(state string) *http.Cookie {
	c := &http.Cookie{
		Name: stateCookieName, Value: state, Path: cookiePath, MaxAge: int(oauth.AttemptLifetime / time.Second),
		HttpOnly: true, Secure: h.secure, SameSite: http.SameSiteLaxMode,
	}
	if state == "" {
		c.MaxAge = -1
	}
	return c
}

// Finish serves GET /v1/auth/oauth/{provider}/callback. It always sends the
// browser on to a page of ours, with the code of what went wrong.
func (h *Handlers) Finish(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	c := oauth.Callback{Provider: r.PathValue("provider"), State: q.Get("state"), Code: q.Get("code"), Error: q.Get("error")}
	if cookie, err := r.Cookie(stateCookieName); err == nil {
		c.Cookie = cookie.Value
	}
	out, err := h.service.Finish(r.Context(), principal.From(r.Context()), c)
	w.Header().Set("Cache-Control", "no-store")
	web.SetCookie(r.Context(), h.stateCookie(""))
	to := h.url + "/dashboard"
	switch {
	case err != nil:
		to = h.url + "/login?error=" + url.QueryEscape(errs.As(err).Reason)
	case out.Auth == nil:
		to = h.url + "/dashboard/settings?linked=" + url.QueryEscape(c.Provider)
	default:
		h.setRefresh(r.Context(), out.Auth.Refresh)
		if out.UserCode != "" {
			to = h.url + "/login/device?code=" + url.QueryEscape(out.UserCode)
		}
	}
	http.Redirect(w, r, to, http.StatusFound)
}

// LinkIdentity implements restapi.Handler. The state goes into a cookie as for a
// login.
func (h *Handlers) LinkIdentity(ctx context.Context, params restapi.LinkIdentityParams) (*restapi.RedirectTo, error) {
	by := principal.From(ctx)
	target, state, err := h.service.Start(ctx, params.Provider, &by, "")
	if err != nil {
		return nil, err
	}
	web.SetCookie(ctx, h.stateCookie(state))
	return &restapi.RedirectTo{URL: target}, nil
}

// ListIdentities implements restapi.Handler.
func (h *Handlers) ListIdentities(ctx context.Context) (*restapi.IdentityList, error) {
	linked, err := h.service.Identities(ctx, principal.From(ctx))
	if err != nil {
		return nil, err
	}
	out := &restapi.IdentityList{Items: make([]restapi.Identity, len(linked))}
	for i, l := range linked {
		out.Items[i] = restapi.Identity{Provider: l.Provider, Email: l.Email, CreatedAt: l.CreatedAt.UTC()}
	}
	return out, nil
}

// UnlinkIdentity implements restapi.Handler.
func (h *Handlers) UnlinkIdentity(ctx context.Context, params restapi.UnlinkIdentityParams) error {
	return h.service.Unlink(ctx, principal.From(ctx), params.Provider)
}
