package oauth_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/account/accounthttp"
	"skerry.dev/skerry/internal/control/account/accountpg"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg"
	"skerry.dev/skerry/internal/control/oauth"
	"skerry.dev/skerry/internal/control/oauth/oauthhttp"
	"skerry.dev/skerry/internal/control/oauth/oauthpg"
	"skerry.dev/skerry/internal/control/oauth/oauthprovider"
	"skerry.dev/skerry/internal/control/oauth/oauthtest"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// world is a control plane with two providers, on a real database, and browsers
// that walk through real redirects.
type world struct {
	pool   *pgxpool.Pool
	url    string
	issuer *oauthtest.Server
	github *oauthtest.Server
}

type elsewhere struct{ restapi.Handler }

type api struct {
	web.Errors
	*accounthttp.Accounts
	*oauthhttp.Handlers
	elsewhere
}

func newWorld(t *testing.T, policy account.SignupPolicy) *world {
	t.Helper()
	ctx := context.Background()
	w := &world{pool: pgtest.New(t), issuer: oauthtest.New(t), github: oauthtest.New(t)}
	server := httptest.NewUnstartedServer(nil)
	w.url = "http://" + server.Listener.Addr().String()
	log := slog.New(slog.DiscardHandler)
	secret, _ := keyring.NewSecret()
	keys, err := keyring.Load(ctx, keyringpg.New(w.pool), secret, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	accounts, err := account.NewService(ctx, account.Config{
		Store: accountpg.New(w.pool), Signer: keys, Hasher: account.NewHasher(account.Cost{MemoryKiB: 64, Passes: 1, Threads: 1}), Signup: policy,
		Clock: clock.System{}, URL: w.url, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	replays := idempotency.NewService(idempotencypg.New(w.pool))
	front, err := web.New(web.Config{Log: log, Clock: clock.System{}, Secret: secret, Tokens: keys, Users: accounts})
	if err != nil {
		t.Fatal(err)
	}
	doors := accounthttp.New(accounts, replays)
	ways := oauthhttp.New(oauth.NewService(oauthpg.New(w.pool), accounts, []oauth.Provider{
		oauthprovider.NewOIDC("oidc", "Company", w.issuer.URL, oauthtest.Client, oauthtest.Secret),
		oauthprovider.NewGitHub(oauthtest.Client, oauthtest.Secret, w.github.URL, w.github.URL),
	}, w.url, log), policy, doors.SetRefresh, w.url)
	front.Mount(web.Route{Method: http.MethodGet, Path: "/v1/auth/oauth/{provider}", Operation: "startOAuth", Handler: ways.Start})
	front.Mount(web.Route{Method: http.MethodGet, Path: "/v1/auth/oauth/{provider}/callback", Operation: "finishOAuth", Handler: ways.Finish})
	if server.Config.Handler, err = front.Handler(&api{Accounts: doors, Handlers: ways}); err != nil {
		t.Fatal(err)
	}
	server.Start()
	t.Cleanup(server.Close)
	return w
}

// browser keeps cookies and follows redirects up to a page of ours.
type browser struct {
	t      *testing.T
	w      *world
	client *http.Client
	token  string
}

func (w *world) browser(t *testing.T) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, w: w}
	b.client = &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), w.url) && !strings.HasPrefix(r.URL.Path, "/v1/") {
			return http.ErrUseLastResponse // a page of the dashboard
		}
		return nil
	}}
	return b
}

// goTo walks from an address to a page of ours and returns that.
func (b *browser) goTo(address string) string {
	b.t.Helper()
	res, err := b.client.Get(address)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	to, err := res.Location()
	if err != nil {
		return res.Status + " " + string(body)
	}
	return strings.TrimPrefix(to.String(), b.w.url)
}

func (b *browser) logIn(provider string) string {
	return b.goTo(b.w.url + "/v1/auth/oauth/" + provider)
}

// call sends JSON with the browser's cookies and token.
func (b *browser) call(method, path, body string, into any) int {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.w.url+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Origin", b.w.url)
	req.Header.Set("X-Skerry-Refresh", "1")
	if b.token != "" {
		req.Header.Set("Authorization", "Bearer "+b.token)
	}
	res, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	if into != nil && res.StatusCode < 300 {
		if err := json.Unmarshal(raw, into); err != nil {
			b.t.Fatalf("%s %s: %v in %s", method, path, err, raw)
		}
	}
	return res.StatusCode
}

