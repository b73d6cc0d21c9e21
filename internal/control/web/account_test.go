package web_test

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/testkit"
)

func TestA1_SignupMakesUserTeamAndMembership(t *testing.T) {
	s := newStack(t, options{})
	r := s.call(t, "POST", "/v1/auth/signup", map[string]string{"email": "  Ada@Example.COM ", "password": password, "name": " Ada Lovelace "})
	if r.status != http.StatusCreated {
		t.Fatalf("signup: %d %s", r.status, r.body)
	}
	var a authReply
	r.json(t, &a)
	if a.User.Email != "ada@example.com" || a.User.Name != "Ada Lovelace" || a.User.IsAdmin || !strings.HasPrefix(a.User.ID, "usr-") {
		t.Errorf("user is %+v", a.User)
	}
	if a.Team == nil || a.Team.Name != "Ada Lovelace’s Team" || a.Team.Role != "owner" || !regexp.MustCompile(`^[0-9a-f]{6}-[0-9a-f]{6}$`).MatchString(a.Team.Slug) {
		t.Errorf("team is %+v", a.Team)
	}
	if d := time.Until(a.ExpiresAt); d < 14*time.Minute || d > 15*time.Minute {
		t.Errorf("token lives %s", d)
	}
	if n := s.count(t, "SELECT count(*) FROM users_teams WHERE role = 'owner' AND is_default"); n != 1 {
		t.Errorf("%d default owner memberships", n)
	}
	if n := s.count(t, "SELECT count(*) FROM audit_logs WHERE (resource_type, action) IN (('user','create'), ('team','create'), ('session','login')) AND actor_name = 'Ada Lovelace' AND request_id = $1", r.header.Get("X-Request-Id")); n != 3 {
		t.Errorf("%d audit entries, want 3", n)
	}
	s.call(t, "POST", "/v1/auth/signup", map[string]string{"email": "ADA@example.com", "password": password, "name": "Eve"}).fault(t, 409, "email_taken")
}

func TestA1_EachFieldIsChecked(t *testing.T) {
	s := newStack(t, options{})
	good := map[string]string{"email": "ada@example.com", "password": password, "name": "Ada"}
	for _, tt := range []struct{ field, value string }{
		{"email", ""},
		{"email", "ada"},
		{"email", "a@b@c"},
		{"email", "a b@c.d"},
		{"email", strings.Repeat("a", 250) + "@b.de"},
		{"password", "1234567"},
		{"password", strings.Repeat("é", 129)},
		{"name", "  "},
		{"name", strings.Repeat("ñ", 101)},
		{"name", "a\u0000b"},
	} {
		body := maps.Clone(good)
		body[tt.field] = tt.value
		e := s.call(t, "POST", "/v1/auth/signup", body).fault(t, 400, "invalid_request")
		if e.Details["field"] != tt.field {
			t.Errorf("%s %q: field is %v", tt.field, tt.value, e.Details["field"])
		}
	}
	for i, pw := range []string{"12345678", strings.Repeat("é", 128)} {
		body := map[string]string{"email": fmt.Sprintf("u%d@example.com", i), "password": pw, "name": strings.Repeat("ñ", 100)}
		if r := s.call(t, "POST", "/v1/auth/signup", body); r.status != 201 {
			t.Errorf("password of %d bytes: %d %s", len(pw), r.status, r.body)
		}
	}
	if n := s.count(t, "SELECT count(*) FROM users"); n != 2 {
		t.Errorf("%d users", n)
	}
}

func TestA1_ParallelSignupsOfOneAddressMakeOne(t *testing.T) {
	s := newStack(t, options{})
	var wg sync.WaitGroup
	statuses := make([]int, 8)
	for i := range statuses {
		wg.Go(func() {
			statuses[i] = s.call(t, "POST", "/v1/auth/signup", map[string]string{"email": "ada@example.com", "password": password, "name": "Ada"}).status
		})
	}
	wg.Wait()
	slices.Sort(statuses)
	if statuses[0] != 201 || statuses[1] != 409 || statuses[7] != 409 {
		t.Errorf("statuses %v", statuses)
	}
	if n := s.count(t, "SELECT count(*) FROM teams WHERE slug <> '000000-000000'"); n != 1 {
		t.Errorf("%d teams", n)
	}
}

func TestA13_SignupPolicy(t *testing.T) {
	policy, err := account.ParseSignupPolicy("example.com, b.org")
	if err != nil {
		t.Fatal(err)
	}
	s := newStack(t, options{policy: &policy})
	s.signup(t, "ada@example.com")
	s.call(t, "POST", "/v1/auth/signup", map[string]string{"email": "eve@evil.example.com", "password": password, "name": "Eve"}).fault(t, 403, "signup_closed")
	for _, bad := range []string{"", "opne", "a@b.c", "example.com,,"} {
		if _, err := account.ParseSignupPolicy(bad); err == nil {
			t.Errorf("policy %q was taken", bad)
		}
	}
}

