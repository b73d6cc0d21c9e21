package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is where to look; tests plant faults in it. The zero value is the
// machine itself.
type Machine struct {
	Root     string // prefix of /proc, /sys, /dev and /lib
	EUID     func() int
	Now      func() time.Time
	LookPath func(string) (string, error)
	Statfs   func(path string, st *unix.Statfs_t) error
	// Synchronized says whether the kernel keeps its clock by another.
	Synchronized func() (bool, error)
}

func (m Machine) withDefaults() Machine {
	if m.EUID == nil {
		m.EUID = os.Geteuid
	}
	if m.Now == nil {
		m.Now = time.Now
	}
	if m.LookPath == nil {
		m.LookPath = lookPath
	}
	if m.Statfs == nil {
		m.Statfs = unix.Statfs
	}
	if m.Synchronized == nil {
		m.Synchronized = synchronized
	}
	return m
}

func (m Machine) path(p string) string { return filepath.Join("/", m.Root, p) }

func sorted[V any](of map[string]V) []string { return slices.Sorted(maps.Keys(of)) }

// lookPath also looks where the path of a login that is not root's may not lead.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	return path, err
}

func (m Machine) rights(context.Context) Finding {
	if m.EUID() != 0 {
		return fail("this does not run as root", "Run it with sudo: namespaces, mounts and cgroups need root, and so do some of the checks.")
	}
	return ok("yes")
}

// kernel looks for what sandboxes and their images rest on.
func (m Machine) kernel(context.Context) Finding {
	raw, err := os.ReadFile(m.path("/proc/sys/kernel/osrelease"))
	if err != nil {
		return fail("this is no Linux with /proc mounted", "Run Skerry on Linux, and mount /proc.")
	}
	release := strings.TrimSpace(string(raw))
	if arch := runtime.GOARCH; arch != "amd64" && arch != "arm64" {
		return fail("the processor is a "+arch, "gVisor runs on amd64 and arm64.")
	}
	var missing []string
	for _, ns := range []string{"net", "mnt", "pid", "ipc", "uts", "user"} {
		if _, err := os.Stat(m.path("/proc/self/ns/" + ns)); err != nil {
			missing = append(missing, ns+" namespaces")
		}
	}
	known, err := os.ReadFile(m.path("/proc/filesystems"))
	if err != nil {
		return fail(fmt.Sprintf("the kernel's file systems are unknown: %v", err), "Mount /proc.")
	}
	for _, fs := range []string{"erofs", "overlay"} {
		if !slices.Contains(strings.Fields(string(known)), fs) && !m.module(release, "fs/"+fs) && !m.module(release, "fs/"+fs+"fs") {
			missing = append(missing, "the file system "+fs)
		}
	}
	if len(missing) > 0 {
		return fail("Linux "+release+" lacks "+strings.Join(missing, ", "), "Boot a kernel with them; Debian's own (linux-image-amd64, linux-image-arm64) has all.")
	}
	return ok("Linux %s", release)
}

// module reports whether the kernel may load a module, as far as its directory
// is here to tell.
func (m Machine) module(release, dir string) bool {
	found, _ := filepath.Glob(m.path(filepath.Join("/lib/modules", release, "kernel", dir, "*.ko*")))
	return len(found) > 0
}

func (m Machine) cgroups(context.Context) Finding {
	const root = "/sys/fs/cgroup"
	var have []string
	raw, err := os.ReadFile(m.path(root + "/cgroup.controllers"))
	version := "v2"
	if err == nil {
		have = append(strings.Fields(string(raw)), "freezer", "cpuacct") // part of v2 itself
	} else {
		version = "v1"
		entries, err := os.ReadDir(m.path(root))
		if err != nil {
			return fail(fmt.Sprintf("there are no cgroups: %v", err), "Mount them: mount -t cgroup2 none /sys/fs/cgroup.")
		}
		for _, e := range entries {
			have = append(have, strings.Split(e.Name(), ",")...)
		}
	}
	var missing []string
	for _, c := range []string{"cpu", "cpuacct", "freezer", "memory", "pids"} {
		if !slices.Contains(have, c) {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		return fail(fmt.Sprintf("cgroups %s lack the controller %s", version, strings.Join(missing, ", ")),
			"Enable it: where memory is missing, boot with cgroup_enable=memory; in a container, hand the whole hierarchy in.")
	}
	return ok("%s with all controllers", version)
}

// tools are programs of the system that ours run.
func (m Machine) tools(context.Context) Finding {
	need := func(names map[string]string) (programs, packages []string) {
		for _, name := range sorted(names) {
			if _, err := m.LookPath(name); err != nil {
				programs, packages = append(programs, name), append(packages, names[name])
			}
		}
		return programs, packages
	}
	if programs, packages := need(map[string]string{"nft": "nftables"}); len(programs) > 0 {
		return fail("missing: "+strings.Join(programs, ", "), "apt-get install "+strings.Join(packages, " "))
	}
	if programs, packages := need(map[string]string{"mmdebstrap": "mmdebstrap", "mkfs.erofs": "erofs-utils"}); len(programs) > 0 {
		return warn("missing: "+strings.Join(programs, ", ")+"; this host cannot build the template base, others can", "apt-get install "+strings.Join(packages, " "))
	}
	return ok("nft, mmdebstrap, mkfs.erofs")
}

const kvmVersion = 12 // since Linux 2.6.22

func (m Machine) kvm(context.Context) Finding {
	f, err := os.OpenFile(m.path("/dev/kvm"), os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return ok("none; gVisor needs none")
	}
	if err != nil {
		return warn(fmt.Sprintf("/dev/kvm cannot be opened: %v", err), "gVisor needs no KVM. For microVMs, load kvm_intel or kvm_amd and enable virtualisation in the firmware.")
	}
	defer f.Close()
	v, err := unix.IoctlRetInt(int(f.Fd()), 0xAE00) // KVM_GET_API_VERSION
	if err != nil || v != kvmVersion {
		return warn(fmt.Sprintf("/dev/kvm answers %d, %v", v, err), "gVisor needs no KVM. For microVMs, boot a kernel whose /dev/kvm works.")
	}
	return ok("/dev/kvm answers; gVisor needs none")
}

const (
	leastMemory = 512 << 20
	goodMemory  = 2 << 30
	leastDisk   = 2 << 30
	goodDisk    = 20 << 30
	leastInodes = 100_000
)

func (m Machine) memory(context.Context) Finding {
	f, err := os.Open(m.path("/proc/meminfo"))
	if err != nil {
		return fail(fmt.Sprintf("memory is unknown: %v", err), "Mount /proc.")
	}
	defer f.Close()
	var available int64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) >= 2 && fields[0] == "MemAvailable:" {
			kb, _ := strconv.ParseInt(fields[1], 10, 64)
			available = kb << 10
		}
	}
	said := ok("%d MB available", available>>20)
	switch {
	case available < leastMemory:
		return said.mend(Fail, "One sandbox takes 512 MB unless told otherwise. Free memory, or take a larger machine.")
	case available < goodMemory:
		return said.mend(Warn, "That is room for very few sandboxes.")
	}
	return said
}

