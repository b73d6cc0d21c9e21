package hosthttp_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/host/hosthttp"
	"skerry.dev/skerry/internal/control/host/hostpg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// statements counts what a server asks the database.
type statements struct{ n atomic.Int64 }

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	s.n.Add(1)
	return ctx
}

func (*statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// elsewhere stands for the rooms that this test does not start.
type elsewhere struct{ restapi.Handler }

type api struct {
	web.Errors
	*hosthttp.Handlers
	elsewhere
}

// reachable are agents that answer.
type reachable struct{}

func (reachable) Hello(context.Context, host.Ref) (int64, error) { return 1, nil }

func (reachable) DestroySandbox(context.Context, host.Ref, id.Sandbox, int64, string) error {
	return nil
}

type desk struct {
	url   string
	hosts *host.Service
	keys  *keyring.Keyring
	pool  *pgxpool.Pool // not counted
	asked *statements
	admin principal.Principal
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	ctx := context.Background()
	d := &desk{pool: pgtest.New(t), asked: &statements{}}
	config := d.pool.Config()
	config.ConnConfig.Tracer = d.asked
	traced, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(traced.Close)
	secret, _ := keyring.NewSecret()
	if d.keys, err = keyring.Load(ctx, keyringpg.New(d.pool), secret, clock.System{}); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	d.hosts = host.NewService(hostpg.New(traced), d.keys, secret, reachable{}, "https://control:7071", log)
	server, err := web.New(web.Config{Log: log, Clock: clock.System{}, Secret: secret, Tokens: d.keys, Hosts: d.hosts})
	if err != nil {
		t.Fatal(err)
	}
	handler, err := server.Handler(&api{Handlers: hosthttp.New(d.hosts, nil, nil, nil)})
	if err != nil {
		t.Fatal(err)
	}
	listening := httptest.NewServer(handler)
	t.Cleanup(listening.Close)
	d.url = listening.URL
	d.admin = principal.Principal{Kind: principal.KindUser, UserID: id.NewUser(), IsAdmin: true}
	if _, err := d.pool.Exec(ctx, `INSERT INTO users (id, email, name, is_admin) VALUES ($1, 'root@example.org', 'Root', true)`, d.admin.UserID); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *desk) join(t *testing.T) host.Credentials {
	t.Helper()
	made, err := d.hosts.Create(t.Context(), d.admin, host.CreateRequest{Type: host.TypeRegular})
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.hosts.Register(t.Context(), principal.Principal{}, made.Token, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), host.Facts{
		Hostname: "box", Arch: "amd64", CPUs: 4, MemoryBytes: 8 << 30, DiskBytes: 100 << 30, Kernel: "6.1", Version: "1", Address: "10.0.0.7:7072",
		Engines: []scheduler.Engine{{Name: "gvisor", Version: "x", Healthy: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// beat sends a heartbeat for a host with somebody's token and says how the answer
// was and what it cost.
func (d *desk) beat(t *testing.T, h id.Host, token string, generation int64) (status int, code string, cost int64) {
	t.Helper()
	body, err := json.Marshal(map[string]any{
		"generation": generation, "address": "10.0.0.7:7072", "version": "1",
		"load": map[string]any{"sandboxes": 0, "cpu_millis": 0, "memory_bytes": 0, "disk_free_bytes": 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.url+"/v1/hosts/"+h.String()+"/heartbeat", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+token)
	before := d.asked.n.Load()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var f struct{ Error struct{ Code string } }
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &f); err != nil {
			t.Fatalf("%d %s: %v", res.StatusCode, raw, err)
		}
	}
	return res.StatusCode, f.Error.Code, d.asked.n.Load() - before
}

func TestH6_AHeartbeatIsOneStatement(t *testing.T) {
	d := newDesk(t)
	c := d.join(t)
	if status, code, _ := d.beat(t, c.HostID, c.JWT, 1); status != http.StatusNoContent {
		t.Fatalf("the one that puts it in service: %d %s", status, code)
	}
	for range 10 {
		if status, code, cost := d.beat(t, c.HostID, c.JWT, 1); status != http.StatusNoContent || cost != 1 {
			t.Fatalf("%d %s, %d statements", status, code, cost)
		}
	}
	if _, err := d.pool.Exec(t.Context(), `UPDATE hosts SET status = 'draining', drain_requested_at = now() WHERE id = $1`, c.HostID); err != nil {
		t.Fatal(err)
	}
	if status, code, cost := d.beat(t, c.HostID, c.JWT, 1); status != http.StatusNoContent || cost != 1 {
		t.Errorf("of one that is emptied: %d %s, %d statements", status, code, cost)
	}
}

func TestHI01_AHeartbeatWithVoidCredentialsSaysWhy(t *testing.T) {
	d := newDesk(t)
	c, other := d.join(t), d.join(t)
	ctx := t.Context()
	seen := func() (at *string) {
		if err := d.pool.QueryRow(ctx, `SELECT last_heartbeat_at::text FROM hosts WHERE id = $1`, c.HostID).Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	refused := func(what, token string, generation int64, status int, code string) {
		t.Helper()
		before := seen()
		got, said, cost := d.beat(t, c.HostID, token, generation)
		if got != status || said != code || cost > 2 {
			t.Errorf("%s: %d %s with %d statements, want %d %s", what, got, said, cost, status, code)
		}
		if now := seen(); (now == nil) != (before == nil) || now != nil && *now != *before {
			t.Errorf("%s counts as a sign of life", what)
		}
	}
	refused("another host's token", other.JWT, 1, http.StatusUnauthorized, host.ErrHostToken.Reason)
	foreign, _, err := d.keys.SignHost(keyring.HostClaims{Host: c.HostID, Family: id.NewHostRefreshToken()})
	if err != nil {
		t.Fatal(err)
	}
	refused("unknown credentials", foreign, 1, http.StatusUnauthorized, host.ErrHostToken.Reason)
	claims, err := d.keys.VerifyHost(ctx, other.JWT)
	if err != nil {
		t.Fatal(err)
	}
	mixed, _, err := d.keys.SignHost(keyring.HostClaims{Host: c.HostID, Family: claims.Family})
	if err != nil {
		t.Fatal(err)
	}
	refused("another host's credentials", mixed, 1, http.StatusUnauthorized, host.ErrHostToken.Reason)
	refused("no token of ours", "junk", 1, http.StatusUnauthorized, "invalid_token")
	if status, code, _ := d.beat(t, c.HostID, c.JWT, 2); status != http.StatusNoContent {
		t.Fatalf("%d %s", status, code)
	}
	refused("an older start", c.JWT, 1, http.StatusConflict, "stale_generation")
	if _, err := d.pool.Exec(ctx, `UPDATE host_refresh_tokens SET revoked_at = now() WHERE host_id = $1`, c.HostID); err != nil {
		t.Fatal(err)
	}
	refused("revoked credentials", c.JWT, 2, http.StatusUnauthorized, host.ErrHostToken.Reason)
	if err := d.hosts.Delete(ctx, d.admin, c.HostID, false); err != nil {
		t.Fatal(err)
	}
	refused("a deleted host", c.JWT, 2, http.StatusGone, "host_deleted")
}
