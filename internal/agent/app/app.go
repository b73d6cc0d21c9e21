package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"skerry.dev/skerry/internal/agent/carry"
	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/gvisor"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/image"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/network"
	"skerry.dev/skerry/internal/agent/rpcserver"
	"skerry.dev/skerry/internal/agent/shim"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/lifecycle"
)

const (
	registerRetryMin = 500 * time.Millisecond
	registerRetryMax = 30 * time.Second
)

// Run is the agent. It returns when ctx ends, or with what keeps it from
// working; sandboxes go on in either case. Only for a host that was deleted it
// ends them: then it returns nil when nothing of the host is left, also at the
// next start.
func Run(ctx context.Context, cfg Config) error { return RunWith(ctx, cfg, Options{}) }

// RunWith is Run with parts replaced.
func RunWith(ctx context.Context, cfg Config, opts Options) error {
	if err := errors.Join(cfg.faults(opts.Engines != nil)...); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, end, err := cfg.beWatched(ctx)
	if err != nil {
		return err
	}
	defer end()
	err = run(ctx, cfg, opts)
	if !errors.Is(err, identity.ErrLeft) {
		return err
	}
	if opts.Engines == nil {
		if err := clearHost(ctx, cfg); err != nil {
			return err
		}
	}
	cfg.Logger.Info("this host was deleted from its installation: its sandboxes are destroyed, its credentials are dropped, the agent ends; " +
		"`skerry join` makes this machine a new host")
	return nil
}

