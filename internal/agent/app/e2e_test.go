package app_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/engine/gvisor"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/image"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/network"
	"skerry.dev/skerry/internal/agent/shim"
	"skerry.dev/skerry/internal/artifact"
	artifactfs "skerry.dev/skerry/internal/artifact/fs"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/artifact/transfer/transfertest"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

const shimVar = "SKERRY_TEST_SHIM_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(shimVar); dir != "" {
		if err := shim.Main(context.Background(), shim.Config{Dir: dir}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if raw := os.Getenv(agentVar); raw != "" {
		if err := runAgent(raw); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// tree is the one root tree all sandboxes of the test get: the real guest
// daemon and nothing else.
type tree struct{ dir string }

func (r tree) Acquire(context.Context, journal.Image, manager.Daemon, string) (manager.Tree, error) {
	return manager.Tree{Dir: r.dir}, nil
}
func (r tree) DaemonFile(string) string                                  { return "" }
func (r tree) Release(context.Context, string, string) error             { return nil }
func (r tree) Recover(context.Context, map[string]manager.Holding) error { return nil }

func newTree(t *testing.T) tree {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{".skerry", "etc", "tmp", "root", "proc", "dev", "sys", "home/user"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
		"etc/group":  "root:x:0:\nuser:x:1000:\n", "etc/hosts": "127.0.0.1 localhost\n", "tmp/.keep": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	buildGuest(t, filepath.Join(dir, image.GuestPath))
	return tree{dir}
}

func buildGuest(t *testing.T, path string, flags ...string) {
	t.Helper()
	build := exec.Command("go", append(append([]string{"build", "-o", path}, flags...), "skerry.dev/skerry/cmd/skerry-guest")...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the guest daemon: %v\n%s", err, out)
	}
}

// storedImage makes an image of the tree and lets the control plane store and
// serve it.
func (p *platform) storedImage(t *testing.T, root tree) *agentv1.Image {
	t.Helper()
	return p.storedFile(t, packed(t, root))
}

// packed is an image of the tree.
func packed(t *testing.T, root tree) (file string) {
	t.Helper()
	if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		testkit.Missing(t, "erofs", "mkfs.erofs is not installed")
	}
	file = filepath.Join(t.TempDir(), "image.erofs")
	if out, err := exec.Command("mkfs.erofs", "-x-1", "-E", "noinline_data", file, root.dir).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	return file
}

func (p *platform) storedFile(t *testing.T, file string) *agentv1.Image {
	t.Helper()
	store, err := artifactfs.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := transfer.NewSigner([]byte(strings.Repeat("k", 32)), clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	ledger := &transfertest.Ledger{}
	handler := transfer.NewHandler(store, signer, ledger, transfer.HandlerOptions{})
	p.control.Lock()
	p.control.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/v1/store/") {
			return false
		}
		handler.ServeHTTP(w, r)
		return true
	}
	p.control.Unlock()
	tr := &http.Transport{TLSClientConfig: p.ca.ClientConfig(tls.Certificate{}, identity.ControlURI)}
	defer tr.CloseIdleConnections()
	by := id.NewHost()
	a := ledger.Begin(id.PlatformTeamID, by)
	up, err := transfer.Upload(t.Context(), transfer.Clients{Control: &http.Client{Transport: tr}},
		artifact.Source{URL: signer.WriteURL(p.control.URL, a, by, time.Hour)},
		[]transfer.File{{Name: artifact.ImageFile, Path: file}}, artifact.MediaTypeErofs, transfer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &agentv1.Image{
		Digest: string(up.Files[artifact.ImageFile]), SizeBytes: up.SizeBytes,
		From: &agentv1.Source{Url: signer.ReadURL(p.control.URL, a, by, time.Hour)},
	}
}

// realHost is a configuration with gVisor, slots and shim of its own, all of
// which is removed at the end of the test.
func realHost(t *testing.T, p *platform) app.Config {
	t.Helper()
	testkit.Root(t)
	runsc := testkit.Runsc(t)
	dir, err := os.MkdirTemp("", "sk") // short: sockets live below
	if err != nil {
		t.Fatal(err)
	}
	p.dir = dir
	cfg := p.config()
	cfg.Runsc, cfg.WarmSlots, cfg.MaxSlots = runsc, 1, 8
	cfg.GuestBinary = filepath.Join(t.TempDir(), "skerry-guest")
	buildGuest(t, cfg.GuestBinary)
	cfg.ShimCommand = []string{"/usr/bin/env", shimVar + "=" + app.ShimDir(dir), os.Args[0]}
	t.Cleanup(func() { purge(t, cfg) })
	return cfg
}

func purge(t *testing.T, cfg app.Config) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	tag := readTag(t, cfg)
	sh, err := shim.Ensure(ctx, shim.Config{Dir: app.ShimDir(cfg.DataDir), Command: cfg.ShimCommand})
	if err == nil {
		var e *gvisor.Engine
		if e, err = gvisor.New(gvisor.Config{StateDir: filepath.Join(cfg.DataDir, "run", "g"), Runsc: cfg.Runsc, Tag: tag}, sh); err == nil {
			found, _ := e.Inventory(ctx) // of a test that failed
			for _, f := range found {
				err = errors.Join(err, e.Destroy(ctx, f.ID))
			}
			err = errors.Join(err, e.Purge(), e.Close())
		}
		err = errors.Join(err, sh.Shutdown(ctx, false))
	}
	cache, cerr := image.New(image.Config{Dir: filepath.Join(cfg.DataDir, "images"), GuestBinary: cfg.GuestBinary})
	if cerr == nil {
		cerr = cache.Purge(ctx)
	}
	if err := errors.Join(err, cerr, network.Purge(ctx, tag), os.RemoveAll(cfg.DataDir)); err != nil {
		t.Error(err)
	}
}

func readTag(t *testing.T, cfg app.Config) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(cfg.DataDir, "tag"))
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(string(raw))
}

