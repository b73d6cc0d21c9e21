package process

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaper waits for the daemon's own children without a blocked thread for
// each: one SIGCHLD makes it ask for all of them. It never waits for a process
// it was not told of.
type reaper struct {
	signals chan os.Signal
	stop    chan struct{}
	wg      sync.WaitGroup

	mu      sync.Mutex
	waiting map[int]func(unix.WaitStatus)
	sweeps  int // how often it asked for all
}

func newReaper() *reaper {
	r := &reaper{signals: make(chan os.Signal, 1), stop: make(chan struct{}), waiting: make(map[int]func(unix.WaitStatus))}
	signal.Notify(r.signals, syscall.SIGCHLD)
	r.wg.Go(func() {
		for {
			select {
			case <-r.signals:
				r.sweep()
			case <-r.stop:
				return
			}
		}
	})
	return r
}

// before is asked for before a child is started; add wants to know it.
func (r *reaper) before() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sweeps
}

// add has ended called once, from another goroutine, when the child is gone.
func (r *reaper) add(pid, before int, ended func(unix.WaitStatus)) {
	r.mu.Lock()
	r.waiting[pid] = ended
	missed := r.sweeps != before
	r.mu.Unlock()
	if missed { // it may have ended before it was known here
		r.collect(pid)
	}
}

func (r *reaper) sweep() {
	r.mu.Lock()
	r.sweeps++
	pids := make([]int, 0, len(r.waiting))
	for pid := range r.waiting {
		pids = append(pids, pid)
	}
	r.mu.Unlock()
	for _, pid := range pids {
		r.collect(pid)
	}
}

func (r *reaper) collect(pid int) {
	r.mu.Lock()
	ended, ok := r.waiting[pid]
	if !ok {
		r.mu.Unlock()
		return
	}
	var ws unix.WaitStatus
	got, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil)
	for err == unix.EINTR {
		got, err = unix.Wait4(pid, &ws, unix.WNOHANG, nil)
	}
	if err == nil && (got != pid || !(ws.Exited() || ws.Signaled())) {
		r.mu.Unlock()
		return
	}
	delete(r.waiting, pid)
	r.mu.Unlock()
	if err != nil { // somebody else took the status; the process is gone all the same
		ws = unix.WaitStatus(unix.SIGKILL)
	}
	ended(ws)
}

// signal sends to the process group of a child that was not reaped yet, so the
// number cannot mean anybody else. It reports false when the child is gone.
func (r *reaper) signal(pid int, sig unix.Signal) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.waiting[pid]; !ok {
		return false
	}
	return unix.Kill(-pid, sig) == nil
}

func (r *reaper) close() {
	signal.Stop(r.signals)
	close(r.stop)
	r.wg.Wait()
}
