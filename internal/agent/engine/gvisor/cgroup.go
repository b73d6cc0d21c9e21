package gvisor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is the host's cgroup tree, v1 with a tree per controller or v2
// with one for all, seen from our parent group. runsc makes the leaf of an
// instance and writes its limits; that works only on a leaf that does not exist
// before.
type hierarchy struct {
	root   string
	parent string
	v2     bool
	// controllers are the v1 trees runsc makes a leaf in, those mounted here.
	controllers []string
}

// v1Controllers are all runsc knows.
var v1Controllers = []string{"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "net_cls", "net_prio", "perf_event", "pids", "rdma", "systemd"}

func openHierarchy(root, parent string) (hierarchy, error) {
	h := hierarchy{root: root, parent: parent}
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return h, fmt.Errorf("gvisor: %s: %w", root, err)
	}
	if h.v2 = st.Type == unix.CGROUP2_SUPER_MAGIC; h.v2 {
		return h, nil
	}
	for _, c := range v1Controllers {
		if _, err := os.Stat(filepath.Join(root, c, "cgroup.procs")); err == nil {
			h.controllers = append(h.controllers, c)
		}
	}
	return h, nil
}

// missing says what the host lacks.
func (h hierarchy) missing() []string {
	var reasons []string
	have := h.controllers
	if h.v2 {
		b, _ := os.ReadFile(filepath.Join(h.root, "cgroup.controllers"))
		have = append(strings.Fields(string(b)), "freezer", "cpuacct") // part of v2 itself
	}
	for _, c := range []string{"cpu", "cpuacct", "freezer", "memory", "pids"} {
		if !slices.Contains(have, c) {
			reasons = append(reasons, fmt.Sprintf("cgroup controller %s is not available below %s: mount or enable it", c, h.root))
		}
	}
	return reasons
}

// file is a file of the instance's group in a controller's tree.
func (h hierarchy) file(controller, id, name string) string {
	if h.v2 {
		return filepath.Join(h.root, h.parent, id, name)
	}
	return filepath.Join(h.root, controller, h.parent, id, name)
}

// leaves are the directories of an instance.
func (h hierarchy) leaves(id string) []string {
	if h.v2 {
		return []string{h.file("", id, "")}
	}
	var out []string
	for _, c := range h.controllers {
		out = append(out, h.file(c, id, ""))
	}
	return out
}

