package telemetry_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/observe"
	"skerry.dev/skerry/internal/telemetry"
	"skerry.dev/skerry/internal/telemetry/telemetrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T, cfg telemetry.Config) *telemetry.Telemetry {
	t.Helper()
	cfg.Program, cfg.Version = "server", "1.2.3"
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	tel, err := telemetry.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tel
}

// TestO4_SwitchedOffIsNobody: what costs nothing cannot hold anything up.
func TestO4_SwitchedOffIsNobody(t *testing.T) {
	for name, env := range map[string]map[string]string{
		"no receiver": {},
		"disabled":    {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
		"none":        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range env {
				t.Setenv(k, v)
			}
			before := runtime.NumGoroutine()
			tel := listen(t, telemetry.Config{})
			if o := tel.Observer(); o != (observe.Nobody{}) {
				t.Errorf("%T listens", o)
			}
			client, err := tel.Client("host")
			if err != nil || len(client) != 0 {
				t.Errorf("%d interceptors, %v", len(client), err)
			}
			handler := slog.DiscardHandler
			if tel.Log(handler) != handler || tel.Registry() != nil {
				t.Error("something is there all the same")
			}
			if after := runtime.NumGoroutine(); after > before {
				t.Errorf("%d goroutines were started", after-before)
			}
			tel.Close(t.Context())
		})
	}
}

func TestO4_SpansOfOneRequest(t *testing.T) {
	receiver := telemetrytest.NewReceiver(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.URL)
	var log bytes.Buffer
	tel := listen(t, telemetry.Config{})
	const claimed = "0af7651916cd43dd8448eb211c80319c"
	ctx, root := tel.Observer().Serve(observe.With(t.Context(), tel.Observer()), "request", "00-"+claimed+"-b7ad6b7169203331-01")
	slog.New(tel.Log(slog.NewJSONHandler(&log, nil))).InfoContext(ctx, "line")
	// Work that outlives the request belongs to its trace.
	later, cancel := context.WithCancel(observe.Follow(context.Background(), ctx))
	_, work := observe.Begin(later, "work")
	work.Set("sandbox_id", "some-id")
	root.Rename("createSandbox")
	root.End(nil)
	cancel()
	const secret = "canary-of-a-message"
	work.End(errs.Unavailable("host_unavailable", secret).Because(errors.New(secret)))
	tel.Close(t.Context())

	spans := map[string]telemetrytest.Span{}
	for _, s := range receiver.Spans() {
		spans[s.Name] = s
	}
	outer, inner := spans["createSandbox"], spans["work"]
	if len(spans) != 2 || outer.Trace == "" || inner.Trace != outer.Trace || inner.Parent != outer.ID || outer.Parent != "" || outer.Service != "skerry-server" {
		t.Fatalf("spans %+v", spans)
	}
	if outer.Trace == claimed || len(outer.Links) != 1 || outer.Links[0] != claimed {
		t.Errorf("a stranger's trace %s became %+v, want a link", claimed, outer)
	}
	if !inner.Failed || inner.Attributes["skerry.reason"] != "host_unavailable" || inner.Attributes["skerry.sandbox_id"] != "some-id" {
		t.Errorf("%+v", inner)
	}
	if receiver.Contains(secret) {
		t.Error("the words of an error were exported")
	}
	if !strings.Contains(log.String(), `"trace_id":"`+outer.Trace+`"`) {
		t.Errorf("the log's line does not name the trace: %s", log.String())
	}
}

