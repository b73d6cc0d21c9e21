// Package fence bounds how many tasks everything a sandbox's commands start can
// have, by the kernel: a fork beyond fails. The guard ends offenders with
// judgement, but a bomb may grow faster than one can look; without the fence it
// takes all the host gives the sandbox, which then ends as a whole.
//
// gVisor as it comes refuses one fork in seven or eight beyond the limit; see
// tools/runsc.
package fence

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Fence is a group of the kernel's pids controller. PID 1 and the daemon stand
// outside of it and always get what they need.
type Fence struct {
	dir     *os.File
	current int // open for reading
}

// unlimited is the most the controller takes as a number.
const unlimited = 4 << 20

// Raise makes the group. Its file system is mounted for a moment only: what is
// not in the tree cannot be changed by root inside, who has no right to mount.
// The group lives as long as the fence or a descriptor made from it.
func Raise() (_ *Fence, err error) {
	at, err := os.MkdirTemp("/run", ".fence-")
	if err != nil {
		return nil, fmt.Errorf("fence: %w", err)
	}
	defer os.Remove(at)
	if err := unix.Mount("none", at, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "pids"); err != nil {
		return nil, fmt.Errorf("fence: mounting the pids controller: %w", err)
	}
	defer func() {
		if e := unix.Unmount(at, unix.MNT_DETACH); e != nil && err == nil {
			err = fmt.Errorf("fence: hiding the pids controller: %w", e)
		}
	}()
	inside := filepath.Join(at, "inside")
	if err := os.Mkdir(inside, 0o700); err != nil && !os.IsExist(err) {
		return nil, fmt.Errorf("fence: %w", err)
	}
	dir, err := os.Open(inside)
	if err != nil {
		return nil, fmt.Errorf("fence: %w", err)
	}
	return newFence(dir)
}

// FromFD takes over a descriptor of File.
func FromFD(fd int) (*Fence, error) {
	unix.CloseOnExec(fd)
	return newFence(os.NewFile(uintptr(fd), "fence"))
}

func newFence(dir *os.File) (*Fence, error) {
	fd, err := unix.Openat(int(dir.Fd()), "pids.current", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("fence: pids.current: %w", err)
	}
	return &Fence{dir: dir, current: fd}, nil
}

// File is what to pass on; nil when there is no fence.
func (f *Fence) File() *os.File {
	if f == nil {
		return nil
	}
	return f.dir
}

// Tasks is how many the fence holds for a limit of processes: a little above it,
// so that the guard sees an excess and ends it, and for the threads of ordinary
// programs. The closer it is, the less a bomb takes of the processor that the
// guard needs. 0 is no limit.
func Tasks(processes int) int {
	if processes <= 0 {
		return unlimited
	}
	return min(processes+32, unlimited)
}

// Limit lets in so many tasks; those inside stay.
func (f *Fence) Limit(tasks int) error { return f.write("pids.max", strconv.Itoa(tasks)) }

// Join puts the calling thread inside, and so all it starts from now on.
func (f *Fence) Join() error { return f.write("tasks", "0") }

// Used is how many tasks are inside. It is one call of the kernel, since in a
// crowd each is a long wait.
func (f *Fence) Used() (int, error) {
	var b [24]byte
	n, err := unix.Pread(f.current, b[:], 0)
	if err != nil {
		return 0, fmt.Errorf("fence: pids.current: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(b[:max(n, 0)])))
}

// Close lets go of the group.
func (f *Fence) Close() error { return errors.Join(unix.Close(f.current), f.dir.Close()) }

func (f *Fence) write(name, value string) error {
	fd, err := unix.Openat(int(f.dir.Fd()), name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fence: %s: %w", name, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("fence: %s: %w", name, err)
	}
	return nil
}
