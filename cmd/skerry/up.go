package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"skerry.dev/skerry/internal/cli"
	"skerry.dev/skerry/internal/up"
)

type upCmd struct {
	Listen      string `help:"Address of the API." env:"SKERRY_LISTEN" default:"127.0.0.1:7070" placeholder:"ADDR"`
	AgentListen string `help:"Address at which agents reach the server." env:"SKERRY_AGENT_LISTEN" default:"127.0.0.1:7071" placeholder:"ADDR"`
	HostListen  string `help:"Address at which the server reaches this machine's agent." env:"SKERRY_HOST_LISTEN" default:"127.0.0.1:7072" placeholder:"ADDR"`
	Sandboxes   string `name:"sandbox-listen" help:"Address at which ports of sandboxes are reached." env:"SKERRY_SANDBOX_LISTEN" default:"127.0.0.1:7075" placeholder:"ADDR"`
	Metrics     string `name:"metrics-listen" help:"Address of the server's /metrics; empty for none." env:"SKERRY_METRICS_LISTEN" default:"127.0.0.1:7073" placeholder:"ADDR"`
	HostMetrics string `name:"agent-metrics-listen" help:"Address of the agent's /metrics; empty for none." env:"SKERRY_AGENT_METRICS_LISTEN" default:"127.0.0.1:7074" placeholder:"ADDR"`
	DatabaseURL string `help:"A PostgreSQL of your own instead of a private one." env:"DATABASE_URL" placeholder:"URL"`
	AdminEmail  string `help:"Email of the first admin." env:"SKERRY_ADMIN_EMAIL" placeholder:"EMAIL"`
	Detach      bool   `short:"d" help:"Return when everything is ready; it goes on in the background."`
}

// detachedVar marks the background half of `up --detach`; descriptor 3 is then
// where it says that it is ready.
const detachedVar = "SKERRY_UP_DETACHED"

func (cmd *upCmd) Run(e *cli.Env, p *program) error {
	data, err := p.dataDir()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("`skerry up` needs root for namespaces, mounts and cgroups: run it with sudo")
	}
	if cmd.Detach {
		return cmd.detach(e, data)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(e.Context, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	config := up.Config{
		Data: data, Listen: cmd.Listen, AgentListen: cmd.AgentListen, HostListen: cmd.HostListen,
		SandboxListen: cmd.Sandboxes, MetricsListen: cmd.Metrics, AgentMetricsListen: cmd.HostMetrics,
		DatabaseURL: cmd.DatabaseURL, AdminEmail: cmd.AdminEmail,
		Program: self, Environ: childEnviron(), Version: release(),
		Out: os.Stdout, Terminal: term.IsTerminal(int(os.Stdout.Fd())), Parts: parts(),
	}
	if os.Getenv(detachedVar) != "" {
		unix.CloseOnExec(3) // what we start must not hold the parent's pipe
		config.Terminal = false
		config.Ready = func() { background(filepath.Join(data, "up.log")) }
	}
	err = up.Run(ctx, config)
	var held *up.HeldError
	if errors.As(err, &held) {
		fmt.Fprintf(os.Stderr, "%s. Its credentials are in %s; `skerry down` stops it.\n", held.Error(), up.CredentialsFile(data))
		return nil
	}
	return err
}

// childEnviron is our environment without what concerns this process alone.
func childEnviron() []string {
	var kept []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case detachedVar, "DATABASE_URL", "SKERRY_SECRET", "SKERRY_API_KEY", "SKERRY_URL", "SKERRY_ADMIN_EMAIL", "SKERRY_ADMIN_PASSWORD", "SKERRY_EMAIL", "SKERRY_PASSWORD":
		default:
			kept = append(kept, v)
		}
	}
	return kept
}

// detach starts the same command in a session of its own and shows what it says
// until it is ready.
func (cmd *upCmd) detach(e *cli.Env, data string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	output, outputEnd, err := os.Pipe()
	if err != nil {
		return err
	}
	ready, readyEnd, err := os.Pipe()
	if err != nil {
		return err
	}
	child := exec.Command(self, "up",
		"--data", data, "--listen", cmd.Listen, "--agent-listen", cmd.AgentListen, "--host-listen", cmd.HostListen, "--sandbox-listen", cmd.Sandboxes,
		"--metrics-listen", cmd.Metrics, "--agent-metrics-listen", cmd.HostMetrics, "--admin-email", cmd.AdminEmail)
	child.Env = append(os.Environ(), detachedVar+"=1", "DATABASE_URL="+cmd.DatabaseURL)
	child.Stdout, child.Stderr = outputEnd, outputEnd
	child.ExtraFiles = []*os.File{readyEnd}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return err
	}
	_, _ = outputEnd.Close(), readyEnd.Close()
	// An interrupt gives the start up, in order.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		_, _ = io.Copy(e.Stdout, output) // ends when the child moves to its log, or ends
	}()
	go func() {
		select {
		case <-signals:
			_ = child.Process.Signal(syscall.SIGTERM)
		case <-shown:
		}
	}()
	line, _ := bufio.NewReader(ready).ReadString('\n')
	<-shown
	if line != "" {
		fmt.Fprintf(e.Stdout, "It goes on in the background; `skerry down` stops it. Its log: %s\n", filepath.Join(data, "up.log"))
		return child.Process.Release()
	}
	if err := child.Wait(); err != nil {
		return &cli.ExitError{Code: child.ProcessState.ExitCode()}
	}
	return nil
}

// background moves our output to a log and tells the waiting parent that all is
// ready.
func background(path string) {
	log, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		_ = unix.Dup3(int(log.Fd()), 1, 0)
		_ = unix.Dup3(int(log.Fd()), 2, 0)
		_ = log.Close()
	}
	ready := os.NewFile(3, "ready")
	_, _ = ready.WriteString("ready\n")
	_ = ready.Close()
}

type downCmd struct {
	Purge bool `help:"Also end all sandboxes and remove everything Skerry ever made here: data, network, mounts, cgroups."`
	Yes   bool `short:"y" help:"Do not ask."`
}

func (cmd *downCmd) Run(e *cli.Env, p *program) error {
	data, err := p.dataDir()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(e.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	say := func(line string) { fmt.Fprintln(e.Stderr, line) }
	if !cmd.Purge {
		return up.Down(ctx, data, say)
	}
	if !cmd.Yes {
		if err := confirm(ctx, e, data); err != nil {
			return err
		}
	}
	if err := up.Purge(ctx, data, parts(), say); err != nil {
		return err
	}
	say("nothing of it is left")
	return nil
}

func confirm(ctx context.Context, e *cli.Env, data string) error {
	fmt.Fprintf(e.Stderr, "This ends all sandboxes and deletes everything in %s for good: users, keys, files. Type \"purge\" to go on: ", data)
	answer, err := bufio.NewReader(e.Stdin).ReadString('\n')
	if err != nil && answer == "" {
		return errors.New("not confirmed; --yes answers for you")
	}
	if strings.TrimSpace(answer) != "purge" || ctx.Err() != nil {
		return errors.New("nothing was removed")
	}
	return nil
}
