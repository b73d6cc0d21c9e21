package web_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

const hostID = "host-01936d5a-0000-7000-8000-000000000001"

func (s *stack) hostToken(t *testing.T) string {
	t.Helper()
	host, err := id.ParseHost(hostID)
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := s.keys.SignHost(keyring.HostClaims{Host: host, Family: id.HostRefreshToken{}.FromUUID(id.NewHost().UUID())})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// whoami is a route that any reader of sandboxes may call; it tells who calls.
func whoami() web.Route {
	return web.Route{Method: "GET", Path: "/v1/sandboxes/{id}/exec/stream", Operation: "streamExec", Handler: func(w http.ResponseWriter, r *http.Request) {
		p := principal.From(r.Context())
		fmt.Fprintf(w, "%s %s %s %s", p.Kind, p.APIKeyName, p.TeamID, r.PathValue("id"))
	}}
}

func TestA9_KeyLivesFromCreateToRevoke(t *testing.T) {
	s := newStack(t, options{routes: []web.Route{whoami()}})
	a := s.signup(t, "ada@example.com")
	secret, keyID := s.apiKey(t, a.Token, map[string]any{"name": "ci"})
	digits := strings.TrimPrefix(secret, "skerry_")
	if len(digits) != 40 || !strings.HasPrefix(keyID, "key-") {
		t.Errorf("key %s, secret %s", keyID, secret)
	}
	call := func(key string) reply { return s.call(t, "GET", "/v1/sandboxes/x/exec/stream", nil, "X-API-Key", key) }
	for _, form := range []string{secret, "e2b_" + digits} {
		if r := call(form); r.status != 200 || r.body != "api_key ci "+a.Team.ID+" x" {
			t.Errorf("%s: %d %s", form, r.status, r.body)
		}
	}
	for _, junk := range []string{"x", digits, "skerry_" + strings.ToUpper(digits), "skerry_" + digits + "0", "skerry_" + strings.Repeat("0", 40)} {
		call(junk).fault(t, 401, "invalid_api_key")
	}
	if n := s.count(t, "SELECT count(*) FROM team_api_keys WHERE key_hash = sha256($1::bytea) AND strpos(key_prefix, $2) = 0", []byte(digits), digits); n != 1 {
		t.Error("the key is not stored by its hash alone")
	}
	testkit.Eventually(t, 30*time.Second, "last use is stored", func() bool {
		return s.count(t, "SELECT count(*) FROM team_api_keys WHERE last_used_at IS NOT NULL") == 1
	})
	r := s.call(t, "GET", "/v1/api-keys", nil, bearer(a.Token)...)
	if r.status != 200 || strings.Contains(r.body, digits) || !strings.Contains(r.body, `"created_by":"Ada"`) || !strings.Contains(r.body, `"last_used_at"`) {
		t.Errorf("list: %d %s", r.status, r.body)
	}
	if r := s.call(t, "DELETE", "/v1/api-keys/"+keyID, nil, bearer(a.Token)...); r.status != 204 {
		t.Errorf("revoke: %d %s", r.status, r.body)
	}
	call(secret).fault(t, 401, "invalid_api_key")
	s.call(t, "DELETE", "/v1/api-keys/"+keyID, nil, bearer(a.Token)...).fault(t, 404, "api_key_not_found")
}

func TestA9_LastUseIsWrittenAtMostOnceAMinute(t *testing.T) {
	s := newStack(t, options{routes: []web.Route{whoami()}})
	a := s.signup(t, "ada@example.com")
	secret, _ := s.apiKey(t, a.Token, map[string]any{"name": "ci"})
	s.exec(t, "CREATE TABLE writes (n int); GRANT SELECT ON writes TO skerry_app; CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN INSERT INTO writes VALUES (1); RETURN NEW; END'; CREATE TRIGGER note AFTER UPDATE ON team_api_keys FOR EACH ROW EXECUTE FUNCTION note()")
	for range 30 {
		if r := s.call(t, "GET", "/v1/sandboxes/x/exec/stream", nil, "X-API-Key", secret); r.status != 200 {
			t.Fatal(r.body)
		}
	}
	testkit.Eventually(t, 30*time.Second, "the use is stored", func() bool { return s.count(t, "SELECT count(*) FROM writes") > 0 })
	if n := s.count(t, "SELECT count(*) FROM writes"); n != 1 {
		t.Errorf("%d writes for 30 uses", n)
	}
}

func TestA9_ExpiredAndTeamDeletedKeysAreRefused(t *testing.T) {
	s := newStack(t, options{routes: []web.Route{whoami()}})
	a := s.signup(t, "ada@example.com")
	secret, _ := s.apiKey(t, a.Token, map[string]any{"name": "ci", "expires_at": time.Now().Add(time.Hour).Format(time.RFC3339)})
	call := func() reply { return s.call(t, "GET", "/v1/sandboxes/x/exec/stream", nil, "X-API-Key", secret) }
	if r := call(); r.status != 200 {
		t.Fatal(r.body)
	}
	s.exec(t, "UPDATE team_api_keys SET expires_at = now()")
	call().fault(t, 401, "invalid_api_key")
	s.exec(t, "UPDATE team_api_keys SET expires_at = NULL")
	s.exec(t, "UPDATE teams SET deleted_at = now() WHERE id <> '00000000-0000-0000-0000-000000000000'")
	call().fault(t, 401, "invalid_api_key")
}

func TestA9_RequestsAreChecked(t *testing.T) {
	s := newStack(t, options{routes: []web.Route{whoami()}})
	a := s.signup(t, "ada@example.com")
	for _, tt := range []struct {
		body  map[string]any
		field string
	}{
		{map[string]any{"name": " "}, "name"},
		{map[string]any{"name": strings.Repeat("x", 101)}, "name"},
		{map[string]any{"name": "k", "scopes": []string{"all"}}, "scopes"},
		{map[string]any{"name": "k", "scopes": []string{}}, "scopes"},
		{map[string]any{"name": "k", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"},
		{map[string]any{"name": "k", "expires_at": "tomorrow"}, "expires_at"},
		{map[string]any{}, "name"},
	} {
		e := s.call(t, "POST", "/v1/api-keys", tt.body, bearer(a.Token)...).fault(t, 400, "invalid_request")
		if e.Details["field"] != tt.field {
			t.Errorf("%v: field %v, want %s", tt.body, e.Details["field"], tt.field)
		}
	}
	readOnly, _ := s.apiKey(t, a.Token, map[string]any{"name": "r", "scopes": []string{"read"}})
	s.call(t, "GET", "/v1/sandboxes/x/exec/stream", nil, "X-API-Key", readOnly).fault(t, 403, "scope_required")
	s.call(t, "GET", "/v1/api-keys", nil, "X-API-Key", readOnly).fault(t, 403, "api_key_not_allowed")
	s.call(t, "GET", "/v1/sandboxes/x/exec/stream", nil, "X-API-Key", readOnly, "Authorization", "Bearer "+a.Token).fault(t, 400, "ambiguous_credentials")
}

func TestC8_AnotherTeamsKeyIsNotFound(t *testing.T) {
	s := newStack(t, options{})
	ada, eve := s.signup(t, "ada@example.com"), s.signup(t, "eve@example.com")
	_, keyID := s.apiKey(t, ada.Token, map[string]any{"name": "ci"})
	s.call(t, "DELETE", "/v1/api-keys/"+keyID, nil, bearer(eve.Token)...).fault(t, 404, "api_key_not_found")
	if r := s.call(t, "GET", "/v1/api-keys", nil, bearer(eve.Token)...); strings.Contains(r.body, keyID) {
		t.Errorf("another team's key is listed: %s", r.body)
	}
	// A member may revoke own keys only.
	s.exec(t, "INSERT INTO users_teams (user_id, team_id, role) SELECT u.id, k.team_id, 'member' FROM team_api_keys k, users u WHERE u.email = 'eve@example.com'")
	s.exec(t, "UPDATE sessions SET team_id = (SELECT team_id FROM team_api_keys)")
	s.call(t, "DELETE", "/v1/api-keys/"+keyID, nil, bearer(eve.Token)...).fault(t, 403, "role_required")
}

func TestC4_EveryRowOnceAtOneMicrosecondWhileRowsAreAdded(t *testing.T) {
	s := newStack(t, options{})
	a := s.signup(t, "ada@example.com")
	const insert = `INSERT INTO team_api_keys (id, team_id, name, key_hash, key_prefix, scopes, created_at)
		SELECT gen_random_uuid(), (SELECT id FROM teams WHERE slug = $1), 'k', sha256(gen_random_uuid()::text::bytea), 'x', '{read}', $2::timestamptz FROM generate_series(1, $3::int)`
	at := time.Now().Add(-time.Hour)
	s.exec(t, insert, a.Team.Slug, at, 1000)
	seen := map[string]int{}
	cursor := ""
	for pages := 0; ; pages++ {
		if pages > 100 {
			t.Fatal("the walk does not end")
		}
		var list struct {
			Items      []struct{ ID string }
			NextCursor string `json:"next_cursor"`
		}
		r := s.call(t, "GET", "/v1/api-keys?limit=170&cursor="+cursor, nil, bearer(a.Token)...)
		r.json(t, &list)
		for _, item := range list.Items {
			seen[item.ID]++
		}
		if cursor = list.NextCursor; cursor == "" {
			break
		}
		s.exec(t, insert, a.Team.Slug, time.Now(), 10)
	}
	if len(seen) != 1000 {
		t.Errorf("saw %d rows", len(seen))
	}
	for key, n := range seen {
		if n != 1 {
			t.Errorf("%s seen %d times", key, n)
		}
	}
	for _, limit := range []string{"0", "-1", "201", "1000000000", "x", "1.5"} {
		e := s.call(t, "GET", "/v1/api-keys?limit="+limit, nil, bearer(a.Token)...).fault(t, 400, "invalid_request")
		if e.Details["field"] != "limit" {
			t.Errorf("limit=%s: %+v", limit, e)
		}
	}
	for _, junk := range []string{"x", "%00", "e30x", "eyJhdCI6MX0", "bnVsbA"} {
		if r := s.call(t, "GET", "/v1/api-keys?cursor="+junk, nil, bearer(a.Token)...); r.status != 400 && junk != "bnVsbA" || r.status >= 500 {
			t.Errorf("cursor %q: %d %s", junk, r.status, r.body)
		}
	}
}

func TestC6_FiftyParallelCreatesMakeOne(t *testing.T) {
	s := newStack(t, options{})
	a := s.signup(t, "ada@example.com")
	headers := append(bearer(a.Token), "Idempotency-Key", "order-66")
	replies := make([]reply, 50)
	var wg sync.WaitGroup
	for i := range replies {
		wg.Go(func() { replies[i] = s.call(t, "POST", "/v1/api-keys", map[string]string{"name": "ci"}, headers...) })
	}
	wg.Wait()
	for _, r := range replies {
		if r.status != 201 || r.body != replies[0].body {
			t.Fatalf("%d %s differs from %s", r.status, r.body, replies[0].body)
		}
	}
	if n := s.count(t, "SELECT (SELECT count(*) FROM team_api_keys) * 100 + (SELECT count(*) FROM audit_logs WHERE resource_type = 'api_key')"); n != 101 {
		t.Errorf("keys and entries: %d, want 101", n)
	}
	s.call(t, "POST", "/v1/api-keys", map[string]string{"name": "other"}, headers...).fault(t, 409, "idempotency_conflict")
	eve := s.signup(t, "eve@example.com")
	if r := s.call(t, "POST", "/v1/api-keys", map[string]string{"name": "ci"}, append(bearer(eve.Token), "Idempotency-Key", "order-66")...); r.status != 201 || r.body == replies[0].body {
		t.Errorf("another caller with the same key: %d %s", r.status, r.body)
	}
	// The stored receipt gives nothing away.
	var made struct{ Key string }
	replies[0].json(t, &made)
	if n := s.count(t, "SELECT count(*) FROM idempotency_keys WHERE position($1::bytea IN receipt) > 0 OR key_hash = sha256('order-66')", []byte(made.Key[7:])); n != 0 {
		t.Error("the receipt holds the key in the clear")
	}
	// After the window the key is free again.
	s.exec(t, "UPDATE idempotency_keys SET created_at = now() - interval '25 hours'")
	if r := s.call(t, "POST", "/v1/api-keys", map[string]string{"name": "other"}, headers...); r.status != 201 {
		t.Errorf("an expired key: %d %s", r.status, r.body)
	}
}

func TestC6_FailedCreateRunsAgainAndSignupReplays(t *testing.T) {
	s := newStack(t, options{})
	body := map[string]string{"email": "ada@example.com", "password": password, "name": "Ada"}
	s.exec(t, "ALTER TABLE audit_logs ADD CONSTRAINT broken CHECK (false) NOT VALID")
	if r := s.call(t, "POST", "/v1/auth/signup", body, "Idempotency-Key", "k"); r.status < 400 {
		t.Fatalf("signup: %d", r.status)
	}
	s.exec(t, "ALTER TABLE audit_logs DROP CONSTRAINT broken")
	first := s.call(t, "POST", "/v1/auth/signup", body, "Idempotency-Key", "k")
	second := s.call(t, "POST", "/v1/auth/signup", body, "Idempotency-Key", "k")
	if first.status != 201 || second.status != 201 || first.body != second.body {
		t.Errorf("%d %s\n%d %s", first.status, first.body, second.status, second.body)
	}
	if r := s.call(t, "POST", "/v1/auth/signup", body, "Idempotency-Key", strings.Repeat("k", 256)); r.status != 400 {
		t.Errorf("a key of 256 characters: %d %s", r.status, r.body)
	}
}

// What was answered to an owner holds a secret; whoever has another role or team
// by now does not get it once more.
func TestC6_AReplayNeedsTheStandingOfTheFirstCall(t *testing.T) {
	s := newStack(t, options{})
	a := s.signup(t, "ada@example.com")
	create := func() reply {
		return s.call(t, "POST", "/v1/api-keys", map[string]any{"name": "ci"}, append(bearer(a.Token), "Idempotency-Key", "once")...)
	}
	first := create()
	if again := create(); first.status != 201 || again.body != first.body {
		t.Fatalf("%d %s, then %s", first.status, first.body, again.body)
	}
	s.demote(t, "ada@example.com")
	create().fault(t, 409, "idempotency_conflict")
	s.exec(t, "DELETE FROM users_teams WHERE role = 'member'")
	if r := create(); r.status == 201 {
		t.Errorf("after removal: %s", r.body)
	}
	if n := s.count(t, "SELECT count(*) FROM team_api_keys"); n != 1 {
		t.Errorf("%d keys", n)
	}
}

// The same in many rounds, each with a key and a caller's answer of its own.
func TestC6_RacingCreatesMakeOneEachRound(t *testing.T) {
	s := newStack(t, options{})
	a := s.signup(t, "ada@example.com")
	for round := range rounds(10, 200) {
		headers := append(bearer(a.Token), "Idempotency-Key", fmt.Sprint("round-", round))
		replies := make([]reply, 8)
		var wg sync.WaitGroup
		for i := range replies {
			wg.Go(func() { replies[i] = s.call(t, "POST", "/v1/api-keys", map[string]string{"name": "ci"}, headers...) })
		}
		wg.Wait()
		for _, r := range replies {
			if r.status != 201 || r.body != replies[0].body {
				t.Fatalf("round %d: %d %s differs from %s", round, r.status, r.body, replies[0].body)
			}
		}
		if n := s.count(t, "SELECT count(*) FROM team_api_keys"); n != 1 {
			t.Fatalf("round %d made %d keys", round, n)
		}
		s.exec(t, "DELETE FROM team_api_keys")
	}
}
