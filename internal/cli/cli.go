package cli

import (
	"context"
	"io"
	"os"

	"golang.org/x/term"
)

// Globals are the flags of every command.
type Globals struct {
	URL    string `help:"The server." env:"SKERRY_URL" placeholder:"URL"`
	APIKey string `help:"The team's API key." env:"SKERRY_API_KEY" placeholder:"KEY"`
	Output string `short:"o" help:"What to print: ${enum}." enum:"table,json" default:"table"`
}

// Commands are the verbs of this package.
type Commands struct {
	Login    loginCmd    `cmd:"" help:"Log in and stay logged in."`
	Logout   logoutCmd   `cmd:"" help:"End the login that was kept."`
	Sandbox  sandboxCmd  `cmd:"" aliases:"sb" help:"Create sandboxes, run commands in them, copy files."`
	Snapshot snapshotCmd `cmd:"" help:"Saved states of sandboxes, to start others from."`
	Template templateCmd `cmd:"" help:"What sandboxes are made from."`
	Build    buildCmd    `cmd:"" help:"Jobs that make templates."`
	Key      keyCmd      `cmd:"" help:"The team's API keys."`
	Team     teamCmd     `cmd:"" help:"Teams, their members, invitations and limits."`
	Host     hostCmd     `cmd:"" help:"The machines that run sandboxes."`
	Audit    auditCmd    `cmd:"" help:"What was done, and proof that the record is whole."`
}

// Env is the world a command sees.
type Env struct {
	Context context.Context
	Stdin   *os.File
	Stdout  io.Writer
	Stderr  io.Writer
	Getenv  func(string) string
	// Credentials are the files a local `skerry up` may have left its
	// credentials in, best first.
	Credentials []string
	// ConfigFile is where `skerry login` keeps its session.
	ConfigFile string
	Version    string
}

func (e *Env) stdinIsTerminal() bool { return term.IsTerminal(int(e.Stdin.Fd())) }

func (e *Env) stderrIsTerminal() bool {
	f, ok := e.Stderr.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
