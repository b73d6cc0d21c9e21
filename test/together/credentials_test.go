package together_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/app/apptest"
	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/enginetest"
	"skerry.dev/skerry/internal/agent/engine/fake"
	"skerry.dev/skerry/internal/agent/identity"
	controlapp "skerry.dev/skerry/internal/control/app"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/sdk"
)

// platform is a whole server, and its admin.
type platform struct {
	agentURL string
	admin    *sdk.Client
}

func newPlatform(t *testing.T) *platform {
	t.Helper()
	_, secret := keyring.NewSecret()
	cfg := controlapp.Config{
		DatabaseURL: pgtest.Empty(t), Secret: secret, Store: t.TempDir(), Listen: free(t), AgentListen: free(t), SandboxListen: free(t),
	}.Defaults(t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- controlapp.Run(ctx, cfg, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	testkit.Eventually(t, soon, "the server", func() bool {
		resp, err := http.Get(cfg.URL + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	const email, password = "root@example.org", "a long password"
	if err := controlapp.EnsureAdmin(t.Context(), cfg.DatabaseURL, secret, email, password); err != nil {
		t.Fatal(err)
	}
	anybody, err := sdk.New(cfg.URL)
	if err != nil {
		t.Fatal(err)
	}
	login, err := anybody.Login(t.Context(), email, password)
	if err != nil {
		t.Fatal(err)
	}
	p := &platform{agentURL: cfg.AgentURL}
	if p.admin, err = sdk.New(cfg.URL, sdk.WithToken(login.Token)); err != nil {
		t.Fatal(err)
	}
	return p
}

func free(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func (p *platform) announce(t *testing.T, name string) *sdk.CreatedHost {
	t.Helper()
	made, err := p.admin.CreateHost(t.Context(), "regular", name)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// TestHI02_HI03_ACrashAtAnyStepCostsNoHostItsCredentials is against the real
// server what the agent's own tests are against a stand-in: a host that dies at
// a step of joining or renewing goes on with its next start, and is never taken
// for a thief.
func TestHI02_HI03_ACrashAtAnyStepCostsNoHostItsCredentials(t *testing.T) {
	p := newPlatform(t)
	type crash struct{}
	visited := 0
	for _, step := range identity.Steps() {
		for nth := 1; ; nth++ {
			made := p.announce(t, "")
			dir, died, left := t.TempDir(), false, nth
			cfg := identity.Config{
				Dir: dir, ControlURL: p.agentURL, Pin: made.CaSHA256, Token: made.RegistrationToken,
				Step: func(s identity.Step) {
					if s == step {
						if left--; left == 0 {
							died = true
							panic(crash{})
						}
					}
				},
			}
			for starts := 0; starts < 3; starts++ {
				func() {
					defer func() {
						if r := recover(); r != nil && r != (crash{}) {
							panic(r)
						}
					}()
					i, err := identity.Open(cfg)
					if err != nil {
						t.Fatal(err)
					}
					defer i.Close()
					if err := i.Register(t.Context(), facts()); err != nil {
						t.Fatalf("%s, time %d: register: %v", step, nth, err)
					}
					for range 2 {
						if err := i.Refresh(t.Context(), ""); err != nil {
							t.Fatalf("%s, time %d: refresh: %v", step, nth, err)
						}
					}
				}()
			}
			h, err := p.admin.Host(t.Context(), made.Host.ID)
			if err != nil || h.NeedsRegistration {
				t.Errorf("%s, time %d: needs a new registration: %v, %v", step, nth, h.NeedsRegistration, err)
			}
			if !died {
				break
			}
			visited++
		}
	}
	if visited < 10 {
		t.Errorf("only %d crashes", visited)
	}
}

func facts() identity.Facts {
	return identity.Facts{
		Hostname: "box", Arch: "amd64", CPUs: 2, MemoryBytes: 4 << 30, DiskBytes: 20 << 30, Kernel: "6.1", Version: "v1", Address: "127.0.0.1:1",
		Engines: []identity.EngineFact{{Name: "gvisor", Version: "1", Healthy: true, Reasons: []string{}}},
	}
}

// TestH5_H12_ADeletedHostLeavesOnTheServersWord: the statement that the server
// signs is the one that the agent believes. The database forgets the host, the
// agent its sandboxes, its states and its credentials.
func TestH5_H12_ADeletedHostLeavesOnTheServersWord(t *testing.T) {
	p := newPlatform(t)
	made, other := p.announce(t, "goes"), p.announce(t, "stays")
	machine := apptest.NewMachine()
	dir := t.TempDir()
	run := func(dir string, machine *apptest.Machine, made *sdk.CreatedHost) (ended chan error, stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		ended = make(chan error, 1)
		go func() {
			ended <- app.RunWith(ctx, app.Config{
				DataDir: dir, Listen: "127.0.0.1:0", ControlURL: p.agentURL, Version: "v1", RegistrationToken: made.RegistrationToken,
				CASHA256: made.CaSHA256, Address: free(t), Heartbeat: 50 * time.Millisecond,
			}, machine.Options())
		}()
		stop = sync.OnceFunc(cancel)
		t.Cleanup(stop)
		return ended, stop
	}
	ended, _ := run(dir, machine, made)
	stays, stop := run(t.TempDir(), apptest.NewMachine(), other)
	for _, host := range []*sdk.CreatedHost{made, other} {
		testkit.Eventually(t, soon, "a heartbeat", func() bool {
			h, err := p.admin.Host(t.Context(), host.Host.ID)
			return err == nil && h.LastHeartbeatAt.Set
		})
	}
	// Something that only the engine knows.
	e := fake.New(machine.World)
	work := t.TempDir()
	h, err := e.Prepare(t.Context(), engine.Spec{
		ID: enginetest.NewID(), RootDir: "/", WorkDir: work, Args: []string{"/guest"},
		Resources: engine.Resources{CPUMillis: 1000, MemoryBytes: 1 << 28, DiskBytes: 1 << 28, MaxProcesses: 10},
		Network:   engine.Network{NamespacePath: "/proc/self/ns/net", GuestAddr: "10.0.0.2", PrefixLen: 30, Gateway: "10.0.0.1"},
	})
	if err == nil {
		_, err = e.Start(t.Context(), h)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := p.admin.DeleteHost(t.Context(), made.Host.ID, true); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the deleted host's agent ends with %v", err)
		}
	case <-time.After(soon):
		t.Fatal("the deleted host's agent goes on")
	}
	if i, s, im := machine.Held(); i+s+im != 0 {
		t.Errorf("%d instances, %d slots, %d images left", i, s, im)
	}
	for _, name := range []string{"credentials.json", "host.key"} {
		if _, err := os.Stat(filepath.Join(app.IdentityDir(dir), name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	select {
	case err := <-stays:
		t.Errorf("the other host's agent ended, too: %v", err)
	default:
	}
	stop()
	if err := <-stays; err != nil {
		t.Error(err)
	}
}
