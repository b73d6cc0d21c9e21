package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"skerry.dev/skerry/internal/telemetry/telemetrytest"
	"skerry.dev/skerry/internal/testkit"
)

// TestO4_WatchedFromOutside: an instance with a trace receiver, looked at as an
// operator does.
func TestO4_WatchedFromOutside(t *testing.T) {
	machine := skerry(t)
	machine.Create(t, nil) // an agent measures what it finds as soon as it starts
	receiver := telemetrytest.NewReceiver(t)
	restart := func(settings ...string) {
		if err := machine.Stop(); err != nil {
			t.Fatal(err)
		}
		machine.Set(settings...)
		if err := machine.Start(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, 30*time.Second, "an agent that is ready", func() bool {
			res, err := http.Get(machine.AgentMetrics + "/readyz") //nolint:noctx // the test's own
			if err != nil {
				return false
			}
			res.Body.Close()
			return res.StatusCode == http.StatusOK
		})
	}
	restart("OTEL_EXPORTER_OTLP_ENDPOINT="+receiver.URL, "OTEL_BSP_SCHEDULE_DELAY=200")
	t.Cleanup(func() { restart("OTEL_EXPORTER_OTLP_ENDPOINT=", "OTEL_BSP_SCHEDULE_DELAY=") })
	t.Run("traces", func(t *testing.T) { machine.traced(t, receiver) })
	t.Run("metrics", machine.measured)
	t.Run("health", machine.healthy)
}

// Secrets and user data of all kinds, none of which may be in a trace.
const (
	canaryEnv      = "canary-of-an-environment"
	canaryCommand  = "canary-of-a-command"
	canaryMetadata = "canary-of-metadata"
	canaryPassword = "canary-of-a-password"
	canaryFile     = "canary-of-a-file"
	canaryKey      = "sk_canary_of_a_key"
)

