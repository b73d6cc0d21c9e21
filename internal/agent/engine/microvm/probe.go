package microvm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/microvm/kit"
	"skerry.dev/skerry/internal/guest/vmapi"
)

// layout grows with every change of what a machine consists of: a checkpoint of
// another one does not fit.
const layout = "1"

// prober keeps what was found out about the program and the machine.
type prober struct {
	mu      sync.Mutex
	program fileID
	version string
	digest  string
	booted  fileID // the kit a guest was booted from, see Usable
	at      time.Time
	verdict error
}

// fileID tells whether a file is still the one that was looked at.
type fileID struct {
	dev, ino    uint64
	size, mtime int64
}

func identify(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileID{}, err
	}
	return fileID{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim.Nano()}, nil
}

// Probe implements engine.Engine.
func (e *Engine) Probe(ctx context.Context) engine.Capabilities {
	c := engine.Capabilities{Name: name, Checkpoint: true}
	if os.Geteuid() != 0 {
		c.Reasons = append(c.Reasons, "the agent does not run as root: start it as root")
	}
	p := &e.probe
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.identify(ctx, e.cfg.QEMU); err != nil {
		c.Reasons = append(c.Reasons, err.Error())
	} else {
		c.Version, c.Digest = p.version+" "+machineType+" "+e.cfg.Accel+" "+layout, p.digest
	}
	features, err := featuresOf(e.cfg.Accel)
	if err != nil {
		c.Reasons = append(c.Reasons, err.Error())
	}
	c.CPUFeatures = features
	k, err := kit.Current(e.cfg.KitDir)
	if err == nil && e.cfg.Accel == KVM && len(c.Reasons) == 0 {
		err = p.usable(ctx, e.cfg.QEMU, k)
	}
	if err != nil {
		c.Reasons = append(c.Reasons, err.Error())
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		c.Reasons = append(c.Reasons, "mkfs.ext4 is not installed: apt-get install e2fsprogs")
	}
	c.Reasons = append(c.Reasons, e.cg.missing()...)
	c.Healthy = len(c.Reasons) == 0
	return c
}

// identify finds the program's version and digest, once for each program.
func (p *prober) identify(ctx context.Context, path string) error {
	id, err := identify(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is not installed: apt-get install qemu-system-x86", path)
	}
	if err != nil || id == p.program {
		return err
	}
	version, err := Version(ctx, path)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	p.program, p.version, p.digest, p.verdict, p.at = id, version, hex.EncodeToString(sum.Sum(nil)), nil, time.Time{}
	return nil
}

// Version is what QEMU says of itself.
func Version(ctx context.Context, program string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s cannot be used (%w): apt-get install --reinstall qemu-system-x86", program, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	version, ok := strings.CutPrefix(line, "QEMU emulator version ")
	if !ok || version == "" {
		return "", fmt.Errorf("%s is no QEMU: it calls itself %.80q", program, line)
	}
	return version, nil
}

// featuresOf are the processor's as guests see it. What software makes is the
// same everywhere, and never what a processor makes.
func featuresOf(accel string) ([]string, error) {
	if accel == TCG {
		return []string{"tcg"}, nil
	}
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "flags" {
			return append([]string{"kvm"}, strings.Fields(value)...), nil
		}
	}
	return nil, errors.New("/proc/cpuinfo names no features of the processor")
}

// Bounds of the boot that shows whether KVM works. A verdict that may be the
// fault of a busy machine is not believed for long.
const (
	kvmWithin   = 8 * time.Second
	doubtedFor  = 10 * time.Minute
	tcgWithin   = 2 * time.Minute
	probeMemory = "192"
)

// usable tells, from a boot, whether KVM works with this kernel.
func (p *prober) usable(ctx context.Context, program string, k kit.Kit) error {
	id, err := identify(k.Kernel())
	if err != nil {
		return err
	}
	if id == p.booted && (p.verdict == nil || time.Since(p.at) < doubtedFor) {
		return p.verdict
	}
	_, err = Boot(ctx, program, KVM, k)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	p.booted, p.verdict, p.at = id, err, time.Now()
	return err
}

// Boot boots a guest that does nothing, and says how long that took. Everything
// else about KVM may look right on a machine where no guest ever runs.
func Boot(ctx context.Context, program, accel string, k kit.Kit) (time.Duration, error) {
	within := tcgWithin
	if accel == KVM {
		within = kvmWithin
		if err := kvmThere(); err != nil {
			return 0, err
		}
	}
	limit, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	args := append(platform(accel), "-M", machineType+",hpet=off,sata=off,smbus=off,usb=off", "-smp", "1", "-m", probeMemory,
		"-kernel", k.Kernel(), "-initrd", k.Initrd(), "-append", commandLine+" "+vmapi.Probe, "-serial", "stdio",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	cmd := exec.CommandContext(limit, program, args...)
	cmd.WaitDelay = time.Second
	out, bad := &head{most: 64 << 10}, &head{most: 4 << 10}
	cmd.Stdout, cmd.Stderr = out, bad
	began := time.Now()
	err := cmd.Run()
	for lines := bufio.NewScanner(bytes.NewReader(out.kept)); lines.Scan(); {
		if strings.TrimSpace(lines.Text()) != vmapi.Ready {
			continue
		}
		took := time.Since(began)
		if accel == KVM {
			_, err = kvmGroup()
			return took, err
		}
		return took, nil
	}
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case limit.Err() != nil && accel == KVM:
		return 0, fmt.Errorf("/dev/kvm is there, but a guest did not boot on it within %s: this machine's own hypervisor may not support it; "+
			"ask for nested virtualisation, or choose engine gvisor", within)
	case limit.Err() != nil:
		return 0, fmt.Errorf("a guest did not boot within %s", within)
	}
	return 0, fmt.Errorf("a guest did not boot: %v: %.300s %.300q", err, strings.TrimSpace(string(bad.kept)), tail(out.kept, 300))
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// head keeps the beginning of what is written.
type head struct {
	kept []byte
	most int
}

// Write implements io.Writer.
func (h *head) Write(b []byte) (int, error) {
	h.kept = append(h.kept, b[:min(len(b), h.most-len(h.kept))]...)
	return len(b), nil
}

// From linux/kvm.h.
const (
	kvmGetAPIVersion = 0xae00
	kvmCreateVM      = 0xae01
	kvmVersion       = 12
)

// kvmThere tells quickly and in plain words what is missing.
func kvmThere() error {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return errors.New("there is no /dev/kvm: switch virtualisation on in the firmware, load kvm_intel or kvm_amd, or, on a virtual machine, " +
			"ask for nested virtualisation; or choose engine gvisor")
	case err != nil:
		return fmt.Errorf("/dev/kvm cannot be opened (%w): start the agent as root", err)
	}
	defer unix.Close(fd)
	version, err := unix.IoctlRetInt(fd, kvmGetAPIVersion)
	if err != nil || version != kvmVersion {
		return fmt.Errorf("/dev/kvm has version %d (%v), not %d: update the host's kernel", version, err, kvmVersion)
	}
	vm, err := unix.IoctlRetInt(fd, kvmCreateVM)
	if err != nil {
		return fmt.Errorf("/dev/kvm makes no virtual machine: %w", err)
	}
	return unix.Close(vm)
}
