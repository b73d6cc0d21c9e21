package app_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	processpb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/gen/guestrpc/process/processconnect"
	"skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/app/apptest"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
	"skerry.dev/skerry/internal/testkit"
)

// workshop is a tree with a program that works.
func workshop(t *testing.T) tree {
	t.Helper()
	root := newTree(t)
	build := exec.Command("go", "build", "-o", filepath.Join(root.dir, "worker"), "./testdata/worker")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the worker: %v\n%s", err, out)
	}
	if err := os.Chown(filepath.Join(root.dir, "home/user"), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	return root
}

// box is one sandbox in one of its lives.
type box struct {
	t   *testing.T
	p   *platform
	r   *running
	req *agentv1.CreateSandboxRequest
	pid int // of the worker
	did int
}

func newBox(t *testing.T, p *platform, r *running) *box {
	t.Helper()
	b := &box{t: t, p: p, r: r, req: request("gvisor")}
	b.req.AccessToken = "tok"
	if _, err := r.CreateSandbox(t.Context(), b.req); err != nil {
		t.Fatal(err)
	}
	b.starts()
	b.pid = b.look().pid
	return b
}

// starts runs the worker.
func (b *box) starts() {
	t := b.t
	t.Helper()
	client, hangUp := b.client(guestapi.DefaultPort)
	defer hangUp()
	proc := processconnect.NewProcessClient(client, "http://guest", connect.WithProtoJSON())
	// No deadline: it would be the worker's.
	client.Timeout = 0
	stream, err := proc.Start(t.Context(), &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "/worker"}, Stdin: proto.Bool(false)})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	testkit.Eventually(t, 20*time.Second, "the worker", func() bool {
		_, err := b.get("/look")
		return err == nil
	})
}

// client speaks to a port of the sandbox, as the control plane does.
func (b *box) client(port int) (*http.Client, func()) {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := tls.Dialer{Config: b.p.ca.ClientConfig(b.p.ca.ControlCertificate(), identity.HostURI(b.p.control.HostID), "http/1.1")}
		conn, err := d.DialContext(ctx, "tcp", b.r.addr)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(conn, "CONNECT %[1]s.%[2]d:%[3]d HTTP/1.1\r\nHost: %[1]s.%[2]d:%[3]d\r\n\r\n", b.req.SandboxId, b.req.Incarnation, port)
		resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("CONNECT: %s", resp.Header.Get(rpcerr.HeaderReason))
			_ = resp.Body.Close()
		}
		if err != nil {
			_ = conn.Close()
			return nil, err
		}
		return conn, nil
	}}
	return &http.Client{Transport: tokened{tr}, Timeout: 20 * time.Second}, tr.CloseIdleConnections
}

type tokened struct{ http.RoundTripper }

func (rt tokened) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(guestapi.HeaderAccessToken, "tok")
	return rt.RoundTripper.RoundTrip(r)
}

func (b *box) get(path string) (string, error) {
	c, hangUp := b.client(8080)
	defer hangUp()
	resp, err := c.Get("http://worker" + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%d: %s", resp.StatusCode, text)
	}
	return string(text), err
}

type seen struct{ memory, file, pid int }

func (b *box) look() (s seen) {
	b.t.Helper()
	text, err := b.get("/look")
	if err == nil {
		_, err = fmt.Sscan(text, &s.memory, &s.file, &s.pid)
	}
	if err != nil {
		b.t.Fatalf("the worker: %v (%q); %s", err, text, b.says())
	}
	return s
}

// says is what the daemon and the host know, for a test that failed.
func (b *box) says() string {
	client, hangUp := b.client(guestapi.DefaultPort)
	defer hangUp()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	list, err := processconnect.NewProcessClient(client, "http://guest", connect.WithProtoJSON()).List(ctx, &processpb.ListRequest{})
	b.p.control.Lock()
	defer b.p.control.Unlock()
	return fmt.Sprintf("processes %v, %v; events %v", list, err, b.p.control.Events)
}

// works adds one and fails unless all that was done before is there, in the
// same process.
func (b *box) works() {
	b.t.Helper()
	if got := b.look(); got != (seen{b.did, b.did, b.pid}) {
		b.t.Errorf("S6: %+v, want %d in process %d", got, b.did, b.pid)
	}
	if _, err := b.get("/add"); err != nil {
		b.t.Error(err)
	}
	b.did++
}

func (b *box) pauseRequest(which id.Snapshot) *agentv1.PauseSandboxRequest {
	return &agentv1.PauseSandboxRequest{
		SandboxId: b.req.SandboxId, Incarnation: b.req.Incarnation, StateId: which.UUID().String(), Memory: true, Reason: "requested",
	}
}

// resume begins the sandbox's next life from a state.
func (b *box) resume(from string) error {
	b.req = proto.CloneOf(b.req)
	b.req.Incarnation++
	b.req.StateId = from
	_, err := b.r.CreateSandbox(b.t.Context(), b.req)
	return err
}

func (b *box) report() *agentv1.SandboxReport {
	b.t.Helper()
	var out *agentv1.SandboxReport
	testkit.Eventually(b.t, 30*time.Second, "a quiet sandbox", func() bool {
		inv, err := b.r.Inventory(b.t.Context(), &agentv1.InventoryRequest{})
		if err != nil {
			b.t.Fatal(err)
		}
		i := slices.IndexFunc(inv.Sandboxes, func(r *agentv1.SandboxReport) bool { return r.SandboxId == b.req.SandboxId })
		if i < 0 {
			b.t.Fatalf("ST-05: the sandbox is gone: %v", inv)
		}
		out = inv.Sandboxes[i]
		return out.Phase == agentv1.SandboxPhase_SANDBOX_PHASE_RUNNING || out.Phase == agentv1.SandboxPhase_SANDBOX_PHASE_PAUSED ||
			out.Phase == agentv1.SandboxPhase_SANDBOX_PHASE_EXITED
	})
	return out
}

func (b *box) destroy() {
	b.t.Helper()
	if _, err := b.r.DestroySandbox(b.t.Context(), &agentv1.DestroySandboxRequest{SandboxId: b.req.SandboxId, Incarnation: b.req.Incarnation, Reason: "deleted"}); err != nil {
		b.t.Error(err)
	}
}

