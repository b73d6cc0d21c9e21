package sandboxtest

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/templatepg"
	"skerry.dev/skerry/internal/kernel/id"
)

// World is a database with a team, a template and hosts, and fake agents.
type World struct {
	t      testing.TB
	Pool   *pgxpool.Pool
	Store  *sandboxpg.Store
	Agents *Agents
	Secret keyring.Secret
	Team   id.Team
	Hosts  []id.Host
	// Scheduler of the servers started from now on.
	Scheduler scheduler.Scheduler
}

// NewWorld fills an empty, migrated database with one host of the given size.
func NewWorld(t testing.TB, pool *pgxpool.Pool, cpus, memoryMB int) *World {
	t.Helper()
	secret, _ := keyring.NewSecret()
	w := &World{
		t: t, Pool: pool, Store: sandboxpg.New(pool), Agents: NewAgents(), Secret: secret, Scheduler: scheduler.RoundRobinScheduler{Overcommit: Overcommit()},
	}
	w.Agents.complete = w.completeArtifact
	w.Team = w.NewTeam()
	digest := strings.Repeat("ab", 32)
	w.exec(`INSERT INTO templates (id, team_id, name, status, image_digest, image_size_bytes, manifest_digest) VALUES ($1, $2, 'base', 'ready', $3, 1, $3)`,
		id.NewTemplate(), id.PlatformTeamID, digest)
	w.AddHost(cpus, memoryMB)
	return w
}

func (w *World) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.Pool.Exec(context.Background(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// NewTeam makes a team.
func (w *World) NewTeam() id.Team {
	w.t.Helper()
	team, _ := teamtest.New(w.t, w.Pool)
	return team
}

// AddHost puts a host in service.
func (w *World) AddHost(cpus, memoryMB int) id.Host {
	w.t.Helper()
	h := id.NewHost()
	w.exec(`INSERT INTO hosts (id, team_id, type, name, status, address, cpu_count, memory_bytes, disk_bytes, engines, generation, last_heartbeat_at)
		VALUES ($1, $2, 'regular', $3, 'online', '127.0.0.1:1', $4, $5, $6, '[{"name":"fake","version":"fake-1","healthy":true}]', 1, now())`,
		h, id.PlatformTeamID, "host-"+h.UUID().String()[24:], cpus, int64(memoryMB)<<20, int64(1)<<40)
	w.Hosts = append(w.Hosts, h)
	return h
}

// Ref is a host as it is called.
func (w *World) Ref(h id.Host) host.Ref { return host.Ref{ID: h, Address: "127.0.0.1:1", Online: true} }

// User is a member of the team.
func (w *World) User() principal.Principal { return w.UserOf(w.Team) }

// UserOf is a member of a team.
func (w *World) UserOf(team id.Team) principal.Principal {
	return principal.Principal{Kind: principal.KindUser, UserID: id.NewUser(), UserName: "Ann", HasTeam: true, TeamID: team, Role: principal.RoleMember}
}

// Server is one control plane on the world's database.
type Server struct {
	Service    *sandbox.Service
	Runner     *sandbox.Runner
	Watch      *sandbox.Watch
	Sweep      *sandbox.Sweep
	Reconciler *sandbox.Reconciler
	stop       context.CancelFunc
	wg         sync.WaitGroup
}

// Overcommit of tests of capacity: none.
func Overcommit() scheduler.Overcommit { return scheduler.Overcommit{CPU: 1, Memory: 1} }

// Serve starts a server; it is stopped at the end of the test, or before.
func (w *World) Serve(cfg sandbox.Config) *Server {
	w.t.Helper()
	if cfg.Artifacts == nil {
		cfg.Artifacts = w.Vault()
	}
	if cfg.Poll == 0 {
		cfg.Poll = 20 * time.Millisecond
	}
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{stop: cancel}
	templates := template.NewService(templatepg.New(w.Pool), nil, nil, w.Vault())
	s.Watch = sandbox.NewWatch(w.Store, log)
	s.Runner = sandbox.NewRunner(w.Store, w.Agents, templates, w.Secret, s.Watch, cfg, log)
	s.Service = sandbox.NewService(w.Store, w.Scheduler, templates, w.Agents, s.Runner, s.Watch, w.Secret, log)
	s.Sweep = sandbox.NewSweep(s.Service, log)
	s.Reconciler = sandbox.NewReconciler(s.Service, time.Nanosecond, log)
	started := make(chan struct{})
	s.wg.Go(func() { close(started); _ = s.Runner.Run(ctx) })
	s.wg.Go(func() { _ = s.Watch.Run(ctx) })
	<-started
	w.t.Cleanup(s.Stop)
	return s
}

// Reconciler is one of a server that sees its hosts through other eyes.
func (w *World) Reconciler(s *Server, agents sandbox.Agents, grace time.Duration) *sandbox.Reconciler {
	log := slog.New(slog.DiscardHandler)
	templates := template.NewService(templatepg.New(w.Pool), nil, nil, w.Vault())
	service := sandbox.NewService(w.Store, w.Scheduler, templates, agents, s.Runner, s.Watch, w.Secret, log)
	return sandbox.NewReconciler(service, grace, log)
}

// Stop ends the server in order and waits for it.
func (s *Server) Stop() {
	s.stop()
	s.wg.Wait()
}
