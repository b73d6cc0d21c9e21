package app_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/gen/agentrpc/agent/v1/agentv1connect"
	"skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/app/apptest"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/identity/identitytest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
	"skerry.dev/skerry/internal/testkit"
)

// platform is a control plane with one host to be.
type platform struct {
	ca      *identitytest.CA
	control *identitytest.Control
	dir     string
}

func newPlatform(t *testing.T) *platform {
	ca := identitytest.NewCA(t)
	return &platform{ca: ca, control: identitytest.NewControl(t, ca, identity.ControlURI), dir: t.TempDir()}
}

func (p *platform) config() app.Config {
	return app.Config{
		DataDir: p.dir, Listen: "127.0.0.1:0", ControlURL: p.control.URL, Version: "v1",
		RegistrationToken: p.control.Token, CASHA256: p.ca.Pin(), Heartbeat: 20 * time.Millisecond,
	}
}

// running is a started agent and a client of it.
type running struct {
	agentv1connect.AgentServiceClient
	addr string
	stop func()
	// ended waits for the agent to end by itself.
	ended func() error
}

func (p *platform) start(t *testing.T, cfg app.Config, opts app.Options) *running {
	t.Helper()
	ready := make(chan net.Addr, 1)
	opts.Ready = func(a net.Addr) { ready <- a }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- app.RunWith(ctx, cfg, opts) }()
	var addr net.Addr
	select {
	case addr = <-ready:
	case err := <-done:
		cancel()
		t.Fatalf("the agent did not start: %v", err)
	case <-time.After(60 * time.Second):
		cancel()
		t.Fatal("the agent did not start in time")
	}
	tr := &http.Transport{
		TLSClientConfig:   p.ca.ClientConfig(p.ca.ControlCertificate(), identity.HostURI(p.control.HostID)),
		ForceAttemptHTTP2: true,
	}
	r := &running{AgentServiceClient: agentv1connect.NewAgentServiceClient(&http.Client{Transport: tr}, "https://"+addr.String()), addr: addr.String()}
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		tr.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	}
	r.ended = func() error {
		stopped = true
		tr.CloseIdleConnections()
		defer cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(60 * time.Second):
			t.Fatal("the agent goes on")
			return nil
		}
	}
	t.Cleanup(r.stop)
	return r
}

func request(engine string) *agentv1.CreateSandboxRequest {
	return &agentv1.CreateSandboxRequest{
		SandboxId: id.NewSandbox().UUID().String(), Incarnation: 1,
		TeamId: id.NewTeam().UUID().String(), TemplateId: id.NewTemplate().UUID().String(),
		Engine: engine, Image: &agentv1.Image{Digest: strings.Repeat("ab", 32), SizeBytes: 1},
		Resources: &agentv1.Resources{CpuMillis: 1000, MemoryMb: 512, DiskMb: 1024, MaxProcesses: 256},
	}
}

