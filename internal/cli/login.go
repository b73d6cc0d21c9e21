package cli

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"golang.org/x/term"

	"skerry.dev/skerry/sdk"
)

type loginCmd struct {
	Email  string `help:"Log in with a password: SKERRY_PASSWORD, or asked for. Without it you approve in a browser." env:"SKERRY_EMAIL" placeholder:"EMAIL"`
	Device bool   `help:"Approve in a browser, also without a terminal here."`
}

// Run keeps the session it gets in the place of the one that was kept before,
// which ends.
func (cmd *loginCmd) Run(e *Env, g *Globals) error {
	c, err := e.find(g)
	if err != nil {
		return err
	}
	anonymous, err := sdk.New(c.URL, e.options()...)
	if err != nil {
		return err
	}
	var login *sdk.Login
	switch {
	case cmd.Email != "" && !cmd.Device:
		login, err = cmd.byPassword(e, anonymous)
	case cmd.Device || e.stdinIsTerminal():
		login, err = cmd.inBrowser(e, anonymous)
	default:
		err = &usageError{"there is no terminal: give --email and SKERRY_PASSWORD, or --device"}
	}
	if err != nil {
		return err
	}
	k := kept{URL: c.URL, Email: login.User.Email}.goesOn(login)
	// Said now rather than when the token ends: only pages of the server's own
	// address may refresh.
	if k, err = e.refresh(e.Context, k); err != nil {
		err = errors.Join(err, e.end(k))
		if sdk.Is(err, "invalid_refresh_token") {
			return fmt.Errorf("the server knows itself under another address than %s: log in with --url and the one in its SKERRY_URL", c.URL)
		}
		return err
	}
	var former kept
	err = e.alone(func() (err error) {
		if former, err = e.kept(); err != nil {
			former = kept{} // damaged: replaced
		}
		return e.keep(k)
	})
	if err != nil {
		return errors.Join(err, e.end(k))
	}
	if former.Refresh != "" {
		if err := e.end(former); err != nil {
			fmt.Fprintf(e.Stderr, "skerry: the former login at %s goes on: %s\n", clean(former.URL), clean(err.Error()))
		}
	}
	return cmd.say(e, g, k, login)
}

func (cmd *loginCmd) say(e *Env, g *Globals, k kept, login *sdk.Login) error {
	if g.Output == "json" {
		return printJSON(e.Stdout, map[string]any{"url": k.URL, "user": login.User, "team": login.Team})
	}
	in := "no team"
	if !login.Team.Null {
		in = login.Team.Value.Name
	}
	fmt.Fprintf(e.Stdout, "Logged in to %s as %s, in %s. `skerry logout` ends it.\n", k.URL, clean(k.Email), clean(in))
	if g.APIKey != "" {
		fmt.Fprintln(e.Stderr, "skerry: SKERRY_API_KEY is set: what acts on sandboxes, snapshots and templates goes on using that key.")
	}
	return nil
}

func (cmd *loginCmd) byPassword(e *Env, anonymous *sdk.Client) (*sdk.Login, error) {
	password := e.Getenv("SKERRY_PASSWORD")
	if password == "" {
		if !e.stdinIsTerminal() {
			return nil, &usageError{"there is no terminal to ask for the password: set SKERRY_PASSWORD"}
		}
		fmt.Fprintf(e.Stderr, "Password of %s at %s: ", cmd.Email, anonymous.URL())
		raw, err := term.ReadPassword(int(e.Stdin.Fd()))
		fmt.Fprintln(e.Stderr)
		if err != nil {
			return nil, err
		}
		password = string(raw)
	}
	return anonymous.Login(e.Context, cmd.Email, password)
}

func (cmd *loginCmd) inBrowser(e *Env, anonymous *sdk.Client) (*sdk.Login, error) {
	name := "skerry"
	if machine, err := os.Hostname(); err == nil && machine != "" {
		name += " on " + machine
	}
	d, err := anonymous.StartDeviceLogin(e.Context, name)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(e.Stderr, "Open %s?code=%s in a browser where you are logged in,\nand check that it shows %s. It waits for %s.\n",
		clean(d.VerificationURL), url.QueryEscape(d.UserCode), clean(d.UserCode), time.Until(d.ExpiresAt).Round(time.Minute))
	return anonymous.AwaitDeviceLogin(e.Context, d)
}

type logoutCmd struct{}

// Run forgets the login once the server has ended it.
func (cmd *logoutCmd) Run(e *Env) error {
	return e.alone(func() error {
		k, err := e.kept()
		if err != nil {
			return err
		}
		if k.Refresh == "" {
			fmt.Fprintln(e.Stderr, "You are not logged in.")
			return nil
		}
		if err := e.end(k); err != nil {
			return err
		}
		fmt.Fprintf(e.Stderr, "Logged out of %s.\n", clean(k.URL))
		return e.keep(kept{})
	})
}
