package microvm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// groups are the cgroups of our machines, one each below a parent of our own,
// in v2's tree or in each of v1's.
type groups struct {
	root   string
	parent string
	v2     bool
}

// controllers we use; v2 has them in one tree.
var controllers = []string{"cpu", "cpuacct", "memory", "pids"}

const cpuPeriod = 100_000 // µs

func openGroups(root, parent string) (groups, error) {
	g := groups{root: root, parent: parent}
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return g, fmt.Errorf("microvm: %s: %w", root, err)
	}
	g.v2 = st.Type == unix.CGROUP2_SUPER_MAGIC
	return g, nil
}

// missing says what the host lacks.
func (g groups) missing() []string {
	var out []string
	have, _ := os.ReadFile(filepath.Join(g.root, "cgroup.controllers"))
	for _, c := range controllers {
		_, err := os.Stat(filepath.Join(g.root, c, "cgroup.procs"))
		if g.v2 && (c == "cpuacct" || bytes.Contains(append(have, ' '), []byte(c))) {
			err = nil
		}
		if err != nil {
			out = append(out, fmt.Sprintf("cgroup controller %s is not available below %s: mount or enable it", c, g.root))
		}
	}
	return out
}

func (g groups) file(controller, id, name string) string {
	if g.v2 {
		return filepath.Join(g.root, g.parent, id, name)
	}
	return filepath.Join(g.root, controller, g.parent, id, name)
}

func (g groups) leaves(id string) []string {
	if g.v2 {
		return []string{g.file("", id, "")}
	}
	var out []string
	for _, c := range controllers {
		out = append(out, g.file(c, id, ""))
	}
	return out
}

// make makes the groups of a machine.
func (g groups) make(id string) error {
	for _, leaf := range g.leaves(id) {
		if err := os.MkdirAll(leaf, 0o755); err != nil {
			return fmt.Errorf("microvm: %w", err)
		}
		if g.v2 {
			// On most hosts somebody has done it for the root.
			_ = writeFile(filepath.Join(g.root, "cgroup.subtree_control"), "+cpu +memory +pids")
			if err := writeFile(g.file("", "", "cgroup.subtree_control"), "+cpu +memory +pids"); err != nil {
				return err
			}
		}
	}
	return nil
}

// limit sets what the group may use.
func (g groups) limit(id string, cpuMillis int, memory, pids int64) error {
	quota := strconv.Itoa(max(1000, cpuMillis*cpuPeriod/1000))
	if g.v2 {
		return errors.Join(
			writeFile(g.file("", id, "cpu.max"), quota+" "+strconv.Itoa(cpuPeriod)),
			writeFile(g.file("", id, "memory.max"), strconv.FormatInt(memory, 10)),
			writeFile(g.file("", id, "pids.max"), strconv.FormatInt(pids, 10)))
	}
	return errors.Join(
		writeFile(g.file("cpu", id, "cpu.cfs_period_us"), strconv.Itoa(cpuPeriod)),
		writeFile(g.file("cpu", id, "cpu.cfs_quota_us"), quota),
		writeFile(g.file("cpu", id, "cpu.shares"), strconv.Itoa(max(2, cpuMillis*1024/1000))),
		writeFile(g.file("memory", id, "memory.limit_in_bytes"), strconv.FormatInt(memory, 10)),
		writeFile(g.file("pids", id, "pids.max"), strconv.FormatInt(pids, 10)))
}

// instances lists the names of all groups below our parent.
func (g groups) instances() []string {
	var out []string
	for _, dir := range g.leaves("") {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() {
				out = append(out, e.Name())
			}
		}
	}
	return out
}

// pids lists the group's processes.
func (g groups) pids(id string) []int {
	seen := map[int]bool{}
	var out []int
	for _, leaf := range g.leaves(id) {
		b, _ := os.ReadFile(filepath.Join(leaf, "cgroup.procs"))
		for _, f := range bytes.Fields(b) {
			if pid, err := strconv.Atoi(string(f)); err == nil && pid > 0 && !seen[pid] {
				seen[pid] = true
				out = append(out, pid)
			}
		}
	}
	return out
}

// killAll ends every process of the group and returns when none is left.
func (g groups) killAll(ctx context.Context, id string) error {
	return poll(ctx, 5*time.Second, func() error {
		pids := g.pids(id)
		for _, pid := range pids {
			g.killMember(id, pid)
		}
		if len(pids) > 0 {
			return fmt.Errorf("microvm: %d processes of %s do not end", len(pids), id)
		}
		return nil
	})
}

// killMember kills pid if it is still what the group listed: the descriptor is
// taken first, then membership is looked at again.
func (g groups) killMember(id string, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err == nil && bytes.Contains(b, []byte("/"+g.parent+"/"+id+"\n")) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// remove takes the machine's empty groups away.
func (g groups) remove(ctx context.Context, id string) error {
	for _, leaf := range g.leaves(id) {
		err := poll(ctx, 5*time.Second, func() error {
			if err := unix.Rmdir(leaf); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("microvm: remove %s: %w", leaf, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (g groups) removeParent() error {
	var errs []error
	for _, leaf := range g.leaves("") {
		if err := unix.Rmdir(leaf); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("microvm: remove %s: %w", leaf, err))
		}
	}
	return errors.Join(errs...)
}

// oomKills counts the processes the kernel ended at the memory limit.
func (g groups) oomKills(id string) int64 {
	if g.v2 {
		return field(g.file("", id, "memory.events"), "oom_kill")
	}
	return field(g.file("memory", id, "memory.oom_control"), "oom_kill")
}

type usage struct {
	cpu    time.Duration
	memory int64
	tasks  int
}

// usage reads what the group uses now, but for page cache that can be dropped.
func (g groups) usage(id string) (usage, error) {
	var u usage
	memory, inactive := "memory.usage_in_bytes", "total_inactive_file"
	if g.v2 {
		memory, inactive = "memory.current", "inactive_file"
	}
	used, err := number(g.file("memory", id, memory))
	if err != nil {
		return u, err
	}
	u.memory = max(0, used-field(g.file("memory", id, "memory.stat"), inactive))
	if g.v2 {
		u.cpu = time.Duration(field(g.file("", id, "cpu.stat"), "usage_usec")) * time.Microsecond
	} else {
		ns, err := number(g.file("cpuacct", id, "cpuacct.usage"))
		if err != nil {
			return u, err
		}
		u.cpu = time.Duration(ns)
	}
	tasks, err := number(g.file("pids", id, "pids.current"))
	u.tasks = int(tasks)
	return u, err
}

func writeFile(path, value string) error {
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	return nil
}

func number(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("microvm: %w", err)
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