func TestTheAgentFromRegistrationToRestart(t *testing.T) {
	p := newPlatform(t)
	machine := apptest.NewMachine()
	a := p.start(t, p.config(), machine.Options())
	if facts := p.control.Facts; facts["cpus"] == 0.0 || facts["version"] != "v1" || len(facts["engines"].([]any)) != 1 {
		t.Errorf("registered with %v", facts)
	}
	req := request("fake")
	created, err := a.CreateSandbox(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "a heartbeat and the event", func() bool {
		p.control.Lock()
		defer p.control.Unlock()
		return len(p.control.Heartbeats) > 0 && len(p.control.Events) == 1 && p.control.Events[0].Kind == "started" &&
			p.control.Heartbeats[len(p.control.Heartbeats)-1]["load"].(map[string]any)["sandboxes"] == 1.0
	})
	if err := app.RunWith(t.Context(), p.config(), machine.Options()); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("a second agent on the data directory: %v", err)
	}
	first, err := a.Hello(t.Context(), &agentv1.HelloRequest{})
	if err != nil {
		t.Fatal(err)
	}
	a.stop()

	b := p.start(t, p.config(), machine.Options())
	second, err := b.Hello(t.Context(), &agentv1.HelloRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if second.Generation <= first.Generation || second.HostId != p.control.HostID.UUID().String() || p.control.Registrations != 1 {
		t.Errorf("hello said %v, then %v, with %d registrations", first, second, p.control.Registrations)
	}
	inv, err := b.Inventory(t.Context(), &agentv1.InventoryRequest{})
	if err != nil || len(inv.Sandboxes) != 1 || inv.Sandboxes[0].InstanceId != created.Sandbox.InstanceId ||
		inv.Sandboxes[0].Phase != agentv1.SandboxPhase_SANDBOX_PHASE_RUNNING {
		t.Fatalf("H15: the inventory after the restart is %v, %v", inv, err)
	}
	again, err := b.CreateSandbox(t.Context(), req)
	if err != nil || again.Sandbox.InstanceId != created.Sandbox.InstanceId {
		t.Errorf("a repeated create: %v, %v", again, err)
	}
	destroy := &agentv1.DestroySandboxRequest{SandboxId: req.SandboxId, Incarnation: 1, Reason: "deleted"}
	if _, err := b.DestroySandbox(t.Context(), destroy); err != nil {
		t.Fatal(err)
	}
	if i, s, im := machine.Held(); i+s+im != 0 {
		t.Errorf("LL-01: %d instances, %d slots, %d images left", i, s, im)
	}
	if _, err := b.CreateSandbox(t.Context(), req); !errs.Is(rpcerr.FromConnect(err), "stale_incarnation") {
		t.Errorf("a create after the destroy: %v", err)
	}
	testkit.Eventually(t, 30*time.Second, "the destroy's event", func() bool {
		p.control.Lock()
		defer p.control.Unlock()
		n := len(p.control.Events)
		return p.control.Events[n-1].Kind == "destroyed" && p.control.Events[n-1].Data["reason"] == "deleted"
	})
	raw, err := os.ReadFile(filepath.Join(p.dir, "tag"))
	if err != nil || len(strings.TrimSpace(string(raw))) != 6 {
		t.Errorf("H14: the tag is %q, %v", raw, err)
	}
}

func TestH9_TheAgentWaitsForItsControlPlane(t *testing.T) {
	p := newPlatform(t)
	refusals := 3
	p.control.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if refusals--; refusals >= 0 {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		return false
	}
	p.start(t, p.config(), apptest.NewMachine().Options())
}

func TestABadTokenEndsTheStart(t *testing.T) {
	p := newPlatform(t)
	cfg := p.config()
	cfg.RegistrationToken = "spent"
	err := app.RunWith(t.Context(), cfg, apptest.NewMachine().Options())
	if err == nil || !identity.Unauthorized(err) {
		t.Fatalf("got %v", err)
	}
}

func TestValidateListsEveryFault(t *testing.T) {
	err := app.Config{DataDir: "x", Listen: "y", Address: ":0", ControlURL: "http://z", CASHA256: "short", Heartbeat: -1}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"data directory", "listen address", "advertised address", "control URL", "CA fingerprint", "heartbeat", "runsc", "guest daemon", "shim"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the faults do not name the %s: %v", want, err)
		}
	}
}

func TestAnAddressForEverybodyMustBeNamed(t *testing.T) {
	ok := app.Config{
		DataDir: "/d", Listen: "127.0.0.1:7443", ControlURL: "https://c", Runsc: "/r", GuestBinary: "/g", ShimCommand: []string{"s"},
	}
	if err := ok.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, listen := range []string{":7443", "0.0.0.0:7443", "[::]:7443"} {
		c := ok
		c.Listen = listen
		if c.Validate() == nil {
			t.Errorf("%s without an advertised address is accepted", listen)
		}
		c.Address = "host.example:7443"
		if err := c.Validate(); err != nil {
			t.Errorf("%s with one: %v", listen, err)
		}
	}
}

func TestH6_NobodyElseIsServed(t *testing.T) {
	p := newPlatform(t)
	a := p.start(t, p.config(), apptest.NewMachine().Options())
	other := p.ca.Certificate(identity.HostURI(id.NewHost()), time.Now().Add(time.Hour))
	conn, err := tls.Dial("tcp", a.addr, p.ca.ClientConfig(other, identity.HostURI(p.control.HostID), "http/1.1"))
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	if err == nil {
		t.Error("another host is served")
	}
}
