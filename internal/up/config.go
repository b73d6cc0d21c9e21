package up

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Config says what to start and where.
type Config struct {
	Data        string // data directory
	Listen      string // the API
	AgentListen string // where agents reach the server
	// SandboxListen is where ports of sandboxes are reached.
	SandboxListen string
	HostListen    string // where the server reaches this machine's agent
	// MetricsListen and AgentMetricsListen are where those who watch look at the
	// server and at the agent; empty is nowhere.
	MetricsListen, AgentMetricsListen string
	DatabaseURL                       string // empty: a private PostgreSQL
	AdminEmail                        string // of the first admin
	// Program is this very program; it is started again as server and agent.
	Program string
	// Environ is what they are given beside their own settings.
	Environ  []string
	Version  string
	Out      io.Writer
	Terminal bool // Out is one
	// Ready is called once everything answers.
	Ready func()

	Parts Parts
}

// Parts are what the supervisor needs of the other wings, which it does not
// import itself.
type Parts struct {
	// Migrate brings the database's schema up to date.
	Migrate func(ctx context.Context, databaseURL string) error
	// EnsureAdmin makes sure that there is a platform admin with this address and
	// password, on a migrated database, with or without a running server.
	EnsureAdmin func(ctx context.Context, databaseURL, secret, email, password string) error
	// HostID returns the id that the agent in this directory is registered
	// under, or "".
	HostID func(agentDir string) (string, error)
	// PurgeAgent ends all sandboxes of the agent in this directory and removes
	// everything that it ever made on the machine.
	PurgeAgent func(ctx context.Context, agentDir string, say func(string)) error
}

func (c *Config) path(name string) string { return filepath.Join(c.Data, name) }

// AgentDir is where the agent of a data directory keeps its own.
func AgentDir(data string) string { return filepath.Join(data, "agent") }

// CredentialsFile is where an up leaves what people need to use it.
func CredentialsFile(data string) string { return filepath.Join(data, "credentials.env") }

// DefaultData is the data directory when nobody chose one: ./data in a checkout
// of Skerry, else the system's state directory.
func DefaultData() string {
	raw, err := os.ReadFile("go.mod")
	if first, _, _ := strings.Cut(string(raw), "\n"); err == nil && strings.TrimSpace(first) == "module skerry.dev/skerry" {
		if dir, err := filepath.Abs("data"); err == nil {
			return dir
		}
	}
	return "/var/lib/skerry"
}

// baseURL is how this machine reaches a listen address.
func baseURL(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "http://" + listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// checkPorts finds out before anything is started whether the addresses can be
// had, and names all that cannot.
func (c *Config) checkPorts() error {
	var faults []error
	for _, p := range []struct{ address, flag, env string }{
		{c.Listen, "--listen", "SKERRY_LISTEN"},
		{c.AgentListen, "--agent-listen", "SKERRY_AGENT_LISTEN"},
		{c.HostListen, "--host-listen", "SKERRY_HOST_LISTEN"},
		{c.SandboxListen, "--sandbox-listen", "SKERRY_SANDBOX_LISTEN"},
		{c.MetricsListen, "--metrics-listen", "SKERRY_METRICS_LISTEN"},
		{c.AgentMetricsListen, "--agent-metrics-listen", "SKERRY_AGENT_METRICS_LISTEN"},
	} {
		if p.address == "" {
			continue
		}
		l, err := net.Listen("tcp", p.address)
		switch {
		case err == nil:
			_ = l.Close()
		case errors.Is(err, syscall.EADDRINUSE):
			faults = append(faults, fmt.Errorf("%s is in use by another program: stop it, or choose another address with %s or %s", p.address, p.flag, p.env))
		default:
			faults = append(faults, fmt.Errorf("%s (%s, %s): %w", p.address, p.flag, p.env, err))
		}
	}
	return errors.Join(faults...)
}

// secret reads SKERRY_SECRET, or makes it on the first start. A damaged file is
// an error and never replaced: everything sealed under it would be lost.
func (c *Config) secret() (string, error) {
	file := c.path("secret")
	raw, err := os.ReadFile(file)
	if err == nil {
		s := strings.TrimSpace(string(raw))
		if b, err := hex.DecodeString(s); err != nil || len(b) != 32 {
			return "", fmt.Errorf("%s is damaged: it should hold 64 hex digits; restore it from a backup", file)
		}
		return s, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if _, err := os.Stat(c.path("postgres")); err == nil {
		return "", fmt.Errorf("%s is missing, and what the database in %s keeps is sealed under it: restore it from a backup", file, c.path("postgres"))
	}
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	s := hex.EncodeToString(b)
	return s, writeFile(file, []byte(s+"\n"))
}

// writeFile makes a file of 0600 appear whole or not at all, also after a power
// failure.
func writeFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
