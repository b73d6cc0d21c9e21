package app_test

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/app/apptest"
	"skerry.dev/skerry/internal/agent/engine/fake"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/identity/identitytest"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

// says has the control plane answer every call with 410 and a statement.
func (p *platform) says(statement string) {
	p.control.Lock()
	defer p.control.Unlock()
	p.control.Gone = statement
}

// inhabited is an agent with a running sandbox, a paused one and one being
// made.
func (p *platform) inhabited(t *testing.T, machine *apptest.Machine) *running {
	t.Helper()
	a := p.start(t, p.config(), machine.Options())
	for range 2 {
		if _, err := a.CreateSandbox(t.Context(), request("fake")); err != nil {
			t.Fatal(err)
		}
	}
	paused := request("fake")
	if _, err := a.CreateSandbox(t.Context(), paused); err != nil {
		t.Fatal(err)
	}
	if _, err := a.PauseSandbox(t.Context(), &agentv1.PauseSandboxRequest{
		SandboxId: paused.SandboxId, Incarnation: 1, StateId: id.NewSnapshot().UUID().String(), Memory: true, Reason: "requested",
	}); err != nil {
		t.Fatal(err)
	}
	held := make(chan struct{})
	t.Cleanup(func() { close(held) })
	machine.World.Script(fake.Start, fake.Fault{Block: held, Times: 1})
	go func() { _, _ = a.CreateSandbox(context.Background(), request("fake")) }()
	testkit.Eventually(t, 30*time.Second, "a create in flight", func() bool {
		instances, _, _ := machine.Held()
		return instances == 3
	})
	return a
}

