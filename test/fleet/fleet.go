package fleet

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"skerry.dev/skerry/internal/control/hostlink"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/test/instance"
)

// Options of a fleet.
type Options struct {
	Servers, Agents int
	// ServerSettings and AgentSettings are further settings, as NAME=value.
	ServerSettings, AgentSettings []string
}

// Fleet is one running Skerry on several machines.
type Fleet struct {
	Tag     string
	Servers []*Server
	Hosts   []*Host
	Front   *Front

	opt      Options
	dir      string
	root     string // of the checkout
	cluster  *pg.Cluster
	dbURL    string
	secret   string
	password string
	made     int // hosts, ever
	key      string
	bridge   *bridge
	here     *machine
	guard    *guard
	pool     *pgxpool.Pool
	keys     *keyring.Keyring
	links    *hostlink.HostClientPool

	mu   sync.Mutex
	tags []string // of agents that are purged
}

// adminEmail is the platform admin's.
const adminEmail = "admin@fleet.local"

// Server is one control plane; requests to it are made as by instance.Instance.
type Server struct {
	*instance.Instance
	*Process
	agents string // where it listens for agents
}

// Start starts the server; one that runs is left alone.
func (s *Server) Start() error { return s.Process.Start() }

// Stop ends the server in order.
func (s *Server) Stop() error { return s.Process.Stop() }

// New starts a fleet; it is ready when each server answers and each host is
// online. What is returned beside an error is still to be purged.
func New(ctx context.Context, opt Options) (*Fleet, error) {
	f := &Fleet{Tag: random(3), opt: opt, secret: random(32), password: rand.Text()}
	var err error
	if f.root, err = instance.Checkout(); err != nil {
		return f, err
	}
	f.dir = filepath.Join(os.TempDir(), "skerry-fleet-"+f.Tag)
	if err := os.Mkdir(f.dir, 0o711); err != nil {
		return f, err
	}
	if f.guard, err = newGuard(f.dir, bridgeName(f.Tag)); err != nil {
		return f, err
	}
	if f.here, err = newMachine(nil); err != nil {
		return f, err
	}
	if f.bridge, err = newBridge(f.Tag); err != nil {
		return f, err
	}
	if f.Front, err = newFront(net.JoinHostPort(f.bridge.server().String(), "0")); err != nil {
		return f, err
	}
	if err := f.openDatabase(ctx); err != nil {
		return f, err
	}
	for range opt.Servers {
		if err := f.addServer(); err != nil {
			return f, err
		}
	}
	if err := f.openServers(ctx); err != nil {
		return f, err
	}
	for range opt.Agents {
		if _, err := f.AddHost(opt.AgentSettings...); err != nil {
			return f, err
		}
	}
	return f, f.joinAll(ctx)
}

func random(bytes int) string {
	raw := make([]byte, bytes)
	_, _ = rand.Read(raw) // never fails
	return hex.EncodeToString(raw)
}

func (f *Fleet) openDatabase(ctx context.Context) (err error) {
	f.cluster = &pg.Cluster{Dir: filepath.Join(f.dir, "postgres"), SocketDir: filepath.Join(f.dir, "s")}
	if f.dbURL, err = f.cluster.Start(ctx); err != nil {
		return err
	}
	admin := exec.CommandContext(ctx, filepath.Join(f.root, "bin", "skerry"), "admin", "create")
	admin.Env = append(os.Environ(), "DATABASE_URL="+f.dbURL, "SKERRY_SECRET="+f.secret, "SKERRY_ADMIN_EMAIL="+adminEmail, "SKERRY_ADMIN_PASSWORD="+f.password)
	if err := f.here.run(admin); err != nil {
		return err
	}
	f.pool, err = pg.Open(ctx, f.dbURL)
	if err != nil {
		return err
	}
	secret, err := keyring.ParseSecret(f.secret)
	if err != nil {
		return err
	}
	if f.keys, err = keyring.Load(ctx, keyringpg.New(f.pool), secret, clock.System{}); err != nil {
		return err
	}
	f.link()
	cert, err := f.keys.IssueServer(nil, []net.IP{f.bridge.server().AsSlice()})
	if err != nil {
		return err
	}
	f.Front.certify(cert)
	return publishBase(ctx, f.pool, f.Store(), f.dir)
}

// Store is the directory of the artifact store, which no host sees.
func (f *Fleet) Store() string { return filepath.Join(f.dir, "store") }

