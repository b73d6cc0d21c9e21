package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/gen/restapi"
	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/account/accounthttp"
	"skerry.dev/skerry/internal/control/account/accountpg"
	"skerry.dev/skerry/internal/control/apikey"
	"skerry.dev/skerry/internal/control/apikey/apikeyhttp"
	"skerry.dev/skerry/internal/control/apikey/apikeypg"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/audithttp"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/e2b"
	"skerry.dev/skerry/internal/control/edge"
	"skerry.dev/skerry/internal/control/event"
	"skerry.dev/skerry/internal/control/event/eventhttp"
	"skerry.dev/skerry/internal/control/event/eventpg"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/host/hosthttp"
	"skerry.dev/skerry/internal/control/host/hostpg"
	"skerry.dev/skerry/internal/control/hostlink"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg"
	"skerry.dev/skerry/internal/control/mail"
	"skerry.dev/skerry/internal/control/oauth"
	"skerry.dev/skerry/internal/control/oauth/oauthhttp"
	"skerry.dev/skerry/internal/control/oauth/oauthpg"
	"skerry.dev/skerry/internal/control/port"
	"skerry.dev/skerry/internal/control/port/porthttp"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/quota"
	"skerry.dev/skerry/internal/control/quota/quotahttp"
	"skerry.dev/skerry/internal/control/quota/quotapg"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxhttp"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio/sandboxiohttp"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/control/team/teamhttp"
	"skerry.dev/skerry/internal/control/team/teampg"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/build"
	"skerry.dev/skerry/internal/control/template/templatehttp"
	"skerry.dev/skerry/internal/control/template/templatepg"
	"skerry.dev/skerry/internal/control/warm"
	"skerry.dev/skerry/internal/control/warm/warmpg"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/lifecycle"
	"skerry.dev/skerry/internal/kernel/observe"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/telemetry"
	dashboard "skerry.dev/skerry/web"
)

// grace is how long requests in flight may take to finish at a stop.
const grace = 5 * time.Second

// control is the control plane, put together.
type control struct {
	cfg  settings
	log  *slog.Logger
	tel  *telemetry.Telemetry
	pool *pgxpool.Pool

	keys       *keyring.Keyring
	certs      *certificates
	links      *hostlink.HostClientPool
	store      content.Store
	storeThere func(context.Context) error
	signer     *transfer.Signer
	artifacts  *artifact.Service
	moves      http.Handler // of bytes, between hosts and the store
	collector  *artifact.Collector
	engines    *artifact.EngineKeeper
	replays    *idempotency.Service
	trail      *audit.Trail
	pruner     *audit.Pruner
	refusals   *audit.Refusals
	accounts   *account.Service
	logins     *oauth.Service
	apiKeys    *apikey.Service
	quotas     *quota.Service
	teams      *team.Service
	hosts      *host.Service
	monitor    *host.HostMonitor
	templates  *template.Service
	builds     *build.Service
	builder    *build.Driver
	buildFeed  *build.Feed
	buildSweep *build.Sweep
	scratch    *os.File // this run's directory, locked
	io         *sandboxio.Service
	runner     *sandbox.Runner
	uploader   *sandbox.Uploader
	evictor    *sandbox.Evictor
	warm       *warm.Keeper
	watch      *sandbox.Watch
	sandboxes  *sandbox.Service
	ports      *port.Service
	edge       *edge.Edge
	streams    *sandboxiohttp.Handlers
	feed       *event.Feed
	tickets    *event.Tickets
	web        *web.Server
	api        http.Handler
}

// Run is a server: it migrates the database, serves until ctx ends, and stops in
// order. Several may run on one database.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	set, err := cfg.parse()
	if err != nil {
		return err
	}
	public, agents, err := listen(set)
	if err != nil {
		return err
	}
	defer public.Close()
	defer agents.Close()
	inward, err := listenSandboxes(set)
	if err != nil {
		return err
	}
	defer inward.Close()
	watchers, err := listenMetrics(ctx, set.MetricsListen)
	if err != nil {
		return err
	}
	if watchers != nil {
		defer watchers.Close()
	}
	tel, err := telemetry.New(ctx, telemetry.Config{Program: "server", Version: set.Version, Metrics: watchers != nil, Log: log})
	if err != nil {
		return err
	}
	defer tel.Close(ctx)
	log = slog.New(tel.Log(log.Handler()))
	ctx = observe.With(ctx, tel.Observer())
	if err := pg.Migrate(ctx, cfg.DatabaseURL); err != nil {
		return err
	}
	pool, err := pg.Open(ctx, cfg.DatabaseURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	c := &control{cfg: set, log: log, tel: tel, pool: pool}
	for _, build := range []func(context.Context) error{c.openKeys, c.openStore, c.openRooms, c.openWeb} {
		if err := build(ctx); err != nil {
			return err
		}
	}
	defer c.closeScratch()
	defer c.links.Close()
	defer c.serveMetrics(ctx, tel, watchers)()
	return c.serve(ctx, public, agents, inward)
}

