// Command skerry is all of Skerry but the guest daemon in one program: the
// server, the agent, the supervisor that runs both on one machine, and the
// command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/alecthomas/kong"
	"github.com/joho/godotenv"

	"skerry.dev/skerry/internal/cli"
	"skerry.dev/skerry/internal/up"
)

// version is set by the linker.
var version = "unknown"

type program struct {
	cli.Globals
	Data string `help:"Data directory (default ./data in a checkout, else /var/lib/skerry)." env:"SKERRY_DATA" placeholder:"DIR"`

	Up   upCmd   `cmd:"" help:"Start everything on this machine: PostgreSQL, server, agent, the base template."`
	Down downCmd `cmd:"" help:"Stop what up started; sandboxes stay. With --purge remove all it ever made."`
	cli.Commands
	Server  serverCmd  `cmd:"" help:"Run the server, for deployments of your own."`
	Agent   agentCmd   `cmd:"" help:"Run the agent of a host."`
	Join    joinCmd    `cmd:"" help:"Make this machine a host of a server: what the install command runs."`
	Backup  backupCmd  `cmd:"" help:"Write down an installation: database, secret, and what the store has."`
	Store   storeCmd   `cmd:"" help:"Look after the artifact store."`
	Restore restoreCmd `cmd:"" help:"Fill an empty database, and what the store lacks, with a backup."`
	Doctor  doctorCmd  `cmd:"" help:"Say what this machine lacks for Skerry, and how to mend it."`
	Admin   adminCmd   `cmd:"" help:"Users, teams and limits, for platform admins."`
	Version versionCmd `cmd:"" help:"Print the version."`
	Shim    shimCmd    `cmd:"" hidden:""`
}

func (p *program) dataDir() (string, error) {
	if p.Data == "" {
		return up.DefaultData(), nil
	}
	return filepath.Abs(p.Data)
}

func main() { os.Exit(run(context.Background(), os.Args[1:])) }

func run(ctx context.Context, args []string) int {
	if err := dotenv(args); err != nil {
		fmt.Fprintln(os.Stderr, "skerry:", err)
		return cli.ExitUsage
	}
	var p program
	parser, err := kong.New(
		&p, kong.Name("skerry"),
		kong.Description("Run code nobody has vetted, in isolated sandboxes on machines you own."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
	)
	if err != nil {
		panic(err) // the declarations above are wrong
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		command := "skerry"
		var wrong *kong.ParseError
		if errors.As(err, &wrong) && wrong.Context != nil && wrong.Context.Command() != "" {
			command += " " + wrong.Context.Command()
		}
		fmt.Fprintf(os.Stderr, "skerry: %v\n        `%s --help` says how it is used.\n", err, command)
		return cli.ExitUsage
	}
	data, err := p.dataDir()
	if err != nil {
		return cli.Report(os.Stderr, err)
	}
	env := &cli.Env{
		Context: ctx, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv,
		Credentials: []string{up.CredentialsFile(data)}, ConfigFile: configFile(), Version: release(),
	}
	if err := parsed.Run(env, &p.Globals, &p); err != nil {
		return cli.Report(os.Stderr, err)
	}
	return 0
}

// dotenv reads .env for the programs that run for long, and what they read for
// the one that looks after them; the environment wins, and no file is no fault.
func dotenv(args []string) error {
	if len(args) == 0 {
		return nil
	}
	var files []string
	switch args[0] {
	case "server", "agent", "up":
		files = []string{".env"}
	case "doctor", "backup", "restore", "store":
		files = []string{".env", agentSettings, serverSettings}
	}
	for _, file := range files {
		err := godotenv.Load(file)
		if file != ".env" && errors.Is(err, fs.ErrPermission) {
			continue // root's; the doctor says that it wants to be root
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the file %s cannot be read: %w", file, err)
		}
	}
	return nil
}

func configFile() string {
	dir, err := os.UserConfigDir()
	if err != nil {
		dir = "/root/.config" // a daemon without HOME
	}
	return filepath.Join(dir, "skerry", "config.json")
}

// release is the version for people.
func release() string {
	if version != "unknown" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return version
}

type versionCmd struct{}

func (*versionCmd) Run(e *cli.Env) error {
	_, err := fmt.Fprintln(e.Stdout, "skerry", release())
	return err
}
