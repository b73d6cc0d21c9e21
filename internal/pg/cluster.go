package pg

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/kernel/errs"
)

// Cluster is a private PostgreSQL for one machine: own data directory, a unix
// socket and no TCP, an unprivileged system user, and only the people named in
// Start's own map may connect (peer authentication, no password to lose). It
// never touches a data directory that it did not make.
//
// The server runs in a session of its own and outlives the process that
// started it; the next Start adopts it.
type Cluster struct {
	// Dir is the data directory. Where the system user cannot reach it, the
	// data lies under /var/lib/skerry and Dir is a symbolic link to it.
	Dir string
	// SocketDir holds the unix socket; "" chooses a short one by Dir.
	SocketDir string
	// User is the system user to run as when we are root; "" is "postgres".
	User string
	// LogFile receives the server's log; "" is postgres.log beside the data.
	LogFile string
	// Disposable trades durability for speed, for tests alone.
	Disposable bool

	account account
	data    string // where the data really lies
}

// Names inside a cluster.
const (
	clusterRole     = "skerry" // superuser of this cluster and of nothing else
	clusterDatabase = "skerry"
	clusterPort     = "5432" // part of the socket's name; nothing listens on TCP
	ownedMarker     = "skerry-cluster"
	startWithin     = 60 * time.Second
	remainsWithin   = 10 * time.Second
)

// errRemains: something of a server that was killed still holds its shared
// memory, though it can no longer be seen for what it was.
var errRemains = errors.New("postgres finds remains of a former server")

// Start makes the cluster on the first call, starts its server or adopts the
// one that runs, and returns the URL of its database. It is safe to call from
// several processes at once; they all get the same server.
func (c *Cluster) Start(ctx context.Context) (url string, err error) {
	if err := c.resolve(); err != nil {
		return "", err
	}
	unlock, err := lockFile(ctx, c.data+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := c.initialize(ctx); err != nil {
		return "", err
	}
	if c.adopt(ctx) {
		return c.URL(), nil
	}
	if err := c.clearRemains(ctx); err != nil {
		return "", err
	}
	err = c.launch(ctx)
	for deadline := time.Now().Add(remainsWithin); errors.Is(err, errRemains) && time.Now().Before(deadline) && ctx.Err() == nil; {
		if err = c.clearRemains(ctx); err == nil {
			err = c.launch(ctx)
		}
	}
	if err != nil {
		return "", err
	}
	if err := c.ensureDatabase(ctx); err != nil {
		return "", err
	}
	return c.URL(), nil
}

// URL is the address of the cluster's database.
func (c *Cluster) URL() string { return c.urlOf(clusterDatabase) }

func (c *Cluster) urlOf(database string) string {
	return fmt.Sprintf("postgres://%s@/%s?host=%s&port=%s&sslmode=disable", clusterRole, database, c.SocketDir, clusterPort)
}

// Stop ends the server in order: open transactions are rolled back, everything
// committed is on disk. Stopping one that does not run is fine.
func (c *Cluster) Stop(ctx context.Context) error {
	if err := c.resolve(); err != nil {
		return err
	}
	server, err := c.running()
	if err != nil || server == nil {
		return err
	}
	defer server.close()
	if err := server.signal(unix.SIGINT); err != nil {
		return fmt.Errorf("stop postgres: %w", err)
	}
	return server.wait(ctx)
}

// Remove stops the server and deletes the data for good.
func (c *Cluster) Remove(ctx context.Context) error {
	if err := c.Stop(ctx); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(c.data, ownedMarker)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	leftovers, _ := filepath.Glob(c.data + ".new-*")
	for _, path := range append(leftovers, c.data, c.data+".lock", c.SocketDir, c.LogFile) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	if c.data == c.Dir {
		return nil
	}
	if err := os.Remove(filepath.Dir(c.data)); err != nil {
		return err
	}
	return os.Remove(c.Dir)
}

// resolve fills in what the caller left open and finds the data's real place.
func (c *Cluster) resolve() error {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return err
	}
	c.Dir = dir
	sum := sha256.Sum256([]byte(dir))
	tag := hex.EncodeToString(sum[:5])
	if c.account, err = accountFor(c.User); err != nil {
		return err
	}
	if c.data == "" {
		switch target, err := os.Readlink(dir); {
		case err == nil:
			c.data = target
		case c.account.canReach(filepath.Dir(dir)):
			c.data = dir
		default:
			c.data = filepath.Join("/var/lib/skerry", tag, "pg")
		}
	}
	if c.SocketDir == "" {
		switch runtimeDir := os.Getenv("XDG_RUNTIME_DIR"); {
		case os.Geteuid() == 0:
			c.SocketDir = "/run/skerry-" + tag
		case runtimeDir != "":
			c.SocketDir = filepath.Join(runtimeDir, "skerry-"+tag)
		default:
			c.SocketDir = filepath.Join("/tmp", fmt.Sprintf("skerry-%d-%s", os.Geteuid(), tag))
		}
	}
	if path := filepath.Join(c.SocketDir, ".s.PGSQL."+clusterPort); len(path) > 107 {
		return errs.Invalid("socket_path_too_long", "The directory for PostgreSQL's socket has too long a name: "+c.SocketDir)
	}
	if c.LogFile == "" {
		c.LogFile = c.data + ".log"
	}
	return nil
}

