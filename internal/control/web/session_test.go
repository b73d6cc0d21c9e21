package web_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/testkit"
)

// rounds is how often a race is run: often where there is time.
func rounds(short, long int) int {
	if os.Getenv("SKERRY_TEST_LONG") != "" {
		return long
	}
	return short
}

// refreshCookie is what a browser keeps of an answer.
func refreshCookie(t *testing.T, r reply) *http.Cookie {
	t.Helper()
	for _, cookie := range (&http.Response{Header: r.header}).Cookies() {
		if cookie.Name == "skerry_refresh" {
			return cookie
		}
	}
	t.Fatalf("no refresh cookie in %v", r.header)
	return nil
}

func (s *stack) refresh(t *testing.T, token string, more ...string) reply {
	t.Helper()
	headers := append([]string{"X-Skerry-Refresh", "1", "Origin", "http://skerry.test", "Cookie", "skerry_refresh=" + token}, more...)
	return s.call(t, "POST", "/v1/auth/refresh", nil, headers...)
}

func (s *stack) login(t *testing.T, email, pass string) reply {
	t.Helper()
	return s.call(t, "POST", "/v1/auth/login", map[string]string{"email": email, "password": pass})
}

func TestA5_RefreshRotatesACookieNoScriptCanRead(t *testing.T) {
	s := newStack(t, options{url: "https://skerry.test/"})
	body := map[string]string{"email": "ada@example.com", "password": password, "name": "Ada"}
	first := s.call(t, "POST", "/v1/auth/signup", body, "Idempotency-Key", "one")
	again := s.call(t, "POST", "/v1/auth/signup", body, "Idempotency-Key", "one")
	cookie := refreshCookie(t, first)
	if again.body != first.body || refreshCookie(t, again).Value != cookie.Value {
		t.Errorf("a repeated signup answers %s, first %s", again.body, first.body)
	}
	if !cookie.HttpOnly || !cookie.Secure || cookie.SameSite != http.SameSiteStrictMode || cookie.Path != "/v1/auth" || cookie.MaxAge != 30*24*3600 {
		t.Errorf("cookie %+v", cookie)
	}
	if strings.Contains(first.body, "srt_") {
		t.Error("the body has the refresh token")
	}
	if n := s.count(t, "SELECT count(*) FROM sessions WHERE refresh_hash = sha256($1::bytea) AND refresh_counter = 1", []byte(cookie.Value)); n != 1 {
		t.Error("not the SHA-256 is kept, or not alone")
	}
	call := func(token string, headers ...string) reply {
		return s.call(t, "POST", "/v1/auth/refresh", nil, append([]string{"Cookie", "skerry_refresh=" + token}, headers...)...)
	}
	call(cookie.Value, "Origin", "https://skerry.test").fault(t, 400, "invalid_request")
	for _, origin := range []string{"", "https://evil.test", "http://skerry.test", "https://skerry.test.evil", "null"} {
		call(cookie.Value, "X-Skerry-Refresh", "1", "Origin", origin).fault(t, 401, "invalid_refresh_token")
	}
	for _, junk := range []string{"", "x", "srt_", cookie.Value + "x", strings.ToUpper(cookie.Value), strings.Replace(cookie.Value, ".1.", ".2.", 1), strings.Replace(cookie.Value, ".1.", ".01.", 1)} {
		call(junk, "X-Skerry-Refresh", "1", "Origin", "https://skerry.test").fault(t, 401, "invalid_refresh_token")
	}
	var a authReply
	r := call(cookie.Value, "X-Skerry-Refresh", "1", "Origin", "https://skerry.test")
	r.json(t, &a)
	if next := refreshCookie(t, r); r.status != 200 || next.Value == cookie.Value || !next.HttpOnly || a.Team == nil || a.User.Email != "ada@example.com" {
		t.Errorf("refresh: %d %s", r.status, r.body)
	}
	if me := s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...); me.status != 200 {
		t.Errorf("the new token: %s", me.body)
	}
	out := s.call(t, "POST", "/v1/auth/logout", nil, bearer(a.Token)...)
	if gone := refreshCookie(t, out); out.status != 204 || gone.MaxAge != -1 || gone.Value != "" {
		t.Errorf("logout leaves %+v", gone)
	}
	call(refreshCookie(t, r).Value, "X-Skerry-Refresh", "1", "Origin", "https://skerry.test").fault(t, 401, "invalid_refresh_token")
}

