package web_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/mail"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/testkit"
)

// mailbox keeps what was sent; its first letters may fail.
type mailbox struct {
	mu      sync.Mutex
	letters []mail.Message
	fail    int
}

func (m *mailbox) Send(_ context.Context, letter mail.Message) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail > 0 {
		m.fail--
		return errors.New("not now")
	}
	m.letters = append(m.letters, letter)
	return nil
}

// next waits for the n-th letter and returns it with the secret of its link.
func (m *mailbox) next(t *testing.T, n int) (letter mail.Message, secret string) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, fmt.Sprintf("letter %d arrives", n), func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.letters) >= n {
			letter = m.letters[n-1]
		}
		return len(m.letters) >= n
	})
	found := regexp.MustCompile(`#token=([\w-]{43})\n`).FindStringSubmatch(letter.Text)
	if found == nil {
		t.Fatalf("no link in %q", letter.Text)
	}
	return letter, found[1]
}

func TestA8_PasswordResetByMail(t *testing.T) {
	box := &mailbox{fail: 1}
	s := newStack(t, options{mailer: box})
	a := s.signup(t, "ada@example.com")
	ask := func(email string) reply {
		return s.call(t, "POST", "/v1/auth/password-reset", map[string]string{"email": email})
	}
	known, unknown := ask(" ADA@example.com "), ask("nobody@example.com")
	for _, r := range []reply{known, unknown} {
		r.header.Del("X-Request-Id")
		r.header.Del("Date")
	}
	if known.status != 202 || known.status != unknown.status || known.body != unknown.body || fmt.Sprint(known.header) != fmt.Sprint(unknown.header) {
		t.Errorf("known %+v, unknown %+v", known, unknown)
	}
	letter, secret := box.next(t, 1) // the second attempt
	if letter.To != "ada@example.com" || !strings.Contains(letter.Text, "http://skerry.test/reset#token=") {
		t.Errorf("letter %+v", letter)
	}
	if n := s.count(t, "SELECT count(*) FROM account_tokens WHERE token_hash = sha256($1::bytea)", []byte(secret)); n != 1 {
		t.Error("not the link's hash is kept")
	}
	confirm := func(token, pass string) reply {
		return s.call(t, "POST", "/v1/auth/password-reset/confirm", map[string]string{"token": token, "password": pass})
	}
	confirm(secret, "short").fault(t, 400, "invalid_request")
	confirm(secret[1:]+"x", "a new password").fault(t, 400, "invalid_link")
	s.call(t, "POST", "/v1/auth/email-proof/confirm", map[string]string{"token": secret}).fault(t, 400, "invalid_link")
	if r := confirm(secret, "a new password"); r.status != 204 {
		t.Fatalf("confirm: %d %s", r.status, r.body)
	}
	confirm(secret, "another password").fault(t, 400, "invalid_link")
	s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...).fault(t, 401, "session_ended")
	s.login(t, "ada@example.com", password).fault(t, 401, "invalid_credentials")
	if r := s.login(t, "ada@example.com", "a new password"); r.status != 200 {
		t.Error(r.body)
	}
	if n := s.count(t, "SELECT count(*) FROM account_tokens"); n != 1 {
		t.Errorf("%d links: the unknown address got one", n)
	}
	if n := s.count(t, "SELECT count(*) FROM audit_logs WHERE action IN ('password_link_send', 'password_link_use')"); n != 2 {
		t.Errorf("%d entries", n)
	}
	// One that is too old, and one whose address is the user's no longer.
	ask("ada@example.com")
	_, secret = box.next(t, 2)
	s.exec(t, "UPDATE account_tokens SET expires_at = now() WHERE used_at IS NULL")
	confirm(secret, "another password").fault(t, 400, "invalid_link")
	ask("ada@example.com")
	_, secret = box.next(t, 3)
	s.exec(t, "UPDATE users SET email = 'countess@example.com'")
	confirm(secret, "another password").fault(t, 400, "invalid_link")
}