// TestO4_AReceiverThatHangsHoldsUpNobody: spans are dropped, not queued without
// end, and the end of the program does not wait for long.
func TestO4_AReceiverThatHangsHoldsUpNobody(t *testing.T) {
	hole, err := net.Listen("tcp", "127.0.0.1:0") // takes connections into its backlog and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+hole.Addr().String())
	tel := listen(t, telemetry.Config{Metrics: true})
	o := tel.Observer()
	const n = 50_000
	slowest := time.Duration(0)
	began := time.Now()
	for range n {
		at := time.Now()
		_, s := o.Serve(t.Context(), "work", "")
		s.Set("key", "value")
		s.End(nil)
		slowest = max(slowest, time.Since(at))
	}
	took := time.Since(began)
	if took > 10*time.Second || slowest > 2*time.Second {
		t.Errorf("%d spans took %s, one of them %s", n, took, slowest)
	}
	t.Logf("%s a span", took/n)
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	if mem.HeapAlloc > 100<<20 {
		t.Errorf("%d MB are in use: the queue has no end", mem.HeapAlloc>>20)
	}
	began = time.Now()
	tel.Close(t.Context())
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the end took %s", took)
	}
}

func TestO4_WrongVariablesAreToldAtOnce(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:secret-canary")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
	t.Setenv("OTEL_TRACES_EXPORTER", "zipkin")
	err := telemetry.Check()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_TRACES_EXPORTER"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%s is missing in %v", name, err)
		}
	}
	if strings.Contains(err.Error(), "secret-canary") {
		t.Error("the value was repeated")
	}
}

func TestO4_MetricsAndHealthAreServed(t *testing.T) {
	tel := listen(t, telemetry.Config{Metrics: true})
	defer tel.Close(t.Context())
	o := tel.Observer()
	o.Round("sweep", time.Second, nil)
	o.Round("sweep", time.Second, errors.New("broken"))
	o.Moved("create", "create_running", 300*time.Millisecond)
	o.Moved("host", "offline", -1)
	o.Called("gvisor", "start", "ok", time.Second)
	o.Answered("createSandbox", 201, time.Second)
	o.Answered("", 404, time.Second)

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- tel.Serve(ctx, ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	}()
	base := "http://" + ln.Addr().String()
	families := telemetrytest.Scrape(t, base+"/metrics")
	telemetrytest.Check(t, families)
	for _, want := range []struct {
		value  float64
		name   string
		labels []string
	}{
		{1, "skerry_build_info", []string{"program=server", "version=1.2.3"}},
		{2, "skerry_loop_runs_total", []string{"loop=sweep"}},
		{1, "skerry_loop_failures_total", []string{"loop=sweep"}},
		{2, "skerry_loop_duration_seconds", []string{"loop=sweep"}},
		{1, "skerry_transitions_total", []string{"machine=create", "state=create_running"}},
		{1, "skerry_transition_seconds", nil},
		{1, "skerry_calls_total", []string{"part=gvisor", "call=start", "result=ok"}},
		{1, "skerry_api_requests_total", []string{"operation=createSandbox", "status=201"}},
		{1, "skerry_api_requests_total", []string{"operation=none", "status=404"}},
	} {
		got, err := telemetrytest.Value(families, want.name, want.labels...)
		if err != nil || got != want.value {
			t.Errorf("%s %v is %v (%v), want %v", want.name, want.labels, got, err, want.value)
		}
	}
	if at, err := telemetrytest.Value(families, "skerry_loop_last_success_timestamp_seconds", "loop=sweep"); err != nil || at < float64(time.Now().Add(-time.Minute).Unix()) {
		t.Errorf("last success %v, %v", at, err)
	}
	for path, want := range map[string]int{"/healthz": http.StatusTeapot, "/readyz": http.StatusTeapot, "/debug/pprof/": http.StatusNotFound} {
		res, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s answers %d, want %d", path, res.StatusCode, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func BenchmarkSpan(b *testing.B) {
	hole, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer hole.Close()
	b.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+hole.Addr().String())
	tel, err := telemetry.New(b.Context(), telemetry.Config{Program: "server", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer tel.Close(b.Context())
	o := tel.Observer()
	for b.Loop() {
		_, s := o.Serve(b.Context(), "work", "")
		s.End(nil)
	}
}
