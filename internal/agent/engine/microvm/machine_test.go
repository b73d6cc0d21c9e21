package microvm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/enginetest"
	"skerry.dev/skerry/internal/agent/engine/microvm"
	"skerry.dev/skerry/internal/agent/engine/microvm/kit"
	"skerry.dev/skerry/internal/testkit"
)

func start(t testing.TB, e engine.Engine, spec engine.Spec) engine.Handle {
	t.Helper()
	h, err := e.Prepare(t.Context(), spec)
	if err == nil {
		h, err = e.Start(t.Context(), h)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := e.Destroy(ctx, spec.ID); err != nil {
			t.Error(err)
		}
	})
	return h
}

func get(t testing.TB, e engine.Engine, h engine.Handle, method, path string, v any) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, nil)
	if err != nil {
		return err
	}
	res, err := enginetest.Client(e, h).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, b)
	}
	if err == nil && v != nil {
		err = json.Unmarshal(b, v)
	}
	return err
}

func up(t testing.TB, e engine.Engine, h engine.Handle) {
	t.Helper()
	testkit.Eventually(t, time.Minute, "the guest answers", func() bool { return get(t, e, h, http.MethodGet, "/info", nil) == nil })
}

// pid is the machine's program.
func pid(t testing.TB, h engine.Handle) int {
	t.Helper()
	var r struct {
		Process struct{ PID int }
	}
	if err := json.Unmarshal(h, &r); err != nil || r.Process.PID == 0 {
		t.Fatalf("%v in %s", err, h)
	}
	return r.Process.PID
}

// The machine's program has nothing a guest that broke into it could use: no
// rights, no user of the host's, no namespaces of the host's, no files but its own.
func TestS14_TheMachineHasNoRights(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	spec := w.spec(t)
	h := start(t, e, spec)
	proc := fmt.Sprintf("/proc/%d", pid(t, h))
	b, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.Join(strings.Fields(value), " ")
	}
	none := "0000000000000000"
	for key, want := range map[string]string{"CapEff": none, "CapPrm": none, "CapInh": none, "NoNewPrivs": "1", "Seccomp": "2", "Groups": ""} {
		if status[key] != want {
			t.Errorf("%s is %q, not %q", key, status[key], want)
		}
	}
	if uid := strings.Fields(status["Uid"]); len(uid) != 4 || uid[0] == "0" || uid[0] != uid[1] || uid[0] != uid[2] {
		t.Errorf("users %v", uid)
	}
	for _, kind := range []string{"net", "mnt", "pid", "ipc", "uts"} {
		mine, err1 := os.Readlink("/proc/self/ns/" + kind)
		its, err2 := os.Readlink(proc + "/ns/" + kind)
		if err1 != nil || err2 != nil || mine == its {
			t.Errorf("namespace %s: %s and %s (%v %v)", kind, mine, its, err1, err2)
		}
	}
	group, err := os.ReadFile(proc + "/cgroup")
	if err != nil || !strings.Contains(string(group), "/skerry-vm-"+w.tag+"/"+string(spec.ID)) {
		t.Errorf("cgroups %s %v", group, err)
	}
	links, err := filepath.Glob(proc + "/fd/*")
	if err != nil || len(links) < 5 {
		t.Fatalf("%v %v", links, err)
	}
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(to, "/") {
			continue
		}
		to = strings.TrimSuffix(to, " (deleted)")
		if !strings.HasPrefix(to, spec.WorkDir) && to != w.root() && !strings.HasPrefix(to, "/dev/") && !strings.HasPrefix(to, "/memfd:") &&
			!strings.HasPrefix(to, w.cfg.KitDir) {
			t.Errorf("it holds %s", to)
		}
	}
	for _, name := range []string{"disk", "qmp", "guest"} {
		if st, err := os.Stat(filepath.Join(spec.WorkDir, name)); err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v", name, st, err)
		}
	}
}

// What the guest is told are its limits is about what it was given, and holds.
func TestS14_LimitsAreAboutWhatTheGuestSees(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	spec := w.spec(t)
	h := start(t, e, spec)
	up(t, e, h)
	var i enginetest.Info
	if err := get(t, e, h, http.MethodGet, "/info", &i); err != nil {
		t.Fatal(err)
	}
	// The kernel keeps some for itself before it counts.
	if got, given := i.MemoryKB<<10, spec.Resources.MemoryBytes; got > given || got < given*8/10 {
		t.Errorf("memory %d of %d", got, given)
	}
	if got, given := i.Disk, spec.Resources.DiskBytes; got > given || got < given*9/10 {
		t.Errorf("disk %d of %d", got, given)
	}
	if i.Shm <= 0 || i.Shm > spec.Resources.MemoryBytes {
		t.Errorf("/dev/shm %d bytes", i.Shm)
	}
	if i.CPUs != 1 {
		t.Errorf("%d CPUs", i.CPUs)
	}
	// What a container has, and what the daemon needs: no modules, no raw network,
	// no devices.
	const want = 1<<29 | 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 | 1<<27 | 1<<10 | 1<<31 | 1<<6 | 1<<8 | 1<<7 | 1<<18 | 1<<21 | 1<<19 | 1<<24 | 1<<25
	if i.Caps != fmt.Sprintf("%016x", uint64(want)) {
		t.Errorf("capabilities %s, want %016x", i.Caps, uint64(want))
	}
}

