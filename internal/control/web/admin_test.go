package web_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// admin makes a user who is a platform admin.
func (s *stack) admin(t *testing.T, email string) authReply {
	t.Helper()
	a := s.signup(t, email)
	s.exec(t, "UPDATE users SET is_admin = true WHERE email = $1", email)
	return a
}

type adminUser struct {
	ID, Email, Name string
	IsAdmin         bool       `json:"is_admin"`
	IsActive        bool       `json:"is_active"`
	EmailProven     bool       `json:"email_proven"`
	LastLoginAt     *time.Time `json:"last_login_at"`
}

func (s *stack) put(t *testing.T, token, user, what string, enabled bool) reply {
	t.Helper()
	return s.call(t, "PUT", "/v1/admin/users/"+user+"/"+what, map[string]bool{"enabled": enabled}, bearer(token)...)
}

func TestA11_AdminsListUsersAndDisableThemAtOnce(t *testing.T) {
	s := newStack(t, options{})
	root := s.admin(t, "root@example.com")
	ada := s.signup(t, "ada@example.com")
	s.exec(t, "UPDATE users SET name = '100% Ada' WHERE email = 'ada@example.com'")
	list := func(query string) (found struct {
		Items      []adminUser
		NextCursor string `json:"next_cursor"`
	},
	) {
		t.Helper()
		r := s.call(t, "GET", "/v1/admin/users"+query, nil, bearer(root.Token)...)
		r.json(t, &found)
		if r.status != 200 {
			t.Fatalf("%s: %d %s", query, r.status, r.body)
		}
		return found
	}
	for query, want := range map[string]int{"": 2, "?search=ADA@": 1, "?search=0%25%20a": 1, "?search=%25": 1, "?search=_": 0, "?search=example": 2} {
		if found := list(query); len(found.Items) != want {
			t.Errorf("%q finds %d, want %d", query, len(found.Items), want)
		}
	}
	s.exec(t, "INSERT INTO users (id, email, name, created_at) SELECT gen_random_uuid(), 'u' || n || '@bulk.org', 'U', '2026-01-01' FROM generate_series(1, 60) n")
	seen, cursor := map[string]int{}, ""
	for page := 0; page < 20; page++ {
		found := list("?search=bulk.org&limit=7&cursor=" + cursor)
		for _, u := range found.Items {
			seen[u.ID]++
			if u.LastLoginAt != nil {
				t.Errorf("%s never logged in", u.Email)
			}
		}
		if cursor = found.NextCursor; cursor == "" {
			break
		}
	}
	if len(seen) != 60 {
		t.Errorf("%d of 60 seen", len(seen))
	}
	s.call(t, "GET", "/v1/admin/users", nil, bearer(ada.Token)...).fault(t, 403, "admin_required")
	s.put(t, ada.Token, ada.User.ID, "admin", true).fault(t, 403, "admin_required")

	r := s.put(t, root.Token, ada.User.ID, "active", false)
	var u adminUser
	r.json(t, &u)
	if r.status != 200 || u.IsActive || u.LastLoginAt == nil {
		t.Errorf("disable: %d %s", r.status, r.body)
	}
	s.call(t, "GET", "/v1/me", nil, bearer(ada.Token)...).fault(t, 401, "session_ended")
	s.login(t, "ada@example.com", password).fault(t, 403, "account_disabled")
	for range 2 { // the second changes nothing
		if r := s.put(t, root.Token, ada.User.ID, "active", true); r.status != 200 {
			t.Error(r.body)
		}
	}
	s.call(t, "GET", "/v1/me", nil, bearer(ada.Token)...).fault(t, 401, "session_ended") // for good
	if r := s.login(t, "ada@example.com", password); r.status != 200 {
		t.Error(r.body)
	}
	if n := s.count(t, "SELECT count(*) FROM audit_logs WHERE action IN ('disable', 'enable') AND actor_id = $1", root.User.ID); n != 2 {
		t.Errorf("%d entries", n)
	}
	s.put(t, root.Token, "usr-01a200ef-ec8d-7d53-9edd-e8e3e49a77d7", "active", false).fault(t, 404, "user_not_found")
	s.put(t, root.Token, "usr-x", "admin", false).fault(t, 400, "invalid_id")
}

