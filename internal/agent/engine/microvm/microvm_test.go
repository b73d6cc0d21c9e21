package microvm_test

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
	"skerry.dev/skerry/internal/agent/engine/microvm"
	"skerry.dev/skerry/internal/agent/engine/microvm/kit"
	"skerry.dev/skerry/internal/agent/shim"
	"skerry.dev/skerry/internal/testkit"
)

const (
	shimVar   = "SKERRY_TEST_SHIM_DIR"
	launchVar = "SKERRY_TEST_LAUNCH"
)

func TestMain(m *testing.M) {
	if os.Getenv(launchVar) != "" {
		if err := microvm.Launch(os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if dir := os.Getenv(shimVar); dir != "" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		if err := shim.Main(context.Background(), shim.Config{Dir: dir, Logger: log}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
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
	cfg  microvm.Config

	mu    sync.Mutex
	slots int
}

// built is what all tests share: the guest's root tree and the kernel.
var built struct {
	once sync.Once
	dir  string
	err  error
}

func (w *world) root() string { return filepath.Join(built.dir, "root.erofs") }

const qemu = "/usr/bin/qemu-system-x86_64"

// prerequisites makes what is shared, or skips.
func prerequisites(t testing.TB) {
	t.Helper()
	testkit.Root(t)
	for program, pkg := range map[string]string{qemu: "qemu-system-x86", "mkfs.erofs": "erofs-utils", "mkfs.ext4": "e2fsprogs"} {
		if _, err := exec.LookPath(program); err != nil {
			testkit.Missing(t, "microvm", fmt.Sprintf("%s is not there: apt-get install %s", program, pkg))
		}
	}
	built.once.Do(func() {
		built.dir, built.err = os.MkdirTemp("", "mvbuilt")
		if built.err == nil {
			built.err = build(built.dir)
		}
	})
	if built.err != nil {
		testkit.Missing(t, "microvm", built.err.Error())
	}
}

func build(dir string) error {
	root := filepath.Join(dir, "root")
	var err error
	for _, sub := range []string{"", "tmp", "etc"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(root, sub), 0o755))
	}
	err = errors.Join(err, os.WriteFile(filepath.Join(root, "etc", "passwd"), []byte("root:x:0:0:root:/:/bin/sh\n"), 0o644))
	for _, p := range [][2]string{
		{filepath.Join(root, "guest"), "skerry.dev/skerry/internal/agent/engine/enginetest/guest"},
		{filepath.Join(dir, "vminit"), "skerry.dev/skerry/cmd/skerry-vminit"},
	} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", p[0], p[1])
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, buildErr := cmd.CombinedOutput(); buildErr != nil {
			err = errors.Join(err, fmt.Errorf("build %s: %w: %s", p[1], buildErr, out))
		}
	}
	if err != nil {
		return err
	}
	if out, err := exec.Command("mkfs.erofs", "-T0", filepath.Join(dir, "root.erofs"), root).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	_, err = kit.Install(ctx, filepath.Join(dir, "kit"), kit.Source{Init: filepath.Join(dir, "vminit"), Deb: os.Getenv("SKERRY_TEST_KERNEL_DEB")})
	return err
}

func newWorld(t testing.TB) *world {
	t.Helper()
	prerequisites(t)
	tag := newTag(t)
	dir, err := os.MkdirTemp("", "mv")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{tag: tag, dir: dir}
	shimDir := filepath.Join(dir, "shim")
	w.shim, err = shim.Ensure(t.Context(), shim.Config{
		Dir: shimDir, Command: []string{os.Args[0]}, Env: []string{shimVar + "=" + shimDir},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.cfg = microvm.Config{
		StateDir: filepath.Join(dir, "e"), KitDir: filepath.Join(built.dir, "kit"), QEMU: qemu, Accel: accel(), Tag: tag, BootsDir: filepath.Join(built.dir, "boots"),
		Launcher: []string{os.Args[0]}, LauncherEnv: []string{launchVar + "=1"},
	}
	t.Cleanup(func() {
		e, err := microvm.New(w.cfg, w.shim)
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

// accel is how the tests' guests run: in software, which works everywhere, unless
// asked otherwise.
func accel() string {
	if os.Getenv("SKERRY_TEST_ACCEL") == microvm.KVM {
		return microvm.KVM
	}
	return microvm.TCG
}

func (w *world) engine(t testing.TB) *microvm.Engine {
	t.Helper()
	e, err := microvm.New(w.cfg, w.shim)
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
		Kernel:      true,
		Cycles:      testkit.Scaled(20, 0),
	}
}

func (w *world) kill(t testing.TB, id engine.InstanceID) {
	t.Helper()
	list, err := w.shim.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.Key == string(id) {
			if err := unix.Kill(p.PID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no machine of %s", id)
}

// leaks are processes of our machines, cgroups, mounts, files, and taps that are
// left in slots.
func (w *world) leaks() []string {
	var out []string
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/skerry-vm-" + w.tag + "/*/")
	unified, _ := filepath.Glob("/sys/fs/cgroup/skerry-vm-" + w.tag + "/*/")
	for _, g := range append(groups, unified...) {
		out = append(out, "cgroup "+g)
		procs, _ := os.ReadFile(filepath.Join(g, "cgroup.procs"))
		out = append(out, "processes "+string(procs))
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), w.dir) {
		out = append(out, "mount below "+w.dir)
	}
	for _, sub := range []string{"e", "w", "shim/watch"} {
		_ = filepath.WalkDir(filepath.Join(w.dir, sub), func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() && filepath.Base(filepath.Dir(path)) != "layers" {
				out = append(out, "file "+path)
			}
			return nil
		})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for n := range w.slots {
		ns, err := netns.GetFromName(w.slotName(n + 1))
		if err != nil {
			continue
		}
		if h, err := netlink.NewHandleAt(ns); err == nil {
			if _, err := h.LinkByName("vm0"); err == nil {
				out = append(out, "tap in "+w.slotName(n+1))
			}
			h.Close()
		}
		ns.Close()
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
		ID: id, RootDir: filepath.Join(built.dir, "root"), RootLayers: []string{w.root()}, WorkDir: work, Hostname: "rock",
		Args: []string{"/guest"}, Env: []string{"PATH=/"},
		Resources: engine.Resources{CPUMillis: 1000, MemoryBytes: 256 << 20, DiskBytes: 512 << 20, MaxProcesses: 100},
		Network:   w.slot(t),
	}
}

// block is where the addresses of a world's slots begin, in 198.18.0.0/15, which
// is for measurements.
func block(tag []byte) net.IP { return net.IPv4(198, 18+tag[0]&1, tag[1], 0).To4() }

// newTag returns a tag whose block no link of this host is in.
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
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	hostEnd := fmt.Sprintf("%sh%d", w.tag, n)
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: hostEnd}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns))}))
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