func TestA2_LoginAndItsOneRefusal(t *testing.T) {
	s := newStack(t, options{})
	made := s.signup(t, "ada@example.com")
	r := s.call(t, "POST", "/v1/auth/login", map[string]string{"email": " ADA@example.com", "password": password})
	var a authReply
	r.json(t, &a)
	if r.status != 200 || a.User.ID != made.User.ID || a.Team == nil || a.Team.ID != made.Team.ID {
		t.Errorf("login: %d %s", r.status, r.body)
	}
	wrong := s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "ada@example.com", "password": password + "!"}).fault(t, 401, "invalid_credentials")
	unknown := s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "eve@example.com", "password": password}).fault(t, 401, "invalid_credentials")
	if wrong.Message != unknown.Message {
		t.Errorf("messages differ: %q and %q", wrong.Message, unknown.Message)
	}
	if n := s.count(t, "SELECT count(*) FROM audit_logs WHERE action = 'login_failed' AND status = 'warning' AND actor_type = 'anonymous'"); n != 2 {
		t.Errorf("%d failures in the trail", n)
	}
	s.exec(t, "UPDATE users SET is_active = false")
	s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "ada@example.com", "password": password}).fault(t, 403, "account_disabled")
	s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "ada@example.com", "password": "wrong wrong"}).fault(t, 401, "invalid_credentials")
}

func TestID08_LongPasswordsCountToTheLastByte(t *testing.T) {
	s := newStack(t, options{})
	long := strings.Repeat("x", 99)
	if r := s.call(t, "POST", "/v1/auth/signup", map[string]string{"email": "ada@example.com", "password": long + "a", "name": "Ada"}); r.status != 201 {
		t.Fatal(r.body)
	}
	s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "ada@example.com", "password": long + "b"}).fault(t, 401, "invalid_credentials")
	if r := s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "ada@example.com", "password": long + "a"}); r.status != 200 {
		t.Error(r.body)
	}
	for _, n := range []int{1, 73, 1000, 100_000} {
		s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "ada@example.com", "password": strings.Repeat("y", n)}).fault(t, 401, "invalid_credentials")
	}
}

func TestID08_EleventhWrongLoginWaits(t *testing.T) {
	s := newStack(t, options{})
	s.signup(t, "ada@example.com")
	body := map[string]string{"email": "ada@example.com", "password": "wrong wrong"}
	for range 10 {
		s.call(t, "POST", "/v1/auth/login", body).fault(t, 401, "invalid_credentials")
	}
	r := s.call(t, "POST", "/v1/auth/login", body)
	r.fault(t, 429, "too_many_failures")
	if r.header.Get("Retry-After") == "" {
		t.Error("429 without Retry-After")
	}
}

func TestID08_KnownAndUnknownTakeTheSameTime(t *testing.T) {
	if os.Getenv("SKERRY_TEST_SLOW") == "" {
		testkit.Missing(t, "slow", "set SKERRY_TEST_SLOW=1 on a quiet machine: it compares medians")
	}
	later := &laterClock{}
	s := newStack(t, options{clock: later, cost: account.DefaultCost()})
	s.signup(t, "ada@example.com")
	took := map[string][]time.Duration{}
	for range 150 {
		for _, email := range []string{"ada@example.com", "eve@example.com"} {
			later.by += time.Minute // the counters of wrong logins forget
			start := time.Now()
			s.call(t, "POST", "/v1/auth/login", map[string]string{"email": email, "password": "wrong wrong"}).fault(t, 401, "invalid_credentials")
			took[email] = append(took[email], time.Since(start))
		}
	}
	median := func(email string) float64 {
		slices.Sort(took[email])
		return took[email][len(took[email])/2].Seconds() * 1000
	}
	known, unknown := median("ada@example.com"), median("eve@example.com")
	t.Logf("known %.2f ms, unknown %.2f ms", known, unknown)
	if ratio := known / unknown; ratio > 1.05 || ratio < 1/1.05 {
		t.Errorf("known %.2f ms, unknown %.2f ms", known, unknown)
	}
}

func TestA2_HashIsRenewedWhenTheCostRises(t *testing.T) {
	s := newStack(t, options{})
	s.signup(t, "ada@example.com")
	weak, err := account.NewHasher(account.Cost{MemoryKiB: 32, Passes: 1, Threads: 1}).Hash(t.Context(), password)
	if err != nil {
		t.Fatal(err)
	}
	s.exec(t, "UPDATE users SET password_hash = $1", weak)
	for range 2 {
		if r := s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "ada@example.com", "password": password}); r.status != 200 {
			t.Fatal(r.body)
		}
	}
	if n := s.count(t, "SELECT count(*) FROM users WHERE password_hash LIKE '$argon2id$v=19$m=64,t=1,p=1$%'"); n != 1 {
		t.Error("the hash was not renewed")
	}
}