func TestA5_OneSuccessorForTwentyAtOnceAndReuseEndsTheSession(t *testing.T) {
	s := newStack(t, options{})
	s.signup(t, "ada@example.com")
	for round := range rounds(8, 200) {
		r := s.login(t, "ada@example.com", password)
		var a authReply
		r.json(t, &a)
		first := refreshCookie(t, r).Value
		successors := make([]string, 20)
		var wg sync.WaitGroup
		for i := range successors {
			wg.Go(func() {
				if r := s.refresh(t, first); r.status == 200 {
					successors[i] = refreshCookie(t, r).Value
				} else {
					t.Errorf("round %d: %d %s", round, r.status, r.body)
				}
			})
		}
		wg.Wait()
		slices.Sort(successors)
		if successors = slices.Compact(successors); len(successors) != 1 || successors[0] == first || t.Failed() {
			t.Fatalf("round %d: %d successors", round, len(successors))
		}
		// The answer was lost: the same one comes again, until it was used.
		if r := s.refresh(t, first); r.status != 200 || refreshCookie(t, r).Value != successors[0] {
			t.Fatalf("round %d: a lost answer is not repeated: %d %s", round, r.status, r.body)
		}
		if r := s.refresh(t, successors[0]); r.status != 200 {
			t.Fatalf("round %d: the successor: %d %s", round, r.status, r.body)
		}
		s.refresh(t, first).fault(t, 401, "invalid_refresh_token")
		s.refresh(t, successors[0]).fault(t, 401, "invalid_refresh_token")
		s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...).fault(t, 401, "session_ended")
		if n := s.count(t, "SELECT count(*) FROM audit_logs WHERE action = 'token_reuse' AND status = 'error'"); n != round+1 {
			t.Fatalf("round %d: %d reuses in the trail", round, n)
		}
		if n := s.count(t, "SELECT count(*) FROM sessions WHERE end_reason = 'token_reused'"); n != round+1 {
			t.Fatalf("round %d: %d sessions ended for it", round, n)
		}
	}
}

func TestA5_RefreshOfTheDisabledAndOfALostTeam(t *testing.T) {
	s := newStack(t, options{})
	s.signup(t, "ada@example.com")
	token := refreshCookie(t, s.login(t, "ada@example.com", password)).Value
	s.exec(t, "UPDATE teams SET deleted_at = now() WHERE slug <> '000000-000000'")
	r := s.refresh(t, token)
	if r.status != 200 || !strings.Contains(r.body, `"team":null`) {
		t.Fatalf("without a team: %d %s", r.status, r.body)
	}
	s.exec(t, "UPDATE users SET is_active = false")
	s.refresh(t, refreshCookie(t, r).Value).fault(t, 401, "invalid_refresh_token")
}