func TestA8_LinksAreAskedForSparingly(t *testing.T) {
	for _, mailer := range []mail.Mailer{nil, &mailbox{}} { // also without mail: the answers tell nothing
		s := newStack(t, options{mailer: mailer})
		s.signup(t, "ada@example.com")
		ask := func(email string) reply {
			return s.call(t, "POST", "/v1/auth/password-reset", map[string]string{"email": email})
		}
		for _, email := range []string{"ada@example.com", "nobody@example.com"} {
			for range 5 {
				if r := ask(email); r.status != 202 {
					t.Fatalf("%s: %d %s", email, r.status, r.body)
				}
			}
			if r := ask(email); r.status != 429 || r.header.Get("Retry-After") == "" {
				t.Errorf("the sixth for %s: %d", email, r.status)
			}
		}
		refused := false
		for i := range 20 {
			refused = refused || ask(fmt.Sprintf("u%d@example.com", i)).status == 429
		}
		if !refused {
			t.Error("one address may ask for everybody")
		}
		s.call(t, "POST", "/v1/auth/password-reset", map[string]string{"email": "no address"}).fault(t, 400, "invalid_request")
	}
}

func TestA7_AnAddressIsProvenByItsLetter(t *testing.T) {
	box := &mailbox{}
	s := newStack(t, options{mailer: box})
	a := s.signup(t, "ada@example.com")
	if r := s.call(t, "POST", "/v1/me/email-proof", nil, bearer(a.Token)...); r.status != 202 {
		t.Fatal(r.body)
	}
	_, secret := box.next(t, 1)
	s.call(t, "POST", "/v1/auth/password-reset/confirm", map[string]string{"token": secret, "password": "a new password"}).fault(t, 400, "invalid_link")
	if n := s.count(t, "SELECT count(*) FROM users WHERE email_proven_at IS NOT NULL"); n != 0 {
		t.Error("proven too early")
	}
	if r := s.call(t, "POST", "/v1/auth/email-proof/confirm", map[string]string{"token": secret}); r.status != 204 {
		t.Fatal(r.body)
	}
	if n := s.count(t, "SELECT count(*) FROM users WHERE email_proven_at IS NOT NULL"); n != 1 {
		t.Error("not proven")
	}
	s.call(t, "POST", "/v1/auth/email-proof/confirm", map[string]string{"token": secret}).fault(t, 400, "invalid_link")
	if n := s.count(t, "SELECT count(*) FROM audit_logs WHERE action = 'email_prove'"); n != 1 {
		t.Errorf("%d entries", n)
	}
}

func TestA8_PasswordChangeEndsAllOtherSessions(t *testing.T) {
	s := newStack(t, options{})
	a := s.signup(t, "ada@example.com")
	var other authReply
	s.login(t, "ada@example.com", password).json(t, &other)
	change := func(body map[string]string) reply {
		return s.call(t, "POST", "/v1/me/password", body, bearer(a.Token)...)
	}
	change(map[string]string{"new_password": "a new password"}).fault(t, 400, "invalid_request")
	change(map[string]string{"current_password": "wrong wrong", "new_password": "a new password"}).fault(t, 403, "wrong_password")
	if e := change(map[string]string{"current_password": password, "new_password": "short"}).fault(t, 400, "invalid_request"); e.Details["field"] != "new_password" {
		t.Errorf("field %v", e.Details)
	}
	// What could become a session ends as well: an approved device, a link.
	var device struct {
		DeviceCode string `json:"device_code"`
		UserCode   string `json:"user_code"`
	}
	s.call(t, "POST", "/v1/auth/device", map[string]string{}).json(t, &device)
	if r := s.call(t, "POST", "/v1/auth/device/"+device.UserCode, map[string]bool{"approve": true}, bearer(other.Token)...); r.status != 204 {
		t.Fatal(r.body)
	}
	if r := change(map[string]string{"current_password": password, "new_password": "a new password"}); r.status != 204 {
		t.Fatalf("change: %d %s", r.status, r.body)
	}
	s.call(t, "GET", "/v1/me", nil, bearer(other.Token)...).fault(t, 401, "session_ended")
	s.call(t, "POST", "/v1/auth/device/token", map[string]string{"device_code": device.DeviceCode}).fault(t, 403, "access_denied")
	if r := s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...); r.status != 200 {
		t.Errorf("the session itself: %s", r.body)
	}
	if n := s.count(t, "SELECT count(*) FROM sessions WHERE end_reason = 'password_changed'"); n != 1 {
		t.Errorf("%d sessions ended for it", n)
	}
	// An account without a password sets its first.
	s.exec(t, "UPDATE users SET password_hash = NULL")
	if r := change(map[string]string{"new_password": "the very first"}); r.status != 204 {
		t.Errorf("first password: %d %s", r.status, r.body)
	}
	if r := s.login(t, "ada@example.com", "the very first"); r.status != 200 {
		t.Error(r.body)
	}
}