func TestA3_LoginTeamIsTheLivingDefault(t *testing.T) {
	s := newStack(t, options{})
	made := s.signup(t, "ada@example.com")
	s.exec(t, "UPDATE teams SET deleted_at = now() WHERE slug = $1", made.Team.Slug)
	login := func() authReply {
		t.Helper()
		r := s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "ada@example.com", "password": password})
		var a authReply
		r.json(t, &a)
		if r.status != 200 {
			t.Fatal(r.body)
		}
		return a
	}
	a := login()
	if a.Team != nil {
		t.Errorf("team is %+v, want none", a.Team)
	}
	r := s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...)
	if r.status != 200 || !strings.Contains(r.body, `"team":null`) {
		t.Errorf("me: %d %s", r.status, r.body)
	}
	s.call(t, "POST", "/v1/api-keys", map[string]string{"name": "k"}, bearer(a.Token)...).fault(t, 403, "no_team")
	// The zero id of "no team" must never pass for the platform's team.
	s.call(t, "GET", "/v1/api-keys", nil, bearer(a.Token)...).fault(t, 403, "no_team")
	s.signup(t, "bob@example.com")
	s.exec(t, `WITH t AS (INSERT INTO teams (id, name, slug) VALUES (gen_random_uuid(), 'Second', 'aaaaaa-bbbbbb') RETURNING id)
		INSERT INTO users_teams (user_id, team_id, role) SELECT u.id, t.id, CASE u.email WHEN 'bob@example.com' THEN 'owner' ELSE 'member' END FROM t, users u`)
	if a := login(); a.Team == nil || a.Team.Name != "Second" || a.Team.Role != "member" {
		t.Errorf("team is %+v, want Second", a.Team)
	}
}

func TestA4_TheDatabaseDecidesOnTheVeryNextRequest(t *testing.T) {
	s := newStack(t, options{})
	a := s.signup(t, "ada@example.com")
	me := func() reply { return s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...) }
	if r := me(); r.status != 200 {
		t.Fatal(r.body)
	}
	var claims jwt.MapClaims
	token, _, err := jwt.NewParser().ParseUnverified(a.Token, &claims)
	if err != nil || token.Method.Alg() != "EdDSA" || token.Header["kid"] == "" {
		t.Errorf("token header %v (%v)", token.Header, err)
	}
	for _, name := range []string{"sub", "sid", "team_id", "role", "name", "email", "is_admin", "exp"} {
		if _, ok := claims[name]; !ok {
			t.Errorf("no claim %s", name)
		}
	}
	s.exec(t, "UPDATE users SET is_admin = true")
	if r := me(); !strings.Contains(r.body, `"is_admin":true`) {
		t.Errorf("the flag is from the token: %s", r.body)
	}
	s.exec(t, "UPDATE users SET is_active = false")
	me().fault(t, 401, "session_ended")
	s.exec(t, "UPDATE users SET is_active = true")
	s.demote(t, "ada@example.com")
	s.exec(t, "DELETE FROM users_teams WHERE role = 'member'")
	if r := me(); r.status != 200 || !strings.Contains(r.body, `"team":null`) {
		t.Errorf("a removed member: %d %s", r.status, r.body)
	}
	if r := s.call(t, "POST", "/v1/auth/logout", nil, bearer(a.Token)...); r.status != 204 {
		t.Errorf("logout: %d %s", r.status, r.body)
	}
	me().fault(t, 401, "session_ended")
	if n := s.count(t, "SELECT count(*) FROM audit_logs WHERE action = 'logout'"); n != 1 {
		t.Errorf("%d logouts in the trail", n)
	}
}

type laterClock struct{ by time.Duration }

func (c *laterClock) Now() time.Time { return clock.System{}.Now().Add(c.by) }

