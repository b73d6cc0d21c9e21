package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// hostPort is where each agent listens, in its own network.
const hostPort = "7072"

// Host is a machine with an agent.
type Host struct {
	*Process
	Name string
	ID   string     // as the API knows it, once announced
	Addr netip.Addr // on the bridge
	Data string     // its data directory

	fleet    *Fleet
	index    int
	machine  *machine
	join     []string // settings for the first contact
	settings []string

	mu    sync.Mutex
	known string // the agent's tag
}

// AddHost makes a machine with an agent that is not announced and not started.
func (f *Fleet) AddHost(settings ...string) (*Host, error) {
	n := f.made
	f.made++
	h := &Host{
		Name: "host" + strconv.Itoa(n), Addr: f.bridge.host(n), Data: filepath.Join(f.dir, "h"+strconv.Itoa(n)), fleet: f, index: n, settings: settings,
	}
	if err := os.Mkdir(h.Data, 0o711); err != nil {
		return nil, err
	}
	var err error
	if h.machine, err = newMachine(func() error { return enterOwn(f.dir, h.Data) }); err != nil {
		return nil, err
	}
	h.Process = &Process{
		machine: h.machine, program: filepath.Join(f.root, "bin", "skerry"), args: []string{"agent"}, log: filepath.Join(h.Data, "log", "agent.log"),
		env: func() []string { return append(append(h.environ(), h.join...), h.settings...) },
	}
	f.Hosts = append(f.Hosts, h)
	return h, f.bridge.plug(h.machine, n)
}

func (h *Host) address() string { return net.JoinHostPort(h.Addr.String(), hostPort) }

func (h *Host) environ() []string {
	return append(os.Environ(),
		"SKERRY_DATA="+h.Data, "SKERRY_SERVER="+h.fleet.AgentURL(), "SKERRY_HOST_LISTEN="+h.address(),
		"SKERRY_WARM_SLOTS=2", "SKERRY_AGENT_WARM=0", "SKERRY_DNS=192.0.2.53") // nobody answers there, and nobody asks
}

// Set changes settings of the agent, as NAME=value, for its next start.
func (h *Host) Set(settings ...string) { h.settings = append(h.settings, settings...) }

// Announce gets a registration token for the host, a first or a new one.
func (h *Host) Announce(ctx context.Context, request map[string]any) error {
	var made struct {
		Host  struct{ ID string }
		Token string `json:"registration_token"`
		CA    string `json:"ca_sha256"`
	}
	path := "/v1/hosts"
	if h.ID != "" {
		path += "/" + h.ID + "/token"
		request = nil
	} else if request == nil {
		request = map[string]any{"type": "regular", "name": h.Name}
	}
	if _, err := h.fleet.Servers[0].Try(ctx, "POST", path, request, &made); err != nil {
		return err
	}
	h.ID = made.Host.ID
	h.join = []string{"SKERRY_REGISTRATION_TOKEN=" + made.Token, "SKERRY_CA_SHA256=" + made.CA}
	return nil
}

// joinAll announces and starts every host, and waits until all are online.
func (f *Fleet) joinAll(ctx context.Context) error {
	var joining errgroup.Group
	for _, h := range f.Hosts {
		joining.Go(func() error {
			if err := h.Announce(ctx, nil); err != nil {
				return err
			}
			return h.Join(ctx)
		})
	}
	return joining.Wait()
}

// Join starts the agent with its token, which it needs just this once, and waits
// until the host is online.
func (h *Host) Join(ctx context.Context) error {
	if err := h.Start(); err != nil {
		return err
	}
	if err := h.Wait(ctx, "online"); err != nil {
		return err
	}
	h.join = nil
	_, err := h.tag()
	return err
}

// Wait waits until the servers say that the host has a status.
func (h *Host) Wait(ctx context.Context, status string) error {
	ended, why := h.Ended()
	var last string
	err := until(ctx, 2*time.Minute, h.Name+" is "+status, func() (bool, error) {
		select {
		case <-ended:
			if status == "online" {
				return false, fmt.Errorf("the agent ended: %w\n%s", why(), h.Log())
			}
		default:
		}
		now, err := h.State(ctx)
		if err != nil {
			last = err.Error()
			return false, nil //nolint:nilerr // a server may be away
		}
		last = now.Status + " " + now.Reason
		return now.Status == status, nil
	})
	if err != nil {
		return fmt.Errorf("%w; it is %s", err, last)
	}
	return nil
}

// HostState is the part of the API's answer that tests read.
type HostState struct {
	Status   string
	Reason   string `json:"status_reason"`
	Capacity Resources
	Reserved Resources
	Drained  bool
}

// Resources are what a host has or promises.
type Resources struct {
	CPUMillis int64 `json:"cpu_millis"`
	MemoryMB  int64 `json:"memory_mb"`
	DiskMB    int64 `json:"disk_mb"`
}

// State asks the first server that answers about the host.
func (h *Host) State(ctx context.Context) (HostState, error) {
	var errs []error
	for _, s := range h.fleet.Servers {
		var now HostState
		_, err := s.Try(ctx, "GET", "/v1/hosts/"+h.ID, nil, &now)
		if err == nil {
			return now, nil
		}
		errs = append(errs, err)
	}
	return HostState{}, errors.Join(errs...)
}

// Cut lets no packet through the host's link until Mend.
func (h *Host) Cut() error { return h.fleet.bridge.set(h.index, false) }

// Mend makes the link whole again.
func (h *Host) Mend() error { return h.fleet.bridge.set(h.index, true) }

// Received is how many bytes ever came to the host over its link.
func (h *Host) Received() (uint64, error) { return h.fleet.bridge.passed(h.index) }

// Read reads a file below the host's data directory, which only the host sees.
func (h *Host) Read(name string) (content []byte, err error) {
	err = h.machine.do(func() (err error) {
		content, err = os.ReadFile(filepath.Join(h.Data, name))
		return err
	})
	return content, err
}

// Run runs a command on the host, as an operator would.
func (h *Host) Run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = h.environ()
	return h.machine.run(cmd)
}

// Remove takes a host's machine away, whatever the servers know of it.
func (f *Fleet) Remove(ctx context.Context, h *Host) error {
	f.Hosts = slices.DeleteFunc(f.Hosts, func(x *Host) bool { return x == h })
	return h.purge(ctx)
}

// purge ends the agent, removes all it ever made there, and the machine.
func (h *Host) purge(ctx context.Context) error {
	if h.machine == nil {
		return nil
	}
	err := h.Stop()
	if tag, err := h.tag(); err == nil { // none: nothing was ever made
		h.fleet.mu.Lock()
		h.fleet.tags = append(h.fleet.tags, tag)
		h.fleet.mu.Unlock()
	}
	// The link may be cut, and the agent's directory is the machine's own.
	purged := h.Run(ctx, filepath.Join(h.fleet.root, "bin", "skerry"), "down", "--purge", "--yes")
	left, lookErr := h.machine.holds(h.Data)
	tables, tablesErr := h.machine.tables()
	left = append(left, tables...)
	err = errors.Join(err, purged, lookErr, tablesErr, h.machine.close())
	h.machine = nil
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left on %s: %s", h.Name, strings.Join(left, ", ")))
	}
	return err
}
