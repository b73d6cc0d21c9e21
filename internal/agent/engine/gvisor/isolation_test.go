package gvisor_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/enginetest"
	"skerry.dev/skerry/internal/testkit"
)

// running starts an instance and waits until it answers.
func running(t *testing.T, w *world, e engine.Engine) (engine.Spec, engine.Handle) {
	t.Helper()
	spec := w.spec(t)
	h, err := e.Prepare(t.Context(), spec)
	if err == nil {
		h, err = e.Start(t.Context(), h)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := e.Destroy(ctx, spec.ID); err != nil {
			t.Error(err)
		}
		for _, leak := range w.leaks() {
			t.Errorf("left behind: %s", leak)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "the guest answers", func() bool { return get(t, e, h, "/keep") == nil })
	return spec, h
}

func get(t testing.TB, e engine.Engine, h engine.Handle, path string) error {
	t.Helper()
	return getWithin(t.Context(), e, h, path)
}

func getWithin(ctx context.Context, e engine.Engine, h engine.Handle, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://guest"+path, nil)
	if err != nil {
		return err
	}
	res, err := enginetest.Client(e, h).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", res.Status)
	}
	return nil
}

// Exactly which rights each host process of an instance has.
func TestLL09_HostProcessesAreJailed(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	spec, h := running(t, w, e)
	if err := get(t, e, h, "/spawn"); err != nil {
		t.Fatal(err)
	}
	w.jailed(t, spec)
}

// jailed looks at every host process of an instance.
func (w *world) jailed(t *testing.T, spec engine.Spec) {
	t.Helper()
	sentry := w.sentry(t, spec.ID).PID
	// The sentry is the guest's kernel: nobody, without any right, its filter
	// on, in namespaces of its own, its root empty. What runs guest code has the
	// same. The gofer opens files of the shared read-only root for the sentry:
	// it is root on the host with the rights to read, own and chroot there, and
	// nothing else, in namespaces of its own but for the user's.
	const gofer = "000000000004001f" // CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID SYS_CHROOT
	want := map[string]process{
		"sentry": {uid: "65534", caps: "0000000000000000", seccomp: "2", noNewPrivs: "1"},
		"stub":   {uid: "65534", caps: "0000000000000000", seccomp: "2", noNewPrivs: "1"},
		"gofer":  {uid: "0", caps: gofer, seccomp: "2", noNewPrivs: "1", shared: "user"},
	}
	seen := map[string]int{}
	for _, pid := range members(t, w, spec.ID) {
		got, cmdline := inspect(t, pid)
		kind := "stub"
		switch {
		case pid == sentry:
			kind = "sentry"
		case strings.Contains(cmdline, "runsc-gofer"):
			kind = "gofer"
		}
		seen[kind]++
		if got != want[kind] {
			t.Errorf("%s %d: %+v, want %+v", kind, pid, got, want[kind])
		}
		for _, target := range descriptors(t, pid) {
			if strings.HasPrefix(target, w.dir) && !strings.HasPrefix(target, spec.WorkDir+"/") {
				t.Errorf("%s %d holds %s", kind, pid, target)
			}
		}
	}
	if seen["sentry"] != 1 || seen["gofer"] != 1 || seen["stub"] < 2 {
		t.Errorf("processes: %v", seen)
	}
}

// process is what the kernel lets a process do.
type process struct {
	uid, caps, seccomp, noNewPrivs string
	shared                         string // namespaces it has in common with the host
}

func inspect(t *testing.T, pid int) (process, string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	b, err := os.ReadFile(dir + "status")
	if err != nil {
		t.Fatal(err)
	}
	var p process
	for _, line := range strings.Split(string(b), "\n") {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "Uid": // real, effective, saved, of files: all the same
			p.uid = strings.Join(slices.Compact(strings.Fields(value)), " ")
		case "CapEff":
			p.caps = value
		case "CapPrm", "CapInh", "CapAmb":
			if n, err := strconv.ParseUint(value, 16, 64); err != nil || n&^0x4001f != 0 {
				t.Errorf("%d: %s %s", pid, name, value)
			}
		case "Seccomp":
			p.seccomp = value
		case "NoNewPrivs":
			p.noNewPrivs = value
		}
	}
	var shared []string
	for _, ns := range []string{"ipc", "mnt", "net", "pid", "user", "uts"} {
		theirs, err := os.Readlink(dir + "ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		if ours, _ := os.Readlink("/proc/self/ns/" + ns); theirs == ours {
			shared = append(shared, ns)
		}
	}
	p.shared = strings.Join(shared, " ")
	cmdline, _ := os.ReadFile(dir + "cmdline")
	return p, string(cmdline)
}

func descriptors(t *testing.T, pid int) []string {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil {
			out = append(out, target)
		}
	}
	return out
}

func members(t *testing.T, w *world, id engine.InstanceID) []int {
	t.Helper()
	var out []int
	for _, pattern := range []string{"/sys/fs/cgroup/pids/", "/sys/fs/cgroup/"} {
		b, err := os.ReadFile(filepath.Join(pattern, "skerry-"+w.tag, string(id), "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, f := range bytes.Fields(b) {
			pid, _ := strconv.Atoi(string(f))
			out = append(out, pid)
		}
	}
	return out
}