func TestA11_TheLastActiveAdminStays(t *testing.T) {
	s := newStack(t, options{})
	root, ada := s.admin(t, "root@example.com"), s.signup(t, "ada@example.com")
	s.put(t, root.Token, root.User.ID, "admin", false).fault(t, 409, "last_admin")
	s.put(t, root.Token, root.User.ID, "active", false).fault(t, 409, "last_admin")
	s.call(t, "DELETE", "/v1/me", map[string]string{"password": password}, bearer(root.Token)...).fault(t, 409, "last_admin")
	// One who is disabled is no other admin.
	s.put(t, root.Token, ada.User.ID, "active", false)
	if r := s.put(t, root.Token, ada.User.ID, "admin", true); r.status != 200 {
		t.Fatal(r.body)
	}
	s.put(t, root.Token, root.User.ID, "admin", false).fault(t, 409, "last_admin")
	s.put(t, root.Token, ada.User.ID, "active", true)
	if r := s.put(t, root.Token, root.User.ID, "admin", false); r.status != 200 {
		t.Error(r.body)
	}
	s.call(t, "GET", "/v1/admin/users", nil, bearer(root.Token)...).fault(t, 403, "admin_required")
}

func TestA11_TwoAdminsWhoRemoveEachOtherLeaveOne(t *testing.T) {
	s := newStack(t, options{})
	var users [2]id.User
	for i := range users {
		u, err := id.ParseUser(s.admin(t, fmt.Sprintf("u%d@example.com", i)).User.ID)
		if err != nil {
			t.Fatal(err)
		}
		users[i] = u
	}
	remove := []func(context.Context, principal.Principal, id.User, bool) (account.AdminUser, error){s.accounts.SetAdmin, s.accounts.SetActive}
	for round := range rounds(20, 200) {
		s.exec(t, "UPDATE users SET is_admin = true, is_active = true")
		// Past the door: both were admins when they asked.
		var wg sync.WaitGroup
		var failed [2]error
		start := make(chan struct{})
		for i := range users {
			by := principal.Principal{Kind: principal.KindUser, UserID: users[i], IsAdmin: true}
			wg.Go(func() {
				<-start
				_, failed[i] = remove[(round/2+i*round)%2](t.Context(), by, users[1-i], false)
			})
		}
		close(start)
		wg.Wait()
		if n := s.count(t, "SELECT count(*) FROM users WHERE is_admin AND is_active"); n != 1 {
			t.Fatalf("round %d: %d admins after %v and %v", round, n, failed[0], failed[1])
		}
		if (failed[0] == nil) == (failed[1] == nil) || !errs.Is(errors.Join(failed[:]...), "last_admin") {
			t.Fatalf("round %d: %v and %v", round, failed[0], failed[1])
		}
	}
}

func TestA8_AnAdminHandsOverAResetLink(t *testing.T) {
	s := newStack(t, options{}) // without mail
	root, ada := s.admin(t, "root@example.com"), s.signup(t, "ada@example.com")
	make := func(key string) reply {
		return s.call(t, "POST", "/v1/admin/users/"+ada.User.ID+"/password-reset", nil, append(bearer(root.Token), "Idempotency-Key", key)...)
	}
	r := make("one")
	var link struct {
		URL       string
		ExpiresAt time.Time `json:"expires_at"`
	}
	r.json(t, &link)
	secret, ok := strings.CutPrefix(link.URL, "http://skerry.test/reset#token=")
	if r.status != 201 || !ok || time.Until(link.ExpiresAt) > time.Hour || time.Until(link.ExpiresAt) < 59*time.Minute {
		t.Fatalf("link: %d %s", r.status, r.body)
	}
	if again := make("one"); again.body != r.body {
		t.Errorf("repeated: %s", again.body)
	}
	if r := s.call(t, "POST", "/v1/auth/password-reset/confirm", map[string]string{"token": secret, "password": "a new password"}); r.status != 204 {
		t.Fatal(r.body)
	}
	if r := s.login(t, "ada@example.com", "a new password"); r.status != 200 {
		t.Error(r.body)
	}
	if strings.Contains(s.log.String(), secret) {
		t.Error("the log has the link")
	}
	s.put(t, root.Token, ada.User.ID, "active", false)
	make("two").fault(t, 409, "account_disabled")
}

