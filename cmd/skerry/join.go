package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	agentapp "skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/setup"
	"skerry.dev/skerry/internal/cli"
	"skerry.dev/skerry/internal/doctor"
	"skerry.dev/skerry/internal/up"
)

const (
	agentUnit = "skerry-agent.service"
	// joinWithin bounds the wait for the agent that systemd starts.
	joinWithin = 90 * time.Second
)

type joinCmd struct {
	Server            string `required:"" help:"The server's address for agents, https://…" env:"SKERRY_SERVER" placeholder:"URL"`
	CASHA256          string `required:"" name:"ca-sha256" help:"The SHA-256 of its CA." env:"SKERRY_CA_SHA256" placeholder:"HEX"`
	RegistrationToken string `required:"" help:"The token; it works once." env:"SKERRY_REGISTRATION_TOKEN" placeholder:"TOKEN"`
	Listen            string `name:"host-listen" help:"Where the server reaches this agent." env:"SKERRY_HOST_LISTEN" default:"0.0.0.0:7072" placeholder:"ADDR"`
	Address           string `name:"host-address" help:"The same as seen by the server (default: this machine's address on the way there)." env:"SKERRY_HOST_ADDRESS" placeholder:"ADDR"`
	Force             bool   `help:"Join although the machine lacks something, or holds what another installation's sandboxes consist of."`
	Settings          string `help:"The file of the agent's settings." default:"/etc/skerry/agent.env" placeholder:"FILE"`
	programs
}

func (cmd *joinCmd) Run(e *cli.Env, p *program) error {
	data, err := p.dataDir()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("a host's agent needs root: run this with sudo")
	}
	ctx, stop := signal.NotifyContext(e.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	return cmd.join(ctx, e, data, setup.System())
}

// join checks the machine, writes the agent's settings and sees to it that an
// agent takes the token. It may be repeated.
func (cmd *joinCmd) join(ctx context.Context, e *cli.Env, data string, systemd setup.Systemd) error {
	if err := cmd.locate(ctx); err != nil {
		return err
	}
	dir := up.AgentDir(data)
	if err := cmd.valid(dir); err != nil {
		return err
	}
	if err := cmd.check(ctx, e, data); err != nil {
		return err
	}
	if err := cmd.leave(ctx, dir, systemd); err != nil {
		return err
	}
	err := setup.Save(
		cmd.Settings, setup.Setting{Name: "SKERRY_SERVER", Value: cmd.Server}, setup.Setting{Name: "SKERRY_CA_SHA256", Value: cmd.CASHA256},
		setup.Setting{Name: "SKERRY_HOST_LISTEN", Value: cmd.Listen}, setup.Setting{Name: "SKERRY_HOST_ADDRESS", Value: cmd.Address},
		setup.Setting{Name: "SKERRY_DATA", Value: data},
	)
	if err != nil {
		return err
	}
	// The token goes where the agent finds it, running or not, and is gone once
	// it is spent.
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // sandboxes' users pass through
		return err
	}
	offer := identity.Offer{Token: cmd.RegistrationToken, Pin: cmd.CASHA256}
	if err := identity.LeaveOffer(agentapp.IdentityDir(dir), offer); err != nil {
		return err
	}
	switch {
	case systemd.Has(ctx, agentUnit):
		if err := systemd.Start(ctx, agentUnit); err != nil {
			return err
		}
		return cmd.await(ctx, e, dir, "journalctl -u skerry-agent")
	case agentapp.Running(dir):
		fmt.Fprintln(e.Stderr, "An agent runs here already; it is handed the token. A changed address counts from its next start.")
		return cmd.await(ctx, e, dir, "the agent's log")
	}
	fmt.Fprintf(e.Stdout, "This machine is ready. Its agent is not run by systemd here; start it so, and it joins:\n\n  set -a; . %s; set +a; skerry agent\n", cmd.Settings)
	return nil
}

// leave drops the credentials of another installation. What its sandboxes consist
// of is given up only when that was asked for: the new one does not know them.
func (cmd *joinCmd) leave(ctx context.Context, dir string, systemd setup.Systemd) error {
	former, err := identity.Installation(agentapp.IdentityDir(dir))
	if err != nil {
		return err
	}
	if former == "" || strings.EqualFold(former, cmd.CASHA256) {
		return nil
	}
	held, err := agentapp.Holds(dir)
	if err != nil {
		return err
	}
	switch {
	case held > 0 && !cmd.Force:
		return fmt.Errorf("nothing was changed: this machine is a host of another installation (its CA is %s) and holds %d sandboxes or saved states of it, "+
			"which the new one does not know: it would pause them and remove them after a week. Delete the host there first, and they go with it; --force joins all the same", former, held)
	case agentapp.Running(dir) && !systemd.Has(ctx, agentUnit):
		return fmt.Errorf("nothing was changed: an agent of another installation (its CA is %s) runs here; stop it and run this again", former)
	}
	return identity.Drop(agentapp.IdentityDir(dir))
}

// locate fills in the address where the server reaches this machine.
func (cmd *joinCmd) locate(ctx context.Context) error {
	host, port, err := net.SplitHostPort(cmd.Listen)
	if err != nil {
		return fmt.Errorf("--host-listen: host:port is needed, not %q", cmd.Listen)
	}
	ip, _ := netip.ParseAddr(host)
	if cmd.Address != "" || host != "" && !ip.IsUnspecified() {
		return nil
	}
	own, err := setup.AddressFor(ctx, cmd.Server)
	if err != nil {
		return fmt.Errorf("this machine's own address is unknown (%w): say it with --host-address", err)
	}
	cmd.Address = net.JoinHostPort(own, port)
	return nil
}

func (cmd *joinCmd) valid(dir string) error {
	c := agentapp.Config{
		DataDir: dir, Listen: cmd.Listen, Address: cmd.Address, ControlURL: cmd.Server, CASHA256: cmd.CASHA256,
		RegistrationToken: cmd.RegistrationToken,
	}
	return errors.Join(cmd.resolve(&c), c.Validate())
}

func (cmd *joinCmd) check(ctx context.Context, e *cli.Env, data string) error {
	c, err := checkup(data, cmd.programs, cmd.Listen, cmd.Server, cmd.CASHA256)
	if err != nil {
		return err
	}
	r := doctor.Run(ctx, c, func(f doctor.Finding) { doctor.Print(e.Stderr, f) })
	if r.OK || cmd.Force {
		return nil
	}
	return errors.New("nothing was changed: mend what is said above and run this again; the token stays good until it expires. --force joins all the same")
}

func (cmd *joinCmd) await(ctx context.Context, e *cli.Env, dir, log string) error {
	ctx, cancel := context.WithTimeout(ctx, joinWithin)
	defer cancel()
	err := setup.Await(ctx, agentapp.IdentityDir(dir), cmd.RegistrationToken)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the agent has not joined within %s and goes on trying; %s says why", joinWithin, log)
	case err != nil:
		return err
	}
	host, err := agentapp.HostID(dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.Stdout, "This machine is the host %s, reached at %s.\n", host, cmd.reached())
	return nil
}

func (cmd *joinCmd) reached() string {
	if cmd.Address != "" {
		return cmd.Address
	}
	return cmd.Listen
}
