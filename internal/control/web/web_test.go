package web_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"skerry.dev/skerry/api"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/ratelimit"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/testkit"
)

type operation struct {
	method, path string
	id           string
	raw          bool
	security     []map[string][]string // nil: the document's own
	hasSecurity  bool
}

func documentOperations(t *testing.T) []operation {
	t.Helper()
	var document struct {
		Paths map[string]map[string]struct {
			OperationID string                 `yaml:"operationId"`
			Raw         bool                   `yaml:"x-skerry-raw"`
			Security    *[]map[string][]string `yaml:"security"`
		}
	}
	if err := yaml.Unmarshal(api.OpenAPI, &document); err != nil {
		t.Fatal(err)
	}
	var all []operation
	for path, item := range document.Paths {
		for method, op := range item {
			o := operation{method: strings.ToUpper(method), path: path, id: op.OperationID, raw: op.Raw, hasSecurity: op.Security != nil}
			if op.Security != nil {
				o.security = *op.Security
			}
			all = append(all, o)
		}
	}
	if len(all) < 30 {
		t.Fatalf("only %d operations in the document", len(all))
	}
	return all
}

func TestC8_EveryOperationHasALineThatAgreesWithTheDocument(t *testing.T) {
	named := map[string]bool{}
	for _, op := range documentOperations(t) {
		named[op.id] = true
		p, ok := web.PermissionOf(op.id)
		if !ok {
			t.Errorf("%s has no line in the permissions", op.id)
			continue
		}
		schemes := map[string]bool{"Bearer": !op.hasSecurity, "ApiKey": !op.hasSecurity}
		for _, s := range op.security {
			for name := range s {
				schemes[name] = true
			}
		}
		if p.Anonymous != (op.hasSecurity && len(op.security) == 0) || p.User != schemes["Bearer"] || (len(p.Scopes) > 0) != schemes["ApiKey"] || p.Host != schemes["HostToken"] {
			t.Errorf("%s: the document says %v, the permissions %+v", op.id, schemes, p)
		}
	}
	for _, op := range web.PermittedOperations() {
		if !named[op] {
			t.Errorf("%s has a line in the permissions and is not in the document", op)
		}
	}
}

func TestC1_MountedRoutesAreComparedWithTheDocument(t *testing.T) {
	s := newStack(t, options{})
	before := s.web.RouteFaults()
	if !slices.Contains(before, "GET /v1/sandboxes/{id}/pty (openPTY) is in the document and not mounted") {
		t.Errorf("a missing route is not found: %q", before)
	}
	for _, op := range documentOperations(t) {
		if op.raw && !slices.ContainsFunc(s.web.Routes(), func(r web.Route) bool { return r.Operation == op.id }) {
			s.web.Mount(web.Route{Method: op.method, Path: op.path, Operation: op.id})
		}
	}
	if faults := s.web.RouteFaults(); len(faults) != 0 {
		t.Errorf("with all mounted: %q", faults)
	}
	s.web.Mount(web.Route{Method: "GET", Path: "/v1/hidden", Operation: "hidden"})
	if faults := s.web.RouteFaults(); len(faults) != 1 || faults[0] != "GET /v1/hidden (hidden) is mounted and not in the document" {
		t.Errorf("with a hidden one: %q", faults)
	}
}

func TestC8_MatrixOfCallersAndOperations(t *testing.T) {
	s := newStack(t, options{})
	for _, op := range documentOperations(t) {
		if op.raw && strings.HasPrefix(op.path, "/v1/") {
			s.web.Mount(web.Route{Method: op.method, Path: op.path, Operation: op.id, Handler: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(299) }})
		}
	}
	a := s.signup(t, "ada@example.com")
	root := func() string {
		if err := s.accounts.EnsureAdmin(t.Context(), "root@example.com", password); err != nil {
			t.Fatal(err)
		}
		var in authReply
		s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "root@example.com", "password": password}).json(t, &in)
		return in.Token
	}()
	full, _ := s.apiKey(t, a.Token, map[string]any{"name": "all"})
	read, _ := s.apiKey(t, a.Token, map[string]any{"name": "read", "scopes": []string{"read"}})
	callers := map[string][]string{
		"anonymous": nil, "member": bearer(a.Token), "platform admin": bearer(root), "host": bearer(s.hostToken(t)),
		"full key": {"X-API-Key", full}, "read key": {"X-API-Key", read},
	}
	for _, op := range documentOperations(t) {
		p, _ := web.PermissionOf(op.id)
		if op.id == "logout" {
			continue // ends the session that the others need
		}
		reads := slices.ContainsFunc(p.Scopes, func(s principal.Scope) bool { return s == principal.ScopeRead })
		may := map[string]bool{
			"anonymous": false, "member": p.User && !p.Admin, "platform admin": p.User, "host": p.Host, "full key": len(p.Scopes) > 0, "read key": reads,
		}
		for caller, headers := range callers {
			path := regexp.MustCompile(`\{\w+\}`).ReplaceAllString(op.path, "x")
			status := s.call(t, op.method, path, "{", headers...).status
			// A malformed body is refused only after the caller was admitted.
			admitted := status != 401 && status != 403
			if want := p.Anonymous || may[caller]; admitted != want {
				t.Errorf("%s as %s: %d, want admitted=%v", op.id, caller, status, want)
			}
		}
	}
}

