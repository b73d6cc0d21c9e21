package web_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/account/accounthttp"
	"skerry.dev/skerry/internal/control/account/accountpg"
	"skerry.dev/skerry/internal/control/apikey"
	"skerry.dev/skerry/internal/control/apikey/apikeyhttp"
	"skerry.dev/skerry/internal/control/apikey/apikeypg"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg"
	"skerry.dev/skerry/internal/control/mail"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// stack is a control plane of the rooms that stand on the ground floor, on a
// real database and behind a real server.
type stack struct {
	pool     *pgxpool.Pool
	owner    *pgxpool.Pool
	keys     *keyring.Keyring
	web      *web.Server
	url      string
	log      *logBuffer
	apiKeys  *apikey.Service
	accounts *account.Service
}

type options struct {
	cost    account.Cost
	clock   clock.Clock
	limits  web.Limits
	policy  *account.SignupPolicy
	checks  []web.Check
	routes  []web.Route
	proxies web.Proxies
	url     string      // where people reach it; makes no difference to the test's own requests
	mailer  mail.Mailer // nil sends none
	hashes  func(account.Cost) (done func())
	exec    func(ctx context.Context) (*restapi.ExecResult, error)
	queries pgx.QueryTracer // of the servers' own connections
}

// elsewhere stands for the rooms that these tests do not start; calling one of
// their operations panics.
type elsewhere struct{ restapi.Handler }

type testAPI struct {
	web.Errors
	*accounthttp.Accounts
	*apikeyhttp.APIKeys
	elsewhere
	exec func(ctx context.Context) (*restapi.ExecResult, error)
}

// ExecSandbox implements restapi.Handler.
func (a *testAPI) ExecSandbox(ctx context.Context, _ *restapi.ExecRequest, _ restapi.ExecSandboxParams) (*restapi.ExecResult, error) {
	return a.exec(ctx)
}

type deadHosts struct{}

func (deadHosts) AuthenticateHost(_ context.Context, c keyring.HostClaims) (principal.Principal, error) {
	return principal.Principal{Kind: principal.KindHost, HostID: c.Host}, nil
}

// cheap makes hashing fast where its cost is not the point.
var cheap = account.Cost{MemoryKiB: 64, Passes: 1, Threads: 1}

func newStack(t *testing.T, o options) *stack {
	t.Helper()
	ctx := context.Background()
	if o.clock == nil {
		o.clock = clock.System{}
	}
	if o.cost == (account.Cost{}) {
		o.cost = cheap
	}
	if o.url == "" {
		o.url = "http://skerry.test"
	}
	s := &stack{pool: pgtest.New(t), log: &logBuffer{}}
	s.owner = pgtest.Owner(t, s.pool)
	if o.queries != nil {
		config := s.pool.Config()
		config.ConnConfig.Tracer = o.queries
		traced, err := pgxpool.NewWithConfig(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(traced.Close)
		s.pool = traced
	}
	log := slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	secret, _ := keyring.NewSecret()
	var err error
	if s.keys, err = keyring.Load(ctx, keyringpg.New(s.pool), secret, o.clock); err != nil {
		t.Fatal(err)
	}
	policy := account.SignupOpen
	if o.policy != nil {
		policy = *o.policy
	}
	hasher := account.NewHasher(o.cost)
	if o.hashes != nil {
		hasher.Observe(o.hashes)
	}
	if s.accounts, err = account.NewService(ctx, account.Config{
		Store: accountpg.New(s.pool), Signer: s.keys, Hasher: hasher, Signup: policy, Clock: o.clock, Log: log, URL: o.url, Mailer: o.mailer,
	}); err != nil {
		t.Fatal(err)
	}
	s.apiKeys = apikey.NewService(apikeypg.New(s.pool), o.clock, log)
	replays := idempotency.NewService(idempotencypg.New(s.pool))
	s.web, err = web.New(web.Config{
		Log: log, Clock: o.clock, Secret: secret, Tokens: s.keys, Users: s.accounts, Keys: s.apiKeys, Hosts: deadHosts{},
		Limits: o.limits, Checks: o.checks, Proxies: o.proxies,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, route := range o.routes {
		s.web.Mount(route)
	}
	handler, err := s.web.Handler(&testAPI{Accounts: accounthttp.New(s.accounts, replays), APIKeys: apikeyhttp.New(s.apiKeys, replays), exec: o.exec})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	s.url = server.URL
	running, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.apiKeys.Run(running) })
	wg.Go(func() { _ = s.accounts.Run(running) })
	t.Cleanup(func() { stop(); wg.Wait() })
	return s
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// reply is an answer as a client sees it.
type reply struct {
	status int
	header http.Header
	body   string
}

// json reads the body into v.
func (r reply) json(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.body), v); err != nil {
		t.Fatalf("%d %q: %v", r.status, r.body, err)
	}
}

