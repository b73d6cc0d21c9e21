package vminit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/guest/vmapi"
)

// WorkloadCommand is what this program is started again with, as PID 1 of the
// workload's namespace.
const WorkloadCommand = "workload"

// Places in the initramfs; the workload sees none of them.
const (
	diskDir  = "/disk"
	rootDir  = "/root"
	workCg   = "/cg/work"
	layerDir = "/layer"
)

// workload is the image's first process and all of its children.
type workload struct {
	pid  int
	ooms int64 // kills for lack of memory before it began
}

// plan is what the program needs to know as the workload's PID 1.
type plan struct {
	Args     []string
	Env      []string
	Hostname string
	ShmBytes int64
}

// startWorkload puts the root tree together and returns when the workload's
// program runs.
func startWorkload(s *vmapi.Start) (*workload, error) {
	if err := mountRoot(s); err != nil {
		return nil, err
	}
	if err := os.Mkdir(workCg, 0o755); err != nil {
		return nil, err
	}
	if err := errors.Join(
		os.WriteFile("/cg/cgroup.subtree_control", []byte("+pids"), 0),
		os.WriteFile(filepath.Join(workCg, "pids.max"), []byte(strconv.Itoa(s.MaxProcesses)), 0),
	); err != nil {
		return nil, err
	}
	cg, err := os.Open(workCg)
	if err != nil {
		return nil, err
	}
	defer cg.Close()
	stdin, err := filled(s.Stdin)
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	how, err := json.Marshal(plan{Args: s.Args, Env: s.Env, Hostname: s.Hostname, ShmBytes: s.ShmBytes})
	if err != nil {
		return nil, err
	}
	told, err := filled(how)
	if err != nil {
		return nil, err
	}
	defer told.Close()
	said, say, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer said.Close()
	w := &workload{ooms: oomKills()}
	w.pid, err = syscall.ForkExec("/proc/self/exe", []string{"init", WorkloadCommand}, &syscall.ProcAttr{
		Dir: "/", Files: []uintptr{stdin.Fd(), 1, 2, told.Fd(), say.Fd()},
		Sys: &syscall.SysProcAttr{
			Setsid: true, UseCgroupFD: true, CgroupFD: int(cg.Fd()),
			Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		},
	})
	say.Close()
	if err != nil {
		return nil, fmt.Errorf("start the workload: %w", err)
	}
	go w.collect(s.DiskBytes) // to the machine's end
	// Nothing is said when the program runs: the descriptor closes by itself.
	complaint, err := io.ReadAll(io.LimitReader(said, 1<<10))
	if err == nil && len(complaint) > 0 {
		err = errors.New(string(complaint))
	}
	return w, err
}

// filled is a pipe that holds b and ends.
func filled(b []byte) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	// As much as any workload is given; what a pipe holds without it is enough for
	// most.
	_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	if err := w.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if _, err := w.Write(b); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// collect takes the end of every process that nobody else does, and when it is
// the workload's turns the machine off.
func (w *workload) collect(diskBytes int64) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) || err == nil && pid != w.pid {
			continue
		}
		end := vmapi.End{Skerry: 1, Code: status.ExitStatus()}
		if status.Signaled() {
			end.Code = 128 + int(status.Signal())
			end.OutOfMemory = status.Signal() == unix.SIGKILL && oomKills() > w.ooms
		}
		if err := leave(end, diskBytes); err != nil {
			fmt.Fprintln(os.Stderr, "skerry: how the workload ended cannot be told:", err)
		}
		if err := Off(); err != nil {
			fmt.Fprintln(os.Stderr, "skerry: off:", err)
		}
		return
	}
}

// leave writes the end behind the disk's file system.
func leave(end vmapi.End, diskBytes int64) error {
	b, err := json.Marshal(end)
	if err != nil {
		return err
	}
	dev, err := device(vmapi.DiskSerial)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(dev, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(append(b, make([]byte, vmapi.EndBytes-len(b))...), diskBytes)
	return err
}

func oomKills() int64 {
	b, _ := os.ReadFile("/proc/vmstat")
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			return n
		}
	}
	return 0
}

// freeze stops the workload's processes, or lets them go on, and returns when
// that is so.
func (w *workload) freeze(stop bool) error {
	value := "0"
	if stop {
		value = "1"
	}
	if err := os.WriteFile(filepath.Join(workCg, "cgroup.freeze"), []byte(value), 0); err != nil {
		return err
	}
	if !stop {
		return nil
	}
	return until(5*time.Second, func() error {
		b, err := os.ReadFile(filepath.Join(workCg, "cgroup.events"))
		if err == nil && !strings.Contains(string(b), "frozen 1") {
			err = errors.New("the workload does not stand still")
		}
		return err
	})
}

// device finds a disk by its serial number: its letter depends on the machine.
func device(serial string) (string, error) {
	var dev string
	err := until(10*time.Second, func() error {
		names, _ := filepath.Glob("/sys/block/*/serial")
		for _, path := range names {
			if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == serial {
				dev = filepath.Join("/dev", filepath.Base(filepath.Dir(path)))
				_, err := os.Stat(dev)
				return err
			}
		}
		return fmt.Errorf("no disk %q", serial)
	})
	return dev, err
}

// mountRoot puts layers and disk together at rootDir.
func mountRoot(s *vmapi.Start) error {
	if s.Roots < 1 || s.Roots > 8 {
		return fmt.Errorf("%d layers", s.Roots)
	}
	var layers []string
	for i := range s.Roots {
		dev, err := device(vmapi.RootSerial + strconv.Itoa(i))
		if err != nil {
			return err
		}
		dir := layerDir + strconv.Itoa(i)
		if err := mount(dev, dir, "erofs", unix.MS_RDONLY, ""); err != nil {
			return err
		}
		layers = append(layers, dir)
	}
	dev, err := device(vmapi.DiskSerial)
	if err != nil {
		return err
	}
	if err := mount(dev, diskDir, "ext4", unix.MS_NOATIME, "discard"); err != nil {
		return err
	}
	upper, work := filepath.Join(diskDir, "upper"), filepath.Join(diskDir, "work")
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return mount("root", rootDir, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(layers, ":"), upper, work))
}

func mount(source, dir, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, dir, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, dir, err)
	}
	return nil
}