func TestC1_PagesAndUnknownPaths(t *testing.T) {
	s := newStack(t, options{})
	for _, path := range []string{"/", "/v1", "/v1/", "/v1/nothing", "/v2/me", "/docs/", "/docs/none", "/v1//me", "/v1/../healthz", "/v1/me/", "/%00", "/dashboard"} {
		s.call(t, "GET", path, nil).fault(t, 404, "route_not_found")
	}
	for path, allow := range map[string]string{"/v1/me": "DELETE,GET,PATCH", "/healthz": "GET", "/v1/auth/login": "POST", "/v1/api-keys": "GET,POST"} {
		r := s.call(t, "PUT", path, nil)
		r.fault(t, 405, "method_not_allowed")
		if got := strings.ReplaceAll(r.header.Get("Allow"), " ", ""); got != allow {
			t.Errorf("%s allows %q, want %q", path, got, allow)
		}
	}
	if r := s.call(t, "GET", "/openapi.yaml", nil); r.status != 200 || r.body != string(api.OpenAPI) {
		t.Errorf("document: %d", r.status)
	}
	page := s.call(t, "GET", "/docs", nil)
	policy := page.header.Get("Content-Security-Policy")
	if page.status != 200 || strings.Contains(policy, "unsafe") || !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("docs: %d, policy %q", page.status, policy)
	}
	if inline := regexp.MustCompile(`(?i)<script>|<style| style=| on\w+=|https?:`).FindString(page.body); inline != "" {
		t.Errorf("the page has %q", inline)
	}
	for _, asset := range []string{"docs.js", "docs.css", "openapi.json"} {
		if r := s.call(t, "GET", "/docs/"+asset, nil); r.status != 200 || len(r.body) < 500 || strings.Contains(r.body, "http://") {
			t.Errorf("%s: %d, %d bytes", asset, r.status, len(r.body))
		}
	}
}

func TestC3_PanicIsAnAnswerAndTheServerLives(t *testing.T) {
	s := newStack(t, options{})
	a := s.signup(t, "ada@example.com")
	for range 3 { // an operation of a room that is not there
		s.call(t, "GET", "/v1/templates", nil, bearer(a.Token)...).fault(t, 500, "internal")
	}
	if r := s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...); r.status != 200 {
		t.Errorf("after a panic: %d", r.status)
	}
	if !strings.Contains(s.log.String(), `"panic in a request"`) {
		t.Error("the panic is not in the log")
	}
}

func TestC3_MissingCredentialsSayWhatToDo(t *testing.T) {
	s := newStack(t, options{})
	r := s.call(t, "GET", "/v1/me", nil)
	if e := r.fault(t, 401, "unauthenticated"); !strings.Contains(e.Message, "Bearer") || r.header.Get("WWW-Authenticate") == "" {
		t.Errorf("%+v", e)
	}
}

func TestC5_BodiesAreBoundedAndRead(t *testing.T) {
	s := newStack(t, options{})
	big := `{"email":"` + strings.Repeat("a", 1<<20) + `"}`
	s.call(t, "POST", "/v1/auth/login", big).fault(t, 413, "body_too_large")
	// The same without a length in advance.
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.url+"/v1/auth/login", io.MultiReader(strings.NewReader(big)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 413 {
		t.Errorf("chunked: %d", res.StatusCode)
	}
	for _, tt := range []struct{ name, body, field string }{
		{"unknown field", `{"email":"a@b.c","password":"x","shoe":"red"}`, "shoe"},
		{"wrong type", `{"email":5,"password":"x"}`, "email"},
		{"null", `{"email":null,"password":"x"}`, "email"},
		{"missing", `{"email":"a@b.c"}`, "password"},
		{"no JSON", `email=a`, ""},
		{"cut off", `{"email":"a@b.c"`, ""},
		{"an array", `[]`, ""},
		{"two values", `{"email":"a@b.c","password":"x"} {}`, ""},
		{"empty", ``, ""},
		{"deep", strings.Repeat("[", 200_000), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := s.call(t, "POST", "/v1/auth/login", tt.body).fault(t, 400, "invalid_request")
			if field, _ := e.Details["field"].(string); field != tt.field {
				t.Errorf("field %q, want %q: %s", field, tt.field, e.Message)
			}
		})
	}
	for _, contentType := range []string{"", "text/plain", "application/x-www-form-urlencoded", "a/b/c;;"} {
		e := s.call(t, "POST", "/v1/auth/login", `{}`, "Content-Type", contentType).fault(t, 400, "invalid_request")
		if !strings.Contains(e.Message, "application/json") {
			t.Errorf("content type %q: %s", contentType, e.Message)
		}
	}
}

