package rpcserver

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"connectrpc.com/connect"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/gen/agentrpc/agent/v1/agentv1connect"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/identity/identitytest"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
	"skerry.dev/skerry/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a manager with one sandbox, whose ports are served by serve.
type world struct {
	sandbox id.Sandbox
	serve   func(net.Conn)

	mu    sync.Mutex
	conns []net.Conn
	spec  journal.Spec
	err   error

	pause     manager.PauseRequest
	deadlines []journal.Deadline
	targets   []manager.WarmTarget
}

func (w *world) Create(_ context.Context, spec journal.Spec) (manager.Report, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spec = spec
	return manager.Report{Sandbox: spec.Sandbox, Incarnation: spec.Incarnation, Phase: journal.PhaseRunning, StartedAt: time.Now()}, w.err
}

func (w *world) Destroy(context.Context, id.Sandbox, uint64, string) error { return w.err }

func (w *world) Pause(_ context.Context, req manager.PauseRequest) (state.State, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pause = req
	return w.state(req.State), w.err
}

func (w *world) Checkpoint(_ context.Context, _ id.Sandbox, _ uint64, which id.Snapshot, _ bool) (state.State, error) {
	return w.state(which), w.err
}

func (w *world) DeleteState(context.Context, id.Snapshot) error { return w.err }

func (w *world) PauseAll(context.Context, string) []manager.Outcome {
	return []manager.Outcome{
		{Sandbox: w.sandbox, Incarnation: 2, State: w.state(id.NewSnapshot())},
		{Sandbox: id.NewSandbox(), Incarnation: 1, Err: errs.Exhausted("disk_full", "Make room.")},
	}
}

func (w *world) SetDeadlines(_ context.Context, list []journal.Deadline) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deadlines = list
	return w.err
}

func (w *world) Logs(context.Context, id.Sandbox, uint64) ([]byte, bool, error) {
	return []byte{'a', 0xff}, true, w.err
}

func (w *world) state(which id.Snapshot) state.State {
	return state.State{Digest: "d", SizeBytes: 7, Manifest: state.Manifest{
		ID: which, Sandbox: w.sandbox, Engine: "fake", EngineVersion: "v", CPUFeatures: []string{"sse"}, ImageDigest: "i",
		Memory: true, InitSecret: "secret", Resources: journal.Resources{CPUMillis: 1, MemoryBytes: 2 << 20, DiskBytes: 3 << 20, MaxProcesses: 4},
	}}
}

func (w *world) KeepWarm(targets []manager.WarmTarget) []manager.WarmKept {
	w.targets = targets
	return []manager.WarmKept{{Key: []byte("k"), Ready: 3, Reason: manager.WarmLimit}}
}

func (w *world) Inventory(context.Context) (manager.Inventory, error) {
	return manager.Inventory{TakenAt: time.Now(), Warm: []manager.WarmReport{{Instance: "w", Key: []byte("k"), Ready: true}}, States: []state.State{w.state(id.NewSnapshot())}, Sandboxes: []manager.Report{
		{Sandbox: w.sandbox, Incarnation: 2, Phase: journal.PhaseExited, EndReason: "killed"},
		{Instance: "x", Unknown: true, Phase: journal.PhaseRunning},
		{Sandbox: id.NewSandbox(), Incarnation: 3, Phase: journal.PhasePaused, State: id.NewSnapshot(), PausedReason: "lost_contact"},
	}}, nil
}

func (w *world) Stats(context.Context, id.Sandbox, uint64) (manager.Stats, error) {
	return manager.Stats{Limits: journal.Resources{MemoryBytes: 5}}, nil
}

func (w *world) Dial(ctx context.Context, sandbox id.Sandbox, incarnation uint64, port int) (net.Conn, error) {
	switch {
	case sandbox != w.sandbox:
		return nil, errs.NotFound("unknown_sandbox", "no")
	case incarnation != 2:
		return nil, errs.FailedPrecondition("stale_incarnation", "no")
	case port != 80:
		return nil, errs.Unavailable("port_closed", "no")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		c, err := ln.Accept()
		_ = ln.Close()
		if err == nil {
			defer c.Close()
			w.serve(c)
		}
	}()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", ln.Addr().String())
	if err == nil {
		w.mu.Lock()
		w.conns = append(w.conns, c)
		w.mu.Unlock()
	}
	return c, err
}

// exit cuts what was opened, as the sandbox's end does.
func (w *world) exit() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
}

func echo(c net.Conn) { // everything is answered only after the half-close
	all, err := io.ReadAll(c)
	if err == nil {
		_, _ = c.Write(append([]byte("got "), all...))
	}
}

type fixture struct {
	ca     *identitytest.CA
	host   id.Host
	addr   string
	world  *world
	porter *porter
	build  BuildBase
	imager Imager
}

