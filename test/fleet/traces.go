package fleet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Traces is everything on a host that belongs to single sandboxes, one line
// each.
func (h *Host) Traces() (found []string, err error) {
	for pid, line := range commands() {
		if strings.Contains(line, "runsc") && strings.Contains(line, h.Data+"/") {
			found = append(found, "process "+pid+": "+line[:min(len(line), 160)])
		}
	}
	tag, err := h.tag()
	if err != nil {
		return nil, err
	}
	for _, pattern := range []string{"/sys/fs/cgroup/skerry-" + tag + "/*", "/sys/fs/cgroup/*/skerry-" + tag + "/*"} {
		leaves, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, leaf := range leaves {
			if info, err := os.Stat(leaf); err == nil && info.IsDir() {
				found = append(found, "cgroup "+leaf)
			}
		}
	}
	err = h.machine.do(func() error {
		for _, pattern := range []string{"instances/*", "*/runsc/*", "run/g/runsc/*"} {
			files, err := filepath.Glob(filepath.Join(h.Data, "agent", pattern))
			if err != nil {
				return err
			}
			for _, file := range files {
				found = append(found, "file "+file)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	mounts, err := h.machine.holds(filepath.Join(h.Data, "agent", "instances"))
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		if strings.HasPrefix(m, "mount ") {
			found = append(found, m)
		}
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

// States are the saved states on the host, by their directories.
func (h *Host) States() (found []string, err error) {
	err = h.machine.do(func() (err error) {
		found, err = filepath.Glob(filepath.Join(h.Data, "agent", "states", "*"))
		return err
	})
	return found, err
}

// tag names everything of the host's agent, also when that is gone.
func (h *Host) tag() (string, error) {
	raw, err := h.Read("agent/tag")
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.known = strings.TrimSpace(string(raw))
	} else if h.known != "" {
		err = nil
	}
	return h.known, err
}

// commands are the command lines of all processes.
func commands() map[string]string {
	all := map[string]string{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		raw, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err == nil && len(raw) > 0 {
			all[entry.Name()] = strings.ReplaceAll(string(raw), "\x00", " ")
		}
	}
	return all
}

// leaks names what a fleet left behind on this machine.
func (f *Fleet) leaks() error {
	var found []string
	for pid, line := range commands() {
		if strings.Contains(line, f.dir) {
			found = append(found, "process "+pid+": "+line)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, f.dir) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	links, err := filepath.Glob("/sys/class/net/fl" + f.Tag + "*")
	if err != nil {
		return err
	}
	found = append(found, links...)
	for _, tag := range f.tags {
		for _, pattern := range []string{"/sys/fs/cgroup/skerry-" + tag, "/sys/fs/cgroup/*/skerry-" + tag, "/run/netns/skerry-" + tag + "-*"} {
			left, err := filepath.Glob(pattern)
			if err != nil {
				return err
			}
			found = append(found, left...)
		}
	}
	if _, err := os.Stat(f.dir); !errors.Is(err, os.ErrNotExist) {
		found = append(found, "directory "+f.dir)
	}
	if len(found) > 0 {
		return fmt.Errorf("left behind:\n%s", strings.Join(found, "\n"))
	}
	return nil
}