func TestC5_TimesHaveMicrosecondsInUTC(t *testing.T) {
	s := newStack(t, options{})
	a := s.signup(t, "ada@example.com")
	r := s.call(t, "POST", "/v1/api-keys", map[string]any{"name": "k", "expires_at": "2099-01-02T03:04:05.1234567+02:00"}, bearer(a.Token)...)
	if !strings.Contains(r.body, `"expires_at":"2099-01-02T01:04:05.123456Z"`) || !regexp.MustCompile(`"created_at":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"`).MatchString(r.body) {
		t.Errorf("%d %s", r.status, r.body)
	}
}

func TestC5_RequestIDIsTakenWhenSane(t *testing.T) {
	s := newStack(t, options{})
	if r := s.call(t, "GET", "/healthz", nil, "X-Request-Id", "abc-1.2_3"); r.header.Get("X-Request-Id") != "abc-1.2_3" {
		t.Errorf("id is %q", r.header.Get("X-Request-Id"))
	}
	for _, bad := range []string{"a b", strings.Repeat("x", 129), `"}`, ""} {
		if got := s.call(t, "GET", "/healthz", nil, "X-Request-Id", bad).header.Get("X-Request-Id"); got == bad || len(got) != 36 {
			t.Errorf("id for %q is %q", bad, got)
		}
	}
	if !strings.Contains(s.log.String(), `"request_id":"abc-1.2_3"`) {
		t.Error("the id is not in the log")
	}
}

func TestC7_LimitsByAddressAndByCaller(t *testing.T) {
	s := newStack(t, options{limits: web.Limits{Auth: ratelimit.Rate{Burst: 3, Per: time.Hour}, Caller: ratelimit.Rate{Burst: 5, Per: time.Hour}}})
	a := s.signup(t, "ada@example.com")
	login := func() reply {
		return s.call(t, "POST", "/v1/auth/login", map[string]string{"email": "ada@example.com", "password": password}, "X-Forwarded-For", "198.51.100.7")
	}
	login()
	login()
	r := login() // a header from somebody we do not trust changes nothing
	r.fault(t, 429, "rate_limited")
	if wait := r.header.Get("Retry-After"); wait != "1200" {
		t.Errorf("Retry-After is %q, want the 1200 s until the next of 3 an hour", wait)
	}
	for range 5 {
		if r := s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...); r.status != 200 {
			t.Fatal(r.body)
		}
	}
	s.call(t, "GET", "/v1/me", nil, bearer(a.Token)...).fault(t, 429, "rate_limited")
}

func TestC7_ForwardedAddressOnlyBehindTrustedProxies(t *testing.T) {
	proxies, err := web.ParseProxies("127.0.0.0/8, ::1, 203.0.113.9")
	if err != nil {
		t.Fatal(err)
	}
	s := newStack(t, options{proxies: proxies})
	for header, want := range map[string]string{
		"198.51.100.7":               "198.51.100.7",
		"6.6.6.6, 198.51.100.7":      "198.51.100.7", // the left part is the client's own invention
		"198.51.100.7, 203.0.113.9":  "198.51.100.7",
		"junk":                       "127.0.0.1",
		"6.6.6.6, junk, 203.0.113.9": "203.0.113.9",
		"2001:db8::5":                "2001:db8::5",
	} {
		id := fmt.Sprintf("probe-%d", len(s.log.String()))
		s.call(t, "GET", "/healthz", nil, "X-Forwarded-For", header, "X-Request-Id", id)
		line := regexp.MustCompile(`\{[^\n]*"request_id":"` + id + `"[^\n]*"ip":"([^"]*)"`)
		testkit.Eventually(t, 30*time.Second, "the line of "+header, func() bool { return line.MatchString(s.log.String()) })
		if got := line.FindStringSubmatch(s.log.String())[1]; got != want {
			t.Errorf("%q is %s, want %s", header, got, want)
		}
	}
	if _, err := web.ParseProxies("10.0.0.0/8,nope"); err == nil {
		t.Error("junk was taken for a proxy")
	}
}

