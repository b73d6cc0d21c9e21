package microvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/thread"
	"skerry.dev/skerry/internal/guest/vmapi"
)

// job is what the launcher is told on its standard input.
type job struct {
	ID      engine.InstanceID `json:"id"`
	Program string            `json:"program"`
	Accel   string            `json:"accel"`
	WorkDir string            `json:"work_dir"`
	Network engine.Network    `json:"network"`
	Roots   []string          `json:"roots"`
	Machine machine           `json:"machine"`
	Groups  []string          `json:"groups"` // cgroup.procs files to enter
	Kernel  string            `json:"kernel,omitempty"`
	Initrd  string            `json:"initrd,omitempty"`
	Memory  string            `json:"memory,omitempty"` // file of a checkpoint; no kernel then
	UID     uint32            `json:"uid"`
}

// Descriptors the machine's program inherits.
const (
	tapFD = 3 + iota
	memoryFD
	qmpFD
	guestFD
	diskFD
	rootFD // and those after it; then the kernel and its initramfs
)

// memoryName is what the file of a machine's memory is called in /proc.
const memoryName = "skerry-memory"

// Launch is all of the launcher, a process the shim starts for each machine: it
// opens what the machine needs with the rights it has, enters its cgroups and its
// slot, and starts QEMU with no rights at all. It writes the pid down and ends;
// QEMU goes on below the shim.
func Launch(stdin io.Reader) error {
	var j job
	if err := json.NewDecoder(stdin).Decode(&j); err != nil {
		return fmt.Errorf("microvm: launch: %w", err)
	}
	for _, procs := range j.Groups {
		if err := writeFile(procs, "0"); err != nil {
			return err
		}
	}
	// The sockets' whole paths may be too long for a socket.
	if err := os.Chdir(j.WorkDir); err != nil {
		return fmt.Errorf("microvm: launch: %w", err)
	}
	var tap *os.File
	err := thread.Lose(func() error {
		err := enter(j.Network.NamespacePath)
		if err == nil {
			tap, err = openTap(j.Network)
		}
		return err
	})
	if err != nil {
		return err
	}
	memory, err := openMemory(j.Machine.MemoryBytes, j.Memory)
	if err != nil {
		return err
	}
	opened := []*os.File{tap, memory}
	for _, name := range []string{qmpSocket, guestSocket} {
		f, err := listenAt(name)
		if err != nil {
			return err
		}
		opened = append(opened, f)
	}
	disk, err := os.OpenFile(diskFile, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("microvm: launch: %w", err)
	}
	opened = append(opened, disk)
	paths := j.Roots
	if j.Memory == "" {
		paths = append(slices.Clone(paths), j.Kernel, j.Initrd)
	}
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("microvm: launch: %w", err)
		}
		opened = append(opened, f)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fmt.Errorf("microvm: launch: %w", err)
	}
	sys := &unix.SysProcAttr{Setsid: true}
	if sys.Credential, err = credential(j.UID, j.Accel); err != nil {
		return err
	}
	sys.Cloneflags = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	proc, err := os.StartProcess(j.Program, append([]string{j.Program}, arguments(&j)...), &os.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/bin:/bin"},
		Files: append([]*os.File{null, os.Stdout, os.Stderr}, opened...), Sys: sys,
	})
	if err != nil {
		return fmt.Errorf("microvm: start %s: %w", j.Program, err)
	}
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(proc.Pid)), 0o600); err != nil {
		return errors.Join(fmt.Errorf("microvm: launch: %w", err), proc.Kill())
	}
	return nil
}