func run(ctx context.Context, cfg Config, opts Options) (err error) {
	down := &teardown{}
	defer func() { err = errors.Join(err, down.run()) }()

	j, err := journal.Open(filepath.Join(cfg.DataDir, "journal.db"), 0)
	if err != nil {
		return err
	}
	down.add(j.Close)
	me, err := identity.Open(identity.Config{
		Dir: IdentityDir(cfg.DataDir), ControlURL: cfg.ControlURL,
		Pin: cfg.CASHA256, Token: cfg.RegistrationToken, Logger: cfg.Logger, Step: opts.IdentityStep,
	})
	if err != nil {
		return err
	}
	down.add(func() error { me.Close(); return nil })
	tag, err := loadTag(cfg.DataDir)
	if err != nil {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	engines, err := openEngines(ctx, cfg, opts, tag, down)
	if err != nil {
		return err
	}
	versions, engineFacts := probe(ctx, engines)
	for _, f := range engineFacts {
		cfg.Logger.Info("engine", "name", f.Name, "version", f.Version, "healthy", f.Healthy, "reasons", f.Reasons)
	}
	// Addresses of an object store are not shown the host's certificate.
	direct := http.DefaultTransport.(*http.Transport).Clone()
	defer direct.CloseIdleConnections()
	transfers := transfer.Clients{Control: &http.Client{Transport: me}, Direct: &http.Client{Transport: direct}}
	nets, err := openNetworks(ctx, cfg, opts, tag, down)
	if err != nil {
		return err
	}
	imgs, err := openImages(cfg, opts, transfers)
	if err != nil {
		return err
	}
	guests := opts.NewGuest
	if guests == nil {
		guests = newGuest(cfg)
	}
	instances := instancesDir(cfg.DataDir)
	if err := os.MkdirAll(instances, 0o700); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	states, err := state.Open(statesDir(cfg), opts.StatesFS, cfg.Logger)
	if err != nil {
		return err
	}
	daemon, err := guestBuild(cfg, opts)
	if err != nil {
		return err
	}
	m := manager.New(manager.Config{
		MaxWarm: cfg.MaxWarm, WarmDir: warmDir(cfg.DataDir), GuestBuild: daemon, MemoryShort: memoryShort,
		States: states, Contact: me.Heard, Refused: me.Turned,
		LostContact: cfg.LostContact, LostContactPause: cfg.LostContactPause,
		Journal: j, Engines: cfg.watch.engines(engines), Versions: versions,
		Networks: cfg.watch.networks(nets), Images: cfg.watch.images(imgs), NewGuest: cfg.watch.guests(guests),
		InstancesDir: instances, GuestArgs: []string{image.GuestPath}, BootID: boot,
		Clock: clock.System{}, Logger: cfg.Logger, Step: opts.Step,
	})
	down.add(func() error { m.Close(); return nil })
	cfg.watch.see(cfg, m, me, states, nets)
	if err := m.Recover(ctx); err != nil {
		return err
	}
	carrier, err := openCarrier(cfg, states, imgs, daemon, engines, transfers)
	if err != nil {
		return err
	}
	down.add(func() error { carrier.Close(); return nil })
	facts, err := hostFacts(cfg, engineFacts)
	if err != nil {
		return err
	}
	if !deleted(me) {
		err = register(ctx, cfg, me, facts)
	}
	if deleted(me) {
		return leave(ctx, cfg, me, m)
	}
	if err != nil {
		return err
	}
	return serve(ctx, cfg, opts, served{
		journal: j, me: me, manager: m, facts: facts, build: buildBase(cfg.DataDir, transfers), carrier: carrier,
		engines: engines, states: states, imager: newImager(cfg, imgs, m, transfers),
	})
}

// served is what answers and keeps in touch.
type served struct {
	journal *journal.Journal
	me      *identity.Identity
	manager *manager.Manager
	facts   identity.Facts
	build   rpcserver.BuildBase
	carrier *carry.Carrier
	imager  rpcserver.Imager
	engines map[string]engine.Engine
	states  *state.Store
}

// openEngines makes sure of the shim and returns what this host offers. An
// engine that is not healthy is offered all the same, with its reasons.
func openEngines(ctx context.Context, cfg Config, opts Options, tag string, down *teardown) (map[string]engine.Engine, error) {
	if opts.Engines != nil {
		return opts.Engines, nil
	}
	// Nothing of our environment: it may hold the registration token.
	sh, err := shim.Ensure(ctx, shim.Config{Dir: ShimDir(cfg.DataDir), Command: cfg.ShimCommand, Env: []string{"PATH=" + os.Getenv("PATH")}, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	g, err := gvisor.New(gvisor.Config{
		StateDir: filepath.Join(cfg.DataDir, "run", "g"), Runsc: cfg.Runsc, BuildsDir: filepath.Join(cfg.DataDir, "engines", "gvisor"),
		Tag: tag, Logger: cfg.Logger,
	}, sh)
	if err != nil {
		return nil, err
	}
	down.add(g.Close)
	return map[string]engine.Engine{"gvisor": g}, nil
}

func openNetworks(ctx context.Context, cfg Config, opts Options, tag string, down *teardown) (manager.Networks, error) {
	if opts.Networks != nil {
		return opts.Networks, nil
	}
	n, err := network.New(ctx, network.Config{
		Tag: tag, CIDR: cfg.CIDR, MaxSlots: cfg.MaxSlots, WarmSlots: cfg.WarmSlots, DNSUpstreams: cfg.DNSUpstreams,
		Denied: cfg.Denied, StateDir: filepath.Join(cfg.DataDir, "run", "network"), Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	down.add(n.Close)
	return networks{n}, nil
}

func openImages(cfg Config, opts Options, clients transfer.Clients) (manager.Images, error) {
	if opts.Images != nil {
		return opts.Images, nil
	}
	c, err := image.New(image.Config{
		Dir: filepath.Join(cfg.DataDir, "images"), GuestBinary: cfg.GuestBinary, MaxBytes: cfg.ImageCacheBytes, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	return images{cache: c, clients: clients}, nil
}

// register waits for the control plane as long as it takes, but not for one
// that refuses this host.
func register(ctx context.Context, cfg Config, me *identity.Identity, facts identity.Facts) error {
	for pause := registerRetryMin; ; pause = min(2*pause, registerRetryMax) {
		err := me.Register(ctx, facts)
		var refused *identity.Refused
		var transient *net.OpError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &refused) && (refused.Status >= 500 || refused.Status == http.StatusTooManyRequests):
		case errors.As(err, &transient), errors.Is(err, context.DeadlineExceeded):
		default:
			return err
		}
		cfg.Logger.Warn("the host could not be registered yet", "err", err)
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// serve listens and keeps in touch until ctx ends.
func serve(ctx context.Context, cfg Config, opts Options, s served) error {
	j, me, m, facts := s.journal, s.me, s.manager, s.facts
	tlsConfig, err := me.ServerConfig()
	if err != nil {
		return err
	}
	srv, err := rpcserver.New(rpcserver.Config{
		Facts:     rpcserver.Facts{HostID: me.HostID(), Version: cfg.Version, Generation: j.Generation()},
		Sandboxes: m, Carrier: s.carrier, Imager: s.imager, BuildBase: s.build, TLS: tlsConfig, Watchers: cfg.watch.calls, Logger: cfg.Logger,
	})
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	contact := identity.Contact{
		Identity: me, Generation: j.Generation(), Version: cfg.Version, Address: advertised(cfg, ln.Addr()),
		Engines:   func(ctx context.Context) []identity.EngineFact { _, now := probe(ctx, s.engines); return now },
		Heartbeat: cfg.Heartbeat, Outbox: j, Load: load(cfg, m), Samples: samples(m), SampleEvery: cfg.SampleEvery,
	}
	cfg.Logger.Info("the agent is up", "host_id", me.HostID().String(), "address", contact.Address, "generation", j.Generation())
	if opts.Ready != nil {
		opts.Ready(ln.Addr())
	}
	parts, inner := lifecycle.NewGroup(ctx)
	parts.Go(func(ctx context.Context) error { return srv.Serve(ctx, ln) })
	parts.Go(func(ctx context.Context) error { contact.Beat(ctx); return nil })
	parts.Go(func(ctx context.Context) error { contact.Deliver(ctx); return nil })
	parts.Go(func(ctx context.Context) error { contact.Measure(ctx); return nil })
	parts.Go(func(ctx context.Context) error { return contact.Rejoin(ctx, facts) })
	parts.Go(func(ctx context.Context) error { keepBuilds(ctx, cfg, s.engines, s.states); return nil })
	parts.Go(func(ctx context.Context) error {
		select {
		case <-me.Deleted():
			return identity.ErrDeleted
		case <-ctx.Done():
			return nil
		}
	})
	// Calls in flight wait for the manager: end both together.
	<-inner.Done()
	if deleted(me) && ctx.Err() == nil {
		err := leave(ctx, cfg, me, m)
		_ = parts.Wait() // that it was deleted
		return err
	}
	if cfg.PauseOnStop && ctx.Err() != nil {
		pauseOnStop(ctx, cfg, m)
	}
	cool(ctx, cfg, m)
	m.Close()
	return parts.Wait()
}

// coolWithin bounds how long the agent's end waits for instances that are nobody's
// to be gone; what is left the next start finds.
const coolWithin = 10 * time.Second

func cool(ctx context.Context, cfg Config, m *manager.Manager) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), coolWithin)
	defer cancel()
	if err := m.Cool(ctx); err != nil {
		cfg.Logger.Warn("not all instances that waited for sandboxes are gone", "err", err)
	}
}

// pauseOnStop pauses all before the machine goes down. Whoever stops the agent
// decides how long it may take; what is not paused by then runs on.
func pauseOnStop(ctx context.Context, cfg Config, m *manager.Manager) {
	for _, o := range m.PauseForShutdown(context.WithoutCancel(ctx)) {
		log := cfg.Logger.With("sandbox_id", o.Sandbox.String(), "incarnation", o.Incarnation)
		if o.Err != nil {
			log.Error("a sandbox could not be paused before the shutdown", "err", o.Err)
			continue
		}
		log.Info("paused before the shutdown")
	}
}

func load(cfg Config, m *manager.Manager) func() identity.Load {
	return func() identity.Load {
		l := m.Load()
		out := identity.Load{Sandboxes: l.Sandboxes, CPUMillis: l.CPUMillis, MemoryBytes: l.MemoryBytes}
		_, free, err := disk(cfg.DataDir)
		if err != nil {
			cfg.Logger.Error("free space is unknown", "err", err)
		}
		out.DiskFreeBytes = free
		return out
	}
}

// advertised is where the control plane reaches this agent. A port chosen by
// the kernel is known only once it listens.
func advertised(cfg Config, ln net.Addr) string {
	if cfg.Address != "" {
		return cfg.Address
	}
	if ln != nil {
		return ln.String()
	}
	if _, port, err := net.SplitHostPort(cfg.Listen); err != nil || port == "0" {
		return ""
	}
	return cfg.Listen
}

// teardown undoes what was set up, the last first.
type teardown struct{ steps []func() error }

func (t *teardown) add(step func() error) { t.steps = append(t.steps, step) }

func (t *teardown) run() error {
	var errs []error
	for i := len(t.steps) - 1; i >= 0; i-- {
		errs = append(errs, t.steps[i]())
	}
	return errors.Join(errs...)
}
