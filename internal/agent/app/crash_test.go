package app_test

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/gen/agentrpc/agent/v1/agentv1connect"
	"skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/testkit"
)

const agentVar = "SKERRY_TEST_AGENT"

// process is what an agent in a process of its own is told.
type process struct {
	Config app.Config
	Tree   string // in the place of images, where it is not empty
	Ready  string // file that receives the served address
	DieAt  string // file that names the step to die at
}

// runAgent is the process.
func runAgent(raw string) error {
	var p process
	if err := json.Unmarshal([]byte(raw), &p); err != nil {
		return err
	}
	dieAt := func(step string) {
		if at, err := os.ReadFile(p.DieAt); err == nil && string(at) == step {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	opts := app.Options{
		Step:         func(s manager.Step) { dieAt(string(s)) },
		IdentityStep: func(s identity.Step) { dieAt(string(s)) },
		Ready: func(a net.Addr) {
			next := p.Ready + ".new"
			if os.WriteFile(next, []byte(a.String()), 0o600) == nil {
				_ = os.Rename(next, p.Ready)
			}
		},
	}
	if p.Tree != "" {
		opts.Images = tree{p.Tree}
	}
	return app.RunWith(context.Background(), p.Config, opts)
}

// launch starts an agent in a process of its own and waits for nothing.
func launch(t *testing.T, p process) *exec.Cmd {
	t.Helper()
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), agentVar+"="+string(raw))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // where the test has not done it
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// spawn starts an agent that can be killed, and a client of it.
func (p *platform) spawn(t *testing.T, cfg app.Config, root tree) (*running, *exec.Cmd) {
	t.Helper()
	return p.spawnDying(t, cfg, root, "")
}

// spawnDying is spawn of an agent that kills itself after the step a file
// names.
func (p *platform) spawnDying(t *testing.T, cfg app.Config, root tree, dieAt string) (*running, *exec.Cmd) {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "addr")
	cmd := launch(t, process{Config: cfg, Tree: root.dir, Ready: ready, DieAt: dieAt})
	var addr []byte
	var err error
	testkit.Eventually(t, 30*time.Second, "the agent", func() bool {
		addr, err = os.ReadFile(ready)
		return err == nil
	})
	tr := &http.Transport{TLSClientConfig: p.ca.ClientConfig(p.ca.ControlCertificate(), identity.HostURI(p.control.HostID)), ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &running{AgentServiceClient: agentv1connect.NewAgentServiceClient(&http.Client{Transport: tr}, "https://"+string(addr)), addr: string(addr)}, cmd
}

// TestST08_RC03_KillTheAgent kills the agent's process at random moments while
// sandboxes run and others are created and destroyed: those that ran answer,
// as the same instance, and nothing is left half-done.
func TestST08_RC03_KillTheAgent(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	p := newPlatform(t)
	cfg, root := realHost(t, p), newTree(t)

	steady := map[string]string{} // sandbox → instance
	for round := range 3 {
		a, cmd := p.spawn(t, cfg, root)
		for len(steady) < 3 {
			req := request("gvisor")
			req.AccessToken = "tok"
			r, err := a.CreateSandbox(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			steady[req.SandboxId] = r.Sandbox.InstanceId
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for ctx.Err() == nil {
					req := request("gvisor")
					if _, err := a.CreateSandbox(ctx, req); err != nil {
						return // the agent is dead
					}
					_, _ = a.DestroySandbox(ctx, &agentv1.DestroySandboxRequest{SandboxId: req.SandboxId, Incarnation: 1, Reason: "x"})
				}
			})
		}
		after := time.NewTimer(time.Duration(100+rng.IntN(900)) * time.Millisecond)
		<-after.C
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		cancel()
		wg.Wait()

		began := time.Now()
		b, cmd := p.spawn(t, cfg, root)
		t.Logf("round %d: up again after %v", round, time.Since(began))
		inv, err := b.Inventory(t.Context(), &agentv1.InventoryRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range inv.Sandboxes {
			if r.Unknown || r.Phase != agentv1.SandboxPhase_SANDBOX_PHASE_RUNNING {
				t.Errorf("after the restart: %v", r)
			}
			if _, ours := steady[r.SandboxId]; ours {
				continue
			}
			// It was complete when the agent died; the caller may not know.
			if _, err := b.DestroySandbox(t.Context(), &agentv1.DestroySandboxRequest{SandboxId: r.SandboxId, Incarnation: r.Incarnation, Reason: "x"}); err != nil {
				t.Error(err)
			}
		}
		inv, err = b.Inventory(t.Context(), &agentv1.InventoryRequest{})
		if err != nil || len(inv.Sandboxes) != len(steady) {
			t.Errorf("%d sandboxes exist, want %d: %v", len(inv.Sandboxes), len(steady), err)
		}
		for _, r := range inv.Sandboxes {
			if steady[r.SandboxId] != r.InstanceId {
				t.Errorf("%s is another instance", r.SandboxId)
			}
			p.metrics(t, b, r.SandboxId)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}

	b, _ := p.spawn(t, cfg, root)
	for s := range steady {
		if _, err := b.DestroySandbox(t.Context(), &agentv1.DestroySandboxRequest{SandboxId: s, Incarnation: 1, Reason: "deleted"}); err != nil {
			t.Error(err)
		}
	}
	if left := leftovers(t, cfg); len(left) != 0 {
		t.Errorf("LL-01: left behind: %v", left)
	}
}