func TestA4_TokensExpireAndAreOfOneKind(t *testing.T) {
	later := &laterClock{}
	s := newStack(t, options{clock: later})
	a := s.signup(t, "ada@example.com")
	heartbeat := func(token string) reply {
		return s.call(t, "POST", "/v1/hosts/"+hostID+"/heartbeat", map[string]any{}, bearer(token)...)
	}
	heartbeat(a.Token).fault(t, 401, "invalid_token")
	hostToken := s.hostToken(t)
	s.call(t, "GET", "/v1/me", nil, bearer(hostToken)...).fault(t, 401, "invalid_token")
	forged := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": a.User.ID, "aud": "user", "iss": "skerry", "exp": time.Now().Add(time.Hour).Unix()})
	signed, err := forged.SignedString([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for _, junk := range []string{"", "x", "a.b.c", signed, a.Token[:len(a.Token)-4] + "AAAA"} {
		if r := s.call(t, "GET", "/v1/me", nil, bearer(junk)...); r.status != 401 {
			t.Errorf("token %q: %d %s", junk, r.status, r.body)
		}
	}
	later.by = 16 * time.Minute
	s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...).fault(t, 401, "token_expired")
}

func TestA11_FirstAdminIsMadeOnceAndNeverBySignup(t *testing.T) {
	s := newStack(t, options{policy: &account.SignupClosed})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := s.accounts.EnsureAdmin(t.Context(), "Root@example.com", password); err != nil {
				t.Errorf("ensure: %v", err)
			}
		})
	}
	wg.Wait()
	if n := s.count(t, "SELECT count(*) FROM users WHERE is_admin"); n != 1 {
		t.Errorf("%d admins", n)
	}
	if n := s.count(t, "SELECT count(*) FROM audit_logs WHERE action = 'admin_grant' AND actor_type = 'system'"); n != 1 {
		t.Errorf("%d grants in the trail", n)
	}
	r := s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "root@example.com", "password": password})
	if r.status != 200 || !strings.Contains(r.body, `"is_admin":true`) {
		t.Errorf("admin's login: %d %s", r.status, r.body)
	}
	open := newStack(t, options{})
	if a := open.signup(t, "first@example.com"); a.User.IsAdmin {
		t.Error("the first to sign up is an admin")
	}
}

func TestA11_TheOperatorsAdminHasTheOperatorsPassword(t *testing.T) {
	s := newStack(t, options{})
	squatter := s.signup(t, "root@example.com")
	for range 2 { // the second changes nothing
		if err := s.accounts.EnsureAdmin(t.Context(), "root@example.com", "the operator's own"); err != nil {
			t.Fatal(err)
		}
	}
	s.call(t, "GET", "/v1/me", nil, bearer(squatter.Token)...).fault(t, 401, "session_ended")
	s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "root@example.com", "password": password}).fault(t, 401, "invalid_credentials")
	r := s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "root@example.com", "password": "the operator's own"})
	if r.status != 200 || !strings.Contains(r.body, `"is_admin":true`) {
		t.Errorf("admin's login: %d %s", r.status, r.body)
	}
	if n := s.count(t, "SELECT count(*) FROM audit_logs WHERE action IN ('admin_grant', 'password_reset') AND actor_type = 'system'"); n != 2 {
		t.Errorf("%d entries, want one grant and one reset", n)
	}
	// A session of the operator's own survives a repetition.
	if err := s.accounts.EnsureAdmin(t.Context(), "root@example.com", "the operator's own"); err != nil {
		t.Fatal(err)
	}
	if n := s.count(t, "SELECT count(*) FROM sessions WHERE ended_at IS NULL"); n != 1 {
		t.Errorf("%d living sessions, want the operator's", n)
	}
}

func TestOldSessionsAreForgotten(t *testing.T) {
	s := newStack(t, options{})
	a := s.signup(t, "ada@example.com")
	s.exec(t, `INSERT INTO sessions (id, user_id, expires_at, ended_at)
		SELECT gen_random_uuid(), id, now() - interval '31 days', NULL FROM users
		UNION ALL SELECT gen_random_uuid(), id, now(), now() - interval '31 days' FROM users
		UNION ALL SELECT gen_random_uuid(), id, now() - interval '29 days', NULL FROM users`)
	if err := s.accounts.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := s.count(t, "SELECT count(*) FROM sessions"); n != 2 {
		t.Errorf("%d sessions are left, want the living and the recent one", n)
	}
	if r := s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...); r.status != 200 {
		t.Errorf("the living one: %d", r.status)
	}
}

func TestAU01_NoAuditNoChange(t *testing.T) {
	s := newStack(t, options{})
	a := s.signup(t, "ada@example.com")
	s.exec(t, "ALTER TABLE audit_logs ADD CONSTRAINT broken CHECK (false) NOT VALID")
	if r := s.call(t, "POST", "/v1/auth/signup", map[string]string{"email": "eve@example.com", "password": password, "name": "Eve"}); r.status < 400 {
		t.Errorf("signup without audit: %d", r.status)
	}
	if r := s.call(t, "POST", "/v1/api-keys", map[string]string{"name": "k"}, bearer(a.Token)...); r.status < 400 {
		t.Errorf("key without audit: %d", r.status)
	}
	if r := s.call(t, "POST", "/v1/auth/logout", nil, bearer(a.Token)...); r.status < 400 {
		t.Errorf("logout without audit: %d", r.status)
	}
	if r := s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...); r.status != 200 {
		t.Errorf("the session ended: %d", r.status)
	}
	if n := s.count(t, "SELECT (SELECT count(*) FROM users) + (SELECT count(*) FROM team_api_keys)"); n != 1 {
		t.Errorf("%d users and keys, want the one user", n)
	}
}
