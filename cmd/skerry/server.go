package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	agentapp "skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/cli"
	controlapp "skerry.dev/skerry/internal/control/app"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/up"
)

// serverConfig is the server's configuration without its methods: the parser
// would ask Validate before the defaults are filled in.
type serverConfig controlapp.Config

type serverCmd struct {
	serverConfig
	logging
}

func (cmd *serverCmd) Run(e *cli.Env, p *program) error {
	data, err := p.dataDir()
	if err != nil {
		return err
	}
	config := controlapp.Config(cmd.serverConfig).Defaults(data)
	config.Version = release()
	if err := config.Validate(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(e.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := controlapp.Run(ctx, config, cmd.logger(e.Stderr)); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// parts are what the supervisor is handed of the wings.
func parts() up.Parts {
	return up.Parts{
		Migrate:     pg.Migrate,
		EnsureAdmin: controlapp.EnsureAdmin,
		HostID:      agentapp.HostID,
		PurgeAgent:  purgeAgent,
	}
}

type adminCmd struct {
	Create adminCreateCmd `cmd:"" help:"Make a platform admin on the database itself, or give one that exists a new password."`
	cli.AdminCommands
}

type adminCreateCmd struct {
	DatabaseURL string `help:"The server's PostgreSQL." env:"DATABASE_URL" required:"" placeholder:"URL"`
	Secret      string `help:"The server's secret." env:"SKERRY_SECRET" required:"" placeholder:"SECRET"`
	Email       string `help:"Whose account it is." env:"SKERRY_ADMIN_EMAIL" required:"" placeholder:"EMAIL"`
	Password    string `help:"8 to 128 characters; asked for when left out." env:"SKERRY_ADMIN_PASSWORD" placeholder:"PASSWORD"`
}

func (cmd *adminCreateCmd) Run(e *cli.Env) error {
	password := cmd.Password
	if password == "" {
		if !term.IsTerminal(int(e.Stdin.Fd())) {
			return errors.New("the password is missing: set SKERRY_ADMIN_PASSWORD, or run this on a terminal")
		}
		fmt.Fprint(e.Stderr, "Password: ")
		raw, err := term.ReadPassword(int(e.Stdin.Fd()))
		fmt.Fprintln(e.Stderr)
		if err != nil {
			return err
		}
		password = string(raw)
	}
	ctx, stop := signal.NotifyContext(e.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := pg.Migrate(ctx, cmd.DatabaseURL); err != nil {
		return err
	}
	if err := controlapp.EnsureAdmin(ctx, cmd.DatabaseURL, cmd.Secret, cmd.Email, password); err != nil {
		return err
	}
	fmt.Fprintf(e.Stdout, "%s is a platform admin.\n", cmd.Email)
	return nil
}
