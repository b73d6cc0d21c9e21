package vminit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// caps of the workload's PID 1 and its limit for all it starts: what a container
// has, and what the daemon needs beyond it, which it does not hand on.
var caps = []uint{
	unix.CAP_AUDIT_WRITE, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_MKNOD,
	unix.CAP_NET_BIND_SERVICE, unix.CAP_SETFCAP, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_SETUID, unix.CAP_SYS_CHROOT,
	unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_SYS_RESOURCE, unix.CAP_SYS_TIME,
}

// Descriptors the program is started with as the workload's PID 1.
const (
	toldFD = 3 // its plan
	sayFD  = 4 // what kept it from its program
)

// Workload becomes the workload's program. It returns when that failed.
func Workload() {
	// What a capability is taken from is the thread, which must be the one that
	// becomes the program.
	runtime.LockOSThread()
	unix.CloseOnExec(sayFD)
	if err := enter(); err != nil {
		say := os.NewFile(sayFD, "complaint")
		fmt.Fprint(say, err)
		say.Close()
	}
}

func enter() error {
	told := os.NewFile(toldFD, "plan")
	b, err := io.ReadAll(told)
	told.Close()
	if err != nil {
		return err
	}
	var p plan
	if err := json.Unmarshal(b, &p); err != nil {
		return err
	}
	if len(p.Args) == 0 {
		return errors.New("no program")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := furnish(rootDir, p.ShmBytes); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(p.Hostname)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	// The initramfs cannot be pivoted away from.
	if err := errors.Join(unix.Chdir(rootDir), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	for resource, limit := range map[int]unix.Rlimit{
		unix.RLIMIT_NOFILE: {Cur: 65_536, Max: 1 << 20}, unix.RLIMIT_CORE: {},
	} {
		if err := unix.Setrlimit(resource, &limit); err != nil {
			return fmt.Errorf("limit: %w", err)
		}
	}
	program, err := find(p.Args[0], p.Env)
	if err != nil {
		return err
	}
	if err := restrict(); err != nil {
		return err
	}
	if err := unix.Exec(program, p.Args, p.Env); err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	return nil
}

func find(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, v := range env {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			for _, dir := range filepath.SplitList(path) {
				if at := filepath.Join(dir, name); unix.Access(at, unix.X_OK) == nil {
					return at, nil
				}
			}
		}
	}
	return "", fmt.Errorf("%s: %w", name, os.ErrNotExist)
}

// furnish mounts what every process expects below root.
func furnish(root string, shmBytes int64) error {
	const quiet = unix.MS_NOSUID | unix.MS_NOEXEC
	for _, m := range []struct {
		kind, dir string
		flags     uintptr
		data      string
	}{
		{"proc", "/proc", quiet | unix.MS_NODEV, ""},
		{"sysfs", "/sys", quiet | unix.MS_NODEV | unix.MS_RDONLY, ""},
		{"tmpfs", "/dev", unix.MS_NOSUID, "mode=755,size=64k"},
		{"devpts", "/dev/pts", quiet, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, fmt.Sprintf("mode=1777,size=%d", shmBytes)},
	} {
		if err := mount(m.kind, filepath.Join(root, m.dir), m.kind, m.flags, m.data); err != nil {
			return err
		}
	}
	dev := filepath.Join(root, "dev")
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err := node(filepath.Join(dev, name), 1, minor); err != nil {
			return err
		}
	}
	if err := node(filepath.Join(dev, "tty"), 5, 0); err != nil {
		return err
	}
	for name, to := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(to, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	return nil
}

func node(path string, major, minor uint32) error {
	if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor))); err != nil {
		return fmt.Errorf("device %s: %w", path, err)
	}
	return unix.Chmod(path, 0o666) // whatever the mask
}

// restrict takes away what the workload may not do to the kernel it runs on.
func restrict() error {
	var mask uint64
	for _, c := range caps {
		mask |= 1 << c
	}
	for c := uint(0); c <= unix.CAP_LAST_CAP; c++ {
		if mask&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("capability %d: %w", c, err)
		}
	}
	low, high := uint32(mask), uint32(mask>>32)
	data := [2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}}
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	return nil
}