func TestA5_SessionsAreListedAndEnded(t *testing.T) {
	s := newStack(t, options{})
	a := s.signup(t, "ada@example.com")
	eve := s.signup(t, "eve@example.com")
	var other authReply
	s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "ada@example.com", "password": password}, "User-Agent", "Browser 1").json(t, &other)
	var list struct {
		Items []struct {
			ID, UserAgent, IP string
			Agent             string `json:"user_agent"`
			Current           bool
			LastUsedAt        time.Time `json:"last_used_at"`
		}
		NextCursor string `json:"next_cursor"`
	}
	s.call(t, "GET", "/v1/me/sessions", nil, bearer(a.Token)...).json(t, &list)
	if len(list.Items) != 2 || list.Items[0].Current || !list.Items[1].Current || list.Items[0].Agent != "Browser 1" || list.Items[0].IP != "127.0.0.1" {
		t.Fatalf("sessions %+v", list.Items)
	}
	second := list.Items[0].ID
	s.call(t, "GET", "/v1/me/sessions?limit=1", nil, bearer(a.Token)...).json(t, &list)
	if len(list.Items) != 1 || list.NextCursor == "" {
		t.Errorf("page %+v", list)
	}
	s.call(t, "GET", "/v1/me/sessions?cursor=e30", nil, bearer(a.Token)...).fault(t, 400, "invalid_cursor")
	s.call(t, "DELETE", "/v1/me/sessions/"+second, nil, bearer(eve.Token)...).fault(t, 404, "session_not_found")
	s.call(t, "DELETE", "/v1/me/sessions/ses-1", nil, bearer(a.Token)...).fault(t, 400, "invalid_id")
	if r := s.call(t, "DELETE", "/v1/me/sessions/"+second, nil, bearer(a.Token)...); r.status != 204 {
		t.Errorf("end: %d %s", r.status, r.body)
	}
	s.call(t, "DELETE", "/v1/me/sessions/"+second, nil, bearer(a.Token)...).fault(t, 404, "session_not_found")
	s.call(t, "GET", "/v1/me", nil, bearer(other.Token)...).fault(t, 401, "session_ended")
	if r := s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...); r.status != 200 {
		t.Errorf("the session that stays: %s", r.body)
	}
}

func TestA6_SwitchingTeamsAsksTheDatabase(t *testing.T) {
	s := newStack(t, options{})
	a, bob := s.signup(t, "ada@example.com"), s.signup(t, "bob@example.com")
	s.exec(t, "INSERT INTO users_teams (user_id, team_id, role) SELECT u.id, t.id, 'member' FROM users u, teams t WHERE u.email = 'ada@example.com' AND t.slug = $1", bob.Team.Slug)
	s.exec(t, "UPDATE users SET name = 'Countess', is_admin = true WHERE email = 'ada@example.com'")
	to := func(team string) reply {
		return s.call(t, "POST", "/v1/auth/switch-team", map[string]string{"team_id": team}, bearer(a.Token)...)
	}
	r := to(bob.Team.ID)
	var switched authReply
	r.json(t, &switched)
	if r.status != 200 || switched.Team == nil || switched.Team.ID != bob.Team.ID || switched.Team.Role != "member" || switched.User.Name != "Countess" || !switched.User.IsAdmin {
		t.Fatalf("switch: %d %s", r.status, r.body)
	}
	// The context is the session's: the former token has it too, and a write leaves it there.
	for range 2 {
		var me authReply
		s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...).json(t, &me)
		if me.Team == nil || me.Team.ID != bob.Team.ID {
			t.Fatalf("the active team is %+v", me.Team)
		}
		if r := s.call(t, "PATCH", "/v1/me", map[string]string{"name": "Ada"}, bearer(a.Token)...); r.status != 200 {
			t.Fatal(r.body)
		}
	}
	if n := s.count(t, "SELECT count(*) FROM users_teams m JOIN teams t ON t.id = m.team_id WHERE m.is_default AND t.slug = $1", a.Team.Slug); n != 1 {
		t.Error("the default team changed")
	}
	s.signup(t, "eve@example.com")
	var alien string
	if err := s.pool.QueryRow(context.Background(), "SELECT 'team-' || team_id FROM users_teams m JOIN users u ON u.id = m.user_id WHERE u.email = 'eve@example.com'").Scan(&alien); err != nil {
		t.Fatal(err)
	}
	to(alien).fault(t, 403, "not_a_member")
	to("team-00000000-0000-0000-0000-000000000000").fault(t, 404, "team_not_found")
	to("team-01a200ef-ec8d-7d53-9edd-e8e3e49a77d7").fault(t, 404, "team_not_found")
	to("team-x").fault(t, 400, "invalid_id")
	s.exec(t, "UPDATE teams SET deleted_at = now() WHERE slug = $1", a.Team.Slug)
	to(a.Team.ID).fault(t, 404, "team_not_found")
}

