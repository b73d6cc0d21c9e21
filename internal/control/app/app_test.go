package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

func digest(s string) artifact.Digest { return artifact.Digest(s) }

// server is a running control plane.
type server struct {
	url, agentURL string
	stop          func() error
	log           *logBuffer
}

// logBuffer is a log that may be read while it is written.
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

func free(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func start(t testing.TB, databaseURL, secret, storeDir string) *server {
	t.Helper()
	return startWith(t, Config{DatabaseURL: databaseURL, Secret: secret, Store: storeDir})
}

// startWith runs a server on addresses of its own.
func startWith(t testing.TB, cfg Config) *server {
	t.Helper()
	cfg.Listen, cfg.AgentListen, cfg.SandboxListen = free(t), free(t), free(t)
	cfg = cfg.Defaults(t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := &server{url: cfg.URL, agentURL: cfg.AgentURL, log: &logBuffer{}}
	go func() {
		done <- Run(ctx, cfg, slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	}()
	stopped := false
	s.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(time.Minute):
			return errors.New("the server does not stop")
		}
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	testkit.Eventually(t, 30*time.Second, "the server is ready", func() bool {
		select {
		case err := <-done:
			t.Fatalf("run: %v", err)
		default:
		}
		res, err := http.Get(s.url + "/readyz")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return s
}

// do calls the API and decodes the answer.
func (s *server) do(t testing.TB, method, path, auth string, body any, want int, into any) []byte {
	t.Helper()
	var reader io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		reader = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, reader)
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if strings.HasPrefix(auth, "skerry_") {
		req.Header.Set("X-API-Key", auth)
	} else if auth != "" {
		req.Header.Set("Authorization", "Bearer "+auth)
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
	if res.StatusCode != want {
		t.Fatalf("%s %s: %d %s, want %d", method, path, res.StatusCode, raw, want)
	}
	if into != nil {
		if err := json.Unmarshal(raw, into); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, raw)
		}
	}
	return raw
}

type failure struct {
	Error struct {
		Code      string         `json:"code"`
		Message   string         `json:"message"`
		Details   map[string]any `json:"details"`
		RequestID string         `json:"request_id"`
	} `json:"error"`
}

type sandboxAnswer struct {
	ID        string   `json:"id"`
	Status    string   `json:"status"`
	Actions   []string `json:"actions"`
	EndReason string   `json:"end_reason"`
}

func TestFromAnEmptyDatabaseToASandbox(t *testing.T) {
	databaseURL, storeDir := pgtest.Empty(t), t.TempDir()
	_, secret := keyring.NewSecret()
	s := start(t, databaseURL, secret, storeDir)
	const email, password = "root@example.org", "a long password"
	if err := EnsureAdmin(t.Context(), databaseURL, secret, email, password); err != nil {
		t.Fatalf("first admin: %v", err)
	}
	var login struct {
		Token string `json:"token"`
	}
	s.do(t, http.MethodPost, "/v1/auth/login", "", map[string]string{"email": email, "password": password}, http.StatusOK, &login)
	var made struct {
		Host struct {
			ID string `json:"id"`
		} `json:"host"`
		Token string `json:"registration_token"`
		CA    string `json:"ca_sha256"`
	}
	s.do(t, http.MethodPost, "/v1/hosts", login.Token, map[string]string{"type": "regular"}, http.StatusCreated, &made)

	t.Run("H6 agents have a listener of their own", func(t *testing.T) {
		for _, path := range []string{"/v1/hosts/register", "/v1/hosts/auth/refresh", "/v1/hosts/" + made.Host.ID + "/heartbeat", "/v1/store/x/manifest"} {
			var f failure
			s.do(t, http.MethodPost, path, "", map[string]string{}, http.StatusNotFound, &f)
			if f.Error.Code != "route_not_found" || f.Error.RequestID == "" {
				t.Errorf("%s on the public listener: %+v", path, f)
			}
		}
		stranger := newFakeHost(t, s.agentURL, made.CA)
		if status, body := stranger.call(t, "/v1/auth/login", map[string]string{}); status != http.StatusNotFound {
			t.Errorf("login on the agents' listener: %d %s", status, body)
		}
		stranger.creds.HostID = made.Host.ID
		if status, body := stranger.beat(t); status != http.StatusUnauthorized {
			t.Errorf("a heartbeat without a certificate: %d %s", status, body)
		}
	})

	h := newFakeHost(t, s.agentURL, made.CA)
	h.join(t, made.Token)
	var host struct {
		Status string `json:"status"`
		Name   string `json:"name"`
	}
	s.do(t, http.MethodGet, "/v1/hosts/"+made.Host.ID, login.Token, nil, http.StatusOK, &host)
	if host.Status != "online" || host.Name != "box" {
		t.Fatalf("host %+v", host)
	}

	build := s.do(t, http.MethodPost, "/v1/templates/base/build", login.Token, nil, http.StatusOK, nil)
	lines := strings.Split(strings.TrimSpace(string(build)), "\n")
	if len(lines) != 2 || lines[0] != `{"log":"building"}` || !strings.Contains(lines[1], `"template":{`) || !strings.Contains(lines[1], `"status":"ready"`) {
		t.Fatalf("build answered %q", lines)
	}

	var key struct {
		Key string `json:"key"`
	}
	s.do(t, http.MethodPost, "/v1/api-keys", login.Token, map[string]any{"name": "k"}, http.StatusCreated, &key)
	var x sandboxAnswer
	s.do(t, http.MethodPost, "/v1/sandboxes", key.Key, map[string]any{"template": "base", "env": map[string]string{"A": "b"}}, http.StatusCreated, &x)
	if x.Status != "running" || strings.Join(x.Actions, " ") != "exec files pause snapshot fork delete" {
		t.Fatalf("created %+v", x)
	}
	var accepted struct {
		Operation string        `json:"operation_id"`
		Sandbox   sandboxAnswer `json:"sandbox"`
	}
	s.do(t, http.MethodPost, "/v1/sandboxes?wait=0", key.Key, map[string]any{"template": "base"}, http.StatusAccepted, &accepted)
	if !strings.HasPrefix(accepted.Operation, "op-") || accepted.Sandbox.ID == "" {
		t.Errorf("accepted %+v", accepted)
	}
	var f failure
	s.do(t, http.MethodPost, "/v1/sandboxes", key.Key, map[string]any{"template": "nope"}, http.StatusNotFound, &f)
	if f.Error.Code != "template_not_found" {
		t.Errorf("unknown template: %+v", f)
	}
	s.do(t, http.MethodPost, "/v1/sandboxes", key.Key, map[string]any{"template": "base", "vcpus": 64}, http.StatusServiceUnavailable, &f)
	if f.Error.Code != "no_capacity" || !cmp.Equal(f.Error.Details["hosts"], map[string]any{"cpu": 1.0}) {
		t.Errorf("too large, for a team that must not know the platform's hosts: %+v", f)
	}
	var told failure
	s.do(t, http.MethodPost, "/v1/sandboxes", login.Token, map[string]any{"template": "base", "vcpus": 64}, http.StatusServiceUnavailable, &told)
	if hosts, _ := told.Error.Details["hosts"].([]any); len(hosts) != 1 || hosts[0].(map[string]any)["host"] != "box" {
		t.Errorf("too large, for a platform admin: %+v", told)
	}
	s.do(t, http.MethodDelete, "/v1/sandboxes/"+x.ID, key.Key, nil, http.StatusNoContent, nil)
	s.do(t, http.MethodGet, "/v1/sandboxes/"+x.ID, key.Key, nil, http.StatusOK, &x)
	if x.Status != "stopped" || x.EndReason != "deleted" {
		t.Errorf("deleted %+v", x)
	}
	s.do(t, http.MethodPost, "/v1/sandboxes/"+x.ID+"/exec", key.Key, map[string]any{"cmd": "true"}, http.StatusConflict, &f)
	if f.Error.Code != "invalid_state" || f.Error.Details["status"] != "stopped" {
		t.Errorf("exec in a stopped one: %+v", f)
	}

	// Another server on the same database knows everything.
	if err := s.stop(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	s = start(t, databaseURL, secret, storeDir)
	testkit.Eventually(t, 30*time.Second, "the one that nobody waited for runs", func() bool {
		s.do(t, http.MethodGet, "/v1/sandboxes/"+accepted.Sandbox.ID, key.Key, nil, http.StatusOK, &x)
		return x.Status == "running"
	})
	s.do(t, http.MethodDelete, "/v1/sandboxes/"+x.ID, key.Key, nil, http.StatusNoContent, nil)
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.sandboxes) != 0 {
		t.Errorf("%d instances are left", len(h.sandboxes))
	}
}

func TestO5_EveryFaultInOneList(t *testing.T) {
	err := Config{
		Secret: "hunter2", Listen: "nonsense", AgentListen: ":", URL: "ftp://x", AgentURL: "http://x", TLSCert: "a", Store: "rel", Signup: "b@d",
		TrustedProxies: "x", CPUOvercommit: 0.5, MemOvercommit: -1, Scheduler: "random",
	}.Validate()
	for _, want := range []string{
		"DATABASE_URL", "SKERRY_SECRET", "SKERRY_LISTEN", "SKERRY_AGENT_LISTEN", "SKERRY_URL", "SKERRY_AGENT_URL", "SKERRY_TLS_CERT", "SKERRY_STORE",
		"SKERRY_SIGNUP", "SKERRY_TRUSTED_PROXIES", "SKERRY_CPU_OVERCOMMIT", "SKERRY_MEMORY_OVERCOMMIT", "SKERRY_SCHEDULER",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in the list: %v", want, err)
		}
	}
	if err != nil && strings.Contains(err.Error(), "hunter2") {
		t.Error("the secret is in the list")
	}
	if got := (Config{Listen: "0.0.0.0:80"}).Defaults("/d"); got.Signup != "closed" || got.Store != "/d/store" {
		t.Errorf("defaults %+v", got)
	}
	if got := (Config{}).Defaults("/d"); got.Signup != "open" || got.URL != "http://127.0.0.1:7070" || got.AgentURL != "https://127.0.0.1:7071" {
		t.Errorf("defaults %+v", got)
	}
}