func start(t *testing.T, f *fixture) *fixture {
	t.Helper()
	f.ca = identitytest.NewCA(t)
	control := identitytest.NewControl(t, f.ca, identity.ControlURI)
	me, err := identity.Open(identity.Config{Dir: t.TempDir(), ControlURL: control.URL, Pin: f.ca.Pin(), Token: control.Token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(me.Close)
	if err := me.Register(t.Context(), identity.Facts{}); err != nil {
		t.Fatal(err)
	}
	f.host = me.HostID()
	tlsConfig, err := me.ServerConfig()
	if err != nil {
		t.Fatal(err)
	}
	if f.world == nil {
		f.world = &world{sandbox: id.NewSandbox(), serve: echo}
	}
	f.porter = &porter{left: make(chan error, 1)}
	srv, err := New(Config{
		Carrier:   f.porter,
		Facts:     Facts{HostID: f.host, Version: "v1", Generation: 7},
		Sandboxes: f.world, BuildBase: f.build, Imager: f.imager, TLS: tlsConfig, MaxTunnels: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fixture) client(t *testing.T, cert tls.Certificate, protos ...string) agentv1connect.AgentServiceClient {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: f.ca.ClientConfig(cert, identity.HostURI(f.host), protos...), ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return agentv1connect.NewAgentServiceClient(&http.Client{Transport: tr}, "https://"+f.addr)
}

func TestH6_BothEndsAreVerified(t *testing.T) {
	f := start(t, &fixture{})
	hello, err := f.client(t, f.ca.ControlCertificate()).Hello(t.Context(), &agentv1.HelloRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if hello.HostId != f.host.UUID().String() || hello.Generation != 7 {
		t.Errorf("hello says %v", hello)
	}
	hour := time.Now().Add(time.Hour)
	for name, cert := range map[string]tls.Certificate{
		"no certificate":      {},
		"another host's":      f.ca.Certificate("skerry://host/"+id.NewHost().UUID().String(), hour),
		"this host's own":     f.ca.Certificate(identity.HostURI(f.host), hour),
		"expired":             f.ca.Certificate(identity.ControlURI, time.Now().Add(-time.Minute)),
		"another authority's": identitytest.NewCA(t).Certificate(identity.ControlURI, hour),
	} {
		if _, err := f.client(t, cert).Hello(t.Context(), &agentv1.HelloRequest{}); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	plain, err := http.Get("http://" + f.addr + "/")
	if err == nil {
		if plain.StatusCode != http.StatusBadRequest {
			t.Errorf("plain http got %d", plain.StatusCode)
		}
		plain.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	if _, err := New(Config{TLS: &tls.Config{}}); err == nil {
		t.Error("a server without mutual TLS can be made")
	}
}

func TestCallsOverBothProtocols(t *testing.T) {
	f := start(t, &fixture{})
	for _, proto := range []string{"h2", "http/1.1"} {
		c := f.client(t, f.ca.ControlCertificate(), proto)
		sandbox := id.NewSandbox()
		got, err := c.CreateSandbox(t.Context(), &agentv1.CreateSandboxRequest{
			SandboxId: sandbox.UUID().String(), Incarnation: 3, TeamId: id.NewTeam().UUID().String(), TemplateId: id.NewTemplate().UUID().String(),
			Engine: "fake", Resources: &agentv1.Resources{CpuMillis: 500, MemoryMb: 2, DiskMb: 3, MaxProcesses: 4}, Env: map[string]string{"A": "b"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if got.Sandbox.SandboxId != sandbox.UUID().String() || got.Sandbox.Phase != agentv1.SandboxPhase_SANDBOX_PHASE_RUNNING {
			t.Errorf("%s: %v", proto, got)
		}
		want := journal.Resources{CPUMillis: 500, MemoryBytes: 2 << 20, DiskBytes: 3 << 20, MaxProcesses: 4}
		if f.world.spec.Resources != want || f.world.spec.Env["A"] != "b" {
			t.Errorf("%s: the manager got %+v", proto, f.world.spec)
		}
		inv, err := c.Inventory(t.Context(), &agentv1.InventoryRequest{})
		if err != nil || len(inv.Sandboxes) != 3 || !inv.Sandboxes[1].Unknown || inv.Sandboxes[1].SandboxId != "" || inv.Sandboxes[0].EndReason != "killed" {
			t.Errorf("%s: inventory %v, %v", proto, inv, err)
		}
	}
	c := f.client(t, f.ca.ControlCertificate())
	if _, err := c.CreateSandbox(t.Context(), &agentv1.CreateSandboxRequest{SandboxId: "sb-1"}); !errs.Is(rpcerr.FromConnect(err), "invalid_id") {
		t.Errorf("a malformed id: %v", err)
	}
	f.world.err = errs.FailedPrecondition("stale_incarnation", "later").Because(errors.New("private"))
	_, err := c.DestroySandbox(t.Context(), &agentv1.DestroySandboxRequest{SandboxId: f.world.sandbox.UUID().String(), Incarnation: 1})
	if got := rpcerr.FromConnect(err); !errs.Is(got, "stale_incarnation") || errs.CodeOf(got) != errs.CodeFailedPrecondition {
		t.Errorf("the reason is lost: %v", err)
	}
}

func TestBuildBaseStreamsAndIsAlone(t *testing.T) {
	release := make(chan struct{})
	f := start(t, &fixture{build: func(ctx context.Context, url string, log func(string) error) (Built, error) {
		if err := log("unpacking to " + url); err != nil {
			return Built{}, err
		}
		select {
		case <-release:
			return Built{Digest: "d", ManifestDigest: "m", SizeBytes: 9}, nil
		case <-ctx.Done():
			return Built{}, ctx.Err()
		}
	}})
	c := f.client(t, f.ca.ControlCertificate())
	s, err := c.BuildBase(t.Context(), &agentv1.BuildBaseRequest{To: &agentv1.Source{Url: "u"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.Receive() || s.Msg().GetLog() != "unpacking to u" {
		t.Fatalf("got %v, %v", s.Msg(), s.Err())
	}
	second, err := c.BuildBase(t.Context(), &agentv1.BuildBaseRequest{To: &agentv1.Source{Url: "u"}})
	if err == nil {
		if second.Receive() {
			t.Error("a second build began")
		}
		err = second.Err()
		_ = second.Close()
	}
	if !errs.Is(rpcerr.FromConnect(err), "build_in_progress") || connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("a second build: %v", err)
	}
	close(release)
	if !s.Receive() || s.Msg().GetResult().GetDigest() != "d" || s.Receive() || s.Err() != nil {
		t.Errorf("the result is %v, %v", s.Msg(), s.Err())
	}
}

// connectTo opens a tunnel, sending early right behind the request.
func (f *fixture) connectTo(t *testing.T, authority, early string) (*http.Response, *tls.Conn, *bufio.Reader) {
	t.Helper()
	raw, err := tls.Dial("tcp", f.addr, f.ca.ClientConfig(f.ca.ControlCertificate(), identity.HostURI(f.host), "http/1.1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(raw, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n%s", authority, authority, early)
	r := bufio.NewReader(raw)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	return resp, raw, r
}

func (f *fixture) authority(incarnation, port int) string {
	return fmt.Sprintf("%s.%d:%d", f.world.sandbox.UUID(), incarnation, port)
}

func TestH6_ConnectPassesBytesAndHalfCloses(t *testing.T) {
	f := start(t, &fixture{})
	resp, raw, r := f.connectTo(t, f.authority(2, 80), "early ")
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	big := bytes.Repeat([]byte("0123456789"), 200_000)
	if _, err := raw.Write(big); err != nil {
		t.Fatal(err)
	}
	if err := raw.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || string(got[:min(10, len(got))]) != "got early " || len(got) != len(big)+10 {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

func TestConnectRefusals(t *testing.T) {
	f := start(t, &fixture{})
	for authority, want := range map[string]struct {
		status int
		reason string
	}{
		f.authority(1, 80):                        {409, "stale_incarnation"},
		f.authority(2, 81):                        {502, "port_closed"},
		id.NewSandbox().UUID().String() + ".2:80": {404, "unknown_sandbox"},
		f.world.sandbox.UUID().String() + ":80":   {400, "invalid_target"},
		f.authority(2, 70000):                     {400, "invalid_target"},
		"example.com:443":                         {400, "invalid_target"},
	} {
		resp, raw, _ := f.connectTo(t, authority, "")
		if resp.StatusCode != want.status || resp.Header.Get(rpcerr.HeaderReason) != want.reason {
			t.Errorf("%s: %s %s, want %v", authority, resp.Status, resp.Header.Get(rpcerr.HeaderReason), want)
		}
		_ = raw.Close()
	}
}

func TestS15_TunnelsAreCutWhenTheSandboxEnds(t *testing.T) {
	f := &fixture{world: &world{sandbox: id.NewSandbox()}}
	silent := make(chan struct{})
	f.world.serve = func(net.Conn) { <-silent }
	defer close(silent)
	start(t, f)
	_, _, a := f.connectTo(t, f.authority(2, 80), "")
	_, second, _ := f.connectTo(t, f.authority(2, 80), "")
	resp, _, _ := f.connectTo(t, f.authority(2, 80), "")
	if resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("a third tunnel of two: %s", resp.Status)
	}
	_ = second.Close()
	testkit.Eventually(t, 30*time.Second, "room after a tunnel was closed", func() bool {
		resp, raw, _ := f.connectTo(t, f.authority(2, 80), "")
		_ = raw.Close()
		return resp.StatusCode == http.StatusOK
	})
	f.world.exit()
	if _, err := a.ReadByte(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a cut tunnel reads like an orderly end: %v", err)
	}
}