// At whatever point of a start the agent dies, the next one finds an instance
// that can be started, or one that runs.
func TestST08_TheAgentDiesDuringAStart(t *testing.T) {
	w := newWorld(t)
	spec := w.spec(t)
	h := start(t, w.engine(t), spec) // a boot for those that follow
	up(t, w.engine(t), h)
	for after := time.Duration(0); after < 1200*time.Millisecond; after += time.Duration(testkit.Scaled(40, 290)) * time.Millisecond {
		spec := w.spec(t)
		dying := w.engine(t)
		h, err := dying.Prepare(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		// What has lost its caller cleans nothing up, as what has died.
		ctx, cancel := context.WithTimeout(t.Context(), after)
		_, err = dying.Start(ctx, h)
		cancel()
		next := w.engine(t)
		h, recovered := next.Recover(t.Context(), h)
		if recovered != nil {
			t.Fatalf("after %s (%v): %v", after, err, recovered)
		}
		if h, err = next.Start(t.Context(), h); err != nil {
			t.Fatalf("after %s: %v", after, err)
		}
		up(t, next, h)
		if err := next.Destroy(t.Context(), spec.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// A machine that was booted ahead and does not do costs a boot, not a start; and
// those that begin from the same have nothing random in common.
func TestRS02_MachinesBootedAhead(t *testing.T) {
	w := newWorld(t)
	w.cfg.BootsDir = filepath.Join(w.dir, "boots")
	e := w.engine(t)
	said := map[string]bool{}
	first := w.spec(t)
	up(t, e, start(t, e, first))
	kept, _ := filepath.Glob(filepath.Join(w.cfg.BootsDir, "*", "memory"))
	if len(kept) != 1 {
		t.Fatalf("kept %v", kept)
	}
	for range 2 {
		h := start(t, e, w.spec(t))
		up(t, e, h)
		var random json.RawMessage
		if err := get(t, e, h, http.MethodGet, "/random", &random); err != nil {
			t.Fatal(err)
		}
		if said[string(random)] {
			t.Error("two machines share their randomness")
		}
		said[string(random)] = true
	}
	// Whole by its size, and wrong.
	f, err := os.OpenFile(kept[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	up(t, e, start(t, e, w.spec(t)))
}

// A slot is as it was once its machine is gone, however it went.
func TestS14_TheSlotIsGivenBack(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	spec := w.spec(t)
	h := start(t, e, spec)
	ns, err := netns.GetFromPath(spec.Network.NamespacePath)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	link, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	// own says whether the namespace takes the guest's address for its own.
	own := func() bool {
		routes, err := link.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Dst != nil && r.Dst.IP.String() == spec.Network.GuestAddr {
				return true
			}
		}
		return false
	}
	if own() {
		t.Error("the address is not the machine's")
	}
	w.kill(t, spec.ID)
	if x, err := e.Wait(t.Context(), h); err != nil || x.Reason != engine.ExitKilled {
		t.Errorf("%+v %v", x, err)
	}
	if err := e.Destroy(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	if !own() {
		t.Error("the slot has lost its address")
	}
	if _, err := link.LinkByName("vm0"); err == nil {
		t.Error("the tap is left")
	}
}

// Only a boot tells; it is bounded, and what is wrong has its remedy.
func TestO4_Examine(t *testing.T) {
	prerequisites(t)
	k, err := kit.Current(filepath.Join(built.dir, "kit"))
	if err != nil {
		t.Fatal(err)
	}
	took, err := microvm.Boot(t.Context(), qemu, microvm.TCG, k)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a guest booted in software in %s", took)
	began := time.Now()
	looks := map[string]microvm.Look{}
	for _, l := range microvm.Examine(t.Context(), qemu, filepath.Join(built.dir, "kit")) {
		looks[l.Check] = l
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	if !looks["qemu"].Works || !looks["kernel"].Works || looks["kvm"].Message == "" {
		t.Errorf("%+v", looks)
	}
	t.Logf("KVM: %+v", looks["kvm"])
	for _, l := range microvm.Examine(t.Context(), filepath.Join(t.TempDir(), "qemu"), t.TempDir()) {
		if l.Works || l.Message == "" || l.Check != "kvm" && l.Remedy == "" {
			t.Errorf("of nothing: %+v", l)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := microvm.Boot(ended, qemu, microvm.TCG, k); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}

// An upgrade of the engine strands no disk: one that was kept alone fits any
// version, and one with memory does not.
func TestP7_ADiskOutlivesItsEngine(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	h := start(t, e, w.spec(t))
	up(t, e, h)
	for _, diskOnly := range []bool{true, false} {
		dir := t.TempDir()
		if err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true, DiskOnly: diskOnly}); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, engine.CheckpointFile)
		var about map[string]any
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &about)
		}
		if err != nil {
			t.Fatal(err)
		}
		about["engine_version"] = "an older one"
		if b, err = json.Marshal(about); err == nil {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		spec := w.spec(t)
		r, err := e.Prepare(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		r, err = e.Restore(t.Context(), r, dir)
		switch {
		case diskOnly && err != nil:
			t.Errorf("the disk alone: %v", err)
		case diskOnly:
			up(t, e, r)
		case !errors.Is(err, engine.ErrUnsupported):
			t.Errorf("with memory: %v", err)
		}
		if err := e.Destroy(t.Context(), spec.ID); err != nil {
			t.Fatal(err)
		}
	}
}
