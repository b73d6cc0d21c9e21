package hostpg_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/host/hostpg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// agents answers Hello with a generation, or an error.
type agents struct {
	mu         sync.Mutex
	generation int64
	err        error
	called     []host.Ref
	destroyed  map[id.Sandbox]int64
}

func (a *agents) DestroySandbox(_ context.Context, _ host.Ref, x id.Sandbox, incarnation int64, _ string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		if a.destroyed == nil {
			a.destroyed = map[id.Sandbox]int64{}
		}
		a.destroyed[x] = incarnation
	}
	return a.err
}

func (a *agents) Hello(_ context.Context, h host.Ref) (int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.called = append(a.called, h)
	return a.generation, a.err
}

type world struct {
	pool   *pgxpool.Pool
	hosts  *host.Service
	keys   *keyring.Keyring
	agents *agents
}

func newWorld(t *testing.T) world {
	t.Helper()
	pool := pgtest.New(t)
	secret, _ := keyring.NewSecret()
	keys, err := keyring.Load(context.Background(), keyringpg.New(pool), secret, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	a := &agents{generation: 1}
	return world{pool, host.NewService(hostpg.New(pool), keys, secret, a, "https://control:7071/", slog.New(slog.DiscardHandler)), keys, a}
}

// admin is a platform admin that exists.
func (w world) admin(t *testing.T) principal.Principal {
	t.Helper()
	u := id.NewUser()
	if _, err := w.pool.Exec(context.Background(), `INSERT INTO users (id, email, name, is_admin) VALUES ($1, 'root@example.org', 'Root', true)`, u); err != nil {
		t.Fatal(err)
	}
	return principal.Principal{Kind: principal.KindUser, UserID: u, UserName: "Root", IsAdmin: true}
}

type machine struct{ csr string }

func newMachine(t *testing.T) machine {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return machine{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}
}

func facts() host.Facts {
	return host.Facts{
		Hostname: "box", Arch: "amd64", CPUs: 4, MemoryBytes: 8 << 30, DiskBytes: 100 << 30, Kernel: "6.1", Version: "1", Address: "10.0.0.7:7072",
		Engines: []scheduler.Engine{{Name: "gvisor", Version: "x", Healthy: true}},
	}
}

func (w world) register(t *testing.T, m machine) host.Credentials {
	t.Helper()
	made, err := w.hosts.Create(context.Background(), w.admin(t), host.CreateRequest{Type: host.TypeRegular})
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.hosts.Register(context.Background(), principal.Principal{}, made.Token, m.csr, facts())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// caller is a host as its verified token says.
func (w world) caller(t *testing.T, c host.Credentials) principal.Principal {
	t.Helper()
	claims, err := w.keys.VerifyHost(context.Background(), c.JWT)
	if err != nil {
		t.Fatal(err)
	}
	return principal.Principal{Kind: principal.KindHost, HostID: claims.Host, HostFamily: claims.Family}
}

func (w world) audited(t *testing.T, action string) int {
	t.Helper()
	var n int
	if err := w.pool.QueryRow(context.Background(), `SELECT count(*) FROM audit_logs WHERE action = $1`, action).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestH1_TheTokenIsShownOnceAndWorksOnce(t *testing.T) {
	w := newWorld(t)
	ctx, admin := context.Background(), w.admin(t)
	made, err := w.hosts.Create(ctx, admin, host.CreateRequest{Type: host.TypeRegular, Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{made.Token, w.keys.CASHA256(), "https://control:7071"} {
		if !strings.Contains(made.Install, want) {
			t.Errorf("the install command %q lacks %q", made.Install, want)
		}
	}
	var open int
	if err := w.pool.QueryRow(ctx, `SELECT count(*) FROM host_registration_tokens t WHERE to_jsonb(t)::text LIKE '%' || $1 || '%'`, made.Token).Scan(&open); err != nil || open != 0 {
		t.Errorf("the token lies open (%v)", err)
	}
	m := newMachine(t)
	first, err := w.hosts.Register(ctx, principal.Principal{}, made.Token, m.csr, facts())
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.hosts.Register(ctx, principal.Principal{}, made.Token, m.csr, facts())
	if err != nil || again.RefreshToken != first.RefreshToken || again.HostID != made.Host.ID {
		t.Errorf("the same key again: %v", err)
	}
	if _, err := w.hosts.Register(ctx, principal.Principal{}, made.Token, newMachine(t).csr, facts()); !errs.Is(err, host.ErrToken.Reason) {
		t.Errorf("another key: %v", err)
	}
	if _, err := w.hosts.Register(ctx, principal.Principal{}, "junk", m.csr, facts()); !errs.Is(err, host.ErrToken.Reason) {
		t.Errorf("an unknown token: %v", err)
	}
	if _, err := w.pool.Exec(ctx, `UPDATE host_registration_tokens SET used_at = now() - interval '6 minutes'`); err != nil {
		t.Fatal(err)
	}
	if _, err := w.hosts.Register(ctx, principal.Principal{}, made.Token, m.csr, facts()); !errs.Is(err, host.ErrToken.Reason) {
		t.Errorf("the same key after 5 minutes: %v", err)
	}
	fresh, err := w.hosts.IssueToken(ctx, admin, made.Host.ID)
	if err != nil {
		t.Fatal(err)
	}
	newest, err := w.hosts.IssueToken(ctx, admin, made.Host.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.hosts.Register(ctx, principal.Principal{}, fresh.Token, m.csr, facts()); !errs.Is(err, host.ErrToken.Reason) {
		t.Errorf("a voided token: %v", err)
	}
	if _, err := w.hosts.Register(ctx, principal.Principal{}, newest.Token, m.csr, facts()); err != nil {
		t.Errorf("registering again: %v", err)
	}
	got, err := w.hosts.Get(ctx, admin, made.Host.ID)
	if err != nil || got.Name != "box" || got.Facts.CPUs != 4 || got.Status != host.StatusPending {
		t.Errorf("%+v %v", got, err)
	}
}

func TestH1_WhoMayAddHosts(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	team, owner := teamtest.New(t, w.pool)
	member := owner
	member.Role = principal.RoleMember
	key := principal.Principal{Kind: principal.KindAPIKey, HasTeam: true, TeamID: team}
	for _, c := range []struct {
		name string
		by   principal.Principal
		typ  host.Type
		want string
	}{
		{"owner, regular", owner, host.TypeRegular, "admin_required"},
		{"owner, byoc, not switched on", owner, host.TypeBYOC, "not_byoc"},
		{"member, byoc", member, host.TypeBYOC, "role_required"},
		{"key", key, host.TypeRegular, "session_required"},
		{"anonymous", principal.Principal{Kind: principal.KindAnonymous}, host.TypeRegular, "unauthenticated"},
	} {
		if _, err := w.hosts.Create(ctx, c.by, host.CreateRequest{Type: c.typ}); !errs.Is(err, c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
	if _, err := w.pool.Exec(ctx, `UPDATE teams SET is_byoc = true WHERE id = $1`, team); err != nil {
		t.Fatal(err)
	}
	made, err := w.hosts.Create(ctx, owner, host.CreateRequest{Type: host.TypeBYOC, Name: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	stranger := owner
	stranger.TeamID = id.NewTeam()
	if _, err := w.hosts.Get(ctx, stranger, made.Host.ID); !errs.Is(err, "host_not_found") {
		t.Errorf("another team's host: %v", err)
	}
	if list, err := w.hosts.List(ctx, owner, page.Request{Limit: 50}); err != nil || len(list.Items) != 1 {
		t.Errorf("own hosts: %d (%v)", len(list.Items), err)
	}
}

func TestH4_RefreshRotatesWithoutLosing(t *testing.T) {
	w := newWorld(t)
	ctx, m := context.Background(), newMachine(t)
	first := w.register(t, m)
	var wg sync.WaitGroup
	got := make([]string, 20)
	for i := range got {
		wg.Go(func() {
			c, err := w.hosts.Refresh(ctx, principal.Principal{}, first.RefreshToken, m.csr)
			if err != nil {
				t.Errorf("refresh: %v", err)
			}
			got[i] = c.RefreshToken
		})
	}
	wg.Wait()
	for _, token := range got {
		if token != got[0] || token == first.RefreshToken {
			t.Fatalf("one token gave successors %q and %q", got[0], token)
		}
	}
	// A stranger's signature harms nobody.
	if _, err := w.hosts.Refresh(ctx, principal.Principal{}, got[0], newMachine(t).csr); !errs.Is(err, host.ErrRefreshToken.Reason) {
		t.Errorf("another key: %v", err)
	}
	third, err := w.hosts.Refresh(ctx, principal.Principal{}, got[0], m.csr) // confirms the second
	if err != nil {
		t.Fatal(err)
	}
	for _, junk := range []string{"", "a.b.c", third.RefreshToken + "0", strings.Replace(third.RefreshToken, ".3.", ".4.", 1)} {
		if _, err := w.hosts.Refresh(ctx, principal.Principal{}, junk, m.csr); !errs.Is(err, host.ErrRefreshToken.Reason) {
			t.Errorf("%q: %v", junk, err)
		}
	}
	claims, err := w.keys.VerifyHost(ctx, third.JWT)
	if err != nil {
		t.Fatal(err)
	}
	if by, err := w.hosts.AuthenticateHost(ctx, claims); err != nil || by.HostID != first.HostID {
		t.Errorf("authenticate: %v", err)
	}
	before := w.audited(t, "token_reuse")
	if _, err := w.hosts.Refresh(ctx, principal.Principal{}, first.RefreshToken, m.csr); !errs.Is(err, host.ErrRefreshToken.Reason) {
		t.Errorf("one older than a confirmed successor: %v", err)
	}
	if _, err := w.hosts.Refresh(ctx, principal.Principal{}, third.RefreshToken, m.csr); !errs.Is(err, host.ErrRefreshToken.Reason) {
		t.Errorf("the family lives on: %v", err)
	}
	if _, err := w.hosts.AuthenticateHost(ctx, claims); !errs.Is(err, host.ErrHostToken.Reason) {
		t.Errorf("its token lives on: %v", err)
	}
	if after := w.audited(t, "token_reuse"); after != before+1 {
		t.Errorf("%d new audit entries", after-before)
	}
}

// An older database that was restored knows fewer of the tokens it gave out: a
// host that renewed since is no thief.
func TestO7_H4_ARestoredDatabaseKnowsItsHostsAgain(t *testing.T) {
	w := newWorld(t)
	ctx, m := context.Background(), newMachine(t)
	first := w.register(t, m)
	refresh := func(token string) host.Credentials {
		t.Helper()
		c, err := w.hosts.Refresh(ctx, principal.Principal{}, token, m.csr)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	owner := pgtest.Owner(t, w.pool)
	if _, err := owner.Exec(ctx, `CREATE TABLE backup AS SELECT * FROM host_refresh_tokens`); err != nil {
		t.Fatal(err)
	}
	second := refresh(first.RefreshToken)
	third := refresh(second.RefreshToken)
	if _, err := owner.Exec(ctx, `UPDATE host_refresh_tokens f SET counter = b.counter, token_hash = b.token_hash, previous_hash = b.previous_hash
		FROM backup b WHERE b.id = f.id`); err != nil {
		t.Fatal(err)
	}
	if _, err := w.hosts.Refresh(ctx, principal.Principal{}, third.RefreshToken, newMachine(t).csr); !errs.Is(err, host.ErrRefreshToken.Reason) {
		t.Errorf("another key: %v", err)
	}
	fourth := refresh(third.RefreshToken)
	if again := refresh(third.RefreshToken); again.RefreshToken != fourth.RefreshToken {
		t.Error("after a lost answer there is another successor")
	}
	fifth := refresh(fourth.RefreshToken)
	if n := w.audited(t, "token_reuse"); n != 1 {
		t.Errorf("%d reuses are recorded, 1 with another key was tried", n)
	}
	// What is older than a confirmed successor is still that.
	if _, err := w.hosts.Refresh(ctx, principal.Principal{}, third.RefreshToken, m.csr); !errs.Is(err, host.ErrRefreshToken.Reason) {
		t.Errorf("one older than a confirmed successor: %v", err)
	}
	if _, err := w.hosts.Refresh(ctx, principal.Principal{}, fifth.RefreshToken, m.csr); !errs.Is(err, host.ErrRefreshToken.Reason) {
		t.Errorf("the family lives on: %v", err)
	}
}

// A new start of the agent may have another engine: placement goes by the last
// heartbeat that tells.
func TestP6_TheLastHeartbeatSaysWhatIsOffered(t *testing.T) {
	w := newWorld(t)
	c := w.register(t, newMachine(t))
	by := w.caller(t, c)
	upgraded := []scheduler.Engine{{Name: "gvisor", Version: "next", Healthy: true, Reasons: []string{}, CPUFeatures: []string{"avx"}}}
	for _, engines := range [][]scheduler.Engine{upgraded, nil} {
		if err := w.hosts.Heartbeat(t.Context(), by, host.Beat{Host: c.HostID, Generation: 1, Address: "10.0.0.7:7072", Version: "1", Engines: engines}); err != nil {
			t.Fatal(err)
		}
		h, err := w.hosts.Get(t.Context(), principal.Principal{Kind: principal.KindUser, IsAdmin: true}, c.HostID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(upgraded, h.Facts.Engines); diff != "" {
			t.Errorf("after a heartbeat with %v (-want +got):\n%s", engines, diff)
		}
	}
}

func TestH6_OnlineOnlyAfterItWasReached(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	c := w.register(t, newMachine(t))
	by := w.caller(t, c)
	admin := principal.Principal{Kind: principal.KindUser, IsAdmin: true}
	beat := func(generation int64, address string) host.Host {
		t.Helper()
		if err := w.hosts.Heartbeat(ctx, by, host.Beat{Host: c.HostID, Generation: generation, Address: address, Version: "1"}); err != nil {
			t.Fatal(err)
		}
		h, err := w.hosts.Get(ctx, admin, c.HostID)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	w.agents.err = errors.New("no route")
	if h := beat(1, "10.0.0.7:7072"); h.Status != host.StatusPending || !strings.Contains(h.StatusReason, "NAT") {
		t.Errorf("unreached: %s %q", h.Status, h.StatusReason)
	}
	w.agents.err = nil
	if h := beat(1, "10.0.0.7:7072"); h.Status != host.StatusOnline || h.StatusReason != "" || h.LastHeartbeatAt == nil {
		t.Errorf("reached: %s %q", h.Status, h.StatusReason)
	}
	calls := len(w.agents.called)
	if beat(1, "10.0.0.7:7072"); len(w.agents.called) != calls {
		t.Error("a host in service was called again")
	}
	// A new start that is not yet there: another generation answers.
	if h := beat(2, "10.0.0.7:7072"); h.Status != host.StatusUnreachable {
		t.Errorf("in service with the old generation answering: %s", h.Status)
	}
	w.agents.generation = 2
	if h := beat(2, "10.0.0.8:7072"); h.Status != host.StatusOnline || h.Facts.Address != "10.0.0.8:7072" {
		t.Errorf("moved: %s %s", h.Status, h.Facts.Address)
	}
	if err := w.hosts.Heartbeat(ctx, by, host.Beat{Host: c.HostID, Generation: 1, Address: "10.0.0.7:7072"}); !errs.Is(err, "stale_generation") {
		t.Errorf("an older generation: %v", err)
	}
	if err := w.hosts.Heartbeat(ctx, principal.Principal{Kind: principal.KindHost, HostID: id.NewHost()}, host.Beat{Host: c.HostID}); !errs.Is(err, host.ErrHostToken.Reason) {
		t.Errorf("another host's heartbeat: %v", err)
	}
	active, err := w.hosts.ListActiveHosts(ctx)
	if err != nil || len(active) != 1 || active[0].Address != "10.0.0.8:7072" {
		t.Errorf("active %v (%v)", active, err)
	}
	if n := w.audited(t, "marked_up"); n != 2 {
		t.Errorf("%d entries of marked_up, want 2", n)
	}
}

func TestH1_OfTokensIssuedAtOnceOneWorks(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	admin := w.admin(t)
	made, err := w.hosts.Create(ctx, admin, host.CreateRequest{Type: host.TypeRegular})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := w.hosts.IssueToken(ctx, admin, made.Host.ID); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		var valid int
		if err := w.pool.QueryRow(ctx, `SELECT count(*) FROM host_registration_tokens WHERE revoked_at IS NULL`).Scan(&valid); err != nil || valid != 1 {
			t.Fatalf("%d tokens are valid (%v), want the last one", valid, err)
		}
	}
}

func TestH2_AnyMachineNameMayJoin(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	admin := w.admin(t)
	for hostname, want := range map[string]string{"": host.Unnamed, strings.Repeat("ä", 120): strings.Repeat("ä", 100), "box": "box"} {
		made, err := w.hosts.Create(ctx, admin, host.CreateRequest{Type: host.TypeRegular})
		if err != nil {
			t.Fatal(err)
		}
		f := facts()
		f.Hostname = hostname
		if _, err := w.hosts.Register(ctx, principal.Principal{}, made.Token, newMachine(t).csr, f); err != nil {
			t.Errorf("a machine called %q: %v", hostname, err)
		}
		if got, err := w.hosts.Get(ctx, admin, made.Host.ID); err != nil || got.Name != want {
			t.Errorf("a machine called %q became %q (%v)", hostname, got.Name, err)
		}
	}
}