// nothingLeft checks that sandboxes, states and credentials are gone.
func (p *platform) nothingLeft(t *testing.T, machine *apptest.Machine) {
	t.Helper()
	if i, s, im := machine.Held(); i+s+im != 0 {
		t.Errorf("%d instances, %d slots, %d images left", i, s, im)
	}
	for _, name := range []string{"states", "identity/credentials.json", "identity/host.key"} {
		if _, err := os.Stat(filepath.Join(p.dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
}

func TestH5_ADeletedHostDestroysItsSandboxesAndLeaves(t *testing.T) {
	p := newPlatform(t)
	machine := apptest.NewMachine()
	a := p.inhabited(t, machine)

	p.says("-")
	testkit.Eventually(t, 30*time.Second, "refusals", func() bool { return p.refusals(t, 5) })
	p.says(identitytest.NewCA(t).Statement(p.control.HostID))
	testkit.Eventually(t, 30*time.Second, "more of them", func() bool { return p.refusals(t, 5) })
	if i, _, _ := machine.Held(); i != 3 {
		t.Fatalf("a 410 without the platform's word left %d instances of 3", i)
	}
	p.says(p.ca.Statement(p.control.HostID))
	if err := a.ended(); err != nil {
		t.Fatalf("the agent of a deleted host ends with %v", err)
	}
	p.nothingLeft(t, machine)

	began := p.control.Registrations
	if err := app.RunWith(t.Context(), p.config(), machine.Options()); err != nil {
		t.Errorf("its next start ends with %v", err)
	}
	p.control.Lock()
	p.control.Token, p.control.Gone = "another", ""
	p.control.Unlock()
	p.control.NewHost()
	p.start(t, p.config(), machine.Options())
	if p.control.Registrations != began+1 {
		t.Errorf("%d registrations, want one more than %d", p.control.Registrations, began)
	}
}

// refusals waits for so many calls that were answered with 410.
func (p *platform) refusals(t *testing.T, n int) bool {
	t.Helper()
	calls := 0
	p.control.Lock()
	p.control.Intercept = func(http.ResponseWriter, *http.Request) bool { calls++; return false }
	p.control.Unlock()
	testkit.Eventually(t, 30*time.Second, "calls", func() bool {
		p.control.Lock()
		defer p.control.Unlock()
		return calls >= n
	})
	p.control.Lock()
	p.control.Intercept = nil
	p.control.Unlock()
	return true
}

// TestH5_ADeletionIsGoneOnWithAfterAStop stops the agent as soon as it believes
// that it was deleted: the next start destroys what is left, although nobody
// tells it again.
func TestH5_ADeletionIsGoneOnWithAfterAStop(t *testing.T) {
	p := newPlatform(t)
	machine := apptest.NewMachine()
	p.inhabited(t, machine).stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	opts := machine.Options()
	opts.IdentityStep = func(s identity.Step) {
		if s == identity.StepStated {
			cancel()
		}
	}
	p.says(p.ca.Statement(p.control.HostID))
	_ = app.RunWith(ctx, p.config(), opts)
	p.control.Lock()
	p.control.Gone, p.control.Down = "", true
	p.control.Unlock()
	if err := app.RunWith(t.Context(), p.config(), machine.Options()); err != nil {
		t.Fatal(err)
	}
	p.nothingLeft(t, machine)
}

// TestH5_ARefusedHostPausesAndComesBackWithAToken is the way of a host whose
// credentials were revoked: its sandboxes are paused, it stays alive, and a
// token that is handed over brings it back without a restart.
func TestH5_ARefusedHostPausesAndComesBackWithAToken(t *testing.T) {
	p := newPlatform(t)
	machine := apptest.NewMachine()
	a := p.start(t, p.config(), machine.Options())
	req := request("fake")
	if _, err := a.CreateSandbox(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	p.control.Lock()
	p.control.JWT, p.control.Revoked = "over", true
	beats := len(p.control.Heartbeats)
	p.control.Unlock()
	testkit.Eventually(t, 30*time.Second, "the sandbox to be paused", func() bool {
		inv, err := a.Inventory(t.Context(), &agentv1.InventoryRequest{})
		return err == nil && len(inv.Sandboxes) == 1 && inv.Sandboxes[0].Phase == agentv1.SandboxPhase_SANDBOX_PHASE_PAUSED &&
			inv.Sandboxes[0].PausedReason == manager.ReasonLostContact
	})
	p.control.Lock()
	p.control.Token = "by-the-operator"
	p.control.Unlock()
	if err := identity.LeaveOffer(app.IdentityDir(p.dir), identity.Offer{Token: "by-the-operator", Pin: p.ca.Pin()}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "heartbeats and the pause's event", func() bool {
		p.control.Lock()
		defer p.control.Unlock()
		return len(p.control.Heartbeats) > beats && slices.ContainsFunc(p.control.Events, func(e identitytest.Event) bool {
			return e.Kind == manager.EventPaused && e.SandboxID == req.SandboxId
		})
	})
	if host, err := app.HostID(p.dir); err != nil || host != p.control.HostID.String() {
		t.Errorf("it is %s now: %v", host, err)
	}
}

// TestHI03_AnotherHostsTokenStartsTheAgentAnew: what it holds is the former
// host's.
func TestHI03_AnotherHostsTokenStartsTheAgentAnew(t *testing.T) {
	p := newPlatform(t)
	a := p.start(t, p.config(), apptest.NewMachine().Options())
	p.control.Lock()
	p.control.Token = "of-another"
	p.control.Unlock()
	p.control.NewHost()
	if err := identity.LeaveOffer(app.IdentityDir(p.dir), identity.Offer{Token: "of-another", Pin: p.ca.Pin()}); err != nil {
		t.Fatal(err)
	}
	if err := a.ended(); err == nil || !strings.Contains(err.Error(), "another host") {
		t.Errorf("the agent ends with %v", err)
	}
}

// TestH5_ADeletedHostIsKilledAtEachStepOfLeaving_OnARealHost: in the end no
// sandbox, no credential and nothing on the machine is left of it.
func TestH5_ADeletedHostIsKilledAtEachStepOfLeaving_OnARealHost(t *testing.T) {
	p := newPlatform(t)
	cfg, root := realHost(t, p), newTree(t)
	dieAt := filepath.Join(t.TempDir(), "die-at")
	a, cmd := p.spawnDying(t, cfg, root, dieAt)
	tag := readTag(t, cfg)
	for range 2 {
		req := request("gvisor")
		req.AccessToken = "tok"
		if _, err := a.CreateSandbox(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []string{
		string(identity.StepStated), string(manager.StepJournalDestroying), string(manager.StepUndoInstance),
		string(manager.StepJournalRemoved), string(identity.StepNothingLeft),
	} {
		if err := os.WriteFile(dieAt, []byte(step), 0o600); err != nil {
			t.Fatal(err)
		}
		if step == string(identity.StepStated) {
			p.says(p.ca.Statement(p.control.HostID))
		} else {
			p.says("")
			cmd = launch(t, process{Config: cfg, Tree: root.dir, Ready: filepath.Join(t.TempDir(), "addr"), DieAt: dieAt})
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%s: the agent ended with %v", step, err)
		}
	}
	for range 2 { // and the one after the last
		if err := launch(t, process{Config: cfg, Tree: root.dir}).Wait(); err != nil {
			t.Fatalf("the last start ended with %v", err)
		}
	}
	entries, err := os.ReadDir(cfg.DataDir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "identity" {
		t.Errorf("left in the data directory: %v, %v", entries, err)
	}
	entries, err = os.ReadDir(app.IdentityDir(cfg.DataDir))
	if err != nil || len(entries) != 1 || entries[0].Name() != "deleted.json" {
		t.Errorf("left of the identity: %v, %v", entries, err)
	}
	if rules, err := exec.Command("nft", "list", "tables").Output(); err != nil || strings.Contains(string(rules), tag) {
		t.Errorf("nft: %s, %v", rules, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), cfg.DataDir) {
		t.Errorf("mounts are left: %v", err)
	}
	if groups, _ := filepath.Glob("/sys/fs/cgroup/*" + tag + "*"); len(groups) > 0 {
		t.Errorf("cgroups are left: %v", groups)
	}
	// What the cleanup of the test goes by.
	if err := os.WriteFile(filepath.Join(cfg.DataDir, "tag"), []byte(tag+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}
