package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// traces is everything on the machine that belongs to single sandboxes of this
// instance, one line each. Warm network slots are the instance's own, not a
// sandbox's, and are told apart by being unplugged.
func (in *machine) traces(t testing.TB) []string {
	t.Helper()
	var found []string
	tag := in.tag(t)

	// Processes that run on the instance's data: sentries, gofers, helpers.
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		raw, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil || len(raw) == 0 {
			continue
		}
		line := strings.ReplaceAll(string(raw), "\x00", " ")
		if strings.Contains(line, "runsc") && strings.Contains(line, in.Data) {
			found = append(found, "process "+entry.Name()+": "+line[:min(len(line), 120)])
		}
	}

	// Cgroup leaves below the instance's parent, in any controller, v1 or v2.
	for _, pattern := range []string{"/sys/fs/cgroup/skerry-" + tag + "/*", "/sys/fs/cgroup/*/skerry-" + tag + "/*"} {
		leaves, _ := filepath.Glob(pattern)
		for _, leaf := range leaves {
			if info, err := os.Stat(leaf); err == nil && info.IsDir() {
				found = append(found, "cgroup "+leaf)
			}
		}
	}

	// Files of instances, and runsc's own state.
	for _, pattern := range []string{"agent/instances/*", "agent/*/runsc/*", "agent/runsc/*"} {
		files, _ := filepath.Glob(filepath.Join(in.Data, pattern))
		for _, file := range files {
			found = append(found, "file "+file)
		}
	}

	// Mounts beyond the shared ones of the templates.
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], in.Data) && strings.Contains(fields[4], "/instances/") {
			found = append(found, "mount "+fields[4])
		}
	}
	slices.Sort(found)
	return found
}

// keeps counts what the instance as a whole keeps on the machine: it may be
// made ahead of need, but never grow.
func (in *machine) keeps(t testing.TB) map[string]int {
	t.Helper()
	tag := in.tag(t)
	counts := map[string]int{}
	namespaces, _ := filepath.Glob("/run/netns/skerry-" + tag + "-*")
	counts["network namespaces"] = len(namespaces)
	interfaces, _ := os.ReadDir("/sys/class/net")
	for _, entry := range interfaces {
		if strings.HasPrefix(entry.Name(), "sk"+tag) {
			counts["interfaces"]++
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], in.Data) {
			counts["mounts"]++
		}
	}
	return counts
}

func (in *machine) tag(t testing.TB) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(in.Data, "agent", "tag"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

// noTraces fails the test unless in the end nothing of a single sandbox is left.
func (in *machine) noTraces(t testing.TB) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		if left = in.traces(t); len(left) == 0 {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
}

// warm is how many network slots an agent makes ahead of need.
const warm = 8

// sameMachine fails the test when the instance keeps more than before, beyond
// the slots it may make ahead.
func (in *machine) sameMachine(t testing.TB, before map[string]int, ahead int) {
	t.Helper()
	after := in.keeps(t)
	var grown []string
	for what, count := range after {
		if count > before[what]+ahead {
			grown = append(grown, fmt.Sprintf("%s: %d, were %d", what, count, before[what]))
		}
	}
	if len(grown) > 0 {
		t.Errorf("the machine keeps more than before: %s", strings.Join(grown, "; "))
	}
}
