package gvisor_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/enginetest"
	"skerry.dev/skerry/internal/agent/engine/gvisor"
	"skerry.dev/skerry/internal/agent/shim"
	"skerry.dev/skerry/internal/testkit"
)

const shimVar = "SKERRY_TEST_SHIM_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(shimVar); dir != "" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		if err := shim.Main(context.Background(), shim.Config{Dir: dir, Logger: log}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if guestRoot.dir != "" {
		_ = os.RemoveAll(guestRoot.dir)
	}
	if keptBuilds.dir != "" {
		_ = os.RemoveAll(keptBuilds.dir)
	}
	os.Exit(code)
}

func TestConformance(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) enginetest.Harness { return newWorld(t).harness() })
}

// world is a state directory with a shim, a root tree and slots of its own.
type world struct {
	tag  string
	dir  string
	shim *shim.Client
	cfg  gvisor.Config
	root string

	mu    sync.Mutex
	slots int
}

func newWorld(t testing.TB) *world {
	t.Helper()
	testkit.Root(t)
	runsc := testkit.Runsc(t)
	tag := newTag(t)
	dir, err := os.MkdirTemp("", "gv")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{tag: tag, dir: dir, root: buildRoot(t)}
	shimDir := filepath.Join(dir, "shim")
	w.shim, err = shim.Ensure(t.Context(), shim.Config{
		Dir: shimDir, Command: []string{os.Args[0]}, Env: []string{shimVar + "=" + shimDir},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.cfg = gvisor.Config{StateDir: filepath.Join(dir, "e"), Runsc: runsc, BuildsDir: sharedBuilds(t), Tag: tag}
	t.Cleanup(func() {
		e, err := gvisor.New(w.cfg, w.shim)
		if err == nil {
			err = errors.Join(e.Purge(), e.Close())
		}
		if err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for n := range w.slots { // the cables go with them
			if err := netns.DeleteNamed(w.slotName(n + 1)); err != nil {
				t.Errorf("slot: %v", err)
			}
		}
		if err := w.shim.Shutdown(ctx, false); err != nil {
			t.Errorf("shim: %v", err)
		}
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(shimDir, "shim.log"))
			t.Logf("shim.log: %s", b)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) engine(t testing.TB) *gvisor.Engine {
	t.Helper()
	e, err := gvisor.New(w.cfg, w.shim)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func (w *world) harness() enginetest.Harness {
	return enginetest.Harness{
		Engine:      func(t *testing.T) engine.Engine { return w.engine(t) },
		Spec:        func(t *testing.T) engine.Spec { return w.spec(t) },
		Kill:        func(t *testing.T, id engine.InstanceID) { w.kill(t, id) },
		Leaks:       func(*testing.T) []string { return w.leaks() },
		OutOfMemory: true,
		Limits:      true,
		Kernel:      true,
		Cycles:      cycles(),
	}
}

func (w *world) sentry(t testing.TB, id engine.InstanceID) shim.Process {
	t.Helper()
	list, err := w.shim.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.Key == string(id) {
			return p
		}
	}
	t.Fatalf("no sentry of %s", id)
	return shim.Process{}
}

func (w *world) kill(t testing.TB, id engine.InstanceID) {
	t.Helper()
	if err := unix.Kill(w.sentry(t, id).PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// leaks are processes in our cgroups or with our directory in their arguments,
// cgroups, mounts and files.
func (w *world) leaks() []string {
	var out []string
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/skerry-" + w.tag + "/*/")
	unified, _ := filepath.Glob("/sys/fs/cgroup/skerry-" + w.tag + "/*/")
	for _, g := range append(groups, unified...) {
		out = append(out, "cgroup "+g)
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		b, _ := os.ReadFile(path)
		if strings.Contains(string(b), w.dir+"/e/") {
			out = append(out, "process "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), w.dir) {
		out = append(out, "mount below "+w.dir)
	}
	for _, sub := range []string{"e", "w", "shim/watch"} {
		_ = filepath.WalkDir(filepath.Join(w.dir, sub), func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				out = append(out, "file "+path)
			}
			return nil
		})
	}
	return out
}

func (w *world) spec(t testing.TB) engine.Spec {
	t.Helper()
	id := enginetest.NewID()
	work := filepath.Join(w.dir, "w", string(id))
	if err := os.MkdirAll(work, 0o700); err != nil {
		t.Fatal(err)
	}
	return engine.Spec{
		ID: id, RootDir: w.root, WorkDir: work, Hostname: "rock",
		Args: []string{"/guest"}, Env: []string{"PATH=/"},
		Resources: engine.Resources{CPUMillis: 1000, MemoryBytes: 256 << 20, DiskBytes: 512 << 20, MaxProcesses: 100},
		Network:   w.slot(t),
	}
}

// block is where the addresses of a world's slots begin, in 198.18.0.0/15, which
// is for measurements.
func block(tag []byte) net.IP { return net.IPv4(198, 18+tag[0]&1, tag[1], 0).To4() }

// newTag returns a tag whose block no link of this host is in: a test that was
// killed leaves its links, and what is sent to their addresses arrives nowhere.
func newTag(t testing.TB) string {
	t.Helper()
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	for range 1000 {
		_, _ = rand.Read(b)
		block := net.IPNet{IP: block(b), Mask: net.CIDRMask(24, 32)}
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return block.Contains(a.IP) }) {
			return "t" + hex.EncodeToString(b)
		}
	}
	t.Fatal("no addresses are left for this test")
	return ""
}

func (w *world) slotName(n int) string { return fmt.Sprintf("%s-%d", w.tag, n) }

// slot makes a namespace with a cable to the host.
func (w *world) slot(t testing.TB) engine.Network {
	t.Helper()
	w.mu.Lock()
	w.slots++
	n := w.slots
	w.mu.Unlock()
	tag, err := hex.DecodeString(w.tag[1:])
	if err != nil {
		t.Fatal(err)
	}
	base := block(tag)
	base[2] += byte(n / 64)
	base[3] = byte(n % 64 * 4) // a /30 each
	host, guest := slices.Clone(base), slices.Clone(base)
	host[3], guest[3] = base[3]+1, base[3]+2
	name := w.slotName(n)

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	ns, err := netns.NewNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := netns.Set(home); err != nil {
		panic(err) // nothing else may run on this thread
	}

	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	hostEnd := fmt.Sprintf("%sh%d", w.tag, n)
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: hostEnd}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns))}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(netlink.LinkAdd(cable))
	outer, err := netlink.LinkByName(hostEnd)
	must(err)
	inner, err := inside.LinkByName("eth0")
	must(err)
	lo, err := inside.LinkByName("lo")
	must(err)
	mask := net.CIDRMask(30, 32)
	must(netlink.AddrAdd(outer, &netlink.Addr{IPNet: &net.IPNet{IP: host, Mask: mask}}))
	must(netlink.LinkSetUp(outer))
	must(inside.AddrAdd(inner, &netlink.Addr{IPNet: &net.IPNet{IP: guest, Mask: mask}}))
	must(inside.LinkSetUp(inner))
	must(inside.LinkSetUp(lo))
	must(inside.RouteAdd(&netlink.Route{LinkIndex: inner.Attrs().Index, Gw: host}))
	must(netlink.NeighSet(&netlink.Neigh{
		LinkIndex: outer.Attrs().Index, IP: guest, HardwareAddr: inner.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT,
	}))
	return engine.Network{
		NamespacePath: "/run/netns/" + name, GuestAddr: net.IP(guest).String(), PrefixLen: 30, Gateway: net.IP(host).String(),
	}
}

