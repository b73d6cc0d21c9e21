package shim

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// StartTime reads when a process started, in clock ticks since boot. Together
// with the pid it names a process for good; it can still be read of a zombie.
func StartTime(pid int) (uint64, error) {
	f, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

// statFields returns the fields of /proc/<pid>/stat from the third (state) on;
// the second may hold spaces and brackets.
func statFields(pid int) ([][]byte, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, ErrGone
	}
	i := bytes.LastIndexByte(b, ')')
	f := bytes.Fields(b[i+1:])
	if i < 0 || len(f) < 20 {
		return nil, fmt.Errorf("shim: unreadable /proc/%d/stat", pid)
	}
	return f, nil
}

func isChild(pid int) bool {
	f, err := statFields(pid)
	if err != nil {
		return false
	}
	ppid, err := strconv.Atoi(string(f[1]))
	return err == nil && ppid == os.Getpid()
}

// openProcess returns a pidfd of exactly this process, or ErrGone. The start
// time is compared after the descriptor is open, so that a pid used again in
// between is noticed.
func openProcess(p Process) (int, error) {
	if p.PID <= 0 {
		return -1, ErrGone
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH {
		return -1, ErrGone
	}
	if err != nil {
		return -1, fmt.Errorf("shim: pidfd of %d: %w", p.PID, err)
	}
	start, err := StartTime(p.PID)
	if err != nil || start != p.Start {
		_ = unix.Close(fd)
		return -1, ErrGone
	}
	return fd, nil
}

// Alive tells whether exactly this process still runs. A zombie does not.
func Alive(p Process) bool {
	fd, err := openProcess(p)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return !readable(fd)
}

// readable tells whether the process behind a pidfd has ended.
func readable(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

func signalProcess(p Process, sig unix.Signal) error {
	fd, err := openProcess(p)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		if err == unix.ESRCH {
			return ErrGone
		}
		return fmt.Errorf("shim: signal %d to %d: %w", sig, p.PID, err)
	}
	return nil
}

// awaitEnd waits in the runtime's poller, not in a thread, until the process
// behind fd has ended, or ctx has. It takes fd over.
func awaitEnd(ctx context.Context, p Process, fd int) (status unix.WaitStatus, known bool, err error) {
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, false, err
	}
	if err := raw.Read(func(fd uintptr) bool { return readable(int(fd)) }); err != nil {
		if ctx.Err() != nil {
			return 0, false, ctx.Err()
		}
		return 0, false, err
	}
	err = raw.Control(func(fd uintptr) { status, known = exitOf(p, int(fd)) })
	return status, known, err
}

// exitOf learns how a process that is not our child ended: from its zombie, or
// once its parent has collected it from the kernel, which can tell since Linux
// 6.15.
func exitOf(p Process, fd int) (unix.WaitStatus, bool) {
	if f, err := statFields(p.PID); err == nil && len(f) >= 50 && string(f[0]) == "Z" && string(f[19]) == strconv.FormatUint(p.Start, 10) {
		if code, err := strconv.ParseUint(string(f[49]), 10, 32); err == nil {
			return unix.WaitStatus(code), true
		}
	}
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(fd, &info); err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, false
	}
	return unix.WaitStatus(info.Exit_code), true
}

func fdatasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }
