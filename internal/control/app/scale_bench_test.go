package app

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/gen/agentrpc/agent/v1/agentv1connect"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/hostlink"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/templatepg"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// The size of the synthetic fleet.
const (
	fleetHosts     = 1000
	fleetSandboxes = 20_000
	fleetTeams     = 20
	createsASecond = 50
)

// fleet is a thousand stand-ins for agents behind one process: each has its own
// address and certificate and speaks agent.v1, and none runs anything.
type fleet struct {
	pool  *pgxpool.Pool
	keys  *keyring.Keyring
	hosts []*standIn
	team  [fleetTeams]string // API keys
	plain *http.Client
}

type standIn struct {
	agentv1connect.UnimplementedAgentServiceHandler
	id      id.Host
	address string
	token   string
	client  *http.Client

	mu   sync.Mutex
	runs map[string]uint64
}

// CreateSandbox implements agent.v1.
func (h *standIn) CreateSandbox(_ context.Context, req *agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.runs[req.GetSandboxId()] = req.GetIncarnation()
	return &agentv1.CreateSandboxResponse{Sandbox: &agentv1.SandboxReport{SandboxId: req.GetSandboxId(), EngineVersion: "1"}}, nil
}

// Hello implements agent.v1.
func (h *standIn) Hello(context.Context, *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	return &agentv1.HelloResponse{HostId: h.id.UUID().String(), Version: "1", Generation: 1}, nil
}

// SetDeadlines implements agent.v1.
func (h *standIn) SetDeadlines(context.Context, *agentv1.SetDeadlinesRequest) (*agentv1.SetDeadlinesResponse, error) {
	return &agentv1.SetDeadlinesResponse{}, nil
}

// KeepWarm implements agent.v1: it has all at once.
func (h *standIn) KeepWarm(_ context.Context, req *agentv1.KeepWarmRequest) (*agentv1.KeepWarmResponse, error) {
	out := &agentv1.KeepWarmResponse{}
	for _, t := range req.GetTargets() {
		out.Kept = append(out.Kept, &agentv1.KeepWarmResponse_Kept{Key: t.GetKey(), Ready: t.GetCount()})
	}
	return out, nil
}

// Inventory implements agent.v1.
func (h *standIn) Inventory(context.Context, *agentv1.InventoryRequest) (*agentv1.InventoryResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := &agentv1.InventoryResponse{Generation: 1}
	for x, incarnation := range h.runs {
		out.Sandboxes = append(out.Sandboxes, &agentv1.SandboxReport{SandboxId: x, Incarnation: incarnation, Phase: agentv1.SandboxPhase_SANDBOX_PHASE_RUNNING})
	}
	return out, nil
}

func newFleet(b *testing.B, url, secretText string) *fleet {
	b.Helper()
	f := &fleet{plain: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	b.Cleanup(f.plain.CloseIdleConnections)
	var err error
	if f.pool, err = pg.Open(b.Context(), url); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(f.pool.Close)
	secret, err := keyring.ParseSecret(secretText)
	if err != nil {
		b.Fatal(err)
	}
	if f.keys, err = keyring.Load(b.Context(), keyringpg.New(f.pool), secret, clock.System{}); err != nil {
		b.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // one for all: what they do not share is their certificate
	if err != nil {
		b.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		b.Fatal(err)
	}
	batch := &pgx.Batch{}
	for i := range fleetHosts {
		h := &standIn{id: id.NewHost(), runs: map[string]uint64{}}
		cert, err := f.keys.SignHostCertificate(h.id, request)
		if err != nil {
			b.Fatal(err)
		}
		h.serve(b, tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}, f.keys.CAPool())
		family := id.NewHostRefreshToken()
		if h.token, _, err = f.keys.SignHost(keyring.HostClaims{Host: h.id, Family: family}); err != nil {
			b.Fatal(err)
		}
		batch.Queue(`INSERT INTO hosts (id, team_id, type, name, status, address, arch, cpu_count, memory_bytes, disk_bytes, engines, generation, last_heartbeat_at, registered_at)
			VALUES ($1, $2, 'regular', $3, 'online', $4, 'amd64', 64, $5, $6, '[{"name":"fake","version":"1","healthy":true}]', 1, now(), now())`,
			h.id, id.PlatformTeamID, fmt.Sprintf("host-%d", i), h.address, int64(256)<<30, int64(4)<<40)
		hash := sha256.Sum256([]byte(h.token))
		batch.Queue(`INSERT INTO host_refresh_tokens (id, host_id, public_key, token_hash, expires_at) VALUES ($1, $2, '\x00', $3, now() + interval '60 days')`, family, h.id, hash[:])
		f.hosts = append(f.hosts, h)
	}
	f.people(b, batch)
	if err := f.pool.SendBatch(b.Context(), batch).Close(); err != nil {
		b.Fatal(err)
	}
	return f
}

// people makes teams with keys, and what runs already.
func (f *fleet) people(b *testing.B, batch *pgx.Batch) {
	tpl := id.NewTemplate()
	const digest = "abababababababababababababababababababababababababababababababab"
	batch.Queue(`INSERT INTO templates (id, team_id, name, status, image_digest, image_size_bytes, manifest_digest) VALUES ($1, $2, 'base', 'ready', $3, 1, $3)`, tpl, id.PlatformTeamID, digest)
	var teams [fleetTeams]id.Team
	for i := range teams {
		teams[i], _ = teamtest.New(b, f.pool)
		digits := make([]byte, 20)
		_, _ = rand.Read(digits)
		text := hex.EncodeToString(digits)
		hash := sha256.Sum256([]byte(text))
		f.team[i] = "skerry_" + text
		batch.Queue(`INSERT INTO team_api_keys (id, team_id, name, key_hash, key_prefix, scopes) VALUES ($1, $2, 'bench', $3, 'x', '{sandboxes,read}')`, id.NewAPIKey(), teams[i], hash[:])
		batch.Queue(`INSERT INTO team_limits (team_id, sandboxes, cpu_millis, memory_mb, disk_mb) VALUES ($1, 1000000, 1000000000, 1000000000, 1000000000)`, teams[i])
	}
	for i := range fleetSandboxes {
		h, x := f.hosts[i%fleetHosts], id.NewSandbox()
		batch.Queue(`INSERT INTO sandboxes (id, team_id, host_id, template_id, template_name, image_digest, status, engine, engine_version, cpu_millis, memory_mb, disk_mb,
			timeout_sec, on_timeout, deadline_at, started_at, created_by_type, created_by_id, created_by_name)
			VALUES ($1, $2, $3, $4, 'base', $5, 'running', 'fake', '1', 1000, 512, 4096, 86400, 'pause', now() + interval '1 day', now(), 'user', 'u', 'Ann')`,
			x, teams[i%fleetTeams], h.id, tpl, digest)
		h.runs[x.UUID().String()] = 1
	}
	batch.Queue(`ANALYZE hosts`)
}

func (h *standIn) serve(b *testing.B, cert tls.Certificate, roots *x509.CertPool) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	h.address = listener.Addr().String()
	mux := http.NewServeMux()
	// What machines of their own would compress is no work of this one.
	mux.Handle(agentv1connect.NewAgentServiceHandler(h, connect.WithCompressMinBytes(1<<20)))
	server := &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(tls.NewListener(listener, &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, NextProtos: []string{"h2"},
		}))
	}()
	h.client = &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, ServerName: "127.0.0.1"}}}
	b.Cleanup(func() {
		h.client.CloseIdleConnections()
		_ = server.Close()
		<-done
	})
}

func (h *standIn) beat(ctx context.Context, url string) error {
	body, err := json.Marshal(map[string]any{
		"generation": 1, "address": h.address, "version": "1", "load": map[string]any{"sandboxes": 20, "cpu_millis": 0, "memory_bytes": 0, "disk_free_bytes": 1},
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/hosts/"+h.id.String()+"/heartbeat", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+h.token)
	res, err := h.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if said, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusNoContent {
		return fmt.Errorf("heartbeat: %d %s", res.StatusCode, said)
	}
	return nil
}

// beats sends heartbeats, each host's every thirty seconds, until ctx ends.
func (f *fleet) beats(ctx context.Context, b *testing.B, url string) {
	tick := time.NewTicker(30 * time.Second / fleetHosts)
	defer tick.Stop()
	var sent sync.WaitGroup
	defer sent.Wait()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			sent.Go(func() {
				if err := f.hosts[i%fleetHosts].beat(ctx, url); err != nil && ctx.Err() == nil {
					b.Error(err)
				}
			})
		}
	}
}

func quantile(took []time.Duration, q float64) float64 {
	slices.Sort(took)
	return float64(took[min(len(took)-1, int(q*float64(len(took))))].Microseconds()) / 1000
}

// BenchmarkFleetPass is one look at each of a thousand hosts with twenty
// sandboxes each, over the real protocol.
func BenchmarkFleetPass(b *testing.B) {
	_, secret := keyring.NewSecret()
	f := newFleet(b, pgtest.URL(b), secret)
	control, err := f.keys.IssueServer([]string{"localhost"}, nil)
	if err != nil {
		b.Fatal(err)
	}
	links := hostlink.NewHostClientPool(hostlink.Identity{Roots: f.keys.CAPool(), Certificate: func(context.Context) (*tls.Certificate, error) { return control, nil }})
	b.Cleanup(links.Close)
	agents := hostlink.NewAgents(links)
	store, log := sandboxpg.New(f.pool), slog.New(slog.DiscardHandler)
	watch := sandbox.NewWatch(store, log)
	templates := template.NewService(templatepg.New(f.pool), nil, nil, nil)
	runner := sandbox.NewRunner(store, agents, templates, f.keys.Secret, watch, sandbox.Config{}, log)
	service := sandbox.NewService(store, scheduler.RoundRobinScheduler{Overcommit: scheduler.DefaultOvercommit()}, templates, agents, runner, watch, f.keys.Secret, log)
	reconciler := sandbox.NewReconciler(service, 0, log)
	pass := func() time.Duration {
		began := time.Now()
		hands := make(chan struct{}, 256)
		var under sync.WaitGroup
		for _, h := range f.hosts {
			hands <- struct{}{}
			under.Go(func() {
				defer func() { <-hands }()
				if err := reconciler.ReconcileHost(b.Context(), host.Ref{ID: h.id, Address: h.address, Online: true}); err != nil {
					b.Error(err)
				}
			})
		}
		under.Wait()
		return time.Since(began)
	}
	b.Logf("the first pass, which makes the connections, took %s", pass())
	for b.Loop() {
		b.ReportMetric(pass().Seconds(), "s-pass")
	}
}

// BenchmarkFleetCreate is creates at a steady rate, each until the sandbox runs,
// at a whole server that has the fleet to monitor meanwhile.
func BenchmarkFleetCreate(b *testing.B) {
	_, secret := keyring.NewSecret()
	url := pgtest.URL(b)
	f := newFleet(b, url, secret)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := start(b, url, secret, b.TempDir())
	ctx, cancel := context.WithCancel(b.Context())
	var beating sync.WaitGroup
	beating.Go(func() { f.beats(ctx, b, s.agentURL) })
	defer beating.Wait()
	defer cancel()
	testkit.Eventually(b, time.Minute, "every host was looked at once", func() bool {
		var left int
		err := f.pool.QueryRow(ctx, `SELECT count(*) FROM hosts WHERE reconciled_at IS NULL`).Scan(&left)
		return err == nil && left == 0
	})
	for b.Loop() {
		const n = 20 * createsASecond
		took := make([]time.Duration, n)
		tick := time.NewTicker(time.Second / createsASecond)
		var asked sync.WaitGroup
		for i := range n {
			<-tick.C
			asked.Go(func() {
				began := time.Now()
				if err := f.create(ctx, s.url, f.team[i%fleetTeams]); err != nil {
					b.Error(err)
				}
				took[i] = time.Since(began)
			})
		}
		tick.Stop()
		asked.Wait()
		b.ReportMetric(quantile(took, .5), "ms-median")
		b.ReportMetric(quantile(took, .99), "ms-p99")
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(int64(after.HeapInuse)-int64(before.HeapInuse))/(1<<20), "MB-heap-of-the-server")
	b.ReportMetric(f.statements(b, s.agentURL), "transactions/heartbeat")
}

func (f *fleet) create(ctx context.Context, url, key string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/sandboxes", bytes.NewReader([]byte(`{"template":"base","timeout_sec":86400}`)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-API-Key", key)
	res, err := f.plain.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if said, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusCreated {
		return fmt.Errorf("create: %d %s", res.StatusCode, said)
	}
	return nil
}

// statements is how many transactions of the database a heartbeat costs: those
// of a burst less those of an equally long silence.
func (f *fleet) statements(b *testing.B, url string) float64 {
	b.Helper()
	commits := func() (n int64) {
		if err := f.pool.QueryRow(b.Context(), `SELECT pg_stat_get_db_xact_commit(oid) FROM pg_database WHERE datname = current_database()`).Scan(&n); err != nil {
			b.Fatal(err)
		}
		return n
	}
	const n = 2000
	began, from := time.Now(), commits()
	for i := range n {
		if err := f.hosts[i%fleetHosts].beat(b.Context(), url); err != nil {
			b.Fatal(err)
		}
	}
	lasted := time.Since(began)
	settle := time.NewTimer(1500 * time.Millisecond) // the database's counters come late
	<-settle.C
	busy := commits() - from
	from = commits()
	quiet := time.NewTimer(lasted + 1500*time.Millisecond)
	<-quiet.C
	return float64(busy-(commits()-from)) / n
}