// listen opens both listeners first: a port in use is the most common fault.
func listen(set settings) (public, agents net.Listener, err error) {
	public, err = net.Listen("tcp", set.Listen)
	if err != nil {
		return nil, nil, fmt.Errorf("SKERRY_LISTEN: %w", err)
	}
	if set.TLSCert != "" {
		pair, err := tls.LoadX509KeyPair(set.TLSCert, set.TLSKey)
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("SKERRY_TLS_CERT: %w", err), public.Close())
		}
		public = tls.NewListener(public, &tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"},
		})
	}
	agents, err = net.Listen("tcp", set.AgentListen)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("SKERRY_AGENT_LISTEN: %w", err), public.Close())
	}
	return public, agents, nil
}

func (c *control) openKeys(ctx context.Context) (err error) {
	c.keys, err = keyring.Load(ctx, keyringpg.New(c.pool), c.cfg.secret, clock.System{})
	if err != nil {
		return err
	}
	c.certs = newCertificates(c.keys, c.cfg.AgentURL)
	watchers, err := c.tel.Client("host")
	if err != nil {
		return err
	}
	c.links = hostlink.NewHostClientPool(hostlink.Identity{Certificate: c.certs.current, Roots: c.keys.CAPool()}, watchers...)
	return nil
}

func (c *control) openRooms(ctx context.Context) (err error) {
	agents := hostlink.NewAgents(c.links)
	c.replays = idempotency.NewService(idempotencypg.New(c.pool))
	entries := auditpg.New(c.pool)
	c.trail = audit.NewTrail(entries, c.keys, clock.System{})
	c.pruner = audit.NewPruner(entries, c.cfg.keep, c.log)
	c.refusals = audit.NewRefusals(entries, clock.System{}, c.log)
	c.apiKeys = apikey.NewService(apikeypg.New(c.pool), clock.System{}, c.log)
	mailer, err := mail.Open(c.cfg.SMTPURL, c.cfg.MailFrom, c.log, clock.System{})
	if err != nil {
		return fmt.Errorf("SKERRY_SMTP_URL: %w", err)
	}
	c.accounts, err = account.NewService(ctx, account.Config{
		Store: accountpg.New(c.pool), Signer: c.keys, Hasher: account.NewHasher(account.DefaultCost()), Signup: c.cfg.signup, Clock: clock.System{},
		Log: c.log, URL: c.cfg.URL, Invited: c.invited, Mailer: mailer,
	})
	if err != nil {
		return err
	}
	c.logins = oauth.NewService(oauthpg.New(c.pool), c.accounts, c.cfg.providers(), c.cfg.URL, c.log)
	c.feed = event.NewFeed(eventpg.New(c.pool), c.log)
	c.tickets = event.NewTickets(eventpg.New(c.pool).Tickets(), callers{c.accounts, c.apiKeys})
	hosts := hostpg.New(c.pool)
	if err := hosts.AwaitLooks(ctx); err != nil {
		return err
	}
	c.hosts = host.NewService(hosts, c.keys, c.cfg.secret, agents, c.cfg.AgentURL, c.log)
	c.engines = artifact.NewEngineKeeper(artifactpg.New(c.pool), agents, c.artifacts, c.log)
	c.templates = template.NewService(templatepg.New(c.pool), c.hosts, agents, c.artifacts)

	over := scheduler.Overcommit{CPU: c.cfg.CPUOvercommit, Memory: c.cfg.MemOvercommit}
	c.warm = warm.NewKeeper(warmpg.New(c.pool, over), agents, c.templates, c.cfg.warm, c.log)
	sandboxes := watchedStore{sandboxpg.New(c.pool), c.tel.Observer(), c.warm.Hint}
	c.watch = sandbox.NewWatch(sandboxes, c.log)
	c.runner = sandbox.NewRunner(sandboxes, agents, c.templates, c.cfg.secret, c.watch, sandbox.Config{
		Artifacts: vault{c.artifacts, artifactpg.New(c.pool)}, OnStep: steps(c.tel.Observer()),
	}, c.log)
	c.uploader = sandbox.NewUploader(sandboxes, agents, vault{c.artifacts, artifactpg.New(c.pool)}, sandbox.UploadConfig{After: c.cfg.uploadAfter}, c.log)
	c.evictor = sandbox.NewEvictor(sandboxes, c.cfg.watermark, c.log)
	c.sandboxes = sandbox.NewService(sandboxes, c.cfg.scheduler, c.templates, agents, c.runner, c.watch, c.cfg.secret, c.log)
	c.openEdge()
	c.quotas = quota.NewService(quotapg.New(c.pool))
	c.teams = team.NewService(teampg.New(c.pool), c.sandboxes, account.NormalizeEmail, c.cfg.URL, clock.System{}, c.log)
	if err := c.openBuilds(agents); err != nil {
		return err
	}
	c.monitor = host.NewHostMonitor(hosts, sandbox.NewReconciler(c.sandboxes, 2*c.cfg.HostLook, c.log), c.log)
	c.monitor.SetStaleAfter(c.cfg.HostSilence)
	c.monitor.SetReconcileEvery(c.cfg.HostLook)
	c.hosts.OnContact(c.monitor.Hint)
	c.hosts.OnDeleted(c.links.Evict)
	return nil
}

