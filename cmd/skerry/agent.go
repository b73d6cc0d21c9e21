package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	agentapp "skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/shim"
	"skerry.dev/skerry/internal/cli"
	"skerry.dev/skerry/internal/up"
)

// logging is how the programs that run for long say what they do.
type logging struct {
	LogLevel slog.Level `help:"debug, info, warn or error." env:"SKERRY_LOG_LEVEL" default:"info" placeholder:"LEVEL"`
}

func (l *logging) logger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l.LogLevel}))
}

// programs are the two that are shipped beside this one.
type programs struct {
	Runsc string `help:"gVisor's runsc (default: beside this program)." env:"SKERRY_RUNSC" placeholder:"PATH"`
	Guest string `help:"The guest daemon (default: beside this program)." env:"SKERRY_GUEST" placeholder:"PATH"`
}

func (p programs) resolve(c *agentapp.Config) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	beside := func(given, name string) (string, error) {
		if given != "" {
			return filepath.Abs(given)
		}
		return filepath.Join(filepath.Dir(self), name), nil
	}
	var errRunsc, errGuest error
	c.Runsc, errRunsc = beside(p.Runsc, "runsc")
	c.GuestBinary, errGuest = beside(p.Guest, "skerry-guest")
	c.ShimCommand = []string{self, "shim", "--dir", agentapp.ShimDir(c.DataDir)}
	return errors.Join(errRunsc, errGuest)
}

// there lists the shipped programs that are missing.
func there(c agentapp.Config) error {
	var faults []error
	for _, p := range []struct{ path, env string }{{c.Runsc, "SKERRY_RUNSC"}, {c.GuestBinary, "SKERRY_GUEST"}} {
		if info, err := os.Stat(p.path); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			faults = append(faults, fmt.Errorf("%s is no program: `make build` makes it, %s says where it lies", p.path, p.env))
		}
	}
	return errors.Join(faults...)
}

// exitNoToken is sysexits' EX_CONFIG. The unit does not start an agent again that
// ended with it: `skerry join` does.
const exitNoToken = 78

type agentCmd struct {
	Server            string        `help:"The server's address for agents, https://…" env:"SKERRY_SERVER" placeholder:"URL"`
	RegistrationToken string        `help:"From the install command; needed once." env:"SKERRY_REGISTRATION_TOKEN" placeholder:"TOKEN"`
	CASHA256          string        `name:"ca-sha256" help:"From the install command; needed once." env:"SKERRY_CA_SHA256" placeholder:"HEX"`
	Listen            string        `name:"host-listen" help:"Where the server reaches this agent." env:"SKERRY_HOST_LISTEN" default:"0.0.0.0:7072" placeholder:"ADDR"`
	Address           string        `name:"host-address" help:"The same as seen by the server, when it differs." env:"SKERRY_HOST_ADDRESS" placeholder:"ADDR"`
	MetricsListen     string        `name:"agent-metrics-listen" help:"Address of /metrics, /healthz and /readyz for those who watch, without a login; left out: none." env:"SKERRY_AGENT_METRICS_LISTEN" placeholder:"ADDR"`
	CIDR              string        `name:"cidr" help:"Range of the sandboxes' network (default: a free one is found)." env:"SKERRY_CIDR" placeholder:"CIDR"`
	MaxSandboxes      int           `help:"How many sandboxes at most." env:"SKERRY_MAX_SANDBOXES" placeholder:"N"`
	WarmSlots         int           `help:"How many network slots are made ahead of need." env:"SKERRY_WARM_SLOTS" default:"8" placeholder:"N"`
	Warm              int           `name:"agent-warm" help:"How many sandboxes at most are started before anybody asks for them; 0 is none." env:"SKERRY_AGENT_WARM" default:"8" placeholder:"N"`
	DNS               []string      `name:"dns" help:"Resolvers for sandboxes (default: this machine's)." env:"SKERRY_DNS" placeholder:"ADDR"`
	Denied            []string      `help:"Networks no sandbox may reach, besides private ones." env:"SKERRY_DENIED" placeholder:"CIDR"`
	RegistryNetworks  []string      `help:"Networks beside the public internet from which users may pull container images." env:"SKERRY_REGISTRY_NETWORKS" placeholder:"CIDR"`
	RegistryProxy     string        `help:"HTTP proxy that container images are pulled through; it has to keep users from what is not for them." env:"SKERRY_REGISTRY_PROXY" placeholder:"URL"`
	ImageCacheMB      int64         `name:"image-cache-mb" help:"Bound of the template images kept on disk; 0 is none." env:"SKERRY_IMAGE_CACHE_MB" placeholder:"MB"`
	MaxImageMB        int64         `name:"agent-max-image-mb" help:"Bound of what an image that is imported or built here unpacks to." env:"SKERRY_AGENT_MAX_IMAGE_MB" default:"20480" placeholder:"MB"`
	MaxImageFiles     int           `name:"agent-max-image-files" help:"Bound of its files and directories." env:"SKERRY_AGENT_MAX_IMAGE_FILES" default:"1000000" placeholder:"N"`
	PauseOnStop       bool          `help:"Pause all sandboxes before ending, for when the machine goes down; without it they go on." env:"SKERRY_PAUSE_ON_STOP"`
	LostContactPause  time.Duration `help:"Pause all sandboxes after so long without contact to the server; negative is never." env:"SKERRY_LOST_CONTACT_PAUSE" default:"5m" placeholder:"DURATION"`
	Heartbeat         time.Duration `help:"Time between two signs of life to the server." env:"SKERRY_HEARTBEAT" default:"30s" placeholder:"DURATION"`
	programs
	logging
}

