package pg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// server is a running process of this cluster, held by a pidfd so that a
// signal can never reach another process that got the same number.
type server struct {
	pid int
	fd  int
}

// running finds the cluster's server, or nil. The number in postmaster.pid is
// believed only when that process is a postgres at work in our data directory:
// asked after the pidfd was opened, so the answer is about the process we hold.
func (c *Cluster) running() (*server, error) {
	raw, err := os.ReadFile(filepath.Join(c.data, "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 {
		return nil, nil
	}
	return c.hold(pid)
}

func (c *Cluster) hold(pid int) (*server, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	s := &server{pid: pid, fd: fd}
	if !c.ours(pid) {
		s.close()
		return nil, nil
	}
	return s, nil
}

// ours reports whether a process is a postgres whose working directory is our
// data directory; every process of a server has that one.
func (c *Cluster) ours(pid int) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	exe, err := os.Readlink(proc + "/exe")
	if err != nil || filepath.Base(strings.TrimSuffix(exe, " (deleted)")) != "postgres" {
		return false
	}
	cwd, err := os.Stat(proc + "/cwd")
	if err != nil {
		return false
	}
	data, err := os.Stat(c.data)
	return err == nil && os.SameFile(cwd, data)
}

func (s *server) close() { _ = unix.Close(s.fd) }

func (s *server) signal(sig unix.Signal) error {
	err := unix.PidfdSendSignal(s.fd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// wait returns when the process has ended.
func (s *server) wait(ctx context.Context) error {
	for {
		// In slices, so that the end of ctx is seen without another goroutine.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, 50)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for postgres: %w", err)
		}
		if n > 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("postgres has not ended yet: %w", err)
		}
	}
}

// adopt reports whether a server of ours runs already and takes connections at
// our socket. One that runs but cannot be reached (its socket was swept away)
// is stopped, so that it can be started anew.
func (c *Cluster) adopt(ctx context.Context) bool {
	s, err := c.running()
	if err != nil || s == nil {
		return false
	}
	defer s.close()
	deadline := time.Now().Add(startWithin) // it may be recovering from a crash
	for time.Now().Before(deadline) && ctx.Err() == nil {
		if c.answers(ctx) {
			return c.ensureDatabase(ctx) == nil
		}
		if _, err := os.Stat(filepath.Join(c.SocketDir, ".s.PGSQL."+clusterPort)); err != nil && !c.starting() {
			break
		}
		waiting, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		ended := s.wait(waiting) == nil
		cancel()
		if ended {
			return false
		}
	}
	if s.signal(unix.SIGINT) == nil {
		_ = s.wait(ctx)
	}
	return false
}

// starting reports whether the server has not yet said that it is ready.
func (c *Cluster) starting() bool {
	raw, err := os.ReadFile(filepath.Join(c.data, "postmaster.pid"))
	return err == nil && !strings.Contains(string(raw), "\nready")
}

// clearRemains makes way after a server that was killed: backends that still
// hold its shared memory notice by themselves or are ended, and only then a
// stale pid file, whose number may belong to another process by now, goes.
func (c *Cluster) clearRemains(ctx context.Context) error {
	for _, pid := range c.backends() {
		orphan, err := c.hold(pid)
		if err != nil {
			return err
		}
		if orphan == nil {
			continue
		}
		for _, step := range []struct {
			sig    unix.Signal
			within time.Duration
		}{{0, 200 * time.Millisecond}, {unix.SIGQUIT, 5 * time.Second}, {unix.SIGKILL, 10 * time.Second}} {
			if err = orphan.signal(step.sig); err != nil {
				break
			}
			waiting, cancel := context.WithTimeout(ctx, step.within)
			err = orphan.wait(waiting)
			cancel()
			if err == nil {
				break
			}
		}
		orphan.close()
		if err != nil {
			return fmt.Errorf("process %d of a former server does not end: %w", pid, err)
		}
	}
	if err := os.Remove(filepath.Join(c.data, "postmaster.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// backends lists the processes of this cluster.
func (c *Cluster) backends() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && c.ours(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}
