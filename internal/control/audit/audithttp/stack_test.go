package audithttp_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/audithttp"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// stack is the trail behind a real server. Who calls is read from the database
// on each request, as the account room does.
type stack struct {
	pool     *pgxpool.Pool
	owner    *pgxpool.Pool
	keys     *keyring.Keyring
	store    *auditpg.Store
	refusals *audit.Refusals
	log      *syncBuffer
	url      string
}

type people struct{ pool *pgxpool.Pool }

func (p people) AuthenticateUser(ctx context.Context, c keyring.UserClaims) (principal.Principal, error) {
	out := principal.Principal{Kind: principal.KindUser, UserID: c.User, UserName: "Ada", SessionID: c.Session}
	var team *id.Team
	err := p.pool.QueryRow(ctx, `SELECT u.is_admin, m.team_id, coalesce(m.role, '') FROM users u LEFT JOIN users_teams m ON m.user_id = u.id WHERE u.id = $1`,
		c.User).Scan(&out.IsAdmin, &team, &out.Role)
	if err != nil {
		return out, errs.Unauthenticated("invalid_token", "This is nobody's token.").Because(err)
	}
	if team != nil {
		out.HasTeam, out.TeamID = true, *team
	}
	return out, nil
}

func (people) LivingSessions(context.Context, []id.Session) (map[id.Session]principal.Standing, error) {
	return nil, nil
}

type keysOf map[string]principal.Principal

func (k keysOf) AuthenticateKey(_ context.Context, key string) (principal.Principal, error) {
	if p, ok := k[key]; ok {
		return p, nil
	}
	return principal.Principal{}, errs.Unauthenticated("invalid_api_key", "No such key.")
}

func (keysOf) LivingKeys(context.Context, []id.APIKey) ([]id.APIKey, error) { return nil, nil }

type noHosts struct{}

func (noHosts) AuthenticateHost(_ context.Context, c keyring.HostClaims) (principal.Principal, error) {
	return principal.Principal{Kind: principal.KindHost, HostID: c.Host}, nil
}

type elsewhere struct{ restapi.Handler }

// api has the trail, and a room that refuses.
type api struct {
	web.Errors
	*audithttp.Trail
	elsewhere
}

func (api) CreateHost(context.Context, *restapi.CreateHostRequest, restapi.CreateHostParams) (*restapi.CreatedHost, error) {
	return nil, errs.Forbidden("admin_required", "Only a platform admin may add hosts for all.")
}

func (api) ListHosts(context.Context, restapi.ListHostsParams) (*restapi.HostList, error) {
	return nil, errs.Forbidden("admin_required", "Only a platform admin may see them.")
}

