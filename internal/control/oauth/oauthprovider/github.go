package oauthprovider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/oauth2"

	"skerry.dev/skerry/internal/control/oauth"
)

// GitHub speaks OAuth 2 without OpenID: who somebody is, is asked of its API.
type GitHub struct {
	client, secret, site, api string
}

// Where GitHub is. An enterprise server has its own.
const (
	GitHubSite = "https://github.com"
	GitHubAPI  = "https://api.github.com"
)

// NewGitHub returns the provider; site and api are GitHubSite and GitHubAPI, or
// an enterprise server's.
func NewGitHub(client, secret, site, api string) *GitHub {
	return &GitHub{client: client, secret: secret, site: strings.TrimRight(site, "/"), api: strings.TrimRight(api, "/")}
}

// ID implements oauth.Provider.
func (*GitHub) ID() string { return "github" }

// Name implements oauth.Provider.
func (*GitHub) Name() string { return "GitHub" }

func (g *GitHub) config(redirect string) oauth2.Config {
	return oauth2.Config{
		ClientID: g.client, ClientSecret: g.secret, RedirectURL: redirect, Scopes: []string{"read:user", "user:email"},
		Endpoint: oauth2.Endpoint{AuthURL: g.site + "/login/oauth/authorize", TokenURL: g.site + "/login/oauth/access_token", AuthStyle: oauth2.AuthStyleInParams},
	}
}

// AuthURL implements oauth.Provider.
func (g *GitHub) AuthURL(_ context.Context, a oauth.Attempt) (string, error) {
	config := g.config(a.Redirect)
	return config.AuthCodeURL(a.State, oauth2.S256ChallengeOption(a.Verifier)), nil
}

// Exchange implements oauth.Provider. There is no nonce: the code is bound to the
// verifier, and the API is asked with the token it gave.
func (g *GitHub) Exchange(ctx context.Context, a oauth.Attempt, code string) (oauth.Claim, error) {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	config := g.config(a.Redirect)
	token, err := config.Exchange(ctx, code, oauth2.VerifierOption(a.Verifier))
	if err != nil {
		return oauth.Claim{}, fmt.Errorf("exchange the code: %w", err)
	}
	client := config.Client(ctx, token)
	var user struct {
		ID    int64  `json:"id"`
		Login string `json:"login"`
		Name  string `json:"name"`
	}
	if err := g.get(ctx, client, "/user", &user); err != nil {
		return oauth.Claim{}, err
	}
	if user.ID == 0 {
		return oauth.Claim{}, errors.New("the API named no user")
	}
	c := oauth.Claim{Subject: strconv.FormatInt(user.ID, 10), Name: user.Name}
	if c.Name == "" {
		c.Name = user.Login
	}
	var emails []struct {
		Email    string `json:"email"`
		Primary  bool   `json:"primary"`
		Verified bool   `json:"verified"`
	}
	if err := g.get(ctx, client, "/user/emails", &emails); err != nil {
		return oauth.Claim{}, err
	}
	for _, e := range emails {
		if e.Primary {
			c.Email, c.EmailVerified = e.Email, e.Verified
		}
	}
	return c, nil
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 1 << 20

func (g *GitHub) get(ctx context.Context, client *http.Client, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.api+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/vnd.github+json")
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(v); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}