// handler is all rooms' slices of the REST handler together.
type handler struct {
	web.Errors
	*accounthttp.Accounts
	*apikeyhttp.APIKeys
	*audithttp.Trail
	*teamhttp.Teams
	*quotahttp.Limits
	*hosthttp.Handlers
	*porthttp.Ports
	templates
	sandboxes
	traffic
	events
	logins
}

// vault is what the sandbox room needs of the store.
type vault struct {
	*artifact.Service
	*artifactpg.Store
}

// Named, because all are called Handlers in their rooms.
type (
	templates struct{ *templatehttp.Handlers }
	sandboxes struct{ *sandboxhttp.Handlers }
	traffic   struct{ *sandboxiohttp.Handlers }
	events    struct{ *eventhttp.Handlers }
	logins    struct{ *oauthhttp.Handlers }
)

// invited finds the address that an invitation names.
func (c *control) invited(ctx context.Context, token string) (string, error) {
	preview, err := c.teams.Preview(ctx, token)
	if errs.CodeOf(err) == errs.CodeNotFound {
		return "", nil
	}
	return preview.Email, err
}

// callers finds who holds a ticket.
type callers struct {
	*account.Service
	keys *apikey.Service
}

func (c callers) ByKey(ctx context.Context, key id.APIKey) (principal.Principal, error) {
	return c.keys.ByKey(ctx, key)
}

func (c *control) openWeb(context.Context) (err error) {
	c.web, err = web.New(web.Config{
		Log: c.log, Clock: clock.System{}, Secret: c.cfg.secret, Tokens: c.keys, Users: c.accounts, Keys: c.apiKeys, Tickets: c.tickets, Hosts: c.hosts, Refusals: c.refusals,
		Proxies: c.cfg.proxies, Limits: c.cfg.limits(),
		Checks:    []web.Check{{Name: "database", Probe: c.pool.Ping}, {Name: "artifact_store", Probe: c.storeThere}},
		Dashboard: dashboard.Dashboard(),
	})
	if err != nil {
		return err
	}
	c.streams = sandboxiohttp.New(c.io, sandboxiohttp.Options{
		WriteError: web.WriteError, Log: c.log,
		AllowedOrigins: []string{strings.TrimRight(c.cfg.URL, "/")}, // a proxy may send its own Host
	})
	trail := audithttp.New(c.trail, c.keys, web.WriteError)
	built := templatehttp.New(c.templates, c.builds, c.replays, templatehttp.Options{
		WriteError: web.WriteError, Failure: func(ctx context.Context, err error) restapi.Error { return web.Errors{}.NewError(ctx, err).Response },
	})
	changes := eventhttp.New(c.feed, eventpg.New(c.pool), c.tickets, eventhttp.Options{
		WriteError: web.WriteError, Permit: web.Permit, Sandbox: c.sandboxes.Get, Log: c.log, AllowedOrigins: []string{strings.TrimRight(c.cfg.URL, "/")},
	})
	accounts := accounthttp.New(c.accounts, c.replays)
	ways := oauthhttp.New(c.logins, c.cfg.signup, accounts.SetRefresh, c.cfg.URL)
	for _, r := range []web.Route{
		{Method: http.MethodGet, Path: "/v1/auth/oauth/{provider}", Operation: "startOAuth", Handler: ways.Start},
		{Method: http.MethodGet, Path: "/v1/auth/oauth/{provider}/callback", Operation: "finishOAuth", Handler: ways.Finish},
		{Method: http.MethodGet, Path: "/v1/events", Operation: "streamEvents", Handler: changes.Stream},
		{Method: http.MethodGet, Path: "/v1/admin/events", Operation: "adminStreamEvents", Handler: changes.AdminStream},
		{Method: http.MethodPost, Path: "/v1/templates/base/build", Operation: "buildBaseTemplate", Handler: built.BuildBase},
		{Method: http.MethodPost, Path: "/v1/build-contexts", Operation: "uploadBuildContext", AnyBody: true, Handler: built.UploadContext},
		{Method: http.MethodGet, Path: "/v1/builds/{id}/logs", Operation: "getBuildLogs", Handler: built.BuildLogs},
		{Method: http.MethodGet, Path: "/v1/sandboxes/{id}/exec/stream", Operation: "streamExec", Handler: c.streams.StreamExec},
		{Method: http.MethodGet, Path: "/v1/sandboxes/{id}/pty", Operation: "openPTY", Handler: c.streams.OpenPTY},
		{Method: http.MethodGet, Path: "/v1/sandboxes/{id}/files", Operation: "downloadFile", Handler: c.streams.DownloadFile},
		{Method: http.MethodPut, Path: "/v1/sandboxes/{id}/files", Operation: "uploadFile", AnyBody: true, Handler: c.streams.UploadFile},
		{Method: http.MethodGet, Path: "/v1/audit-logs/export", Operation: "exportAuditLogs", Handler: trail.Export},
		{Method: http.MethodGet, Path: "/v1/admin/audit-logs/export", Operation: "adminExportAuditLogs", Handler: trail.AdminExport},
	} {
		c.web.Mount(r)
	}
	e2b.New(e2b.Config{Sandboxes: c.sandboxes, Templates: c.templates, Origin: c.cfg.sandboxes, Secret: c.cfg.secret}).Mount(c.web)
	c.api, err = c.web.Handler(handler{
		Accounts: accounts, logins: logins{ways}, APIKeys: apikeyhttp.New(c.apiKeys, c.replays), Trail: trail,
		Teams: teamhttp.New(c.teams, c.replays), Limits: quotahttp.New(c.quotas),
		Ports:     porthttp.New(c.ports, c.replays, c.cfg.sandboxes),
		Handlers:  hosthttp.New(c.hosts, c.sandboxes, c.sandboxes, c.replays),
		templates: templates{built}, sandboxes: sandboxes{sandboxhttp.New(c.sandboxes, c.replays)}, traffic: traffic{c.streams}, events: events{changes},
	})
	return err
}

