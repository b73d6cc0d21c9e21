package shim

import (
	"context"
	"os"
	"os/signal"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxOrphans is how many ended processes nobody had asked for are remembered:
// an engine process may end before its client has told us its pid.
const maxOrphans = 256

type orphan struct {
	pid    int
	start  uint64
	status unix.WaitStatus
}

// reap collects every child that ends, those that became ours by reparenting
// included. Nothing else in this process may wait for a child.
func (s *server) reap(ctx context.Context) error {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	for {
		for s.reapOne() {
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *server) reapOne() bool {
	// Looked at first without being collected: as long as it is a zombie its
	// start time can be read and its pid is not used again.
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err == unix.EINTR {
		return true
	}
	pid := siginfoPID(&info)
	if err != nil || pid == 0 {
		return false
	}
	start, _ := StartTime(pid)

	s.mu.Lock()
	defer s.mu.Unlock()
	var status unix.WaitStatus
	if got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); err != nil || got != pid {
		return true
	}
	if client, ok := s.clients[pid]; ok {
		delete(s.clients, pid)
		client <- status
		return true
	}
	for p, w := range s.watched {
		if p.PID == pid && p.Start == start {
			s.finishLocked(w, status, true)
			return true
		}
	}
	if len(s.orphans) >= maxOrphans {
		s.orphans = append(s.orphans[:0], s.orphans[maxOrphans/2:]...)
	}
	s.orphans = append(s.orphans, orphan{pid: pid, start: start, status: status})
	return true
}

// siginfoPID reads si_pid, which the package leaves in the padding. On all
// 64-bit machines the union starts 16 bytes in.
func siginfoPID(info *unix.Siginfo) int {
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), 16)))
}

// takeOrphanLocked finds how a process we have already collected ended; start
// 0 takes any with this pid, newest first.
func (s *server) takeOrphanLocked(pid int, start uint64) (orphan, bool) {
	for i := len(s.orphans) - 1; i >= 0; i-- {
		if o := s.orphans[i]; o.pid == pid && (start == 0 || o.start == start) {
			s.orphans = append(s.orphans[:i], s.orphans[i+1:]...)
			return o, true
		}
	}
	return orphan{}, false
}
