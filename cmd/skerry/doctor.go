package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	agentapp "skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/cli"
	"skerry.dev/skerry/internal/doctor"
)

// Where the package's services read their settings.
const (
	settingsDir    = "/etc/skerry"
	agentSettings  = settingsDir + "/agent.env"
	serverSettings = settingsDir + "/server.env"
)

type doctorCmd struct {
	JSON        bool   `name:"json" help:"Print findings as JSON, like -o json."`
	Quick       bool   `help:"Start no sandbox."`
	Server      string `help:"Ask this server, too." env:"SKERRY_SERVER" placeholder:"URL"`
	CASHA256    string `name:"ca-sha256" help:"The SHA-256 of its CA, from the install command." env:"SKERRY_CA_SHA256" placeholder:"HEX"`
	HostListen  string `help:"Where the agent listens." env:"SKERRY_HOST_LISTEN" default:"0.0.0.0:7072" placeholder:"ADDR"`
	DatabaseURL string `help:"Look at the server's PostgreSQL and ports, too." env:"DATABASE_URL" placeholder:"URL"`
	Listen      string `help:"Where the server's API listens." env:"SKERRY_LISTEN" default:"127.0.0.1:7070" placeholder:"ADDR"`
	AgentListen string `help:"Where the server listens for agents." env:"SKERRY_AGENT_LISTEN" default:"127.0.0.1:7071" placeholder:"ADDR"`
	Sandboxes   string `name:"sandbox-listen" help:"Where ports of sandboxes are reached." env:"SKERRY_SANDBOX_LISTEN" default:"127.0.0.1:7075" placeholder:"ADDR"`
	Metrics     string `name:"metrics-listen" help:"Where the server shows its metrics." env:"SKERRY_METRICS_LISTEN" placeholder:"ADDR"`
	HostMetrics string `name:"agent-metrics-listen" help:"Where the agent shows its own." env:"SKERRY_AGENT_METRICS_LISTEN" placeholder:"ADDR"`
	programs
}

func (cmd *doctorCmd) Run(e *cli.Env, g *cli.Globals, p *program) error {
	data, err := p.dataDir()
	if err != nil {
		return err
	}
	c, err := checkup(data, cmd.programs, cmd.HostListen, cmd.Server, cmd.CASHA256)
	if err != nil {
		return err
	}
	if cmd.Quick {
		c.Start = nil
	}
	if cmd.HostMetrics != "" {
		c.Listen["SKERRY_AGENT_METRICS_LISTEN"] = cmd.HostMetrics
	}
	if cmd.DatabaseURL != "" {
		if cmd.Metrics != "" {
			c.Listen["SKERRY_METRICS_LISTEN"] = cmd.Metrics
		}
		c.Listen["SKERRY_LISTEN"], c.Listen["SKERRY_AGENT_LISTEN"], c.Listen["SKERRY_SANDBOX_LISTEN"] = cmd.Listen, cmd.AgentListen, cmd.Sandboxes
		c.Database = func(ctx context.Context) (string, error) { return askDatabase(ctx, cmd.DatabaseURL) }
	}
	var said func(doctor.Finding)
	if asJSON := cmd.JSON || g.Output == "json"; !asJSON {
		said = func(f doctor.Finding) { doctor.Print(e.Stdout, f) }
	}
	r := doctor.Run(e.Context, c, said)
	if said == nil {
		enc := json.NewEncoder(e.Stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	if !r.OK {
		return &cli.ExitError{Code: 1}
	}
	return nil
}

// checkup is what every host is looked at for.
func checkup(data string, programs programs, listen, server, pin string) (doctor.Config, error) {
	var shipped agentapp.Config
	if err := programs.resolve(&shipped); err != nil {
		return doctor.Config{}, err
	}
	c := doctor.Config{
		DataDir:  data,
		Programs: map[string]string{"runsc": shipped.Runsc, "skerry-guest": shipped.GuestBinary},
		Listen:   map[string]string{"SKERRY_HOST_LISTEN": listen},
		Start:    func(ctx context.Context) (string, error) { return startSandbox(ctx, programs) },
	}
	if server != "" {
		c.Server = func(ctx context.Context) (time.Time, error) { return identity.ServerTime(ctx, server, pin) }
	}
	return c, nil
}

func startSandbox(ctx context.Context, programs programs) (string, error) {
	dir, err := os.MkdirTemp("", "sk") // short: sockets lie below
	if err != nil {
		return "", err
	}
	c := agentapp.Config{DataDir: dir}
	if err := programs.resolve(&c); err != nil {
		return "", err
	}
	began := time.Now()
	version, err := agentapp.Try(ctx, c)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("gVisor %s started one and ended it, in %.1f s", version, time.Since(began).Seconds()), nil
}

// leastPostgres is the oldest version the server is tested with.
const leastPostgres = 150000

func askDatabase(ctx context.Context, url string) (string, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	var version string
	var number int
	var mayCreate bool
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('server_version_num')::int,
		(SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user)
		OR EXISTS (SELECT FROM pg_roles WHERE rolname = 'skerry_app')`).Scan(&version, &number, &mayCreate)
	switch {
	case err != nil:
		return "", err
	case number < leastPostgres:
		return "", fmt.Errorf("it is PostgreSQL %s, and 15 is needed", version)
	case !mayCreate:
		return "", fmt.Errorf("its role may not make the role skerry_app, and that is not there: CREATE ROLE skerry_app, or grant CREATEROLE")
	}
	return "PostgreSQL " + version, nil
}