func TestAP06_ReadinessNamesThePart(t *testing.T) {
	var broken error
	s := newStack(t, options{checks: []web.Check{
		{Name: "database", Probe: func(context.Context) error { return nil }},
		{Name: "store", Probe: func(context.Context) error { return broken }},
	}})
	if r := s.call(t, "GET", "/readyz", nil); r.status != 200 {
		t.Errorf("ready: %d %s", r.status, r.body)
	}
	broken = errors.New("disk secret-path full")
	r := s.call(t, "GET", "/readyz", nil)
	if r.status != 503 || !strings.Contains(r.body, `"store":"failing"`) || strings.Contains(r.body, "secret-path") || r.header.Get("Retry-After") == "" {
		t.Errorf("not ready: %d %s", r.status, r.body)
	}
	if r := s.call(t, "GET", "/healthz", nil); r.status != 200 {
		t.Errorf("health: %d", r.status)
	}
}

func TestO5_NothingSecretIsLogged(t *testing.T) {
	s := newStack(t, options{routes: []web.Route{whoami()}})
	const canary = "canary-Pa55word"
	r := s.call(t, "POST", "/v1/auth/signup?q=canary-query", map[string]string{"email": "ada@example.com", "password": canary, "name": "Ada"}, "Idempotency-Key", "canary-idempotency")
	var a authReply
	r.json(t, &a)
	secret, _ := s.apiKey(t, a.Token, map[string]any{"name": "k"})
	s.call(t, "GET", "/v1/sandboxes/x/exec/stream", nil, "X-API-Key", secret)
	s.call(t, "POST", "/v1/auth/login", `{"email":"ada@example.com","password":"`+canary+`","extra":"canary-field"}`)
	s.call(t, "POST", "/v1/auth/login", `{"email":"ada@example.com","password":"`+canary)
	s.call(t, "GET", "/v1/templates", nil, bearer(a.Token)...) // panics
	s.exec(t, "ALTER TABLE users RENAME COLUMN password_hash TO gone")
	s.call(t, "POST", "/v1/auth/signup", map[string]string{"email": "eve@example.com", "password": canary, "name": "Eve"})
	log := s.log.String()
	for _, secret := range []string{"canary", a.Token, secret, secret[7:], "$argon2id"} {
		if strings.Contains(log, secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
	if !strings.Contains(log, `"level":"ERROR"`) {
		t.Error("the failure is not in the log")
	}
}

func TestServeEndsStreamsAndFinishesRequests(t *testing.T) {
	inside, release := make(chan struct{}, 2), make(chan struct{})
	ended := make(chan error, 1)
	s := newStack(t, options{routes: []web.Route{
		{Method: "GET", Path: "/stream", Operation: "getHealth", Handler: func(_ http.ResponseWriter, r *http.Request) {
			inside <- struct{}{}
			<-r.Context().Done()
			ended <- context.Cause(r.Context())
		}},
	}})
	handler, err := s.web.Handler(&testAPI{})
	if err != nil {
		t.Fatal(err)
	}
	outer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			inside <- struct{}{}
			<-release
			fmt.Fprint(w, "done")
			return
		}
		handler.ServeHTTP(w, r)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	served := make(chan error, 1)
	go func() { served <- s.web.Serve(ctx, listener, outer, 10*time.Second) }()
	base := "http://" + listener.Addr().String()
	answers := make(chan string, 2)
	for _, path := range []string{"/stream", "/slow"} {
		go func() {
			res, err := http.Get(base + path) //nolint:noctx // ends with the server
			if err != nil {
				answers <- err.Error()
				return
			}
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			answers <- string(body)
		}()
	}
	<-inside
	<-inside
	stop()
	if cause := <-ended; !errs.Is(cause, "stopping") {
		t.Errorf("the stream ended for %v", cause)
	}
	close(release)
	got := []string{<-answers, <-answers}
	if !slices.Contains(got, "done") {
		t.Errorf("the request in flight got %q", got)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestLL08_DrippingBodyIsCutWithoutHarmToOthers(t *testing.T) {
	if os.Getenv("SKERRY_TEST_SLOW") == "" {
		testkit.Missing(t, "slow", "set SKERRY_TEST_SLOW=1: it waits for the 30 s limit of bodies")
	}
	s := newStack(t, options{})
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
	var answer bytes.Buffer
	_ = conn.SetReadDeadline(time.Now().Add(40 * time.Second))
	_, _ = io.Copy(&answer, io.LimitReader(conn, 12))
	if !strings.Contains(answer.String(), "408") {
		t.Errorf("answer %q", answer.String())
	}
}
