package up

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/sdk"
)

const (
	serverWithin = 90 * time.Second
	hostWithin   = 2 * time.Minute
	pgStopWithin = 30 * time.Second
	pgWatchEvery = 500 * time.Millisecond
)

// instance is one running up.
type instance struct {
	Config
	show    *progress
	lock    *dirLock
	key     string // SKERRY_SECRET
	cluster *pg.Cluster
	dbURL   string
	starter *starter
	server  *child
	agent   *child
	made    *credentials // by this run, to be shown once
}

// Run starts everything, says so, keeps it running until ctx ends, and stops it
// in order. A HeldError means that another one runs on the data directory.
func Run(ctx context.Context, cfg Config) error {
	// Others pass through on the way to their own parts, and read nothing.
	if err := os.MkdirAll(cfg.Data, 0o711); err != nil {
		return err
	}
	data, err := filepath.EvalSymlinks(cfg.Data)
	if err != nil {
		return err
	}
	cfg.Data = data
	lock, err := acquire(cfg.path("up.lock"))
	if err != nil {
		return err
	}
	defer lock.release()
	u := &instance{Config: cfg, show: &progress{out: cfg.Out, terminal: cfg.Terminal}, lock: lock}
	if err := lock.tell(baseURL(cfg.Listen), false); err != nil {
		return err
	}
	began := time.Now()
	u.show.say(fmt.Sprintf("Skerry %s in %s", cfg.Version, cfg.Data))
	err = u.start(ctx)
	if err == nil {
		u.ready(time.Since(began))
		err = u.watch(ctx)
	} else if ctx.Err() == nil {
		u.show.abort()
	}
	interrupted := ctx.Err() != nil
	if stopErr := u.stop(); stopErr != nil {
		return errors.Join(err, stopErr)
	}
	if interrupted {
		return nil // what ends with its context ends in order
	}
	return err
}

// start brings everything up, step by step, each from what it finds.
func (u *instance) start(ctx context.Context) error {
	if err := u.checkPorts(); err != nil {
		return err
	}
	var err error
	if u.key, err = u.secret(); err != nil {
		return err
	}
	if err := u.database(ctx); err != nil {
		return err
	}
	known, written, err := u.readCredentials()
	if err != nil {
		return err
	}
	var first setup
	if !written {
		// Before anybody can reach the server and sign up under the admin's address.
		if first, err = u.firstAdmin(ctx); err != nil {
			return err
		}
	}
	u.starter = newStarter()
	if err := u.startServer(ctx); err != nil {
		return err
	}
	if !written {
		if known, err = u.firstKey(ctx, first); err != nil {
			return err
		}
	}
	admin := u.admin(ctx, known)
	if err := u.startAgent(ctx, admin); err != nil {
		return err
	}
	return u.baseTemplate(ctx, known, admin)
}

func (u *instance) database(ctx context.Context) error {
	u.dbURL = u.DatabaseURL
	if u.dbURL == "" {
		u.show.start("PostgreSQL")
		u.cluster = &pg.Cluster{Dir: u.path("postgres")}
		url, err := u.cluster.Start(ctx)
		if err != nil {
			return err
		}
		u.dbURL = url
		u.show.done("")
	}
	u.show.start("schema")
	if err := u.Parts.Migrate(ctx, u.dbURL); err != nil {
		return err
	}
	u.show.done("")
	return nil
}

// environ is what our children see: the caller's world, with our settings
// winning.
func (u *instance) environ(own ...string) []string {
	return append(append([]string{}, u.Environ...), append([]string{"SKERRY_DATA=" + u.Data}, own...)...)
}

func (u *instance) newChild(name string, environ func() []string) (*child, error) {
	log, err := openLog(u.path(filepath.Join("log", name+".log")))
	if err != nil {
		return nil, err
	}
	return &child{name: name, program: u.Program, args: []string{name}, environ: environ, log: log, say: u.show.say, starter: u.starter}, nil
}

func (u *instance) startServer(ctx context.Context) (err error) {
	u.show.start("server")
	u.server, err = u.newChild("server", func() []string {
		return u.environ("DATABASE_URL="+u.dbURL, "SKERRY_SECRET="+u.key, "SKERRY_LISTEN="+u.Listen, "SKERRY_AGENT_LISTEN="+u.AgentListen, "SKERRY_SANDBOX_LISTEN="+u.SandboxListen,
			"SKERRY_METRICS_LISTEN="+u.MetricsListen)
	})
	if err != nil {
		return err
	}
	u.server.run(ctx)
	ready := baseURL(u.Listen) + "/readyz"
	client := &http.Client{Timeout: 2 * time.Second}
	err = u.until(ctx, serverWithin, "the server to be ready", u.server, func(ctx context.Context) (bool, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, ready, nil)
		if err != nil {
			return false, err
		}
		answer, err := client.Do(r)
		if err != nil {
			return false, nil //nolint:nilerr // not yet
		}
		defer answer.Body.Close()
		return answer.StatusCode == http.StatusOK, nil
	})
	if err != nil {
		return err
	}
	u.show.done(baseURL(u.Listen))
	return nil
}