type whoami struct {
	Token string
	User  struct{ ID, Email, Name string }
	Team  *struct{ Name, Role string }
}

// session is who the browser's cookie stands for; ok is false for nobody.
func (b *browser) session() (me whoami, ok bool) {
	b.t.Helper()
	ok = b.call("POST", "/v1/auth/refresh", "", &me) == http.StatusOK
	b.token = me.Token
	return me, ok
}

func (b *browser) signUp(email string) {
	b.t.Helper()
	var made whoami
	if status := b.call("POST", "/v1/auth/signup", `{"email":"`+email+`","password":"a long password","name":"By password"}`, &made); status != http.StatusCreated {
		b.t.Fatal(status)
	}
	b.token = made.Token
}

func (w *world) count(t *testing.T, query string) (n int) {
	t.Helper()
	if err := w.pool.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (w *world) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := w.pool.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

var ada = oauthtest.Person{Subject: "17", Email: "Ada@Example.com", EmailVerified: true, Name: "Ada Lovelace"}

func TestA7_AFirstLoginMakesAnAccountAndALaterOneFindsIt(t *testing.T) {
	for _, provider := range []string{"oidc", "github"} {
		w := newWorld(t, account.SignupOpen)
		w.issuer.LogIn(ada)
		w.github.LogIn(ada)
		b := w.browser(t)
		if to := b.logIn(provider); to != "/dashboard" {
			t.Fatalf("%s: the browser ends at %s", provider, to)
		}
		me, ok := b.session()
		if !ok || me.User.Email != "ada@example.com" || me.User.Name != "Ada Lovelace" || me.Team == nil || me.Team.Role != "owner" {
			t.Fatalf("%s: logged in as %+v, %v", provider, me, ok)
		}
		// Elsewhere the address has changed; the subject is what counts.
		moved := oauthtest.Person{Subject: "17", Email: "lovelace@example.net", EmailVerified: true, Name: "Ada L."}
		w.issuer.LogIn(moved)
		w.github.LogIn(moved)
		other := w.browser(t)
		if to := other.logIn(provider); to != "/dashboard" {
			t.Fatalf("%s: the second login ends at %s", provider, to)
		}
		if again, ok := other.session(); !ok || again.User.ID != me.User.ID || again.User.Email != "ada@example.com" {
			t.Errorf("%s: the second login is %+v, %v", provider, again, ok)
		}
		if n := w.count(t, "SELECT count(*) FROM users"); n != 1 {
			t.Errorf("%s: %d users", provider, n)
		}
		if n := w.count(t, "SELECT count(*) FROM audit_logs WHERE action = 'identity_link' AND actor_type = 'user'"); n != 1 {
			t.Errorf("%s: %d entries of linking", provider, n)
		}
	}
}

func TestA7_AnUnverifiedAddressNeverLinksNorSignsUp(t *testing.T) {
	w := newWorld(t, account.SignupOpen)
	w.browser(t).signUp("ada@example.com")
	w.exec(t, "UPDATE users SET email_proven_at = now()")
	for _, p := range []oauthtest.Person{
		{Subject: "1", Email: "ada@example.com", Name: "A"},                      // of an account whose address is proven
		{Subject: "2", Email: "new@example.com", Name: "A"},                      // of nobody
		{Subject: "3", Email: "", EmailVerified: true, Name: "A"},                // none at all
		{Subject: "4", Email: "not an address", EmailVerified: true, Name: "A"},  // nonsense
		{Subject: "5", Email: "a@b\x00c.org\n", EmailVerified: true, Name: "\n"}, // worse
	} {
		for _, provider := range []string{"oidc", "github"} {
			w.issuer.LogIn(p)
			w.github.LogIn(p)
			b := w.browser(t)
			if to := b.logIn(provider); to != "/login?error=email_unverified" {
				t.Errorf("%s with %q: the browser ends at %s", provider, p.Email, to)
			}
			if _, ok := b.session(); ok {
				t.Errorf("%s with %q: logged in", provider, p.Email)
			}
		}
	}
	if n := w.count(t, "SELECT (SELECT count(*) FROM users) * 100 + (SELECT count(*) FROM user_identities)"); n != 100 {
		t.Errorf("%d: users and identities", n)
	}
}

// Somebody registered the victim's address before. Neither gets into the other's
// account: not the squatter by waiting for the victim's login, not the victim's
// login into the squatter's account.
func TestA7_NoTakeOverOfAnAccountMadeBeforeWithTheVictimsAddress(t *testing.T) {
	w := newWorld(t, account.SignupOpen)
	squatter := w.browser(t)
	squatter.signUp("ada@example.com")
	w.issuer.LogIn(ada)
	victim := w.browser(t)
	if to := victim.logIn("oidc"); to != "/login?error=link_required" {
		t.Fatalf("the victim ends at %s", to)
	}
	if _, ok := victim.session(); ok {
		t.Fatal("the victim is in the squatter's account")
	}
	if n := w.count(t, "SELECT count(*) FROM user_identities"); n != 0 {
		t.Fatal("the victim's identity was linked")
	}
	// The squatter links an identity of their own; it goes when the victim takes
	// the account by a mailed link.
	w.github.LogIn(oauthtest.Person{Subject: "666", Email: "evil@example.com", EmailVerified: true, Name: "E"})
	var to struct{ URL string }
	if status := squatter.call("POST", "/v1/me/identities/github", "", &to); status != http.StatusOK {
		t.Fatal(status)
	}
	if end := squatter.goTo(to.URL); end != "/dashboard/settings?linked=github" {
		t.Fatalf("linking ends at %s", end)
	}
	secret := w.resetLink(t, "ada@example.com")
	if status := victim.call("POST", "/v1/auth/password-reset/confirm", `{"token":"`+secret+`","password":"the victim's own"}`, nil); status != http.StatusNoContent {
		t.Fatal(status)
	}
	if end := w.browser(t).logIn("github"); strings.Contains(end, "dashboard") && w.count(t, "SELECT count(*) FROM users") == 1 {
		t.Errorf("the squatter's provider still opens the account: %s", end)
	}
	if _, ok := squatter.session(); ok {
		t.Error("the squatter's session lives on")
	}
}

// resetLink makes a link as an admin's would be.
func (w *world) resetLink(t *testing.T, email string) string {
	t.Helper()
	const secret = "0123456789abcdef0123456789abcdef01234567"
	w.exec(t, `INSERT INTO account_tokens (token_hash, kind, user_id, email, expires_at)
		SELECT sha256('`+secret+`'), 'password_reset', id, email, now() + interval '1 hour' FROM users WHERE email = '`+email+`'`)
	return secret
}

func TestA7_AProvenAddressLinksByItself(t *testing.T) {
	w := newWorld(t, account.SignupClosed)
	w.issuer.LogIn(ada)
	if to := w.browser(t).logIn("oidc"); to != "/login?error=signup_closed" {
		t.Fatalf("with sign-up closed the browser ends at %s", to)
	}
	w.exec(t, "INSERT INTO users (id, email, name, email_proven_at) VALUES (gen_random_uuid(), 'ada@example.com', 'Ada', now())")
	b := w.browser(t)
	if to := b.logIn("oidc"); to != "/dashboard" {
		t.Fatalf("the browser ends at %s", to)
	}
	if me, ok := b.session(); !ok || me.User.Name != "Ada" || me.Team != nil {
		t.Errorf("logged in as %+v, %v", me, ok)
	}
	w.exec(t, "UPDATE users SET is_active = false")
	if to := w.browser(t).logIn("oidc"); to != "/login?error=account_disabled" {
		t.Errorf("a disabled user ends at %s", to)
	}
}

func TestA7_LinkingAndUnlinkingInSettings(t *testing.T) {
	w := newWorld(t, account.SignupOpen)
	w.issuer.LogIn(ada)
	b, other := w.browser(t), w.browser(t)
	b.signUp("ada@example.com")
	other.signUp("bob@example.com")
	link := func(b *browser) string {
		var to struct{ URL string }
		if status := b.call("POST", "/v1/me/identities/oidc", "", &to); status != http.StatusOK {
			t.Fatal(status)
		}
		return b.goTo(to.URL)
	}
	if end := link(b); end != "/dashboard/settings?linked=oidc" {
		t.Fatalf("linking ends at %s", end)
	}
	if end := link(b); end != "/dashboard/settings?linked=oidc" {
		t.Errorf("linking again ends at %s", end)
	}
	if end := link(other); end != "/login?error=identity_taken" {
		t.Errorf("linking another's ends at %s", end)
	}
	if n := w.count(t, "SELECT count(*) FROM users WHERE email = 'ada@example.com' AND email_proven_at IS NOT NULL"); n != 1 {
		t.Error("the address was not proven by the provider")
	}
	var list struct {
		Items []struct{ Provider, Email string }
	}
	if b.call("GET", "/v1/me/identities", "", &list); len(list.Items) != 1 || list.Items[0].Provider != "oidc" || list.Items[0].Email != "ada@example.com" {
		t.Errorf("identities %+v", list)
	}
	if status := other.call("DELETE", "/v1/me/identities/oidc", "", nil); status != http.StatusNotFound {
		t.Errorf("unlinking what is another's: %d", status)
	}
	if status := b.call("DELETE", "/v1/me/identities/oidc", "", nil); status != http.StatusNoContent {
		t.Errorf("unlink: %d", status)
	}
	// Without a password the last one stays.
	fresh := w.browser(t)
	w.github.LogIn(oauthtest.Person{Subject: "9", Email: "new@example.com", EmailVerified: true})
	fresh.logIn("github")
	if me, ok := fresh.session(); !ok || me.User.Name != "login-9" {
		t.Fatalf("%+v, %v", me, ok)
	}
	if status := fresh.call("DELETE", "/v1/me/identities/github", "", nil); status != http.StatusConflict {
		t.Errorf("unlinking the only way in: %d", status)
	}
	if n := w.count(t, "SELECT count(*) FROM user_identities WHERE provider = 'github'"); n != 1 {
		t.Error("it was unlinked all the same")
	}
}

// Whoever begins to link with somebody's session has lost that way when the
// session has ended, or the user is disabled, before the provider sends the
// browser back.
func TestA7_LinkingEndsWithTheSessionThatBeganIt(t *testing.T) {
	for name, end := range map[string]func(w *world, b *browser){
		"logout":   func(_ *world, b *browser) { b.call("POST", "/v1/auth/logout", "", nil) },
		"disabled": func(w *world, _ *browser) { w.exec(t, "UPDATE users SET is_active = false") },
		"password": func(w *world, b *browser) {
			owner := w.browser(t)
			var me whoami
			owner.call("POST", "/v1/auth/login", `{"email":"ada@example.com","password":"a long password"}`, &me)
			owner.token = me.Token
			if status := owner.call("POST", "/v1/me/password", `{"current_password":"a long password","new_password":"another long one"}`, nil); status != http.StatusNoContent {
				t.Fatal(status)
			}
		},
		"switched": func(w *world, _ *browser) { w.exec(t, "UPDATE sessions SET ended_at = now()") },
	} {
		w := newWorld(t, account.SignupOpen)
		w.issuer.LogIn(oauthtest.Person{Subject: "666", Email: "evil@example.com", EmailVerified: true, Name: "E"})
		thief := w.browser(t)
		thief.signUp("ada@example.com")
		var to struct{ URL string }
		if status := thief.call("POST", "/v1/me/identities/oidc", "", &to); status != http.StatusOK {
			t.Fatal(status)
		}
		end(w, thief)
		if at := thief.goTo(to.URL); !strings.HasPrefix(at, "/login?error=") {
			t.Errorf("%s: linking ends at %s", name, at)
		}
		if n := w.count(t, "SELECT count(*) FROM user_identities"); n != 0 {
			t.Errorf("%s: the identity was linked", name)
		}
	}
}

// A name as a provider may send it is fit for the trail and for terminals.
func TestA7_ForeignNamesAreCleaned(t *testing.T) {
	w := newWorld(t, account.SignupOpen)
	w.exec(t, "INSERT INTO users (id, email, name, email_proven_at) VALUES (gen_random_uuid(), 'ada@example.com', 'Ada', now())")
	w.issuer.LogIn(oauthtest.Person{Subject: "1", Email: "ada@example.com", EmailVerified: true, Name: "\x00\u009b31m" + strings.Repeat("n", 100_000)})
	if to := w.browser(t).logIn("oidc"); to != "/dashboard" {
		t.Fatalf("the browser ends at %s", to)
	}
	if n := w.count(t, "SELECT max(length(actor_name))::int FROM audit_logs WHERE action = 'identity_link' AND actor_name ~ '^31mn+$'"); n != 100 {
		t.Errorf("the trail has a name of %d characters", n)
	}
}

// Only the browser that began can end a login, once, with what the provider
// signed for it.
func TestA7_StateNonceAndCodeBelongToOneLogin(t *testing.T) {
	w := newWorld(t, account.SignupOpen)
	w.issuer.LogIn(ada)
	// capture walks up to the callback and returns its address without calling it.
	capture := func(b *browser) string {
		walk := *b.client
		walk.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
			if strings.HasSuffix(r.URL.Path, "/callback") {
				return http.ErrUseLastResponse
			}
			return nil
		}
		res, err := walk.Get(w.url + "/v1/auth/oauth/oidc")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.Header.Get("Location")
	}
	attacker, victim := w.browser(t), w.browser(t)
	if to := victim.goTo(capture(attacker)); to != "/login?error=invalid_state" {
		t.Errorf("another browser's login ends at %s", to)
	}
	first := capture(victim)
	if to := victim.goTo(first); to != "/dashboard" {
		t.Fatalf("the login ends at %s", to)
	}
	if to := victim.goTo(first); to != "/login?error=invalid_state" {
		t.Errorf("the same again ends at %s", to)
	}
	mixed, err := url.Parse(capture(victim))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(q url.Values){
		"state": func(q url.Values) { q.Set("state", "x") }, "none": func(q url.Values) { q.Del("state") }, "code": func(q url.Values) { q.Set("code", "x") },
	} {
		b := w.browser(t)
		address, err := url.Parse(capture(b))
		if err != nil {
			t.Fatal(err)
		}
		q := address.Query()
		change(q)
		address.RawQuery = q.Encode()
		if to := b.goTo(address.String()); !strings.HasPrefix(to, "/login?error=") {
			t.Errorf("with another %s: %s", name, to)
		}
	}
	w.exec(t, "UPDATE oauth_logins SET expires_at = now() - interval '1 second'")
	if to := victim.goTo(mixed.String()); to != "/login?error=invalid_state" {
		t.Errorf("after its time: %s", to)
	}
	for claim, value := range map[string]any{"nonce": "another", "aud": "another", "iss": "http://another.example", "exp": 1} {
		w.issuer.Tamper(func(c jwt.MapClaims) { c[claim] = value })
		if to := w.browser(t).logIn("oidc"); to != "/login?error=login_failed" {
			t.Errorf("with another %s: %s", claim, to)
		}
	}
	w.issuer.Tamper(nil)
	w.issuer.Refuse()
	if to := w.browser(t).logIn("oidc"); to != "/login?error=login_refused" {
		t.Errorf("refused: %s", to)
	}
	if to := w.browser(t).logIn("none"); !strings.HasPrefix(to, "404 ") {
		t.Errorf("an unknown provider: %s", to)
	}
}

func TestA7_TheLoginPageLearnsWhatThereIs(t *testing.T) {
	w := newWorld(t, account.SignupClosed)
	var ways struct {
		Password  bool
		Signup    string
		Providers []struct{ ID, Name, URL string }
	}
	if status := w.browser(t).call("GET", "/v1/auth/providers", "", &ways); status != http.StatusOK {
		t.Fatal(status)
	}
	if !ways.Password || ways.Signup != "closed" || len(ways.Providers) != 2 || ways.Providers[0].Name != "Company" || ways.Providers[1].URL != w.url+"/v1/auth/oauth/github" {
		t.Errorf("%+v", ways)
	}
}