// serve runs everything until ctx ends. Requests come to their end first; the
// loops they wait for go on until then.
func (c *control) serve(ctx context.Context, public, agents, inward net.Listener) error {
	loops, _ := lifecycle.NewGroup(context.WithoutCancel(ctx))
	for _, loop := range []func(context.Context) error{
		c.builder.Run, c.buildFeed.Run, c.buildSweep.Run,
		c.runner.Run, c.watch.Run, c.monitor.Run, sandbox.NewSweep(c.sandboxes, c.log).Run, c.accounts.Run, c.apiKeys.Run, c.teams.Run, c.web.Recheck, c.forget, c.pruner.Run, c.refusals.Run,
		c.uploader.Run, c.evictor.Run, c.warm.Run, c.collector.Run, c.engines.Run, c.feed.Run, c.tickets.Run, c.logins.Run, sandbox.NewDrainer(c.sandboxes, c.log).Run, c.links.Follow(hostpg.New(c.pool), c.log), c.edge.Run,
	} {
		loops.Go(loop)
	}
	front, _ := lifecycle.NewGroup(ctx)
	front.Go(func(ctx context.Context) error { return c.web.Serve(ctx, public, onlyPublic(c.api), grace) })
	front.Go(func(ctx context.Context) error {
		return c.web.Serve(ctx, c.agentTLS(agents), c.onlyAgents(), grace)
	})
	front.Go(func(ctx context.Context) error { return c.edge.Serve(ctx, inward) })
	front.Go(func(ctx context.Context) error {
		<-ctx.Done()
		c.streams.Close()
		return nil
	})
	c.log.InfoContext(ctx, "serving", "url", c.cfg.URL, "listen", public.Addr().String(), "agent_listen", agents.Addr().String(), "sandbox_url", c.cfg.SandboxURL, "sandbox_listen", inward.Addr().String())
	err := front.Wait()
	loops.Stop()
	return errors.Join(err, loops.Wait())
}

// forget removes old idempotency keys and sessions.
func (c *control) forget(ctx context.Context) error {
	ticker := time.NewTicker(10 * time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		err := observe.Round(ctx, "session_retention", func(ctx context.Context) error {
			return errors.Join(c.replays.Sweep(ctx), c.accounts.Sweep(ctx))
		})
		if err != nil && ctx.Err() == nil {
			c.log.WarnContext(ctx, "cannot forget old idempotency keys and sessions", "error", err)
		}
	}
}