// tunnel opens CONNECT to a port of a sandbox.
func (p *platform) tunnel(t *testing.T, r *running, sandbox string, port int) (*tls.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := tls.Dial("tcp", r.addr, p.ca.ClientConfig(p.ca.ControlCertificate(), identity.HostURI(p.control.HostID), "http/1.1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(conn, "CONNECT %[1]s.1:%[2]d HTTP/1.1\r\nHost: %[1]s.1:%[2]d\r\n\r\n", sandbox, port)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("CONNECT: %v, %v", resp, err)
	}
	return conn, in
}

// metrics asks the guest daemon through a tunnel, with the access token, and
// returns the tunnel.
func (p *platform) metrics(t *testing.T, r *running, sandbox string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, in := p.tunnel(t, r, sandbox, guestapi.DefaultPort)
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n%s: tok\r\n\r\n", guestapi.PathMetrics, guestapi.HeaderAccessToken)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "mem_total") {
		t.Fatalf("the daemon answered %d %s, %v", resp.StatusCode, body, err)
	}
	return conn, in
}

// leftovers lists what carries the host's tag, or lies in its directory, and
// belongs to a sandbox.
func leftovers(t *testing.T, cfg app.Config) (out []string) {
	t.Helper()
	tag := readTag(t, cfg)
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(filepath.Dir(path), "skerry-"+tag) {
			out = append(out, path)
		}
		return nil
	})
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, filepath.Join(cfg.DataDir, "instances")) {
			out = append(out, line)
		}
	}
	left, _ := os.ReadDir(filepath.Join(cfg.DataDir, "instances"))
	for _, d := range left {
		out = append(out, d.Name())
	}
	return out
}

func TestS1_H15_S15_OnARealHost(t *testing.T) {
	p := newPlatform(t)
	cfg := realHost(t, p)
	stored := p.storedImage(t, newTree(t))
	a := p.start(t, cfg, app.Options{})
	req := request("gvisor")
	req.Image = stored
	req.AccessToken, req.Hostname, req.Internet = "tok", "box", true
	began := time.Now()
	created, err := a.CreateSandbox(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("create: %v", time.Since(began))
	p.metrics(t, a, req.SandboxId)
	stats, err := a.SandboxStats(t.Context(), &agentv1.SandboxStatsRequest{SandboxId: req.SandboxId, Incarnation: 1})
	if err != nil || stats.MemoryBytes <= 0 || stats.MemoryLimitBytes != 512<<20 {
		t.Errorf("stats: %v, %v", stats, err)
	}
	a.stop()

	began = time.Now()
	b := p.start(t, cfg, app.Options{})
	t.Logf("start of the agent with a sandbox: %v", time.Since(began))
	_, in := p.metrics(t, b, req.SandboxId)
	inv, err := b.Inventory(t.Context(), &agentv1.InventoryRequest{})
	if err != nil || len(inv.Sandboxes) != 1 || inv.Sandboxes[0].InstanceId != created.Sandbox.InstanceId || inv.Sandboxes[0].Unknown {
		t.Fatalf("the inventory is %v, %v", inv, err)
	}

	killSentry(t, created.Sandbox.InstanceId)
	began = time.Now()
	if _, err := in.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a call in flight is not cut by the exit: %v", err)
	}
	t.Logf("cut %v after the kill", time.Since(began))
	testkit.Eventually(t, 30*time.Second, "the exit", func() bool {
		inv, err := b.Inventory(t.Context(), &agentv1.InventoryRequest{})
		return err == nil && len(inv.Sandboxes) == 1 && inv.Sandboxes[0].Phase == agentv1.SandboxPhase_SANDBOX_PHASE_EXITED
	})

	next := request("gvisor")
	next.AccessToken, next.Image = "tok", stored
	if _, err := b.CreateSandbox(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	p.metrics(t, b, next.SandboxId)
	for _, s := range []string{req.SandboxId, next.SandboxId} {
		began = time.Now()
		if _, err := b.DestroySandbox(t.Context(), &agentv1.DestroySandboxRequest{SandboxId: s, Incarnation: 1, Reason: "deleted"}); err != nil {
			t.Fatal(err)
		}
		t.Logf("destroy: %v", time.Since(began))
	}
	if left := leftovers(t, cfg); len(left) != 0 {
		t.Errorf("LL-01: left behind: %v", left)
	}
}

// killSentry ends every process whose command line names the instance and that
// is no child of this test.
func killSentry(t *testing.T, instance string) {
	t.Helper()
	killed := 0
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range procs {
		line, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(line), instance) || !strings.Contains(string(line), "boot") {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/cmdline", &pid); err == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
			killed++
		}
	}
	if killed == 0 {
		t.Fatal("no sentry was found")
	}
}