func (m Machine) disk(dir string) Finding {
	existing := dir
	for existing != filepath.Dir(existing) {
		if _, err := os.Stat(existing); err == nil {
			break
		}
		existing = filepath.Dir(existing)
	}
	var st unix.Statfs_t
	if err := m.Statfs(existing, &st); err != nil {
		return fail(fmt.Sprintf("the disk of %s is unknown: %v", dir, err), "Set SKERRY_DATA to a directory on a local disk.")
	}
	free := int64(st.Bavail) * st.Bsize //nolint:gosec // no file system has 8 EiB
	said := ok("%d MB free below %s", free>>20, dir)
	switch {
	case st.Flags&unix.ST_RDONLY != 0:
		return fail(dir+" is on a file system that is mounted read-only", "Mount it writable, or set SKERRY_DATA to a directory on another disk.")
	case free < leastDisk:
		return said.mend(Fail, "Free space, or set SKERRY_DATA to a directory on another disk: images, disks of sandboxes and saved memory lie there.")
	case st.Files > 0 && st.Ffree < leastInodes:
		return fail(fmt.Sprintf("%d inodes free below %s", st.Ffree, dir), "Remove files, or make the file system anew with more inodes.")
	case free < goodDisk:
		return said.mend(Warn, "Each paused sandbox keeps its memory and disk there: plan for more.")
	}
	return said
}

func (m Machine) clock(context.Context) Finding {
	is, err := m.Synchronized()
	if err != nil {
		return warn(fmt.Sprintf("whether the clock is kept is unknown: %v", err), "Have it kept: timedatectl set-ntp true.")
	}
	if !is {
		return warn("the kernel says that nothing keeps this clock right", "Have it kept: timedatectl set-ntp true (package systemd-timesyncd or chrony). Certificates forgive five minutes.")
	}
	return ok("kept by another one")
}

func synchronized() (bool, error) {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return false, err
	}
	return t.Status&unix.STA_UNSYNC == 0, nil
}

func program(name, path string) Finding {
	info, err := os.Stat(path)
	if err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
		return fail(fmt.Sprintf("%s is no program", path), "Install the package skerry, or `make build` in a checkout; SKERRY_RUNSC and SKERRY_GUEST say where the programs lie.")
	}
	return ok("%s", path)
}

// port tries to listen. An address that a Skerry on this machine holds is
// fine.
func (m Machine) port(ctx context.Context, setting, address string) Finding {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", address)
	if err == nil {
		_ = ln.Close()
		return ok("%s is free", address)
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return fail(fmt.Sprintf("nobody can listen on %s: %v", address, err), "Set "+setting+" to an address of this machine.")
	}
	owner, pid := m.holder(address)
	switch {
	case owner == "skerry":
		return ok("%s is served by the Skerry that runs here (process %d)", address, pid)
	case owner != "":
		return fail(fmt.Sprintf("%s is taken by %s (process %d)", address, owner, pid), fmt.Sprintf("Stop %s, or set %s to another port.", owner, setting))
	}
	return fail(address+" is taken", "Find by whom (ss -ltnp), stop that, or set "+setting+" to another port.")
}

// holder finds the program that listens on a port; empty when that cannot be
// seen.
func (m Machine) holder(address string) (name string, pid int) {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0
	}
	sockets := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		raw, _ := os.ReadFile(m.path("/proc/net/" + table))
		for line := range strings.Lines(string(raw)) {
			fields := strings.Fields(line)
			// 0A is the state of a socket that listens.
			if len(fields) > 9 && fields[3] == "0A" && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
				sockets["socket:["+fields[9]+"]"] = true
			}
		}
	}
	links, _ := filepath.Glob(m.path("/proc/[0-9]*/fd/*"))
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil || !sockets[to] {
			continue
		}
		process := filepath.Dir(filepath.Dir(link))
		comm, _ := os.ReadFile(filepath.Join(process, "comm"))
		pid, _ = strconv.Atoi(filepath.Base(process))
		return strings.TrimSpace(string(comm)), pid
	}
	return "", 0
}