func newStack(t testing.TB, keys keysOf) *stack {
	t.Helper()
	s := &stack{pool: pgtest.New(t), log: &syncBuffer{}}
	s.owner = pgtest.Owner(t, s.pool)
	s.store = auditpg.New(s.pool)
	log := slog.New(slog.NewJSONHandler(s.log, nil))
	secret, _ := keyring.NewSecret()
	var err error
	if s.keys, err = keyring.Load(context.Background(), keyringpg.New(s.pool), secret, clock.System{}); err != nil {
		t.Fatal(err)
	}
	s.refusals = audit.NewRefusals(s.store, clock.System{}, log)
	server, err := web.New(web.Config{
		Log: log, Clock: clock.System{}, Secret: secret, Tokens: s.keys, Users: people{s.pool}, Keys: keys, Hosts: noHosts{}, Refusals: s.refusals,
	})
	if err != nil {
		t.Fatal(err)
	}
	trail := audithttp.New(audit.NewTrail(s.store, s.keys, clock.System{}), s.keys, web.WriteError)
	server.Mount(web.Route{Method: http.MethodGet, Path: "/v1/audit-logs/export", Operation: "exportAuditLogs", Handler: trail.Export})
	server.Mount(web.Route{Method: http.MethodGet, Path: "/v1/admin/audit-logs/export", Operation: "adminExportAuditLogs", Handler: trail.AdminExport})
	handler, err := server.Handler(api{Trail: trail})
	if err != nil {
		t.Fatal(err)
	}
	running := httptest.NewServer(handler)
	t.Cleanup(running.Close)
	s.url = running.URL
	return s
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *syncBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *syncBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// member makes a user with a role and returns a token; the team, when new, gets
// its owner with it.
func (s *stack) member(t testing.TB, team id.Team, role string) (id.User, string) {
	t.Helper()
	user, x := id.NewUser(), team.UUID()
	err := pg.InTx(context.Background(), s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO users (id, email, name, is_admin) VALUES ($1, $2, 'Ada', $3)", user, fmt.Sprintf("%s@example.org", user), role == "platform"); err != nil {
			return err
		}
		if role == "owner" {
			if _, err := tx.Exec(ctx, "INSERT INTO teams (id, name, slug) VALUES ($1, 'T', $2)", team, fmt.Sprintf("%x-%x", x[10:13], x[13:16])); err != nil {
				return err
			}
		}
		if role == "platform" {
			return nil
		}
		_, err := tx.Exec(ctx, "INSERT INTO users_teams (user_id, team_id, role) VALUES ($1, $2, $3)", user, team, role)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	// What the token says of the role is old by the time it is used.
	token, _, err := s.keys.SignUser(keyring.UserClaims{User: user, Session: id.NewSession(), Team: &team, Role: "owner", IsAdmin: true})
	if err != nil {
		t.Fatal(err)
	}
	return user, token
}

func (s *stack) call(t testing.TB, method, path, token, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, s.url+path, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	switch {
	case len(token) > 100:
		req.Header.Set("Authorization", "Bearer "+token)
	case token != "":
		req.Header.Set("X-API-Key", token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(raw)
}

type entryAnswer struct {
	ID           string         `json:"id"`
	Seq          int64          `json:"seq"`
	TeamID       string         `json:"team_id"`
	ResourceType string         `json:"resource_type"`
	Action       string         `json:"action"`
	Scope        string         `json:"scope"`
	Status       string         `json:"status"`
	Metadata     map[string]any `json:"metadata"`
	CreatedAt    string         `json:"created_at"`
	IP           string         `json:"ip"`
	Hash         string         `json:"hash"`
	Actor        struct{ Type, ID, Name string }
}

type pageAnswer struct {
	Items      []entryAnswer `json:"items"`
	NextCursor string        `json:"next_cursor"`
}

func (s *stack) page(t testing.TB, path, token string) pageAnswer {
	t.Helper()
	status, body := s.call(t, http.MethodGet, path, token, "")
	var out pageAnswer
	if err := json.Unmarshal([]byte(body), &out); err != nil || status != http.StatusOK {
		t.Fatalf("%s: %d %s (%v)", path, status, body, err)
	}
	return out
}

// walk follows the cursors and returns all entries.
func (s *stack) walk(t testing.TB, path, token string, between func()) []entryAnswer {
	t.Helper()
	var all []entryAnswer
	for cursor := ""; ; {
		next := path
		if cursor != "" {
			next += "&cursor=" + cursor
		}
		p := s.page(t, next, token)
		all = append(all, p.Items...)
		if cursor = p.NextCursor; cursor == "" {
			return all
		}
		if between != nil {
			between()
		}
	}
}

func (s *stack) append(t testing.TB, entries ...audit.Entry) {
	t.Helper()
	if err := pg.InTx(context.Background(), s.pool, func(ctx context.Context, tx pgx.Tx) error { return auditpg.Append(ctx, tx, entries...) }); err != nil {
		t.Fatal(err)
	}
}

func (s *stack) publicKeys(t testing.TB) map[string]ed25519.PublicKey {
	t.Helper()
	status, body := s.call(t, http.MethodGet, "/v1/audit-logs/keys", "", "")
	var out struct {
		Items []struct {
			KID       string `json:"kid"`
			PublicKey string `json:"public_key"`
		} `json:"items"`
	}
	if err := json.Unmarshal([]byte(body), &out); err != nil || status != http.StatusOK || len(out.Items) == 0 {
		t.Fatalf("keys: %d %s (%v)", status, body, err)
	}
	keys := map[string]ed25519.PublicKey{}
	for _, k := range out.Items {
		raw, err := base64.StdEncoding.DecodeString(k.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		keys[k.KID] = raw
	}
	return keys
}
