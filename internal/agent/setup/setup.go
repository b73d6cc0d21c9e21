// Package setup makes a machine a host that lasts: its agent's settings in a
// file that systemd reads, the unit that runs it, and the wait until the control
// plane has taken it in.
package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/internal/agent/identity"
)

// Setting is a line of a file of settings.
type Setting struct{ Name, Value string }

// harmless values need no quoting, neither for systemd nor for a shell.
var harmless = regexp.MustCompile(`^[A-Za-z0-9_./:,@%+=\[\]-]*$`)

// Save puts settings into a file of NAME=value lines, mode 0600. Lines that say
// something else stay as they are; after a crash there is the old file or the
// new one.
func Save(path string, settings ...Setting) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	left := slices.Clone(settings)
	var out bytes.Buffer
	for line := range strings.Lines(string(old)) {
		line = strings.TrimRight(line, "\n")
		name, _, _ := strings.Cut(strings.TrimSpace(line), "=")
		if !slices.ContainsFunc(settings, func(s Setting) bool { return s.Name == name }) {
			fmt.Fprintln(&out, line)
			continue
		}
		// In its place, and once.
		if i := slices.IndexFunc(left, func(s Setting) bool { return s.Name == name }); i >= 0 {
			fmt.Fprintf(&out, "%s=%s\n", name, left[i].Value)
			left = slices.Delete(left, i, i+1)
		}
	}
	for _, s := range left {
		fmt.Fprintf(&out, "%s=%s\n", s.Name, s.Value)
	}
	for _, s := range settings {
		if !harmless.MatchString(s.Value) {
			return fmt.Errorf("setup: %s: %q has characters that no such value has", s.Name, s.Value)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // what is in it has modes of its own
		return err
	}
	return identity.WriteDurably(path, out.Bytes())
}

// AddressFor is the address of this machine on the way to a server: where that
// reaches us, unless something translates addresses in between.
func AddressFor(ctx context.Context, server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil || u.Hostname() == "" {
		return "", fmt.Errorf("setup: %q is no URL", server)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", net.JoinHostPort(u.Hostname(), port)) // sends nothing
	if err != nil {
		return "", err
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return host, err
}

// Systemd starts units.
type Systemd struct {
	// Booted is the directory that is there when systemd runs the machine.
	Booted string
	// Systemctl is the program.
	Systemctl string
}

// System is the machine's own.
func System() Systemd { return Systemd{Booted: "/run/systemd/system", Systemctl: "systemctl"} }

// Has reports whether systemd runs this machine and knows a unit.
func (s Systemd) Has(ctx context.Context, unit string) bool {
	if _, err := os.Stat(s.Booted); err != nil {
		return false
	}
	return s.run(ctx, "cat", unit) == nil
}

// Start has a unit run now, with its newest settings, and after each boot.
func (s Systemd) Start(ctx context.Context, unit string) error {
	if err := s.run(ctx, "enable", unit); err != nil {
		return err
	}
	return s.run(ctx, "restart", unit)
}

func (s Systemd) run(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, s.Systemctl, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("setup: %s %s: %w: %s", s.Systemctl, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// ErrRefused is a token that the control plane did not take.
var ErrRefused = errors.New("the control plane did not take the registration token: it is spent, has expired or belongs to another host; have a new one issued (skerry host token)")

const lookEvery = 100 * time.Millisecond

// Await waits until the agent with the identity in dir is registered with a
// token that was offered to it.
func Await(ctx context.Context, dir, token string) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		accepted, waiting, err := identity.Accepted(dir, token)
		switch {
		case err != nil:
			return err
		case accepted:
			return nil
		case !waiting:
			return ErrRefused
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