// initialize makes the data directory, once. It appears whole, by rename, so a
// death in the middle leaves only a nameless directory that is removed here.
func (c *Cluster) initialize(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(c.data, ownedMarker)); err == nil {
		return c.linkData()
	}
	if entries, err := os.ReadDir(c.data); err == nil && len(entries) > 0 {
		return errs.FailedPrecondition("foreign_cluster", c.data+" holds something that Skerry did not make. Choose another data directory, or set DATABASE_URL.")
	}
	initdb, err := binary("initdb")
	if err != nil {
		return err
	}
	leftovers, _ := filepath.Glob(c.data + ".new-*")
	for _, path := range leftovers {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(c.data), 0o755); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(filepath.Dir(c.data), filepath.Base(c.data)+".new-")
	if err != nil {
		return err
	}
	if err := c.account.own(fresh); err != nil {
		return err
	}
	args := []string{"-D", fresh, "-U", clusterRole, "--auth=reject", "--encoding=UTF8", "--no-locale", "--data-checksums"}
	if c.Disposable {
		args = append(args, "--no-sync")
	}
	command := exec.CommandContext(ctx, initdb, args...)
	command.Dir = "/"
	command.Env = serverEnv()
	command.SysProcAttr = c.account.attr()
	if out, err := command.CombinedOutput(); err != nil {
		_ = os.RemoveAll(fresh)
		return fmt.Errorf("initdb: %w: %s", err, lastLines(string(out), 5))
	}
	marker := filepath.Join(fresh, ownedMarker)
	if err := os.WriteFile(marker, []byte("Made by Skerry for "+c.Dir+"\n"), 0o600); err != nil {
		return err
	}
	if err := c.account.own(marker); err != nil {
		return err
	}
	if err := os.Rename(fresh, c.data); err != nil {
		return err
	}
	if !c.Disposable {
		syncDir(filepath.Dir(c.data))
	}
	return c.linkData()
}

func (c *Cluster) linkData() error {
	if c.data == c.Dir {
		return nil
	}
	if target, err := os.Readlink(c.Dir); err == nil && target == c.data {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(c.Dir), 0o755); err != nil {
		return err
	}
	_ = os.Remove(c.Dir) // an empty directory or a link to nowhere; anything else stays and is reported below
	return os.Symlink(c.data, c.Dir)
}

