package cli

import (
	"errors"
	"strings"

	"github.com/joho/godotenv"

	"skerry.dev/skerry/sdk"
)

const defaultURL = "http://127.0.0.1:7070"

var errNoCredentials = errors.New("you are not logged in: run `skerry login`, or set SKERRY_API_KEY (and SKERRY_URL)")

// credentials are what one source knows. A key, a password or a login is only
// ever sent to the server it came with.
type credentials struct {
	URL      string
	APIKey   string
	Email    string
	password string
	login    bool // `skerry login` kept one
}

// sources lists what this machine knows beside flags and environment, best
// first: what `skerry login` kept, then what a local `skerry up` wrote.
func (e *Env) sources() ([]credentials, error) {
	var known []credentials
	k, err := e.kept()
	if err != nil {
		return nil, err
	}
	if k.Refresh != "" {
		known = append(known, credentials{URL: k.URL, Email: k.Email, login: true})
	}
	for _, file := range e.Credentials {
		values, err := godotenv.Read(file)
		if err != nil {
			continue // absent, or somebody else's
		}
		known = append(known, credentials{
			URL: values["SKERRY_URL"], APIKey: values["SKERRY_API_KEY"],
			Email: values["SKERRY_ADMIN_EMAIL"], password: values["SKERRY_ADMIN_PASSWORD"],
		})
	}
	return known, nil
}

// find returns the server to talk to and what is known for it. A key that was
// given wins over a login.
func (e *Env) find(g *Globals) (credentials, error) {
	known, err := e.sources()
	if err != nil {
		return credentials{}, err
	}
	url := strings.TrimRight(g.URL, "/")
	found := credentials{URL: url, APIKey: g.APIKey}
	for _, c := range known {
		if url == "" && g.APIKey == "" || c.URL == url {
			found = c
			if g.APIKey != "" {
				found.APIKey = g.APIKey
			}
			break
		}
	}
	if found.URL == "" {
		found.URL = defaultURL
	}
	return found, nil
}

func (e *Env) options(more ...sdk.Option) []sdk.Option {
	return append([]sdk.Option{sdk.WithUserAgent("skerry/" + e.Version)}, more...)
}

// client acts with the team's API key, or with the login that was kept.
func (e *Env) client(g *Globals) (*sdk.Client, error) {
	c, err := e.find(g)
	switch {
	case err != nil:
		return nil, err
	case c.APIKey != "":
		return sdk.New(c.URL, e.options(sdk.WithAPIKey(c.APIKey))...)
	case c.login:
		return e.keptClient(c.URL)
	}
	return nil, errNoCredentials
}

// session acts as a person, which teams, keys and hosts ask for: with
// SKERRY_EMAIL and SKERRY_PASSWORD, with the login that was kept, or as the admin
// of a local `skerry up`. Call the returned function at the end.
func (e *Env) session(g *Globals) (*sdk.Client, func(), error) {
	c, err := e.find(g)
	if err != nil {
		return nil, nil, err
	}
	email, password := e.Getenv("SKERRY_EMAIL"), e.Getenv("SKERRY_PASSWORD")
	switch {
	case email != "" && password != "":
	case c.login:
		client, err := e.keptClient(c.URL)
		return client, func() {}, err
	case c.password != "":
		email, password = c.Email, c.password
	default:
		return nil, nil, errNoCredentials
	}
	anonymous, err := sdk.New(c.URL, e.options()...)
	if err != nil {
		return nil, nil, err
	}
	login, err := anonymous.Login(e.Context, email, password)
	if err != nil {
		return nil, nil, err
	}
	client, err := sdk.New(c.URL, e.options(sdk.WithToken(login.Token))...)
	if err != nil {
		return nil, nil, err
	}
	return client, func() { _ = client.Logout(e.Context) }, nil
}