func (f *Fleet) addServer() error {
	ports, err := freePorts(f.bridge.server(), 3)
	if err != nil {
		return err
	}
	n := len(f.Servers)
	s := &Server{agents: net.JoinHostPort(f.bridge.server().String(), ports[1])}
	s.Instance = &instance.Instance{URL: "http://127.0.0.1:" + ports[0], Root: f.root}
	data := filepath.Join(f.dir, "server"+strconv.Itoa(n))
	s.Process = &Process{
		machine: f.here, program: filepath.Join(f.root, "bin", "skerry"), args: []string{"server"}, log: filepath.Join(data, "server.log"),
		env: func() []string {
			return append(append(os.Environ(),
				"SKERRY_DATA="+data, "DATABASE_URL="+f.dbURL, "SKERRY_SECRET="+f.secret, "SKERRY_STORE="+f.Store(), "SKERRY_AUTH_LIMIT=0",
				"SKERRY_WARM_POOL=off", "SKERRY_UPLOAD_AFTER=1s",
				"SKERRY_LISTEN=127.0.0.1:"+ports[0], "SKERRY_SANDBOX_LISTEN=127.0.0.1:"+ports[2], "SKERRY_AGENT_LISTEN="+s.agents, "SKERRY_AGENT_URL="+f.AgentURL(),
			), f.opt.ServerSettings...)
		},
	}
	f.Servers = append(f.Servers, s)
	f.Front.backends = append(f.Front.backends, s.agents)
	return nil
}

// openServers starts all servers, and makes the API key.
func (f *Fleet) openServers(ctx context.Context) error {
	for _, s := range f.Servers {
		if err := s.Start(); err != nil {
			return err
		}
	}
	for _, s := range f.Servers {
		if err := f.waitServer(ctx, s); err != nil {
			return err
		}
	}
	if err := f.Login(ctx); err != nil {
		return err
	}
	var made struct{ Key string }
	if _, err := f.Servers[0].Try(ctx, "POST", "/v1/api-keys", map[string]any{"name": "fleet"}, &made); err != nil {
		return err
	}
	f.key = made.Key
	for _, s := range f.Servers {
		s.Key = f.key
	}
	return nil
}

// Login gives every server's requests the admin's session anew: one lives a
// quarter of an hour.
func (f *Fleet) Login(ctx context.Context) error {
	var login struct{ Token string }
	_, err := f.Servers[0].Try(ctx, "POST", "/v1/auth/login", map[string]string{"email": adminEmail, "password": f.password}, &login)
	for _, s := range f.Servers {
		s.Token = login.Token
	}
	return err
}

func (f *Fleet) waitServer(ctx context.Context, s *Server) error {
	ended, why := s.Ended()
	return until(ctx, time.Minute, "server is ready", func() (bool, error) {
		select {
		case <-ended:
			return false, fmt.Errorf("the server ended: %w\n%s", why(), s.Log())
		default:
		}
		status, err := s.Try(ctx, "GET", "/readyz", nil, nil)
		return err == nil && status == 200, nil
	})
}

// AgentURL is where agents reach the servers.
func (f *Fleet) AgentURL() string { return "https://" + f.Front.listener.Addr().String() }

// KillDatabase ends PostgreSQL as kill -9 does.
func (f *Fleet) KillDatabase() error {
	raw, err := os.ReadFile(filepath.Join(f.dir, "postgres", "postmaster.pid"))
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil {
		return err
	}
	name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil || strings.TrimSpace(string(name)) != "postgres" {
		return fmt.Errorf("process %d is no PostgreSQL: %q %w", pid, name, err)
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// StartDatabase starts PostgreSQL again.
func (f *Fleet) StartDatabase(ctx context.Context) error {
	_, err := f.cluster.Start(ctx)
	return err
}

// Purge ends everything, removes it, and looks for what is left. It needs all
// of its machines and can be repeated.
func (f *Fleet) Purge(ctx context.Context) error {
	var errs []error
	note := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	var ending errgroup.Group
	for _, h := range f.Hosts {
		ending.Go(func() error { return h.purge(ctx) })
	}
	note("hosts", ending.Wait())
	for _, s := range f.Servers {
		note("server", s.Stop())
	}
	if f.links != nil {
		f.links.Close()
	}
	if f.pool != nil {
		f.pool.Close()
	}
	if f.cluster != nil {
		note("database", f.cluster.Remove(ctx))
	}
	if f.Front != nil {
		note("front", f.Front.close())
	}
	if f.bridge != nil {
		note("bridge", f.bridge.remove())
	}
	if f.here != nil {
		note("thread", f.here.close())
	}
	if f.dir != "" {
		note("files", os.RemoveAll(f.dir))
		note("leak check", f.leaks())
	}
	if f.guard != nil {
		note("guard", f.guard.close())
	}
	return errors.Join(errs...)
}

// Dump writes the end of every log, for a test that failed.
func (f *Fleet) Dump(w io.Writer) {
	for i, s := range f.Servers {
		fmt.Fprintf(w, "--- server %d\n%s\n", i, s.Log())
	}
	for i, h := range f.Hosts {
		fmt.Fprintf(w, "--- agent %d\n%s\n", i, h.Log())
	}
}

// until waits for ok, bounded.
func until(ctx context.Context, within time.Duration, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		done, err := ok()
		if done || err != nil {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("not within %s: %s", within, what)
		}
	}
}

func freePorts(addr netip.Addr, n int) (ports []string, err error) {
	for range n {
		listener, err := net.Listen("tcp", net.JoinHostPort(addr.String(), "0"))
		if err != nil {
			return nil, err
		}
		defer listener.Close()
		ports = append(ports, strconv.Itoa(listener.Addr().(*net.TCPAddr).Port))
	}
	return ports, nil
}