type wireError struct {
	Code      string         `json:"code"`
	Message   string         `json:"message"`
	Details   map[string]any `json:"details"`
	RequestID string         `json:"request_id"`
}

// fault checks an error's shape and returns it.
func (r reply) fault(t *testing.T, status int, code string) wireError {
	t.Helper()
	var e struct{ Error wireError }
	if err := json.Unmarshal([]byte(r.body), &e); err != nil || r.status != status || e.Error.Code != code {
		t.Fatalf("answer %d %s, want %d %s (%v)", r.status, r.body, status, code, err)
	}
	if e.Error.Message == "" || e.Error.RequestID == "" || e.Error.RequestID != r.header.Get("X-Request-Id") {
		t.Errorf("error lacks message or request id: %s (header %q)", r.body, r.header.Get("X-Request-Id"))
	}
	return e.Error
}

// call sends a request; body is JSON when not a string. Headers are pairs.
func (s *stack) call(t *testing.T, method, path string, body any, headers ...string) reply {
	t.Helper()
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		reader = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, s.url+path, reader)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i+1] == "" {
			req.Header.Del(headers[i])
			continue
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Errorf("%s %s: %v", method, path, err)
		return reply{}
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Errorf("%s %s: %v", method, path, err)
	}
	return reply{status: res.StatusCode, header: res.Header, body: string(raw)}
}

type authReply struct {
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at"`
	User      struct {
		ID, Email, Name string
		IsAdmin         bool `json:"is_admin"`
	}
	Team *struct {
		ID, Name, Slug, Role string
		IsBYOC               bool `json:"is_byoc"`
	}
}

const password = "correct horse"

// signup makes a user and returns the answer.
func (s *stack) signup(t *testing.T, email string) authReply {
	t.Helper()
	r := s.call(t, "POST", "/v1/auth/signup", map[string]string{"email": email, "password": password, "name": "Ada"})
	if r.status != http.StatusCreated {
		t.Fatalf("signup: %d %s", r.status, r.body)
	}
	var a authReply
	r.json(t, &a)
	return a
}

func bearer(token string) []string { return []string{"Authorization", "Bearer " + token} }

// apiKey makes a key and returns its secret and id.
func (s *stack) apiKey(t *testing.T, token string, body map[string]any) (secret, keyID string) {
	t.Helper()
	r := s.call(t, "POST", "/v1/api-keys", body, bearer(token)...)
	if r.status != http.StatusCreated {
		t.Fatalf("create key: %d %s", r.status, r.body)
	}
	var made struct {
		Key    string
		APIKey struct{ ID string } `json:"api_key"`
	}
	r.json(t, &made)
	return made.Key, made.APIKey.ID
}

func (s *stack) count(t *testing.T, query string, args ...any) int {
	t.Helper()
	var n int
	if err := s.pool.QueryRow(context.Background(), query, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// exec works on the database as its owner.
func (s *stack) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := s.owner.Exec(context.Background(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// demote makes a user a plain member of the team they owned, which somebody else
// owns from then on: a team is never without an owner.
func (s *stack) demote(t *testing.T, email string) {
	t.Helper()
	s.exec(t, strings.ReplaceAll(`INSERT INTO users (id, email, name) VALUES (gen_random_uuid(), 'owner-of-EMAIL', 'Owner');
		UPDATE users_teams SET role = 'member' WHERE role = 'owner' AND user_id = (SELECT id FROM users WHERE email = 'EMAIL');
		INSERT INTO users_teams (user_id, team_id, role) SELECT o.id, m.team_id, 'owner' FROM users o, users_teams m JOIN users u ON u.id = m.user_id
		WHERE o.email = 'owner-of-EMAIL' AND u.email = 'EMAIL'`, "EMAIL", email))
}
