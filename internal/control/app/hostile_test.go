package app

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/account/accountpg"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/host/hostpg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/telemetry"
)

// ground is a running server with a host, a template, a sandbox, its admin and
// two teams, and a way to look into the database.
type ground struct {
	*server
	pool       *pgxpool.Pool
	host       *fakeHost
	hostID     string
	admin      string // token
	ann, bob   string // tokens of two teams
	annKey     string
	annKeyID   string
	annSandbox string
}

func newGround(t testing.TB) *ground {
	t.Helper()
	_, secret := keyring.NewSecret()
	return newGroundOn(t, pgtest.Empty(t), secret, t.TempDir())
}

// newGroundOn is a ground on a database and a store that other servers may
// share.
func newGroundOn(t testing.TB, url, secret, storeDir string) *ground {
	t.Helper()
	g := &ground{server: start(t, url, secret, storeDir)}
	var err error
	if g.pool, err = pg.Open(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.pool.Close)
	const email, password = "root@example.org", "a long password"
	if err := EnsureAdmin(t.Context(), url, secret, email, password); err != nil {
		t.Fatal(err)
	}
	var login struct {
		Token string `json:"token"`
	}
	g.do(t, http.MethodPost, "/v1/auth/login", "", map[string]string{"email": email, "password": password}, http.StatusOK, &login)
	g.admin = login.Token
	for who, token := range map[string]*string{"ann": &g.ann, "bob": &g.bob} {
		g.do(t, http.MethodPost, "/v1/auth/signup", "", map[string]string{"email": who + "@example.org", "password": password, "name": who}, http.StatusCreated, &login)
		*token = login.Token
	}
	var made struct {
		Host struct {
			ID string `json:"id"`
		} `json:"host"`
		Token string `json:"registration_token"`
		CA    string `json:"ca_sha256"`
	}
	g.do(t, http.MethodPost, "/v1/hosts", g.admin, map[string]string{"type": "regular"}, http.StatusCreated, &made)
	g.hostID, g.host = made.Host.ID, newFakeHost(t, g.agentURL, made.CA)
	g.host.join(t, made.Token)
	g.do(t, http.MethodPost, "/v1/templates/base/build", g.admin, nil, http.StatusOK, nil)
	var key struct {
		Key    string `json:"key"`
		APIKey struct {
			ID string `json:"id"`
		} `json:"api_key"`
	}
	g.do(t, http.MethodPost, "/v1/api-keys", g.ann, map[string]string{"name": "k"}, http.StatusCreated, &key)
	g.annKey, g.annKeyID = key.Key, key.APIKey.ID
	var x sandboxAnswer
	g.do(t, http.MethodPost, "/v1/sandboxes", g.annKey, map[string]string{"template": "base"}, http.StatusCreated, &x)
	g.annSandbox = x.ID
	return g
}