// clearStates deletes all and fails when something is left.
func clearStates(t *testing.T, r *running, cfg app.Config) {
	t.Helper()
	inv, err := r.Inventory(t.Context(), &agentv1.InventoryRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range inv.States {
		if _, err := r.DeleteState(t.Context(), &agentv1.DeleteStateRequest{StateId: st.StateId}); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(cfg.DataDir, "states")); len(left) != 0 {
		t.Errorf("LL-01: %d saved states are left behind", len(left))
	}
}

func quiet(t *testing.T, cfg app.Config) {
	t.Helper()
	testkit.Eventually(t, 20*time.Second, "LL-01: nothing of an instance", func() bool { return len(leftovers(t, cfg)) == 0 })
}

func TestS6_S10_PauseResumeAndFork_OnARealHost(t *testing.T) {
	p := newPlatform(t)
	cfg, root := realHost(t, p), workshop(t)
	a := p.start(t, cfg, app.Options{Images: root})
	b := newBox(t, p, a)
	for cycle := range 5 {
		b.works()
		which := id.NewSnapshot()
		began := time.Now()
		paused, err := a.PauseSandbox(t.Context(), b.pauseRequest(which))
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		if again, err := a.PauseSandbox(t.Context(), b.pauseRequest(which)); err != nil || again.State.Digest != paused.State.Digest {
			t.Errorf("repeated: %v, %v", again, err)
		}
		quiet(t, cfg)
		if r := b.report(); r.Phase != agentv1.SandboxPhase_SANDBOX_PHASE_PAUSED || r.StateId != which.UUID().String() {
			t.Errorf("reported as %v", r)
		}
		began = time.Now()
		if err := b.resume(which.UUID().String()); err != nil {
			t.Fatal(err)
		}
		t.Logf("cycle %d: pause %v, resume %v, %d KB", cycle, took, time.Since(began), paused.State.SizeBytes>>10)
		b.works()
	}
	// A copy goes its own way, and its source does not notice.
	which := id.NewSnapshot().UUID().String()
	began := time.Now()
	if _, err := a.CheckpointSandbox(t.Context(), &agentv1.CheckpointSandboxRequest{
		SandboxId: b.req.SandboxId, Incarnation: b.req.Incarnation, StateId: which, Memory: true,
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("checkpoint %v", time.Since(began))
	b.works()
	fork := &box{t: t, p: p, r: a, req: request("gvisor"), pid: b.pid, did: b.did - 1}
	fork.req.AccessToken, fork.req.StateId = "tok", which
	began = time.Now()
	if _, err := a.CreateSandbox(t.Context(), fork.req); err != nil {
		t.Fatal(err)
	}
	t.Logf("fork %v", time.Since(began))
	fork.works()
	fork.works()
	fork.works()
	b.works()
	// S7: what goes on counts, and is told.
	stats, err := a.SandboxStats(t.Context(), &agentv1.SandboxStatsRequest{SandboxId: b.req.SandboxId, Incarnation: b.req.Incarnation})
	if err != nil || stats.Idle == nil {
		t.Errorf("stats: %v, %v", stats, err)
	}
	idle := b.pauseRequest(id.NewSnapshot())
	idle.IfIdleFor = durationpb.New(time.Hour)
	if _, err := a.PauseSandbox(t.Context(), idle); !errs.Is(rpcerr.FromConnect(err), "not_idle") {
		t.Errorf("not idle: %v", err)
	}
	b.works()
	if logs, err := a.SandboxLogs(t.Context(), &agentv1.SandboxLogsRequest{SandboxId: b.req.SandboxId, Incarnation: b.req.Incarnation}); err != nil {
		t.Errorf("logs: %v, %v", logs, err)
	}
	fork.destroy()
	b.destroy()
	quiet(t, cfg)
	clearStates(t, a, cfg)
}

// A state with memory is woken for its disk, and what ran then does not run.
func TestS6_BootFromTheDiskOfAStateWithMemory_OnARealHost(t *testing.T) {
	p := newPlatform(t)
	cfg, root := realHost(t, p), workshop(t)
	a := p.start(t, cfg, app.Options{Images: root})
	b := newBox(t, p, a)
	b.works()
	which := id.NewSnapshot()
	if _, err := a.PauseSandbox(t.Context(), b.pauseRequest(which)); err != nil {
		t.Fatal(err)
	}
	b.req.DiskOnly = true
	if err := b.resume(which.UUID().String()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.get("/look"); err == nil {
		t.Error("a program that ran when the state was saved runs")
	}
	client, hangUp := b.client(guestapi.DefaultPort)
	defer hangUp()
	proc := processconnect.NewProcessClient(client, "http://guest", connect.WithProtoJSON())
	stream, err := proc.Start(t.Context(), &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "/worker"}, Stdin: proto.Bool(false)})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	testkit.Eventually(t, 20*time.Second, "another worker", func() bool {
		_, err := b.get("/look")
		return err == nil
	})
	b.destroy()
	quiet(t, cfg)
	clearStates(t, a, cfg)
}

func TestS12_S15_PauseAllAndShutdown_OnARealHost(t *testing.T) {
	p := newPlatform(t)
	cfg, root := realHost(t, p), workshop(t)
	cfg.PauseOnStop = true
	a := p.start(t, cfg, app.Options{Images: root})
	boxes := []*box{newBox(t, p, a), newBox(t, p, a), newBox(t, p, a)}
	for _, b := range boxes {
		b.works()
	}
	began := time.Now()
	all, err := a.PauseAll(t.Context(), &agentv1.PauseAllRequest{Reason: "drain"})
	if err != nil || len(all.Outcomes) != 3 {
		t.Fatalf("%v, %v", all, err)
	}
	t.Logf("pause of 3: %v", time.Since(began))
	quiet(t, cfg)
	for _, o := range all.Outcomes {
		if o.ErrorReason != "" || o.State == nil {
			t.Errorf("%v", o)
		}
	}
	for _, b := range boxes {
		if err := b.resume(b.report().StateId); err != nil {
			t.Fatal(err)
		}
		b.works()
	}
	a.stop()
	quiet(t, cfg)
	c := p.start(t, cfg, app.Options{Images: root})
	for _, b := range boxes {
		b.r = c
		r := b.report()
		if r.Phase != agentv1.SandboxPhase_SANDBOX_PHASE_PAUSED || r.PausedReason != manager.ReasonHostShutdown {
			t.Errorf("S15: after an orderly shutdown: %v", r)
		}
		if err := b.resume(r.StateId); err != nil {
			t.Fatal(err)
		}
		b.works()
		b.destroy()
	}
	quiet(t, cfg)
	clearStates(t, c, cfg)
	c.stop()
}

// optimist is a disk that says it has room.
type optimist struct{ state.Disk }

func (optimist) Free(string) (int64, error) { return 1 << 40, nil }

func TestS5_ADiskThatFillsUp_OnARealHost(t *testing.T) {
	p := newPlatform(t)
	cfg, root := realHost(t, p), workshop(t)
	states := filepath.Join(cfg.DataDir, "states")
	if err := os.MkdirAll(states, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256k", "skerry-test", states).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", states).Run() })
	a := p.start(t, cfg, app.Options{Images: root, StatesFS: optimist{}})
	b := newBox(t, p, a)
	b.works()
	for range 3 {
		which := id.NewSnapshot()
		_, err := a.PauseSandbox(t.Context(), b.pauseRequest(which))
		if e := errs.As(rpcerr.FromConnect(err)); e.Reason != "disk_full" || e.Details["needed_bytes"] == nil {
			t.Errorf("S5: %v", err)
		}
		b.works()
		_, err = a.CheckpointSandbox(t.Context(), &agentv1.CheckpointSandboxRequest{
			SandboxId: b.req.SandboxId, Incarnation: b.req.Incarnation, StateId: which.UUID().String(), Memory: true,
		})
		if !errs.Is(rpcerr.FromConnect(err), "disk_full") {
			t.Errorf("S5: %v", err)
		}
		b.works()
		if left, _ := os.ReadDir(states); len(left) != 0 {
			t.Errorf("LL-01: %d entries are left of what failed", len(left))
		}
	}
	if out, err := exec.Command("mount", "-o", "remount,size=1g", states).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v %s", err, out)
	}
	which := id.NewSnapshot()
	if _, err := a.PauseSandbox(t.Context(), b.pauseRequest(which)); err != nil {
		t.Fatalf("ST-05: with room again: %v", err)
	}
	if err := b.resume(which.UUID().String()); err != nil {
		t.Fatal(err)
	}
	b.works()
	b.destroy()
	quiet(t, cfg)
	clearStates(t, a, cfg)
	a.stop()
}

