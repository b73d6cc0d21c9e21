package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/joho/godotenv"
	"golang.org/x/term"

	"skerry.dev/skerry/sdk"
)

const defaultURL = "http://127.0.0.1:7070"

var errNoCredentials = errors.New("no API key: run `skerry login`, or set SKERRY_API_KEY (and SKERRY_URL)")

// credentials are what one source knows. A key, and a password, is only ever
// sent to the server it came with.
type credentials struct {
	URL      string `json:"url"`
	APIKey   string `json:"api_key"`
	KeyID    string `json:"key_id,omitempty"`
	Email    string `json:"email,omitempty"`
	password string
}

// sources lists what this machine knows beside flags and environment, best
// first: what `skerry login` kept, then what a local `skerry up` wrote.
func (e *Env) sources() ([]credentials, error) {
	var known []credentials
	raw, err := os.ReadFile(e.ConfigFile)
	switch {
	case err == nil:
		var c credentials
		if err := json.Unmarshal(raw, &c); err != nil {
			return nil, fmt.Errorf("%s is damaged; run `skerry login` again: %w", e.ConfigFile, err)
		}
		known = append(known, c)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
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

// find returns the server to talk to and what is known for it.
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

// client acts with the team's API key.
func (e *Env) client(g *Globals) (*sdk.Client, error) {
	c, err := e.find(g)
	if err != nil {
		return nil, err
	}
	if c.APIKey == "" {
		return nil, errNoCredentials
	}
	return sdk.New(c.URL, e.options(sdk.WithAPIKey(c.APIKey))...)
}

// session acts as a person, which keys, hosts and platform templates ask for:
// with SKERRY_EMAIL and SKERRY_PASSWORD, the admin of a local `skerry up`, or
// whoever answers at the terminal. End it with the returned function.
func (e *Env) session(g *Globals) (*sdk.Client, func(), error) {
	c, err := e.find(g)
	if err != nil {
		return nil, nil, err
	}
	client, err := e.login(c)
	if err != nil {
		return nil, nil, err
	}
	return client, func() { _ = client.Logout(e.Context) }, nil
}

func (e *Env) login(c credentials) (*sdk.Client, error) {
	email, password := e.Getenv("SKERRY_EMAIL"), e.Getenv("SKERRY_PASSWORD")
	switch {
	case email != "" && password != "":
	case c.password != "":
		email, password = c.Email, c.password
	default:
		var err error
		if email, password, err = e.ask(c.URL, c.Email); err != nil {
			return nil, err
		}
	}
	anonymous, err := sdk.New(c.URL, e.options()...)
	if err != nil {
		return nil, err
	}
	login, err := anonymous.Login(e.Context, email, password)
	if err != nil {
		return nil, err
	}
	return sdk.New(c.URL, e.options(sdk.WithToken(login.Token))...)
}

// ask reads email and password from the terminal.
func (e *Env) ask(url, email string) (string, string, error) {
	if !e.stdinIsTerminal() {
		return "", "", errors.Join(errNoCredentials, errors.New("logging in needs a terminal, or SKERRY_EMAIL and SKERRY_PASSWORD"))
	}
	fmt.Fprintf(e.Stderr, "Logging in to %s\nEmail", url)
	if email != "" {
		fmt.Fprintf(e.Stderr, " [%s]", clean(email))
	}
	fmt.Fprint(e.Stderr, ": ")
	line, err := bufio.NewReader(e.Stdin).ReadString('\n')
	if err != nil {
		return "", "", err
	}
	if line = strings.TrimSpace(line); line != "" {
		email = line
	}
	fmt.Fprint(e.Stderr, "Password: ")
	password, err := term.ReadPassword(int(e.Stdin.Fd()))
	fmt.Fprintln(e.Stderr)
	return email, string(password), err
}

// keep writes what login learned, whole or not at all and for the owner alone.
func (e *Env) keep(c credentials) error {
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(e.ConfigFile), 0o700); err != nil {
		return err
	}
	tmp := e.ConfigFile + ".new"
	if err := os.WriteFile(tmp, append(raw, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, e.ConfigFile)
}

type loginCmd struct{}

// Run makes an API key named after this machine and keeps it; the one kept
// before, of the same server, is revoked.
func (cmd *loginCmd) Run(e *Env, g *Globals) error {
	c, err := e.find(g)
	if err != nil {
		return err
	}
	client, err := e.login(c)
	if err != nil {
		return err
	}
	defer func() { _ = client.Logout(e.Context) }()
	me, err := client.Me(e.Context)
	if err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil || name == "" {
		name = "command line"
	}
	created, err := client.CreateAPIKey(e.Context, name)
	if err != nil {
		return err
	}
	if err := e.keep(credentials{URL: c.URL, APIKey: created.Key, KeyID: created.APIKey.ID, Email: me.User.Email}); err != nil {
		return err
	}
	if c.KeyID != "" {
		if err := client.DeleteAPIKey(e.Context, c.KeyID); err != nil && !sdk.Is(err, "api_key_not_found") {
			fmt.Fprintf(e.Stderr, "skerry: the former key %s could not be revoked: %s\n", c.KeyID, clean(err.Error()))
		}
	}
	fmt.Fprintf(e.Stdout, "Logged in to %s as %s. The key %q is in %s.\n", c.URL, clean(me.User.Email), name, e.ConfigFile)
	return nil
}