// writeAccess says who may connect: over the socket alone, and there only
// root, the account the server runs as, and the one that started it.
func (c *Cluster) writeAccess() error {
	hba := "local all " + clusterRole + " peer map=skerry\n"
	var ident strings.Builder
	for _, name := range slices.Compact(slices.Sorted(slices.Values([]string{"root", c.account.name, currentUser()}))) {
		fmt.Fprintf(&ident, "skerry %q %s\n", name, clusterRole)
	}
	for name, content := range map[string]string{"pg_hba.conf": hba, "pg_ident.conf": ident.String()} {
		path := filepath.Join(c.data, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
		if err := c.account.own(path); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) settings() []string {
	set := []string{
		"listen_addresses=",
		"port=" + clusterPort,
		"unix_socket_directories=" + c.SocketDir,
		"unix_socket_permissions=0700",
		"shared_buffers=64MB",
		"max_wal_size=512MB",
		"logging_collector=off",
		"log_min_duration_statement=2000",
		// A statement and its parameters may hold secrets.
		"log_parameter_max_length=0",
		"log_parameter_max_length_on_error=0",
		"log_min_error_statement=panic",
		"timezone=UTC",
		"log_timezone=UTC",
		"jit=off",
	}
	if c.Disposable {
		set = append(set, "max_connections=300", "fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off")
	} else {
		set = append(set, "max_connections=100")
	}
	args := []string{"-D", c.data}
	for _, setting := range set {
		args = append(args, "-c", setting)
	}
	return args
}

// launch starts the server and returns when it takes connections.
func (c *Cluster) launch(ctx context.Context) error {
	program, err := binary("postgres")
	if err != nil {
		return err
	}
	if err := c.writeAccess(); err != nil {
		return err
	}
	if err := os.MkdirAll(c.SocketDir, 0o700); err != nil {
		return err
	}
	if err := c.account.own(c.SocketDir); err != nil {
		return err
	}
	logFile, err := os.OpenFile(c.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	command := exec.Command(program, c.settings()...) // outlives ctx on purpose
	command.Dir = "/"
	command.Env = serverEnv()
	command.Stdout, command.Stderr = logFile, logFile
	command.SysProcAttr = c.account.attr()
	command.SysProcAttr.Setsid = true
	if err := command.Start(); err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	// Ends when the server does; until then it is what keeps the dead child
	// from staying a zombie.
	exited := make(chan error, 1)
	go func() {
		err := command.Wait()
		if err == nil {
			err = errors.New("it was told to")
		}
		exited <- err
	}()

	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	for {
		if c.answers(ctx) {
			return nil
		}
		pause := time.NewTimer(10 * time.Millisecond)
		select {
		case <-pause.C:
		case err := <-exited:
			tail := c.logTail()
			if strings.Contains(tail, "pre-existing shared memory block") {
				err = errors.Join(err, errRemains)
			}
			return fmt.Errorf("postgres ended while starting: %w; its log %s ends with: %s", err, c.LogFile, tail)
		case <-ctx.Done():
			_ = command.Process.Signal(unix.SIGINT)
			return fmt.Errorf("postgres did not start: %w; its log %s ends with: %s", ctx.Err(), c.LogFile, c.logTail())
		}
	}
}

// answers reports whether the server takes connections.
func (c *Cluster) answers(ctx context.Context) bool {
	if _, err := os.Stat(filepath.Join(c.SocketDir, ".s.PGSQL."+clusterPort)); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.urlOf("postgres"))
	if err != nil {
		return false
	}
	_ = conn.Close(ctx)
	return true
}

func (c *Cluster) ensureDatabase(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, c.urlOf("postgres"))
	if err != nil {
		return fmt.Errorf("connect to postgres: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", clusterDatabase).Scan(&exists); err != nil {
		return err
	}
	if !exists {
		_, err = conn.Exec(ctx, "CREATE DATABASE "+clusterDatabase)
	}
	return err
}

func (c *Cluster) logTail() string {
	raw, err := os.ReadFile(c.LogFile)
	if err != nil {
		return err.Error()
	}
	return lastLines(string(raw[max(0, len(raw)-4096):]), 6)
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

// binary finds a program of PostgreSQL: on the path, else the newest that
// Debian's packages brought.
func binary(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	slices.SortFunc(found, func(a, b string) int { return majorOf(a) - majorOf(b) })
	if len(found) == 0 {
		return "", errs.FailedPrecondition("postgres_missing", "PostgreSQL is not installed. Install it (Debian: apt install postgresql), or set DATABASE_URL.")
	}
	return found[len(found)-1], nil
}

func majorOf(path string) int {
	major, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return major
}

// Installed reports whether a private cluster can be made here.
func Installed() error {
	if _, err := binary("initdb"); err != nil {
		return err
	}
	_, err := accountFor("")
	return err
}

func serverEnv() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"}
}

func syncDir(path string) {
	if dir, err := os.Open(path); err == nil {
		_ = dir.Sync()
		_ = dir.Close()
	}
}