// admin logs in as the first admin. Nil when that no longer works: somebody
// changed the password, and then everything that needs it has long been done or
// is done by hand.
func (u *instance) admin(ctx context.Context, known credentials) *sdk.Client {
	anonymous, err := sdk.New(baseURL(u.Listen), sdk.WithUserAgent("skerry-up/"+u.Version))
	if err != nil {
		return nil
	}
	login, err := anonymous.Login(ctx, known.email, known.password)
	if err != nil {
		if ctx.Err() == nil {
			u.show.say(fmt.Sprintf("  ! logging in as %s failed (%s): is the password in %s still the right one?", known.email, printable(err.Error()), CredentialsFile(u.Data)))
		}
		return nil
	}
	client, err := sdk.New(baseURL(u.Listen), sdk.WithToken(login.Token), sdk.WithUserAgent("skerry-up/"+u.Version))
	if err != nil {
		return nil
	}
	return client
}

const hostName = "local"

// startAgent registers this machine unless it is, and waits until it is online.
func (u *instance) startAgent(ctx context.Context, admin *sdk.Client) error {
	u.show.start("host")
	hostID, err := u.Parts.HostID(AgentDir(u.Data))
	if err != nil {
		return err
	}
	var first join
	if hostID == "" {
		if admin == nil {
			return fmt.Errorf("this machine is not registered as a host yet, and that takes the admin's password: put it into %s as SKERRY_ADMIN_PASSWORD", CredentialsFile(u.Data))
		}
		if first, err = u.announce(ctx, admin); err != nil {
			return err
		}
		hostID = first.HostID
	}
	u.agent, err = u.newChild("agent", func() []string {
		own := []string{"SKERRY_SERVER=https://" + strings.TrimPrefix(baseURL(u.AgentListen), "http://"), "SKERRY_HOST_LISTEN=" + u.HostListen, "SKERRY_AGENT_METRICS_LISTEN=" + u.AgentMetricsListen}
		if first.Token != "" { // not registered yet
			own = append(own, "SKERRY_REGISTRATION_TOKEN="+first.Token, "SKERRY_CA_SHA256="+first.CASHA256)
		}
		return u.environ(own...)
	})
	if err != nil {
		return err
	}
	u.agent.run(ctx)
	if admin == nil {
		u.show.done("started")
		return nil
	}
	var host *sdk.Host
	err = u.until(ctx, hostWithin, "the host to be online", u.agent, func(ctx context.Context) (bool, error) {
		host, err = admin.Host(ctx, hostID)
		var refused *sdk.Error
		if errors.As(err, &refused) && refused.Status < http.StatusInternalServerError && refused.Status != http.StatusTooManyRequests {
			return false, err
		}
		return err == nil && host.Status == "online", nil
	})
	if err != nil {
		if host != nil && host.StatusReason.Value != "" {
			err = fmt.Errorf("%w (%s)", err, printable(host.StatusReason.Value))
		}
		return err
	}
	if err := removeIfThere(u.path("join.json")); err != nil {
		return err
	}
	var engines []string
	for _, e := range host.Engines {
		if e.Healthy {
			engines = append(engines, e.Name)
			continue
		}
		u.show.say(fmt.Sprintf("  ! the engine %s does not work here: %s", e.Name, printable(strings.Join(e.Reasons, "; "))))
	}
	if len(engines) == 0 {
		return errors.New("no engine works on this machine")
	}
	u.show.done(strings.Join(engines, ", "))
	return nil
}

// join is what an agent needs for its first contact. It is kept until the agent
// is registered: a registration whose answer was lost is repeated with the very
// same token.
type join struct {
	HostID    string    `json:"host_id"`
	Token     string    `json:"token"`
	CASHA256  string    `json:"ca_sha256"`
	ExpiresAt time.Time `json:"expires_at"`
}

// announce gets a registration token, or finds the one of a start that was cut
// short.
func (u *instance) announce(ctx context.Context, admin *sdk.Client) (join, error) {
	var j join
	raw, err := os.ReadFile(u.path("join.json"))
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return j, err
	case json.Unmarshal(raw, &j) == nil && time.Until(j.ExpiresAt) > hostWithin:
		return j, nil
	}
	// A host that still waits for its agent is used again.
	var waiting string
	for h, err := range admin.Hosts(ctx) {
		if err != nil {
			return j, err
		}
		if h.Status == "pending" && h.Name == hostName {
			waiting = h.ID
			break
		}
	}
	var made *sdk.CreatedHost
	if waiting != "" {
		made, err = admin.CreateHostToken(ctx, waiting)
	} else {
		made, err = admin.CreateHost(ctx, "regular", hostName)
	}
	if err != nil {
		return j, fmt.Errorf("register this machine: %w", err)
	}
	j = join{HostID: made.Host.ID, Token: made.RegistrationToken, CASHA256: made.CaSHA256, ExpiresAt: made.ExpiresAt}
	if raw, err = json.Marshal(j); err != nil {
		return j, err
	}
	return j, writeFile(u.path("join.json"), raw)
}