// TestS4_ST04_AgentDiesAtEachStep_OnARealHost kills the agent's process after
// each step of a pause, a checkpoint, a resume and a fork: the sandbox runs or
// is paused with all that was done in it, and goes on.
func TestS4_ST04_AgentDiesAtEachStep_OnARealHost(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	p := newPlatform(t)
	cfg, root := realHost(t, p), workshop(t)
	dieAt := filepath.Join(t.TempDir(), "die")
	a, cmd := p.spawnDying(t, cfg, root, dieAt)
	b := newBox(t, p, a)
	b.works()
	deaths := 0
	type death struct {
		operation string
		step      manager.Step
	}
	var all []death
	for _, operation := range []string{"pause", "checkpoint", "resume", "fork"} {
		for _, step := range manager.Operations()[operation] {
			all = append(all, death{operation, step})
		}
	}
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, d := range all {
		t.Logf("%s, after %s", d.operation, d.step)
		which := id.NewSnapshot()
		if d.operation == "resume" || d.operation == "fork" {
			if _, err := a.PauseSandbox(t.Context(), b.pauseRequest(which)); err != nil {
				t.Fatal(err)
			}
			quiet(t, cfg)
		}
		if err := os.WriteFile(dieAt, []byte(d.step), 0o600); err != nil {
			t.Fatal(err)
		}
		var err error
		fork := request("gvisor")
		switch d.operation {
		case "pause":
			_, err = a.PauseSandbox(t.Context(), b.pauseRequest(which))
		case "checkpoint":
			_, err = a.CheckpointSandbox(t.Context(), &agentv1.CheckpointSandboxRequest{
				SandboxId: b.req.SandboxId, Incarnation: b.req.Incarnation, StateId: which.UUID().String(), Memory: true,
			})
		case "resume":
			err = b.resume(which.UUID().String())
		case "fork":
			fork.AccessToken, fork.StateId = "tok", which.UUID().String()
			_, err = a.CreateSandbox(t.Context(), fork)
		}
		_ = cmd.Wait() // it dies behind the answer at the latest
		deaths++
		if err := os.Remove(dieAt); err != nil {
			t.Fatal(err)
		}
		a, cmd = p.spawnDying(t, cfg, root, dieAt)
		b.r = a
		r := b.report()
		b.req.Incarnation = r.Incarnation
		switch r.Phase {
		case agentv1.SandboxPhase_SANDBOX_PHASE_PAUSED:
			if err := b.resume(r.StateId); err != nil {
				t.Fatalf("%v: %v", d, err)
			}
		case agentv1.SandboxPhase_SANDBOX_PHASE_RUNNING:
			if d.operation == "pause" && err == nil {
				t.Errorf("%v: an acknowledged pause came undone", d)
			}
		default:
			t.Fatalf("ST-05: %v: %v", d, r)
		}
		b.works()
		if d.operation == "fork" {
			if _, err := a.DestroySandbox(t.Context(), &agentv1.DestroySandboxRequest{SandboxId: fork.SandboxId, Incarnation: 1, Reason: "deleted"}); err != nil {
				t.Error(err)
			}
		}
		inv, err := a.Inventory(t.Context(), &agentv1.InventoryRequest{})
		if err != nil || len(inv.Sandboxes) != 1 {
			t.Fatalf("LL-01: %v: %v, %v", d, inv, err)
		}
		for _, st := range inv.States {
			if _, err := a.DeleteState(t.Context(), &agentv1.DeleteStateRequest{StateId: st.StateId}); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			t.Fatalf("at %v", d)
		}
	}
	t.Logf("%d deaths, %d acts", deaths, b.did)
	b.destroy()
	quiet(t, cfg)
	clearStates(t, a, cfg)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func TestS7_SamplesAndLostContact(t *testing.T) {
	p := newPlatform(t)
	machine := apptest.NewMachine()
	cfg := p.config()
	cfg.SampleEvery, cfg.LostContactPause = 20*time.Millisecond, 300*time.Millisecond
	a := p.start(t, cfg, machine.Options())
	req := request("fake")
	if _, err := a.CreateSandbox(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 10*time.Second, "samples", func() bool {
		p.control.Lock()
		defer p.control.Unlock()
		n := len(p.control.Samples)
		return n > 0 && p.control.Samples[n-1]["sandbox_id"] == req.SandboxId && p.control.Samples[n-1]["memory_bytes"].(float64) > 0
	})
	silent := true
	p.control.Lock()
	p.control.Intercept = func(w http.ResponseWriter, _ *http.Request) bool {
		if silent {
			w.WriteHeader(http.StatusBadGateway)
		}
		return silent
	}
	p.control.Unlock()
	paused := func() *agentv1.SandboxReport {
		inv, err := a.Inventory(t.Context(), &agentv1.InventoryRequest{})
		if err != nil || len(inv.Sandboxes) != 1 || inv.Sandboxes[0].Phase != agentv1.SandboxPhase_SANDBOX_PHASE_PAUSED {
			return nil
		}
		return inv.Sandboxes[0]
	}
	testkit.Eventually(t, 20*time.Second, "the pause without contact", func() bool { return paused() != nil })
	if r := paused(); r.PausedReason != manager.ReasonLostContact || r.StateId == "" {
		t.Errorf("H5: reported as %v", r)
	}
	p.control.Lock()
	silent = false
	p.control.Unlock()
	testkit.Eventually(t, 20*time.Second, "its report when there is contact again", func() bool {
		p.control.Lock()
		defer p.control.Unlock()
		n := len(p.control.Events)
		return n > 0 && p.control.Events[n-1].Kind == manager.EventPaused && p.control.Events[n-1].Data["reason"] == manager.ReasonLostContact
	})
}