// raw calls with a body as it is and returns status and body.
func (g *ground) raw(t testing.TB, method, path, auth, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, g.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if auth != "" {
		req.Header.Set("Authorization", "Bearer "+auth)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(got)
}

func TestC1_AllThatTheDocumentNamesIsMounted(t *testing.T) {
	_, secret := keyring.NewSecret()
	set, err := Config{DatabaseURL: pgtest.New(t).Config().ConnString(), Secret: secret}.Defaults(t.TempDir()).parse()
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pg.Open(t.Context(), set.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	tel, err := telemetry.New(t.Context(), telemetry.Config{Program: "server", Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer tel.Close(t.Context())
	c := &control{cfg: set, log: slog.New(slog.DiscardHandler), tel: tel, pool: pool}
	for _, build := range []func() error{
		func() error { return c.openKeys(t.Context()) }, func() error { return c.openStore(t.Context()) },
		func() error { return c.openRooms(t.Context()) }, func() error { return c.openWeb(t.Context()) },
	} {
		if err := build(); err != nil {
			t.Fatal(err)
		}
	}
	defer c.links.Close()
	defer c.streams.Close()
	if faults := c.web.RouteFaults(); len(faults) != 0 {
		t.Error(faults)
	}
}

var requestID = regexp.MustCompile(`"request_id":"[^"]*"`)

// What belongs to another team is answered exactly like what nobody has.
func TestC8_AnotherTeamsThingIsLikeNothing(t *testing.T) {
	g := newGround(t)
	const nobodys = "01936d5a-0000-7000-8000-000000000001"
	var template string
	if err := g.pool.QueryRow(t.Context(), `INSERT INTO templates (id, team_id, name, status, image_digest, manifest_digest)
		SELECT gen_random_uuid(), k.team_id, 'secret', 'ready', t.image_digest, t.manifest_digest FROM templates t, team_api_keys k
		RETURNING id::text`).Scan(&template); err != nil {
		t.Fatal(err)
	}
	var byocHost string
	if err := g.pool.QueryRow(t.Context(), `INSERT INTO hosts (id, team_id, type, name, status) SELECT gen_random_uuid(), team_id, 'byoc', 'h', 'pending' FROM team_api_keys
		RETURNING id::text`).Scan(&byocHost); err != nil {
		t.Fatal(err)
	}
	ws := []string{"Upgrade", "websocket", "Connection", "Upgrade", "Sec-WebSocket-Protocol", "skerry.exec.v1", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="}
	for _, c := range []struct {
		method, path, theirs, kind, body string
		header                           []string
	}{
		{"GET", "/v1/sandboxes/ID", g.annSandbox, "sb-", "", nil},
		{"DELETE", "/v1/sandboxes/ID", g.annSandbox, "sb-", "", nil},
		{"GET", "/v1/sandboxes/ID/events", g.annSandbox, "sb-", "", nil},
		{"POST", "/v1/sandboxes/ID/exec", g.annSandbox, "sb-", `{"cmd":"true"}`, nil},
		{"GET", "/v1/sandboxes/ID/exec/stream", g.annSandbox, "sb-", "", ws},
		{"GET", "/v1/sandboxes/ID/pty", g.annSandbox, "sb-", "", ws},
		{"GET", "/v1/sandboxes/ID/files?path=/etc/passwd", g.annSandbox, "sb-", "", nil},
		{"PUT", "/v1/sandboxes/ID/files?path=/tmp/x", g.annSandbox, "sb-", "x", []string{"Content-Type", "application/octet-stream"}},
		{"DELETE", "/v1/sandboxes/ID/files?path=/tmp/x", g.annSandbox, "sb-", "", nil},
		{"GET", "/v1/sandboxes/ID/files/list?path=/", g.annSandbox, "sb-", "", nil},
		{"GET", "/v1/sandboxes/ID/files/stat?path=/", g.annSandbox, "sb-", "", nil},
		{"POST", "/v1/sandboxes/ID/files/mkdir", g.annSandbox, "sb-", `{"path":"/tmp/d"}`, nil},
		{"POST", "/v1/sandboxes/ID/files/move", g.annSandbox, "sb-", `{"source":"/a","destination":"/b"}`, nil},
		{"DELETE", "/v1/api-keys/ID", g.annKeyID, "key-", "", nil},
		{"GET", "/v1/hosts/ID", g.hostID, "host-", "", nil},
		{"GET", "/v1/hosts/ID", "host-" + byocHost, "host-", "", nil},
		{"POST", "/v1/hosts/ID/token", "host-" + byocHost, "host-", "", nil},
		{"POST", "/v1/hosts/ID/token", g.hostID, "host-", "", nil},
		{"GET", "/v1/templates/ID", "tpl-" + template, "tpl-", "", nil},
		{"GET", "/v1/templates/ID", "secret", "secret-", "", nil},
		{"POST", "/v1/sandboxes", "tpl-" + template, "tpl-", `{"template":"ID"}`, nil},
		{"POST", "/v1/sandboxes", "secret", "secret-", `{"template":"ID"}`, nil},
	} {
		answer := func(thing string) (int, string) {
			status, body := g.raw(t, c.method, strings.ReplaceAll(c.path, "ID", thing), g.bob, strings.ReplaceAll(c.body, "ID", thing), c.header...)
			return status, requestID.ReplaceAllString(body, "")
		}
		theirs, theirBody := answer(c.theirs)
		none, noBody := answer(c.kind + nobodys)
		if theirs != http.StatusNotFound || none != theirs || noBody != theirBody {
			t.Errorf("%s %s: another team's is %d %s, nobody's %d %s", c.method, c.path, theirs, theirBody, none, noBody)
		}
	}
	for _, path := range []string{"/v1/sandboxes?status=running,stopped", "/v1/sandboxes?template=tpl-" + template, "/v1/api-keys", "/v1/hosts"} {
		if _, body := g.raw(t, "GET", path, g.bob, ""); !strings.Contains(body, `"items":[]`) {
			t.Errorf("%s lists another team's: %s", path, body)
		}
	}
	if _, body := g.raw(t, "GET", "/v1/sandboxes/"+g.annSandbox, g.ann, ""); !strings.Contains(body, `"running"`) {
		t.Errorf("the sandbox was touched: %s", body)
	}
}

// A token stops working with its session and its user, not with its own end.
func TestA2_AnEndedSessionIsRefusedAtOnce(t *testing.T) {
	g := newGround(t)
	g.do(t, http.MethodGet, "/v1/sandboxes", g.ann, nil, http.StatusOK, nil)
	g.do(t, http.MethodPost, "/v1/auth/logout", g.ann, nil, http.StatusNoContent, nil)
	if _, err := g.pool.Exec(t.Context(), `UPDATE users SET is_active = false WHERE email = 'bob@example.org'`); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{g.ann, g.bob} {
		for _, path := range []string{"/v1/me", "/v1/sandboxes", "/v1/sandboxes/" + g.annSandbox + "/files?path=/x"} {
			var f failure
			g.do(t, http.MethodGet, path, token, nil, http.StatusUnauthorized, &f)
			if f.Error.Code != "session_ended" {
				t.Errorf("%s: %+v", path, f)
			}
		}
	}
}

// contents are all rows but of the trail, without what heartbeats and uses
// touch.
func (g *ground) contents(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, table := range []string{
		"users", "teams", "users_teams", "sessions", "team_api_keys", "hosts", "host_registration_tokens", "host_refresh_tokens",
		"templates", "sandboxes", "operations", "sandbox_events", "idempotency_keys",
	} {
		rows, err := g.pool.Query(t.Context(), `SELECT (to_jsonb(x) - 'last_used_at' - 'last_heartbeat_at' - 'load' - 'status_reason')::text FROM `+table+` x`)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var row string
			if err := rows.Scan(&row); err != nil {
				t.Fatal(err)
			}
			out[table] = append(out[table], row)
		}
		if rows.Err() != nil {
			t.Fatal(rows.Err())
		}
		slices.Sort(out[table])
	}
	return out
}

func TestAU01_WithoutItsEntryNothingChanges(t *testing.T) {
	g := newGround(t)
	ctx := t.Context()
	var pending struct {
		Host struct {
			ID string `json:"id"`
		} `json:"host"`
		Token string `json:"registration_token"`
		CA    string `json:"ca_sha256"`
	}
	g.do(t, http.MethodPost, "/v1/hosts", g.admin, map[string]string{"type": "regular"}, http.StatusCreated, &pending)
	joining := newFakeHost(t, g.agentURL, pending.CA)
	// A refresh token that is older than a confirmed successor.
	oldToken := g.host.creds.Refresh
	for range 2 {
		status, body := g.host.call(t, "/v1/hosts/auth/refresh", map[string]any{"refresh_token": g.host.creds.Refresh, "csr": g.host.csr})
		if status != http.StatusOK {
			t.Fatalf("refresh: %d %s", status, body)
		}
		if err := json.Unmarshal(body, &g.host.creds); err != nil {
			t.Fatal(err)
		}
	}
	x, err := id.ParseSandbox(g.annSandbox)
	if err != nil {
		t.Fatal(err)
	}
	hostID, err := id.ParseHost(g.hostID)
	if err != nil {
		t.Fatal(err)
	}
	var ann id.User
	if err := g.pool.QueryRow(ctx, `SELECT id FROM users WHERE email = 'ann@example.org'`).Scan(&ann); err != nil {
		t.Fatal(err)
	}
	if _, err := pgtest.Owner(t, g.pool).Exec(ctx, `ALTER TABLE audit_logs ADD CONSTRAINT broken CHECK (false) NOT VALID`); err != nil {
		t.Fatal(err)
	}
	entry := audit.By(principal.System("test")).HostMarkedDown(id.PlatformTeamID, hostID, "test")
	rest := func(method, path, auth, body string) func(*testing.T) bool {
		return func(t *testing.T) bool {
			status, answer := g.raw(t, method, path, auth, body)
			return status >= 400 || strings.Contains(answer, `{"error":`) // a build has begun its answer
		}
	}
	agents := func(path string, body map[string]any) func(*testing.T) bool {
		return func(t *testing.T) bool { status, _ := joining.call(t, path, body); return status >= 400 }
	}
	failed := func(f func() error) func(*testing.T) bool { return func(*testing.T) bool { return f() != nil } }
	sandboxes, hosts := sandboxpg.New(g.pool), hostpg.New(g.pool)
	for name, call := range map[string]func(*testing.T) bool{
		"signup":         rest("POST", "/v1/auth/signup", "", `{"email":"eve@example.org","password":"a long password","name":"Eve"}`),
		"login":          rest("POST", "/v1/auth/login", "", `{"email":"ann@example.org","password":"a long password"}`),
		"failed login":   rest("POST", "/v1/auth/login", "", `{"email":"ann@example.org","password":"another password"}`),
		"logout":         rest("POST", "/v1/auth/logout", g.ann, ""),
		"create key":     rest("POST", "/v1/api-keys", g.ann, `{"name":"n"}`),
		"revoke key":     rest("DELETE", "/v1/api-keys/"+g.annKeyID, g.ann, ""),
		"create host":    rest("POST", "/v1/hosts", g.admin, `{"type":"regular"}`),
		"host token":     rest("POST", "/v1/hosts/"+pending.Host.ID+"/token", g.admin, ""),
		"build template": rest("POST", "/v1/templates/base/build", g.admin, ""),
		"create sandbox": rest("POST", "/v1/sandboxes", g.ann, `{"template":"base"}`),
		"delete sandbox": rest("DELETE", "/v1/sandboxes/"+g.annSandbox, g.ann, ""),
		"register host": agents("/v1/hosts/register", map[string]any{"registration_token": pending.Token, "csr": joining.csr, "facts": map[string]any{
			"hostname": "box", "arch": "amd64", "cpus": 4, "memory_bytes": 8 << 30, "disk_bytes": 100 << 30, "kernel": "6.1", "version": "1",
			"address": "127.0.0.1:9", "engines": []map[string]any{},
		}}),
		"reused token": func(t *testing.T) bool {
			status, _ := g.host.call(t, "/v1/hosts/auth/refresh", map[string]any{"refresh_token": oldToken, "csr": g.host.csr})
			return status >= 400
		},
		"make admin": failed(func() error {
			return accountpg.New(g.pool).MakeAdmin(ctx, ann, "hash", audit.By(principal.System("test")))
		}),
		"end at deadline": failed(func() error {
			_, _, err := sandboxes.BeginDelete(ctx, sandbox.Delete{ID: x, Operation: id.NewOperation(), EndReason: sandbox.EndTimeout, Audit: entry})
			return err
		}),
		"mark down": failed(func() error {
			_, err := hosts.MarkStale(ctx, -time.Hour, "test", func(host.Host) audit.Entry { return entry })
			return err
		}),
	} {
		t.Run(name, func(t *testing.T) {
			before := g.contents(t)
			if !call(t) {
				t.Error("it succeeded")
			}
			if diff := cmp.Diff(before, g.contents(t)); diff != "" {
				t.Errorf("it changed:\n%s", diff)
			}
		})
	}
	t.Run("mark up", func(t *testing.T) {
		if _, err := g.pool.Exec(ctx, `UPDATE hosts SET status = 'unreachable' WHERE id = $1`, hostID); err != nil {
			t.Fatal(err)
		}
		before := g.contents(t)
		if status, body := g.host.beat(t); status < 400 {
			t.Errorf("the heartbeat that puts it in service: %d %s", status, body)
		}
		if diff := cmp.Diff(before, g.contents(t)); diff != "" {
			t.Errorf("it changed:\n%s", diff)
		}
	})
}

// Whatever is sent, the fault is the sender's and says so.
func TestC5_BadInputIsNeverOurFault(t *testing.T) {
	g := newGround(t)
	deep := strings.Repeat("[", 100_000)
	cursor := func(position string) string { return base64.RawURLEncoding.EncodeToString([]byte(position)) }
	for _, c := range []struct{ method, path, auth, body string }{
		{"POST", "/v1/sandboxes", g.ann, `{"template":"a\u0000b"}`},
		{"POST", "/v1/sandboxes", g.ann, "{\"template\":\"a\xffb\"}"},
		{"POST", "/v1/sandboxes", g.ann, `{"template":"base","vcpus":1e400}`},
		{"POST", "/v1/sandboxes", g.ann, `{"template":"base","vcpus":-1}`},
		{"POST", "/v1/sandboxes", g.ann, `{"template":"base","vcpus":NaN}`},
		{"POST", "/v1/sandboxes", g.ann, `{"template":"base","memory_mb":99999999999999999999}`},
		{"POST", "/v1/sandboxes", g.ann, `{"template":"base","memory_mb":9223372036854775807}`},
		{"POST", "/v1/sandboxes", g.ann, `{"template":"base","timeout_sec":-9223372036854775808}`},
		{"POST", "/v1/sandboxes", g.ann, `{"template":"base","metadata":{"k":"a\u0000"}}`},
		{"POST", "/v1/sandboxes", g.ann, `{"template":"base","metadata":{"":"a"}}`},
		{"POST", "/v1/sandboxes", g.ann, `{"template":"base","env":{"A\u0000":"a"}}`},
		{"POST", "/v1/sandboxes", g.ann, `{"template":"base","metadata":` + deep},
		{"POST", "/v1/sandboxes", g.ann, deep},
		{"POST", "/v1/sandboxes", g.ann, `{"template":"base","template":"base","x":` + deep},
		{"POST", "/v1/sandboxes", g.ann, `null`},
		{"GET", "/v1/sandboxes?template=%00", g.ann, ""},
		{"GET", "/v1/sandboxes?template=%ff", g.ann, ""},
		{"GET", "/v1/sandboxes?metadata=k%00%3Dv", g.ann, ""},
		{"GET", "/v1/sandboxes?metadata=%ff%3Dv", g.ann, ""},
		{"GET", "/v1/sandboxes?limit=99999999999999999999", g.ann, ""},
		{"GET", "/v1/sandboxes?limit=-1", g.ann, ""},
		{"GET", "/v1/sandboxes?cursor=" + cursor(`{"at":"0000-01-01T00:00:00-23:59","id":"x"}`), g.ann, ""},
		{"GET", "/v1/sandboxes?cursor=" + cursor(`[]`), g.ann, ""},
		{"GET", "/v1/sandboxes?cursor=" + cursor(`null`), g.ann, ""},
		{"GET", "/v1/api-keys?cursor=" + cursor(`null`), g.ann, ""},
		{"GET", "/v1/api-keys?cursor=" + cursor(`{"at":"0001-01-01T00:00:00Z"}`), g.ann, ""},
		{"GET", "/v1/sandboxes/" + g.annSandbox + "/events?cursor=" + cursor(`99999999999999999999`), g.ann, ""},
		{"GET", "/v1/templates/%00", g.ann, ""},
		{"GET", "/v1/templates/%ff", g.ann, ""},
		{"POST", "/v1/api-keys", g.ann, `{"name":"a\u0000b"}`},
		{"POST", "/v1/api-keys", g.ann, `{"name":"x","expires_at":"9999-12-31T23:59:59-23:59"}`},
		{"POST", "/v1/api-keys", g.ann, `{"name":"x","expires_at":"0000-01-01T00:00:00Z"}`},
		{"POST", "/v1/api-keys", g.ann, `{"name":"x","scopes":["admin"]}`},
		{"POST", "/v1/auth/signup", "", `{"email":"a\u0000@example.org","password":"a long password","name":"x"}`},
		{"POST", "/v1/auth/signup", "", `{"email":"z@example.org","password":"a long password","name":"x\u0000"}`},
		{"POST", "/v1/auth/signup", "", "{\"email\":\"z@example.org\",\"password\":\"a long password\",\"name\":\"x\xff\"}"},
		{"POST", "/v1/auth/login", "", "{\"email\":\"z\xff@example.org\",\"password\":\"a long password\"}"},
		{"POST", "/v1/hosts", g.admin, `{"type":"regular","name":"a\u0000"}`},
		{"POST", "/v1/hosts", g.admin, `{"type":"regular","labels":{"a\u0000":"b"}}`},
		{"POST", "/v1/hosts", g.admin, `{"type":"regular","availability_zone":"\u0000"}`},
	} {
		for _, header := range [][]string{nil, {"Idempotency-Key", "k" + c.body[:min(len(c.body), 60)]}} {
			if header != nil {
				header[1] = regexp.MustCompile(`[^a-zA-Z0-9]`).ReplaceAllString(header[1], "-")
			}
			status, body := g.raw(t, c.method, c.path, c.auth, c.body, header...)
			var f failure
			if status != http.StatusBadRequest || json.Unmarshal([]byte(body), &f) != nil || f.Error.Message == "" {
				t.Errorf("%s %s %.60q: %d %.200s", c.method, c.path, c.body, status, body)
			}
		}
	}
	events := func(event string) (int, []byte) {
		return g.host.call(t, "/v1/hosts/"+g.hostID+"/events", json.RawMessage(`{"generation":1,"events":[`+event+`]}`))
	}
	for _, event := range []string{
		`{"seq":1,"kind":"a\u0000","sandbox_id":"` + g.annSandbox + `","incarnation":1,"at":"2026-01-01T00:00:00Z"}`,
		`{"seq":1,"kind":"k","sandbox_id":"` + g.annSandbox + `","incarnation":1,"at":"2026-01-01T00:00:00Z","data":{"n":1e400}}`,
		`{"seq":-1,"kind":"k","sandbox_id":"` + g.annSandbox + `","incarnation":1,"at":"2026-01-01T00:00:00Z"}`,
	} {
		if status, body := events(event); status != http.StatusBadRequest {
			t.Errorf("event %s: %d %s", event, status, body)
		}
	}
	for seq, event := range []string{
		`,"at":"9999-12-31T23:59:59-23:59"}`, `,"at":"0000-01-01T00:00:00+23:59"}`, `,"at":"2026-01-01T00:00:00Z","data":{"x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}}`,
		`,"at":"2026-01-01T00:00:00Z","data":{"\u0000":1,"s":"\ud800"}}`,
	} {
		if status, body := events(`{"seq":` + string(rune('1'+seq)) + `,"kind":"k","sandbox_id":"` + g.annSandbox + `","incarnation":1` + event); status >= 500 {
			t.Errorf("event %.80s: %d %s", event, status, body)
		}
	}
	if status, body := g.raw(t, "GET", "/v1/sandboxes/"+g.annSandbox+"/events", g.ann, ""); status != http.StatusOK {
		t.Errorf("the events cannot be read any more: %d %.300s", status, body)
	}
}
