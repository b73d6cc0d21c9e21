package gvisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"skerry.dev/skerry/internal/agent/engine"
)

const cpuPeriod = 100_000 // µs

func cpuQuota(millis int) int { return millis * cpuPeriod / 1000 }

// cpuShares are v1's; runsc converts them to a weight on v2.
func cpuShares(millis int) uint64 { return uint64(max(2, millis*1024/1000)) }

// pidsFuse is the host's limit on tasks. A guest that hits it dies as a whole, so
// that it lies far above what the guest can reach: each of its address spaces is
// a process on the host with a thread per CPU and one more, none of them ends
// before the sandbox does, and a fork has one even when it fails, so that a bomb
// has several times as many as processes are allowed.
func pidsFuse(r engine.Resources) int64 {
	cpus := max(2, (int64(r.CPUMillis)+999)/1000)
	return 1000 + 4*(int64(r.MaxProcesses)+32)*(cpus+2)
}

// caps of PID 1, in the guest's kernel. The first part is what a container
// usually has; the daemon hands on no more than these. The second is its own:
// host name and mounts, the clock, looking into every process, limits.
var (
	containerCaps = []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
	daemonCaps = []string{"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME"}
)

func validate(s *engine.Spec) error {
	r := s.Resources
	switch {
	case validID(s.ID) != nil:
		return validID(s.ID)
	case !filepath.IsAbs(s.RootDir) || !filepath.IsAbs(s.WorkDir):
		return errors.New("gvisor: RootDir and WorkDir must be absolute paths")
	case len(s.Args) == 0:
		return errors.New("gvisor: no program for PID 1")
	case r.CPUMillis <= 0 || r.MemoryBytes <= 0 || r.DiskBytes <= 0 || r.MaxProcesses <= 0:
		return errors.New("gvisor: every resource must be limited")
	case s.Network.NamespacePath == "" || s.Network.GuestAddr == "":
		return errors.New("gvisor: a network slot is required")
	}
	return nil
}

// shmSize is the share of memory /dev/shm may take. Left alone it would be
// half of the host's, and a guest could end itself by filling it.
func shmSize(r engine.Resources) int64 { return r.MemoryBytes / 2 &^ 4095 }

func (e *Engine) runtimeSpec(s *engine.Spec) *specs.Spec {
	caps := append(append([]string{}, containerCaps...), daemonCaps...)
	quota, period, shares := int64(cpuQuota(s.Resources.CPUMillis)), uint64(cpuPeriod), cpuShares(s.Resources.CPUMillis)
	memory, pids := s.Resources.MemoryBytes, pidsFuse(s.Resources)
	return &specs.Spec{
		Version:  "1.2.0",
		Hostname: s.Hostname,
		Root:     &specs.Root{Path: s.RootDir},
		Process: &specs.Process{
			Args: s.Args, Env: s.Env, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 65_536, Hard: 1 << 20}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0}},
			// sudo inside must work; the isolation does not hang on it.
			NoNewPrivileges: false,
		},
		// /tmp is missing here on purpose: with a file in the image's /tmp it
		// lies on the disk; a tmpfs would be the guest's memory.
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "mode=1777", shmOption(shmSize(s.Resources))}},
		},
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join("/", e.cg.parent, string(s.ID)),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace, Path: s.Network.NamespacePath},
			},
			Resources: &specs.LinuxResources{
				CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares},
				Memory: &specs.LinuxMemory{Limit: &memory},
				Pids:   &specs.LinuxPids{Limit: &pids},
			},
		},
	}
}

func shmOption(size int64) string { return fmt.Sprintf("size=%d", size) }

func writeSpec(bundle string, s *specs.Spec) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o600); err != nil {
		return fmt.Errorf("gvisor: %w", err)
	}
	return nil
}

func readSpec(bundle string) (*specs.Spec, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	var s specs.Spec
	return &s, json.Unmarshal(b, &s)
}

// shmOptionOf finds the size /dev/shm was given.
func shmOptionOf(mounts []specs.Mount) string {
	for _, m := range mounts {
		if m.Destination != "/dev/shm" {
			continue
		}
		for _, option := range m.Options {
			if strings.HasPrefix(option, "size=") {
				return option
			}
		}
	}
	return ""
}
