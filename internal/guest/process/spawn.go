package process

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// spawners is how many threads start processes. A start is over when the new
// program runs, so two are enough to keep the kernel busy.
const spawners = 2

// stockCapabilities is what a stock container may have, and so all that
// anything the daemon starts can ever gain, by whatever set-uid program.
var stockCapabilities = [...]int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
	unix.CAP_MKNOD, unix.CAP_NET_BIND_SERVICE, unix.CAP_SETFCAP, unix.CAP_SETGID,
	unix.CAP_SETPCAP, unix.CAP_SETUID, unix.CAP_SYS_CHROOT, unix.CAP_AUDIT_WRITE,
}

// spawner starts programs from threads whose capability bounding set was cut
// down. The set belongs to a thread and is inherited by fork, so the daemon
// keeps its own and needs no helper program between itself and the child.
type spawner struct {
	cloner *cloner
	jobs   chan spawnJob
	wg     sync.WaitGroup
}

type spawnJob struct {
	argv0 string
	argv  []string
	attr  *syscall.ProcAttr
	done  chan<- spawned
}

type spawned struct {
	pid int
	err error
}

// newSpawner starts the threads; each calls extra, when there is one, to confine
// itself further.
func newSpawner(extra func() error) (*spawner, error) {
	s := &spawner{cloner: newCloner(), jobs: make(chan spawnJob)}
	ready := make(chan error, spawners)
	for range spawners {
		s.wg.Go(func() { s.run(extra, ready) })
	}
	var failed error
	for range spawners {
		if err := <-ready; err != nil {
			failed = err
		}
	}
	if failed != nil {
		s.close()
		return nil, failed
	}
	return s, nil
}

// run never unlocks its thread: the runtime ends the thread with the
// goroutine, so a confined thread is never used for anything else.
func (s *spawner) run(extra func() error, ready chan<- error) {
	runtime.LockOSThread()
	err := confine()
	if err == nil && extra != nil {
		err = extra()
	}
	ready <- err
	if err != nil {
		return
	}
	for j := range s.jobs {
		pid, err := s.cloner.start(j.argv0, j.argv, j.attr)
		j.done <- spawned{pid, err}
	}
}

func (s *spawner) start(argv0 string, argv []string, attr *syscall.ProcAttr) (int, error) {
	done := make(chan spawned, 1)
	s.jobs <- spawnJob{argv0, argv, attr, done}
	r := <-done
	return r.pid, r.err
}

func (s *spawner) close() {
	close(s.jobs)
	s.wg.Wait()
}

// confine cuts the calling thread down to the stock set: bounding set, ambient
// set and inheritable set. What the thread may do itself stays, since it has
// to change user for its children. Without root there is nothing to give away.
func confine() error {
	if os.Geteuid() != 0 {
		return nil
	}
	var keep [64]bool
	for _, c := range stockCapabilities {
		keep[c] = true
	}
	for c := range keep {
		if keep[c] {
			continue
		}
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err != nil { // past the last one this kernel knows
			break
		}
		if has == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("dropping capability %d from the bounding set: %w", c, err)
		}
	}
	// Older kernels have no ambient set; then there is nothing to clear.
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("reading capabilities: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("clearing inheritable capabilities: %w", err)
	}
	return nil
}