func TestA11_ASquattedAccountIsTakenWithItsKeys(t *testing.T) {
	s := newStack(t, options{})
	squatter := s.signup(t, "root@example.com")
	key, _ := s.apiKey(t, squatter.Token, map[string]any{"name": "backdoor"})
	s.exec(t, "INSERT INTO user_identities (provider, subject, user_id, email) SELECT 'github', '1', id, email FROM users")
	s.exec(t, "INSERT INTO team_invitations (id, team_id, role, token_hash, expires_at) SELECT gen_random_uuid(), team_id, 'admin', sha256('x'), now() + interval '1 day' FROM users_teams")
	if err := s.accounts.EnsureAdmin(t.Context(), "root@example.com", "the operator's own"); err != nil {
		t.Fatal(err)
	}
	s.call(t, "GET", "/v1/sandboxes", nil, "X-API-Key", key).fault(t, 401, "invalid_api_key")
	if n := s.count(t, "SELECT (SELECT count(*) FROM user_identities) + (SELECT count(*) FROM team_invitations WHERE revoked_at IS NULL)"); n != 0 {
		t.Errorf("%d ways in are left", n)
	}
	if n := s.count(t, "SELECT count(*) FROM audit_logs WHERE resource_type = 'api_key' AND action = 'revoke' AND actor_type = 'system'"); n != 1 {
		t.Errorf("%d revocations in the trail", n)
	}
	// An admin who lost the password keeps the keys.
	var again authReply
	s.login(t, "root@example.com", "the operator's own").json(t, &again)
	s.apiKey(t, again.Token, map[string]any{"name": "mine"})
	if err := s.accounts.EnsureAdmin(t.Context(), "root@example.com", "yet another one"); err != nil {
		t.Fatal(err)
	}
	if n := s.count(t, "SELECT count(*) FROM team_api_keys WHERE revoked_at IS NULL"); n != 1 {
		t.Errorf("%d keys live", n)
	}
}

func TestA8_AccountsAreRenamedAndDeleted(t *testing.T) {
	s := newStack(t, options{})
	a, bob := s.signup(t, "ada@example.com"), s.signup(t, "bob@example.com")
	r := s.call(t, "PATCH", "/v1/me", map[string]string{"name": "  Countess  "}, bearer(a.Token)...)
	if r.status != 200 || !strings.Contains(r.body, `"name":"Countess"`) {
		t.Errorf("rename: %d %s", r.status, r.body)
	}
	s.call(t, "PATCH", "/v1/me", map[string]string{"name": "a\u0007"}, bearer(a.Token)...).fault(t, 400, "invalid_request")
	remove := func(token string, body map[string]string) reply {
		return s.call(t, "DELETE", "/v1/me", body, bearer(token)...)
	}
	const join = "INSERT INTO users_teams (user_id, team_id, role) SELECT u.id, t.id, 'member' FROM users u, teams t WHERE u.email = $1 AND t.slug = $2"
	s.exec(t, join, "bob@example.com", a.Team.Slug) // Bob is in Ada's team
	e := remove(a.Token, map[string]string{"password": password}).fault(t, 409, "owns_teams")
	if got := fmt.Sprint(e.Details["teams"]); got != "[Ada’s Team]" {
		t.Errorf("teams %s", got)
	}
	remove(bob.Token, map[string]string{}).fault(t, 400, "invalid_request")
	remove(bob.Token, map[string]string{"password": "wrong wrong"}).fault(t, 403, "wrong_password")
	key, _ := s.apiKey(t, bob.Token, map[string]any{"name": "k"})
	if r := remove(bob.Token, map[string]string{"password": password}); r.status != 204 {
		t.Fatalf("delete: %d %s", r.status, r.body)
	}
	s.call(t, "GET", "/v1/me", nil, bearer(bob.Token)...).fault(t, 401, "session_ended")
	s.call(t, "GET", "/v1/sandboxes", nil, "X-API-Key", key).fault(t, 401, "invalid_api_key")
	s.login(t, "bob@example.com", password).fault(t, 401, "invalid_credentials")
	if n := s.count(t, "SELECT count(*) FROM teams WHERE deleted_at IS NOT NULL"); n != 1 {
		t.Errorf("%d teams ended, want Bob's own", n)
	}
	// In the trails of both teams, and the platform's.
	if n := s.count(t, "SELECT count(*) FROM audit_logs WHERE resource_type = 'user' AND action = 'delete' AND resource_id = $1", bob.User.ID); n != 3 {
		t.Errorf("%d entries", n)
	}
	if n := s.count(t, "SELECT count(*) FROM users_teams m JOIN teams t ON t.id = m.team_id WHERE t.slug = $1", a.Team.Slug); n != 1 {
		t.Errorf("%d members are left in Ada's team", n)
	}
	if r := remove(a.Token, map[string]string{"password": password}); r.status != 204 { // now nobody else is in it
		t.Errorf("delete: %d %s", r.status, r.body)
	}
	if r := s.call(t, "POST", "/v1/auth/signup", map[string]string{"email": "bob@example.com", "password": password, "name": "Bob"}); r.status != 201 {
		t.Errorf("the address is free again: %s", r.body)
	}
}

func TestA13_ThePolicyHasAName(t *testing.T) {
	for text, want := range map[string]string{"open": "open []", "closed": "closed []", "b.org, a.org": "domains [b.org a.org]"} {
		p, err := account.ParseSignupPolicy(text)
		if err != nil {
			t.Fatal(err)
		}
		kind, domains := p.Describe()
		if got := kind + " " + fmt.Sprint(domains); got != want {
			t.Errorf("%s is %s, want %s", text, got, want)
		}
	}
}