// config checks all that was given and reports every fault at once.
func (cmd *agentCmd) config(p *program, log *slog.Logger) (agentapp.Config, error) {
	data, err := p.dataDir()
	if err != nil {
		return agentapp.Config{}, err
	}
	c := agentapp.Config{
		DataDir: up.AgentDir(data), Listen: cmd.Listen, Address: cmd.Address, ControlURL: cmd.Server,
		RegistrationToken: cmd.RegistrationToken, CASHA256: cmd.CASHA256, Version: release(),
		MaxSlots: cmd.MaxSandboxes, WarmSlots: cmd.WarmSlots, MaxWarm: cmd.Warm, DNSUpstreams: cmd.DNS,
		ImageCacheBytes: cmd.ImageCacheMB << 20, MaxImageBytes: cmd.MaxImageMB << 20, MaxImageFiles: cmd.MaxImageFiles, Logger: log,
		PauseOnStop: cmd.PauseOnStop, LostContactPause: cmd.LostContactPause, Heartbeat: cmd.Heartbeat,
		MetricsListen: cmd.MetricsListen,
	}
	faults := []error{cmd.resolve(&c)}
	if cmd.Server == "" {
		c.ControlURL = "https://missing" // told once, in better words
		faults = append(faults, errors.New("the server's address is missing: --server or SKERRY_SERVER"))
	}
	if cmd.CIDR != "" {
		if c.CIDR, err = netip.ParsePrefix(cmd.CIDR); err != nil {
			faults = append(faults, fmt.Errorf("--cidr: %q is no network such as 10.88.0.0/16", cmd.CIDR))
		}
	}
	for _, text := range cmd.Denied {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			faults = append(faults, fmt.Errorf("--denied: %q is no network such as 203.0.113.0/24", text))
			continue
		}
		c.Denied = append(c.Denied, n)
	}
	for _, text := range cmd.RegistryNetworks {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			faults = append(faults, fmt.Errorf("--registry-networks: %q is no network such as 10.0.0.0/8", text))
			continue
		}
		c.RegistryNetworks = append(c.RegistryNetworks, n)
	}
	if cmd.RegistryProxy != "" {
		if c.RegistryProxy, err = url.Parse(cmd.RegistryProxy); err != nil || c.RegistryProxy.Scheme != "http" && c.RegistryProxy.Scheme != "https" || c.RegistryProxy.Host == "" {
			faults = append(faults, errors.New("--registry-proxy: http://host:port or https://host:port is needed")) // it may have a password in it
		}
	}
	return c, errors.Join(append(faults, c.Validate(), there(c))...)
}

func (cmd *agentCmd) Run(e *cli.Env, p *program) error {
	c, err := cmd.config(p, cmd.logger(e.Stderr))
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("the agent needs root for namespaces, mounts and cgroups")
	}
	if err := os.MkdirAll(c.DataDir, 0o711); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(e.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := agentapp.Run(ctx, c); err != nil && ctx.Err() == nil {
		return ended(e, err)
	}
	return nil
}

// ended is what the program ends with when its agent ended with an error.
func ended(e *cli.Env, err error) error {
	if !errors.Is(err, identity.ErrToken) {
		return err
	}
	cli.Report(e.Stderr, err)
	return &cli.ExitError{Code: exitNoToken}
}

type shimCmd struct {
	Dir string `required:""`
}

func (cmd *shimCmd) Run(e *cli.Env) error {
	return shim.Main(e.Context, shim.Config{Dir: cmd.Dir, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
}

// purgeAgent removes what the agent in a directory made.
func purgeAgent(ctx context.Context, dir string, say func(string)) error {
	c := agentapp.Config{DataDir: dir, Logger: slog.New(slog.DiscardHandler)}
	if err := (programs{Runsc: os.Getenv("SKERRY_RUNSC"), Guest: os.Getenv("SKERRY_GUEST")}).resolve(&c); err != nil {
		return err
	}
	return agentapp.Purge(ctx, c, say)
}