// A login with the old password that runs beside its change leaves no session.
func TestID04_NoSessionSlipsThroughAPasswordChange(t *testing.T) {
	later := &laterClock{}
	s := newStack(t, options{clock: later})
	s.signup(t, "ada@example.com")
	anybody := principal.Principal{Kind: principal.KindAnonymous}
	var kept principal.Principal
	if err := s.pool.QueryRow(t.Context(), "SELECT user_id, id FROM sessions").Scan(&kept.UserID, &kept.SessionID); err != nil {
		t.Fatal(err)
	}
	kept.Kind = principal.KindUser
	old := password
	for round := range rounds(10, 200) {
		later.by += time.Minute // wrong logins are forgotten
		next := fmt.Sprintf("password number %d", round)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				_, err := s.accounts.Login(t.Context(), anybody, "ada@example.com", old)
				if err != nil && !errs.Is(err, "invalid_credentials") {
					t.Errorf("round %d: login: %v", round, err)
				}
			})
		}
		if err := s.accounts.ChangePassword(t.Context(), kept, old, next); err != nil {
			t.Errorf("round %d: change: %v", round, err)
		}
		wg.Wait()
		if n := s.count(t, "SELECT count(*) FROM sessions WHERE ended_at IS NULL"); n != 1 || t.Failed() {
			t.Fatalf("round %d: %d living sessions, want the one that changed", round, n)
		}
		old = next
	}
}

func TestA13_DeviceLogin(t *testing.T) {
	later := &laterClock{}
	s := newStack(t, options{clock: later})
	a := s.signup(t, "ada@example.com")
	type device struct {
		DeviceCode      string    `json:"device_code"`
		UserCode        string    `json:"user_code"`
		VerificationURL string    `json:"verification_url"`
		ExpiresAt       time.Time `json:"expires_at"`
		IntervalSec     int       `json:"interval_sec"`
	}
	start := func() (d device) {
		t.Helper()
		r := s.call(t, "POST", "/v1/auth/device", map[string]string{"client_name": "skerry on laptop"})
		r.json(t, &d)
		if r.status != 201 || !regexp.MustCompile(`^[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}$`).MatchString(d.UserCode) || len(d.DeviceCode) < 43 || d.IntervalSec != 5 ||
			d.VerificationURL != "http://skerry.test/login/device" || time.Until(d.ExpiresAt) < 9*time.Minute || time.Until(d.ExpiresAt) > 10*time.Minute {
			t.Fatalf("start: %d %s", r.status, r.body)
		}
		return d
	}
	poll := func(d device) reply {
		later.by += 5 * time.Second // as often as it may
		return s.call(t, "POST", "/v1/auth/device/token", map[string]string{"device_code": d.DeviceCode})
	}
	path := func(d device) string {
		return "/v1/auth/device/" + strings.ToLower(strings.ReplaceAll(d.UserCode, "-", "")) // as people type it
	}
	decide := func(d device, approve bool) reply {
		return s.call(t, "POST", path(d), map[string]bool{"approve": approve}, bearer(a.Token)...)
	}
	d := start()
	poll(d).fault(t, 400, "authorization_pending")
	r := s.call(t, "POST", "/v1/auth/device/token", map[string]string{"device_code": d.DeviceCode})
	r.fault(t, 429, "slow_down")
	if r.header.Get("Retry-After") == "" {
		t.Error("slow_down without Retry-After")
	}
	s.call(t, "GET", path(d), nil).fault(t, 401, "unauthenticated")
	if r := s.call(t, "GET", path(d), nil, bearer(a.Token)...); r.status != 200 || !strings.Contains(r.body, "skerry on laptop") || !strings.Contains(r.body, "127.0.0.1") {
		t.Errorf("who asks: %d %s", r.status, r.body)
	}
	if r := decide(d, true); r.status != 204 {
		t.Fatalf("approve: %d %s", r.status, r.body)
	}
	decide(d, false).fault(t, 404, "device_login_not_found")
	var statuses []string
	var mu sync.Mutex
	var wg sync.WaitGroup
	var got authReply
	later.by += time.Minute
	for range 4 { // one of many gets it
		wg.Go(func() {
			r := s.call(t, "POST", "/v1/auth/device/token", map[string]string{"device_code": d.DeviceCode})
			mu.Lock()
			defer mu.Unlock()
			if r.status == http.StatusOK {
				r.json(t, &got)
				statuses = append(statuses, "session")
			}
		})
	}
	wg.Wait()
	if len(statuses) != 1 || got.User.ID != a.User.ID || got.Team == nil {
		t.Fatalf("exchanged %d times: %+v", len(statuses), got)
	}
	poll(d).fault(t, 400, "expired_token")
	if r := s.call(t, "GET", "/v1/me", nil, bearer(got.Token)...); r.status != 200 {
		t.Error(r.body)
	}
	denied := start()
	if r := decide(denied, false); r.status != 204 {
		t.Fatal(r.body)
	}
	poll(denied).fault(t, 403, "access_denied")

	late := start()
	s.exec(t, "UPDATE device_logins SET expires_at = now() WHERE session_id IS NULL")
	poll(late).fault(t, 400, "expired_token")
	decide(late, true).fault(t, 404, "device_login_not_found")
	poll(device{DeviceCode: "made up"}).fault(t, 400, "expired_token")

	disabled := start()
	if r := decide(disabled, true); r.status != 204 {
		t.Fatal(r.body)
	}
	s.exec(t, "UPDATE users SET is_active = false")
	poll(disabled).fault(t, 400, "expired_token")
	s.exec(t, "UPDATE users SET is_active = true")
	for range 12 { // codes are not found by trying
		r = s.call(t, "GET", "/v1/auth/device/BBBB-BBBB", nil, bearer(a.Token)...)
	}
	r.fault(t, 429, "rate_limited")
}