// baseTemplate builds the template "base" unless it is there, showing the
// build.
func (u *instance) baseTemplate(ctx context.Context, known credentials, admin *sdk.Client) error {
	u.show.start("base template")
	client, err := sdk.New(baseURL(u.Listen), sdk.WithAPIKey(known.key), sdk.WithUserAgent("skerry-up/"+u.Version))
	if err != nil {
		return err
	}
	t, err := client.Template(ctx, "base")
	var refused *sdk.Error
	switch {
	case err == nil && t.Status == "ready":
		u.show.done("")
		return nil
	case errors.As(err, &refused) && refused.Status == http.StatusUnauthorized && admin != nil:
		// The key was revoked; people may.
		if t, err = admin.Template(ctx, "base"); err == nil && t.Status == "ready" {
			u.show.done("")
			return nil
		}
	}
	if admin == nil {
		u.show.done("not looked at: see `skerry template list`")
		return nil
	}
	// The host counts as online from before the agent was started again.
	for deadline := time.Now().Add(hostWithin); ; {
		t, err = admin.BuildBase(ctx, u.show.detail)
		if !errors.As(err, &refused) || refused.Code != "host_unavailable" && refused.Code != "no_host" || time.Now().After(deadline) {
			break
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(250 * time.Millisecond):
		}
	}
	if err != nil {
		return fmt.Errorf("build the base template: %w", err)
	}
	u.show.done(fmt.Sprintf("%d MB", t.ImageSizeBytes.Value>>20))
	return nil
}

// until waits for ok, bounded, and gives up early when the child that should
// bring it about does not stay up.
func (u *instance) until(ctx context.Context, within time.Duration, what string, by *child, ok func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("gave up waiting for %s after %s", what, within))
	defer cancel()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		done, err := ok(ctx)
		if done || err != nil {
			return err
		}
		if err := by.failing(); err != nil {
			return err
		}
		if !pause(ctx, wait) {
			return fmt.Errorf("%w; the end of %s:\n%s", context.Cause(ctx), by.log.path, by.log.tail(8))
		}
	}
}

// ready says where everything is; what was made just now is shown this once.
func (u *instance) ready(took time.Duration) {
	_ = u.lock.tell(baseURL(u.Listen), true) // a hint for `down` and other ups
	lines := []string{"", fmt.Sprintf("Skerry runs at %s (ready after %.1f s).", baseURL(u.Listen), took.Seconds())}
	if u.made != nil {
		lines = append(lines,
			"  admin    "+u.made.email,
			"  password "+u.made.password,
			"  API key  "+u.made.key,
			"  All of it is kept in "+CredentialsFile(u.Data)+".")
	} else {
		lines = append(lines, "  Login and API key are in "+CredentialsFile(u.Data)+".")
	}
	lines = append(lines, "")
	u.show.say(strings.Join(lines, "\n"))
	if u.Ready != nil {
		u.Ready()
	}
}

// watch keeps PostgreSQL running until ctx ends; the children keep themselves.
func (u *instance) watch(ctx context.Context) error {
	if u.cluster == nil {
		<-ctx.Done()
		return nil
	}
	wait := leastPause
	for pause(ctx, pgWatchEvery) {
		if u.postgresLives() {
			wait = leastPause
			continue
		}
		u.show.say("PostgreSQL ended; starting it again")
		if _, err := u.cluster.Start(ctx); err != nil && ctx.Err() == nil {
			u.show.say(fmt.Sprintf("PostgreSQL does not start (%v); trying again in %s", err, wait))
			if !pause(ctx, wait) {
				break
			}
			wait = min(2*wait, mostPause)
		}
	}
	return nil
}

// postgresLives is a look that costs nothing: whether the process that the
// cluster's pid file names exists. A number that went to another process is
// found out by the server's readiness, and by the next start.
func (u *instance) postgresLives() bool {
	raw, err := os.ReadFile(filepath.Join(u.path("postgres"), "postmaster.pid"))
	if err != nil {
		return false
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil {
		return false
	}
	name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	return err == nil && strings.TrimSpace(string(name)) == "postgres"
}

// stop ends agent, server and PostgreSQL, in that order. Sandboxes stay.
func (u *instance) stop() error {
	for _, c := range []*child{u.agent, u.server} {
		if c != nil {
			u.show.start("stopping " + c.name)
			c.stop()
			u.show.done("")
		}
	}
	if u.starter != nil {
		u.starter.close()
	}
	if u.cluster == nil {
		return nil
	}
	u.show.start("stopping PostgreSQL")
	// The caller's context has ended: this is the cleanup after it.
	ctx, cancel := context.WithTimeout(context.Background(), pgStopWithin)
	defer cancel()
	if err := u.cluster.Stop(ctx); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	u.show.done("")
	return nil
}