// instances lists the ids of all leaves that exist.
func (h hierarchy) instances() []string {
	var out []string
	for _, leaf := range h.leaves("") {
		entries, _ := os.ReadDir(leaf)
		for _, entry := range entries {
			if entry.IsDir() {
				out = append(out, entry.Name())
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// pids lists the processes of an instance.
func (h hierarchy) pids(id string) []int {
	var out []int
	for _, leaf := range h.leaves(id) {
		b, _ := os.ReadFile(filepath.Join(leaf, "cgroup.procs"))
		for _, f := range bytes.Fields(b) {
			if pid, err := strconv.Atoi(string(f)); err == nil && pid > 0 {
				out = append(out, pid)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// killAll ends every process of the instance and returns when none is left.
func (h hierarchy) killAll(ctx context.Context, id string) error {
	if h.v2 {
		_ = os.WriteFile(h.file("", id, "cgroup.kill"), []byte("1"), 0)
	}
	return poll(ctx, 5*time.Second, func() error {
		pids := h.pids(id)
		for _, pid := range pids {
			h.killMember(id, pid)
		}
		if len(pids) > 0 {
			return fmt.Errorf("gvisor: %d processes of %s do not end", len(pids), id)
		}
		return nil
	})
}

// killMember kills pid if it is still what the group listed: the descriptor is
// taken first, then membership is looked at again.
func (h hierarchy) killMember(id string, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err == nil && bytes.Contains(b, []byte("/"+h.parent+"/"+id+"\n")) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// remove takes the instance's empty groups away.
func (h hierarchy) remove(ctx context.Context, id string) error {
	for _, leaf := range h.leaves(id) {
		err := poll(ctx, 5*time.Second, func() error {
			if err := unix.Rmdir(leaf); err != nil && err != unix.ENOENT {
				return fmt.Errorf("gvisor: remove %s: %w", leaf, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (h hierarchy) removeParent() error {
	var errs []error
	for _, leaf := range h.leaves("") {
		if err := unix.Rmdir(leaf); err != nil && err != unix.ENOENT {
			errs = append(errs, fmt.Errorf("gvisor: remove %s: %w", leaf, err))
		}
	}
	return errors.Join(errs...)
}

// setFrozen freezes or thaws and returns when that is so. A group that does
// not exist cannot be frozen, and is not; one that does not freeze is let go.
func (h hierarchy) setFrozen(ctx context.Context, id string, frozen bool) error {
	err := h.writeFrozen(ctx, id, frozen)
	if err != nil && frozen {
		// What is half frozen neither runs nor rests.
		err = errors.Join(err, h.writeFrozen(context.WithoutCancel(ctx), id, false))
	}
	return err
}

func (h hierarchy) writeFrozen(ctx context.Context, id string, frozen bool) error {
	name, value, state := "freezer.state", "THAWED", "freezer.state"
	if frozen {
		value = "FROZEN"
	}
	if h.v2 {
		name, value, state = "cgroup.freeze", "0", "cgroup.events"
		if frozen {
			value = "1"
		}
	}
	want := value
	if h.v2 {
		want = "frozen " + value
	}
	return poll(ctx, 5*time.Second, func() error {
		// Each time anew: v1 asks each process once, and one that comes to a stop
		// for its tracer in that moment never does as it was asked.
		err := os.WriteFile(h.file("freezer", id, name), []byte(value), 0)
		if errors.Is(err, os.ErrNotExist) && !frozen {
			return nil
		}
		if err != nil {
			return fmt.Errorf("gvisor: %w", err)
		}
		b, err := os.ReadFile(h.file("freezer", id, state))
		if err != nil {
			return fmt.Errorf("gvisor: %w", err)
		}
		if !slices.Contains(strings.Split(strings.TrimSpace(string(b)), "\n"), want) {
			return fmt.Errorf("gvisor: %s does not become %s", id, value)
		}
		return nil
	})
}

func (h hierarchy) frozen(id string) bool {
	name, want := "freezer.state", "FROZEN"
	if h.v2 {
		name, want = "cgroup.freeze", "1"
	}
	b, err := os.ReadFile(h.file("freezer", id, name))
	return err == nil && strings.TrimSpace(string(b)) == want
}

// oomKills counts the processes the kernel ended at the memory limit.
func (h hierarchy) oomKills(id string) int64 {
	if h.v2 {
		return field(h.file("", id, "memory.events"), "oom_kill")
	}
	return field(h.file("memory", id, "memory.oom_control"), "oom_kill")
}

// setMemory moves the limit the kernel enforces.
func (h hierarchy) setMemory(id string, limit int64) error {
	name := "memory.limit_in_bytes"
	if h.v2 {
		name = "memory.max"
	}
	return write(h.file("memory", id, name), strconv.FormatInt(limit, 10))
}

func (h hierarchy) setCPU(id string, millis int) error {
	quota := strconv.Itoa(cpuQuota(millis))
	if h.v2 {
		// The weights are what runsc derives from the shares.
		weight := 1 + (cpuShares(millis)-2)*9999/262142
		return errors.Join(
			write(h.file("", id, "cpu.max"), quota+" "+strconv.Itoa(cpuPeriod)),
			write(h.file("", id, "cpu.weight"), strconv.FormatUint(weight, 10)))
	}
	return errors.Join(
		write(h.file("cpu", id, "cpu.cfs_quota_us"), quota),
		write(h.file("cpu", id, "cpu.shares"), strconv.FormatUint(cpuShares(millis), 10)))
}

func (h hierarchy) setPids(id string, limit int64) error {
	return write(h.file("pids", id, "pids.max"), strconv.FormatInt(limit, 10))
}

type usage struct {
	cpu    time.Duration
	memory int64
	tasks  int
}

// usage reads what the group uses now. Page cache that can be dropped at any
// time is not counted.
func (h hierarchy) usage(id string) (usage, error) {
	var u usage
	memory, cpuFile, inactive := "memory.usage_in_bytes", "cpuacct.usage", "total_inactive_file"
	if h.v2 {
		memory, inactive = "memory.current", "inactive_file"
	}
	used, err := number(h.file("memory", id, memory))
	if err != nil {
		return u, err
	}
	u.memory = max(0, used-field(h.file("memory", id, "memory.stat"), inactive))
	if h.v2 {
		u.cpu = time.Duration(field(h.file("", id, "cpu.stat"), "usage_usec")) * time.Microsecond
	} else {
		ns, err := number(h.file("cpuacct", id, cpuFile))
		if err != nil {
			return u, err
		}
		u.cpu = time.Duration(ns)
	}
	tasks, err := number(h.file("pids", id, "pids.current"))
	u.tasks = int(tasks)
	return u, err
}

func write(path, value string) error {
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("gvisor: %w", err)
	}
	return nil
}

func number(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("gvisor: %w", err)
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// field reads one number of a file of "name number" lines; 0 when absent.
func field(path, name string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			n, _ := strconv.ParseInt(rest, 10, 64)
			return n
		}
	}
	return 0
}

// poll calls f until it succeeds, for at most the given time; then its last
// error is returned.
func poll(ctx context.Context, within time.Duration, f func() error) error {
	err := f()
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for wait := 500 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
		if err = f(); err == nil {
			return nil
		}
	}
}