// guestRoot is built once for all tests: the guest program, and what an image
// needs.
var guestRoot struct {
	once sync.Once
	dir  string
	err  error
}

// keptBuilds are shared by all tests that do not look at them: a copy of runsc
// takes longer than most.
var keptBuilds struct {
	once sync.Once
	dir  string
	err  error
}

func sharedBuilds(t testing.TB) string {
	t.Helper()
	keptBuilds.once.Do(func() { keptBuilds.dir, keptBuilds.err = os.MkdirTemp("", "gvbuilds") })
	if keptBuilds.err != nil {
		t.Fatal(keptBuilds.err)
	}
	return keptBuilds.dir
}

func buildRoot(t testing.TB) string {
	t.Helper()
	guestRoot.once.Do(func() {
		dir, err := os.MkdirTemp("", "gvroot")
		if err == nil {
			guestRoot.dir = dir
			err = fillRoot(dir)
		}
		guestRoot.err = err
	})
	if guestRoot.err != nil {
		t.Fatal(guestRoot.err)
	}
	return guestRoot.dir
}

func fillRoot(dir string) error {
	err := os.Chmod(dir, 0o755)
	for _, sub := range []string{"tmp", "etc", "proc", "sys", "dev"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	err = errors.Join(err,
		os.WriteFile(filepath.Join(dir, "tmp", ".keep"), nil, 0o644),
		os.WriteFile(filepath.Join(dir, "etc", "passwd"), []byte("root:x:0:0:root:/:/bin/sh\n"), 0o644))
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "guest"), "skerry.dev/skerry/internal/agent/engine/enginetest/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, buildErr := cmd.CombinedOutput(); buildErr != nil {
		err = errors.Join(err, fmt.Errorf("build the guest: %w: %s", buildErr, out))
	}
	return err
}

// cycles is how often cases repeat: more where there is time.
func cycles() int {
	if os.Getenv("SKERRY_TEST_LONG") != "" {
		return 100
	}
	return 20
}
