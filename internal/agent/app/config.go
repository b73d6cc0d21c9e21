// Package app puts the agent together: one function a subsystem, in the order
// in which they rest on one another, and taken down in the other direction.
// Sandboxes stay; only what looks after them ends.
package app

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/telemetry"
)

// Config is what an operator sets.
type Config struct {
	// DataDir is this agent's own, absolute. Everything it keeps is below.
	DataDir string
	// Listen is the address for the control plane's calls, "0.0.0.0:7443".
	Listen string
	// Address is where the control plane reaches Listen, host:port; empty is
	// Listen itself, which must name one address then.
	Address string
	// ControlURL is the control plane, https only.
	ControlURL string
	// RegistrationToken and CASHA256 come from the install command. They are
	// needed once.
	RegistrationToken string
	CASHA256          string
	// Version of this agent.
	Version string

	// Runsc and GuestBinary are absolute paths of the programs shipped with the
	// agent.
	Runsc       string
	GuestBinary string
	// ShimCommand starts a process that calls shim.Main on <data>/shim.
	ShimCommand []string

	// CIDR of the sandboxes' network; the zero value picks one.
	CIDR netip.Prefix
	// MaxSlots bounds the sandboxes, WarmSlots are kept ready; 0 is the default.
	MaxSlots, WarmSlots int
	// MaxWarm bounds the instances that are started before there is a sandbox for
	// them; 0 is none.
	MaxWarm int
	// DNSUpstreams are resolvers; empty is the host's own.
	DNSUpstreams []string
	// Denied are destinations no sandbox may reach, besides private ranges.
	Denied []netip.Prefix
	// RegistryNetworks are those beside the public internet from which container
	// images may be pulled.
	RegistryNetworks []netip.Prefix
	// RegistryProxy is what images are pulled through; nil is none.
	RegistryProxy *url.URL
	// ImageCacheBytes bounds the template images on disk; 0 is no bound.
	ImageCacheBytes int64
	// MaxImageBytes and MaxImageFiles bound what an image that is made here unpacks
	// to; 0 is DefaultMaxImageBytes and DefaultMaxImageFiles.
	MaxImageBytes int64
	MaxImageFiles int
	// Heartbeat is the time between two; 0 is 30 s.
	Heartbeat time.Duration
	// SampleEvery is the time between two samples of each sandbox; 0 is 30 s.
	SampleEvery time.Duration
	// LostContact and LostContactPause are how long the control plane must be
	// silent before deadlines are kept here, and before everything is paused; 0
	// is 90 s and 5 min, a negative LostContactPause never.
	LostContact, LostContactPause time.Duration
	// PauseOnStop pauses every sandbox before the agent ends, because the machine
	// goes down. Without it they go on: another agent finds them again.
	PauseOnStop bool

	// MetricsListen is where /metrics, /healthz and /readyz are answered, to
	// anybody; empty is nowhere.
	MetricsListen string

	Logger *slog.Logger

	watch *watch
}

// Options replace parts of the agent in tests. The zero value replaces nothing.
type Options struct {
	// Engines instead of gVisor; no shim is started then.
	Engines  map[string]engine.Engine
	Networks manager.Networks
	Images   manager.Images
	NewGuest func(manager.GuestOptions) manager.Guest
	// StatesFS is what saved states are written with; nil is the machine's own
	// file system.
	StatesFS state.FS
	// Step is the manager's crash seam, IdentityStep that of the credentials.
	Step         func(manager.Step)
	IdentityStep func(identity.Step)
	// Ready is called once with the address that is served.
	Ready func(addr net.Addr)
}

var hex64 = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

// Validate lists every fault of the configuration.
func (c Config) Validate() error {
	return errors.Join(c.faults(false)...)
}

func (c Config) faults(simulated bool) []error {
	var faults []error
	add := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if !filepath.IsAbs(c.DataDir) {
		add("data directory: an absolute path is needed, not %q", c.DataDir)
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		add("listen address: host:port is needed, not %q", c.Listen)
	}
	if ip, _ := netip.ParseAddr(host); err == nil && c.Address == "" && (host == "" || ip.IsUnspecified()) {
		add("advertised address: needed when listening on every address, so that the control plane knows where to call")
	}
	if c.Address != "" {
		if host, port, err := net.SplitHostPort(c.Address); err != nil || host == "" || port == "" || port == "0" {
			add("advertised address: host:port is needed, not %q", c.Address)
		}
	}
	if u, err := url.Parse(c.ControlURL); err != nil || u.Scheme != "https" || u.Host == "" {
		add("control URL: https://host[:port] is needed, not %q", c.ControlURL)
	}
	if c.CASHA256 != "" && !hex64.MatchString(c.CASHA256) {
		add("CA fingerprint: 64 hex digits are needed, not %q", c.CASHA256)
	}
	if c.MaxSlots < 0 || c.WarmSlots < 0 {
		add("slots: not negative")
	}
	if c.MaxWarm < 0 {
		add("SKERRY_AGENT_WARM: not negative")
	}
	if c.ImageCacheBytes < 0 {
		add("image cache: not negative")
	}
	if c.MaxImageBytes < 0 || c.MaxImageFiles < 0 {
		add("size and files of images: not negative")
	}
	if _, _, err := net.SplitHostPort(c.MetricsListen); c.MetricsListen != "" && err != nil {
		add("SKERRY_AGENT_METRICS_LISTEN: host:port is needed, not %q", c.MetricsListen)
	}
	if err := telemetry.Check(); err != nil {
		faults = append(faults, err)
	}
	if c.Heartbeat < 0 || c.SampleEvery < 0 || c.LostContact < 0 {
		add("heartbeat, samples, lost contact: not negative")
	}
	if simulated {
		return faults
	}
	if !filepath.IsAbs(c.Runsc) {
		add("runsc: an absolute path is needed, not %q", c.Runsc)
	}
	if !filepath.IsAbs(c.GuestBinary) {
		add("guest daemon: an absolute path is needed, not %q", c.GuestBinary)
	}
	if len(c.ShimCommand) == 0 {
		add("shim: the command that starts it is needed")
	}
	return faults
}

// ShimDir is where the shim of an agent on dataDir lives.
func ShimDir(dataDir string) string { return filepath.Join(dataDir, "shim") }