func TestA7_AProvenAddressSignsUpWithoutAPassword(t *testing.T) {
	policy, err := account.ParseSignupPolicy("example.com")
	if err != nil {
		t.Fatal(err)
	}
	s := newStack(t, options{policy: &policy})
	anybody := principal.Principal{Kind: principal.KindAnonymous}
	if _, err := s.accounts.SignupProven(t.Context(), anybody, "ada@evil.org", "Ada"); !errs.Is(err, "signup_closed") {
		t.Errorf("past the policy: %v", err)
	}
	ada, err := s.accounts.SignupProven(t.Context(), anybody, "ada@example.com", "Ada")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.accounts.SignupProven(t.Context(), anybody, "ada@example.com", "Eve"); !errs.Is(err, "email_taken") {
		t.Errorf("twice: %v", err)
	}
	if user, proven, found, err := s.accounts.ByEmail(t.Context(), "ada@example.com"); user != ada || !proven || !found || err != nil {
		t.Errorf("by email: %v %v %v %v", user, proven, found, err)
	}
	auth, err := s.accounts.OpenSession(t.Context(), anybody, ada)
	if err != nil || auth.Team == nil || auth.Team.Role != principal.RoleOwner {
		t.Fatalf("session: %+v, %v", auth, err)
	}
	if r := s.refresh(t, auth.Refresh); r.status != 200 {
		t.Errorf("refresh: %s", r.body)
	}
	// Nothing, and no empty text, is its password.
	for _, guess := range []string{"", "password"} {
		s.login(t, "ada@example.com", guess).fault(t, 401, "invalid_credentials")
	}
	if r := s.call(t, "DELETE", "/v1/me", map[string]string{}, bearer(auth.Token)...); r.status != 204 {
		t.Errorf("delete: %d %s", r.status, r.body)
	}
	if _, err := s.accounts.OpenSession(t.Context(), anybody, ada); !errs.Is(err, "invalid_credentials") {
		t.Errorf("after the end: %v", err)
	}
}

// A weak Idempotency-Key hands nobody else the code that another one waits with.
func TestC6_AnonymousReplaysAreForTheSameAddress(t *testing.T) {
	proxies, err := web.ParseProxies("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	s := newStack(t, options{proxies: proxies})
	begin := func(from string) (answer struct {
		DeviceCode string `json:"device_code"`
	},
	) {
		t.Helper()
		r := s.call(t, "POST", "/v1/auth/device", map[string]any{}, "Idempotency-Key", "1", "X-Forwarded-For", from)
		r.json(t, &answer)
		if answer.DeviceCode == "" {
			t.Fatalf("%d %s", r.status, r.body)
		}
		return answer
	}
	first := begin("192.0.2.1")
	if begin("192.0.2.1") != first {
		t.Error("a repetition began another login")
	}
	if begin("192.0.2.2") == first {
		t.Error("somebody else got the code")
	}
}