// queryCount counts what the servers ask the database.
type queryCount struct{ n atomic.Int64 }

func (q *queryCount) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	q.n.Add(1)
	return ctx
}

func (*queryCount) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func TestA4_OneQueryAuthorisesARequest(t *testing.T) {
	var queries queryCount
	s := newStack(t, options{queries: &queries, routes: []web.Route{whoami()}})
	a := s.signup(t, "ada@example.com")
	key, _ := s.apiKey(t, a.Token, map[string]any{"name": "k"})
	read := func(who ...string) {
		if r := s.call(t, "GET", "/v1/sandboxes/x/exec/stream", nil, who...); r.status != 200 {
			t.Fatal(r.body)
		}
	}
	read("X-API-Key", key) // the use of a key is noted beside the requests, once a minute
	testkit.Eventually(t, 30*time.Second, "the key's use is stored", func() bool {
		return s.count(t, "SELECT count(*) FROM team_api_keys WHERE last_used_at IS NOT NULL") == 1
	})
	for _, who := range [][]string{bearer(a.Token), {"X-API-Key", key}} {
		before := queries.n.Load()
		const calls = 20
		for range calls {
			read(who...)
		}
		if asked := queries.n.Load() - before; asked != calls {
			t.Errorf("%s: %d queries for %d requests", who[0], asked, calls)
		}
	}
}

func TestA1_DoubleSignupMakesOneAccount(t *testing.T) {
	s := newStack(t, options{})
	for round := range rounds(10, 200) {
		body := map[string]string{"email": fmt.Sprintf("u%d@example.com", round), "password": password, "name": "Ada"}
		var statuses [2]int
		var wg sync.WaitGroup
		for i := range statuses {
			wg.Go(func() { statuses[i] = s.call(t, "POST", "/v1/auth/signup", body).status })
		}
		wg.Wait()
		if statuses != [2]int{201, 409} && statuses != [2]int{409, 201} {
			t.Fatalf("round %d: %v", round, statuses)
		}
		if n := s.count(t, "SELECT count(*) FROM teams WHERE slug <> '000000-000000'"); n != round+1 {
			t.Fatalf("round %d: %d teams", round, n)
		}
	}
}

// hashLog counts hashes, by their cost, and how many ran at once.
type hashLog struct {
	mu           sync.Mutex
	costs        []account.Cost
	running, top int
}

func (l *hashLog) begin(c account.Cost) func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.costs = append(l.costs, c)
	l.running++
	l.top = max(l.top, l.running)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.running--
	}
}

func (l *hashLog) take() []account.Cost {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.costs = nil }()
	return l.costs
}

func TestID08_KnownAndUnknownCostTheSameHash(t *testing.T) {
	var log hashLog
	s := newStack(t, options{hashes: log.begin})
	s.signup(t, "ada@example.com")
	s.exec(t, "INSERT INTO users (id, email, name) VALUES (gen_random_uuid(), 'oauth@example.com', 'Only OAuth')")
	for _, email := range []string{"ada@example.com", "nobody@example.com", "oauth@example.com"} {
		log.take()
		s.login(t, email, "wrong wrong").fault(t, 401, "invalid_credentials")
		if got := log.take(); len(got) != 1 || got[0] != cheap {
			t.Errorf("%s: hashes %+v, want one of %+v", email, got, cheap)
		}
	}
}