// openMemory makes the machine's memory, filled from a checkpoint's file when
// there is one.
func openMemory(size int64, from string) (*os.File, error) {
	fd, err := unix.MemfdCreate(memoryName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("microvm: memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), memoryName)
	if err := f.Truncate(size); err != nil {
		return nil, fmt.Errorf("microvm: memory: %w", err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return nil, fmt.Errorf("microvm: memory: %w", err)
	}
	if from == "" {
		return f, nil
	}
	src, err := os.Open(from)
	if err != nil {
		return nil, fmt.Errorf("microvm: memory: %w", err)
	}
	defer src.Close()
	return f, unpackExtents(f, src, size)
}

// listenAt makes a listening socket in the working directory.
func listenAt(name string) (*os.File, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("microvm: launch: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("microvm: launch: %w", err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	f, err := l.File()
	if err != nil {
		return nil, fmt.Errorf("microvm: launch: %w", err)
	}
	return f, os.Chmod(name, 0o600)
}

// MachineType is a name with a version: a checkpoint is tied to it.
const machineType = "pc-q35-7.2"

// commandLine of the kernel: quiet, quick, and off when it fails.
const commandLine = "console=ttyS0 quiet reboot=t panic=-1 tsc=reliable no_timer_check 8250.nr_uarts=1 i8042.noaux " +
	"i8042.nokbd i8042.nopnp cryptomgr.notests random.trust_cpu=on audit=0 rcupdate.rcu_expedited=1 ipv6.disable_ipv6=1 net.ifnames=0"

// platform is what is the same for every machine, and for the probe of them.
func platform(accel string) []string {
	cpu, how := "host", "kvm"
	if accel == TCG {
		cpu, how = "max", "tcg,thread=multi,tb-size=64"
	}
	return []string{"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-accel", how, "-cpu", cpu}
}

// arguments of QEMU.
func arguments(j *job) []string {
	size := strconv.FormatInt(j.Machine.MemoryBytes, 10)
	fd := strconv.Itoa
	args := append(platform(j.Accel),
		"-name", "skerry-"+string(j.ID),
		"-M", machineType+",memory-backend=m,suppress-vmdesc=on,hpet=off,sata=off,smbus=off,usb=off",
		"-smp", strconv.Itoa(j.Machine.CPUs), "-m", strconv.FormatInt(j.Machine.MemoryBytes>>20, 10)+"M",
		"-object", "memory-backend-file,id=m,size="+size+",mem-path=/proc/self/fd/"+fd(memoryFD)+",share=on",
		"-chardev", "stdio,id=con,signal=off", "-serial", "chardev:con",
		"-chardev", "socket,id=qmp,fd="+fd(qmpFD)+",server=on,wait=off", "-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=guest,fd="+fd(guestFD)+",server=on,wait=off",
		"-device", "virtio-serial-pci,id=vs0", "-device", "virtserialport,bus=vs0.0,chardev=guest,name="+vmapi.Port,
		"-device", "virtio-rng-pci,id=rng0",
		"-netdev", "tap,id=n0,fd="+fd(tapFD), "-device", "virtio-net-pci,netdev=n0,romfile=,mac="+guestMAC.String(),
		"-global", "migration.send-configuration=off",
		"-add-fd", "fd="+fd(diskFD)+",set=1",
		"-blockdev", "driver=raw,node-name=disk,discard=unmap,file.driver=file,file.filename=/dev/fdset/1",
		"-device", "virtio-blk-pci,drive=disk,id=disk0,serial="+vmapi.DiskSerial,
	)
	for i := range j.Roots {
		set := strconv.Itoa(2 + i)
		args = append(args,
			"-add-fd", "fd="+fd(rootFD+i)+",set="+set,
			"-blockdev", "driver=raw,read-only=on,node-name=root"+fd(i)+",file.driver=file,file.filename=/dev/fdset/"+set,
			"-device", "virtio-blk-pci,drive=root"+fd(i)+",serial="+vmapi.RootSerial+fd(i),
		)
	}
	if j.Memory == "" {
		at := rootFD + len(j.Roots)
		args = append(args, "-kernel", "/proc/self/fd/"+fd(at), "-initrd", "/proc/self/fd/"+fd(at+1), "-append", commandLine)
	} else {
		args = append(args, "-S", "-incoming", "defer")
	}
	return append(args, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
}

// credential is nobody's: a user of the machine's own, with no group but the one
// that may use /dev/kvm.
func credential(uid uint32, accel string) (*syscall.Credential, error) {
	c := &syscall.Credential{Uid: uid, Gid: uid}
	if accel != KVM {
		return c, nil
	}
	group, err := kvmGroup()
	if err == nil && group != 0 {
		c.Groups = []uint32{group}
	}
	return c, err
}

// kvmGroup is the group that a user without rights needs for /dev/kvm, 0 when it
// is open to all.
func kvmGroup() (uint32, error) {
	var st unix.Stat_t
	if err := unix.Stat("/dev/kvm", &st); err != nil {
		return 0, fmt.Errorf("microvm: /dev/kvm: %w", err)
	}
	switch {
	case st.Mode&0o006 == 0o006:
		return 0, nil
	case st.Mode&0o060 == 0o060 && st.Gid != 0:
		return st.Gid, nil
	}
	return 0, errors.New("machines run without root's rights and cannot open /dev/kvm: `groupadd -rf kvm && chgrp kvm /dev/kvm && chmod 660 /dev/kvm`")
}

// procsOf are the files that a process enters the groups by.
func (g groups) procsOf(id string) []string {
	var out []string
	for _, leaf := range g.leaves(id) {
		out = append(out, filepath.Join(leaf, "cgroup.procs"))
	}
	return out
}