// traced: one POST /v1/sandboxes shows server, agent, engine and guest under one
// trace id.
func (m *machine) traced(t *testing.T, receiver *telemetrytest.Receiver) {
	box := m.Create(t, map[string]any{"env": map[string]string{"TOKEN": canaryEnv}, "metadata": map[string]string{"note": canaryMetadata}})
	m.Sh(t, box.ID, "echo "+canaryCommand)
	m.Must(t, "POST", "/v1/sandboxes/"+box.ID+"/pause", nil, nil)
	m.Must(t, "POST", "/v1/sandboxes/"+box.ID+"/resume", nil, nil)
	if req, err := m.Request(t.Context(), "PUT", "/v1/sandboxes/"+box.ID+"/files?path=/tmp/"+canaryFile, strings.NewReader(canaryFile)); err != nil {
		t.Fatal(err)
	} else if res, err := http.DefaultClient.Do(req); err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res, err)
	} else {
		res.Body.Close()
	}
	m.refused(t)

	var spans []telemetrytest.Span
	testkit.Eventually(t, 30*time.Second, "the spans of both programs", func() bool {
		spans = receiver.Spans()
		return slices.ContainsFunc(spans, func(s telemetrytest.Span) bool { return s.Name == "uploadFile" }) &&
			slices.ContainsFunc(spans, func(s telemetrytest.Span) bool { return s.Name == "gvisor restore" }) && find(spans, "createSandbox") != nil
	})
	root := find(spans, "createSandbox")
	for _, want := range []struct{ service, name, under string }{
		{"skerry-server", "operation create", "createSandbox"},
		{"skerry-server", "agent.v1.AgentService/CreateSandbox", "operation create"},
		{"skerry-agent", "agent.v1.AgentService/CreateSandbox", "agent.v1.AgentService/CreateSandbox"},
		{"skerry-agent", "network acquire", "agent.v1.AgentService/CreateSandbox"},
		{"skerry-agent", "image acquire", "agent.v1.AgentService/CreateSandbox"},
		{"skerry-agent", "gvisor prepare", "agent.v1.AgentService/CreateSandbox"},
		{"skerry-agent", "gvisor start", "agent.v1.AgentService/CreateSandbox"},
		{"skerry-agent", "guest await", "agent.v1.AgentService/CreateSandbox"},
		{"skerry-agent", "guest init", "agent.v1.AgentService/CreateSandbox"},
	} {
		if !slices.ContainsFunc(spans, func(s telemetrytest.Span) bool {
			return s.Service == want.service && strings.HasSuffix(s.Name, want.name) && s.Trace == root.Trace && parent(spans, s, want.under)
		}) {
			t.Errorf("%s has no span %q under %q in the trace of the request", want.service, want.name, want.under)
		}
	}
	for _, s := range spans {
		if s.Trace == root.Trace {
			t.Logf("%-14s %s", s.Service, s.Name)
		}
	}
	operation := find(spans, "operation create")
	if operation == nil || operation.Attributes["skerry.sandbox_id"] != box.ID {
		t.Errorf("the operation's span is %+v", operation)
	}
	secrets := []string{canaryEnv, canaryCommand, canaryMetadata, canaryPassword, canaryFile, canaryKey, m.Key, m.Token, "BEGIN ", "Bearer "}
	for _, file := range []string{"credentials.env", "secret"} {
		raw, err := os.ReadFile(filepath.Join(m.Data, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range regexp.MustCompile(`[^\s"'=]{20,}`).FindAllString(string(raw), -1) {
			if !strings.HasPrefix(word, "http") {
				secrets = append(secrets, word)
			}
		}
	}
	if !receiver.Contains(box.ID) || len(secrets) < 12 {
		t.Fatalf("the search for %d secrets finds nothing", len(secrets))
	}
	for _, secret := range secrets {
		if receiver.Contains(secret) {
			t.Errorf("%q was exported", secret)
		}
	}
}

// refused makes calls that fail, with words in them that must go nowhere.
func (m *machine) refused(t *testing.T) {
	for path, body := range map[string]any{
		"/v1/auth/login":                        map[string]string{"email": canaryCommand + "@example.com", "password": canaryPassword},
		"/v1/sandboxes":                         map[string]any{"template": canaryMetadata},
		"/v1/sandboxes/" + canaryFile + "/exec": map[string]string{"cmd": canaryCommand},
	} {
		raw, _ := json.Marshal(body)
		req, err := m.Request(t.Context(), "POST", path, bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if path == "/v1/sandboxes" {
			req.Header.Set("X-API-Key", canaryKey)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode < 400 {
			t.Errorf("%s answered %d", path, res.StatusCode)
		}
	}
}

func find(spans []telemetrytest.Span, name string) *telemetrytest.Span {
	for i := range spans {
		if spans[i].Name == name {
			return &spans[i]
		}
	}
	return nil
}

// parent reports whether s lies right under a span of that name.
func parent(spans []telemetrytest.Span, s telemetrytest.Span, name string) bool {
	return slices.ContainsFunc(spans, func(p telemetrytest.Span) bool {
		return p.ID == s.Parent && p.Trace == s.Trace && strings.HasSuffix(p.Name, name)
	})
}

// measured: what both programs say by then has the form it should, moves with
// what goes on, and is all that the dashboard asks for.
func (m *machine) measured(t *testing.T) {
	m.Create(t, nil)
	if _, err := m.Try(t.Context(), "GET", "/v1/no-such-thing", nil, nil); err == nil {
		t.Error("there is something at a path where nothing is")
	}
	var server, agent map[string]*dto.MetricFamily
	testkit.Eventually(t, 30*time.Second, "all of the loops have turned", func() bool {
		server, agent = telemetrytest.Scrape(t, m.Metrics+"/metrics"), telemetrytest.Scrape(t, m.AgentMetrics+"/metrics")
		_, err := telemetrytest.Value(agent, "skerry_loop_last_success_timestamp_seconds", "loop=samples")
		return err == nil
	})
	telemetrytest.Check(t, server)
	telemetrytest.Check(t, agent)
	for _, want := range []struct {
		in     map[string]*dto.MetricFamily
		least  float64
		name   string
		labels []string
	}{
		{server, 1, "skerry_api_requests_total", []string{"operation=createSandbox", "status=201"}},
		{server, 1, "skerry_api_requests_total", []string{"operation=none", "status=404"}},
		{server, 1, "skerry_api_request_duration_seconds", []string{"operation=createSandbox"}},
		{server, 1, "skerry_transitions_total", []string{"machine=sandbox", "state=running"}},
		{server, 1, "skerry_transition_seconds", []string{"machine=create", "state=create_running"}},
		{server, 1, "skerry_calls_total", []string{"part=host", "call=CreateSandbox", "result=ok"}},
		{server, 1, "skerry_sandboxes", []string{"status=running"}},
		{server, 1, "skerry_hosts", []string{"status=online"}},
		{server, 0, "skerry_operations_open", []string{"kind=create"}},
		{server, 0, "skerry_operations_oldest_seconds", []string{"kind=create"}},
		{server, 1, "skerry_database_up", nil},
		{server, 1, "skerry_db_pool_acquires_total", nil},
		{server, 1, "skerry_build_info", []string{"program=server"}},
		{agent, 1, "skerry_build_info", []string{"program=agent"}},
		{agent, 1, "skerry_calls_total", []string{"part=gvisor", "call=start", "result=ok"}},
		{agent, 1, "skerry_call_duration_seconds", []string{"part=guest", "call=await"}},
		{agent, 1, "skerry_calls_total", []string{"part=agent", "call=CreateSandbox", "result=ok"}},
		{agent, 1, "skerry_agent_sandboxes", []string{"phase=running"}},
		{agent, 1, "skerry_agent_network_slots", []string{"state=used"}},
		{agent, 1, "skerry_agent_network_slots_limit", nil},
		{agent, 0, "skerry_agent_saved_states", nil},
		{agent, 1 << 20, "skerry_agent_disk_free_bytes", nil},
		{agent, float64(time.Now().Add(-5 * time.Minute).Unix()), "skerry_agent_last_contact_timestamp_seconds", nil},
	} {
		if got, err := telemetrytest.Value(want.in, want.name, want.labels...); err != nil || got < want.least {
			t.Errorf("%s %v is %v (%v), want %v at least", want.name, want.labels, got, err, want.least)
		}
	}
	for _, loop := range []string{
		"host_monitor", "host_reconciler", "operation_runner", "sandbox_deadlines", "sandbox_idle", "state_removal", "sandbox_retention", "audit_retention",
		"host_drain",
	} {
		if _, err := telemetrytest.Value(server, "skerry_loop_last_success_timestamp_seconds", "loop="+loop); err != nil {
			t.Error(err)
		}
	}
	for _, loop := range []string{"heartbeat", "event_delivery", "samples"} {
		if _, err := telemetrytest.Value(agent, "skerry_loop_last_success_timestamp_seconds", "loop="+loop); err != nil {
			t.Error(err)
		}
	}
	m.dashboard(t, server, agent)
	m.described(t, server, agent)
}

// described: docs/watching.md names every metric of ours, and no other.
func (m *machine) described(t *testing.T, programs ...map[string]*dto.MetricFamily) {
	raw, err := os.ReadFile(filepath.Join(m.Root, "docs", "watching.md"))
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]bool{}
	for _, found := range regexp.MustCompile("`(skerry_[a-z0-9_]+)").FindAllStringSubmatch(string(raw), -1) {
		said[found[1]] = true
	}
	for _, program := range programs {
		for name := range program {
			if strings.HasPrefix(name, "skerry_") && !said[name] {
				t.Errorf("docs/watching.md does not know %s", name)
			}
		}
	}
	for name := range said {
		if !slices.ContainsFunc(programs, func(p map[string]*dto.MetricFamily) bool { return p[name] != nil }) {
			t.Errorf("docs/watching.md tells of %s, which nobody has", name)
		}
	}
}

// dashboard: every metric that deploy/grafana/skerry.json asks for is there.
func (m *machine) dashboard(t *testing.T, programs ...map[string]*dto.MetricFamily) {
	raw, err := os.ReadFile(filepath.Join(m.Root, "deploy", "grafana", "skerry.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board any
	if err := json.Unmarshal(raw, &board); err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, expr := range expressions(board) {
		names := regexp.MustCompile(`\b(skerry|go|process)_[a-z0-9_]+`).FindAllString(expr, -1)
		if len(names) == 0 {
			t.Errorf("%q asks for nothing of ours", expr)
		}
		for _, name := range names {
			asked++
			base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
			if !slices.ContainsFunc(programs, func(p map[string]*dto.MetricFamily) bool { return p[name] != nil || p[base] != nil }) {
				t.Errorf("the dashboard asks for %s, which nobody has", name)
			}
		}
	}
	if asked < 20 {
		t.Errorf("the dashboard asks for %d metrics only: it is read wrongly", asked)
	}
}

// expressions are all values of "expr" in a dashboard.
func expressions(v any) (out []string) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if expr, ok := value.(string); ok && key == "expr" {
				out = append(out, expr)
			}
			out = append(out, expressions(value)...)
		}
	case []any:
		for _, value := range v {
			out = append(out, expressions(value)...)
		}
	}
	return out
}

func (m *machine) healthy(t *testing.T) {
	for _, base := range []string{m.URL, m.Metrics, m.AgentMetrics} {
		for _, path := range []string{"/healthz", "/readyz"} {
			if status, body := fetch(t, base+path); status != http.StatusOK || !strings.Contains(body, `"status":"ok"`) {
				t.Errorf("%s%s: %d %s", base, path, status, body)
			}
		}
	}
	if status, _ := fetch(t, m.URL+"/metrics"); status != http.StatusNotFound {
		t.Errorf("the API's own address answers /metrics with %d", status)
	}
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var body bytes.Buffer
	if _, err := fmt.Fprint(&body, res.Status); err != nil {
		t.Fatal(err)
	}
	if _, err := body.ReadFrom(http.MaxBytesReader(nil, res.Body, 1<<20)); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, body.String()
}