func TestA2_FiftyLoginsAtOnceStayWithinTheMemory(t *testing.T) {
	var log hashLog
	cost := account.DefaultCost()
	s := newStack(t, options{cost: cost, hashes: log.begin})
	s.signup(t, "ada@example.com")
	s.exec(t, "INSERT INTO users (id, email, name, password_hash) SELECT gen_random_uuid(), 'u' || n || '@example.com', 'U', password_hash FROM users, generate_series(1, 50) n")
	var wg sync.WaitGroup
	var in atomic.Int64
	for i := range 50 {
		wg.Go(func() {
			r := s.login(t, fmt.Sprintf("u%d@example.com", i+1), password)
			switch {
			case r.status == 200:
				in.Add(1)
			case r.status != 503 || r.header.Get("Retry-After") == "": // a slow machine says so after ten seconds
				t.Errorf("login %d: %d %s", i, r.status, r.body)
			}
		})
	}
	wg.Wait()
	if in.Load() == 0 {
		t.Error("nobody got in")
	}
	slots := account.NewHasher(cost).Slots()
	t.Logf("%d of 50 in; at most %d hashes at once: %d MiB", in.Load(), log.top, log.top*int(cost.MemoryKiB)>>10)
	if log.top > slots {
		t.Errorf("%d hashes at once with %d slots", log.top, slots)
	}
}

func TestID08_EachLengthOfPasswordHasItsAnswer(t *testing.T) {
	s := newStack(t, options{})
	step := 1
	if rounds(0, 1) == 0 {
		step = 9
	}
	for n := 1; n <= 1000; n += step {
		r := s.call(t, "POST", "/v1/auth/signup", map[string]string{"email": fmt.Sprintf("u%d@example.com", n), "password": strings.Repeat("p", n), "name": "Ada"})
		if want := map[bool]int{true: 201, false: 400}[n >= 8 && n <= 128]; r.status != want {
			t.Errorf("%d bytes: %d %s, want %d", n, r.status, r.body, want)
		}
	}
}

func TestC7_WrongLoginsAreCountedByAccountAndByAddress(t *testing.T) {
	proxies, err := web.ParseProxies("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	wrong := func(s *stack, email, from string) reply {
		return s.call(t, "POST", "/v1/auth/login", map[string]string{"email": email, "password": "wrong wrong"}, "X-Forwarded-For", from)
	}
	refused := func(r reply) {
		t.Helper()
		r.fault(t, 429, "too_many_failures")
		if r.header.Get("Retry-After") == "" {
			t.Error("429 without Retry-After")
		}
	}
	behind := newStack(t, options{proxies: proxies})
	behind.signup(t, "ada@example.com")
	for i := range 10 {
		wrong(behind, "ada@example.com", fmt.Sprintf("203.0.113.%d", i)).fault(t, 401, "invalid_credentials")
		wrong(behind, fmt.Sprintf("u%d@example.com", i), "198.51.100.7").fault(t, 401, "invalid_credentials")
	}
	refused(wrong(behind, "ada@example.com", "203.0.113.99"))
	refused(wrong(behind, "new@example.com", "198.51.100.7"))
	wrong(behind, "new@example.com", "198.51.100.8").fault(t, 401, "invalid_credentials")

	direct := newStack(t, options{}) // nobody is trusted: the header is noise
	for i := range 10 {
		wrong(direct, fmt.Sprintf("u%d@example.com", i), fmt.Sprintf("203.0.113.%d", i)).fault(t, 401, "invalid_credentials")
	}
	refused(wrong(direct, "new@example.com", "203.0.113.99"))
}

func TestID08_GuessesSideBySideAreCountedToo(t *testing.T) {
	proxies, err := web.ParseProxies("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	s := newStack(t, options{proxies: proxies, cost: account.Cost{MemoryKiB: 8 << 10, Passes: 2, Threads: 1}})
	s.signup(t, "ada@example.com")
	var looked atomic.Int64
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			r := s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "ada@example.com", "password": "wrong wrong"}, "X-Forwarded-For", fmt.Sprintf("203.0.113.%d", i))
			if r.status == 401 {
				looked.Add(1)
			}
		})
	}
	wg.Wait()
	if n := looked.Load(); n > 12 { // ten, and what a minute's tenth gives back meanwhile
		t.Errorf("%d of 40 guesses were looked at", n)
	}
}
