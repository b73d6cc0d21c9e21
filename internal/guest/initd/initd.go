package initd

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/guest/fence"
	"skerry.dev/skerry/internal/guest/guestapi"
)

const (
	backoffMin = 10 * time.Millisecond
	backoffMax = 5 * time.Second
	healthy    = 30 * time.Second // after so long a restart begins a new count
	// stopGrace is how long everything has to end by itself.
	stopGrace = 2 * time.Second
)

// Run is the life of PID 1. It returns nil after a SIGTERM, when everything
// else has ended.
func Run(log *slog.Logger) error {
	boot, err := ReadBoot(os.Stdin)
	if err != nil {
		return err
	}
	if err := discardStdin(); err != nil {
		return err
	}
	if err := Undumpable(); err != nil {
		return err
	}
	unix.Umask(0o022) // for all that is made from here on, in the daemon as well
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{{"/tmp", 0o777 | os.ModeSticky}, {"/run", 0o755}, {"/var/tmp", 0o777 | os.ModeSticky}} {
		if err := ensureDir(dir.path, dir.mode); err != nil {
			log.Warn("cannot make a directory", "path", dir.path, "error", err)
		}
	}
	// A sandbox with an odd /etc still starts: the fault is told and the
	// processes inside see it.
	if err := errors.Join(WriteIdentity("/", boot.Hostname, boot.Nameserver), SetHostname(boot.Hostname)); err != nil {
		log.Warn("cannot write the sandbox's identity", "error", err)
	}
	// The listener is PID 1's, so the port is never free for somebody inside to
	// catch the host's next call, and its secret, while the daemon restarts.
	ln, err := net.Listen("tcp", fmt.Sprintf(":%d", Port(boot)))
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	k := &keeper{log: log, boot: boot, listener: file, stop: make(chan os.Signal, 1)}
	if os.Getpid() == 1 {
		if err := sealProgram(); err != nil {
			log.Warn("the daemon's program is not protected from root", "error", err)
		}
		// Without it the guard is alone, and quick in most cases.
		if k.fence, err = fence.Raise(); err != nil {
			log.Warn("processes are limited by the guard alone", "error", err)
		}
	}
	signal.Notify(k.stop, syscall.SIGTERM, syscall.SIGINT)
	return k.run()
}

// keeper keeps one serving daemon alive.
type keeper struct {
	log      *slog.Logger
	boot     guestapi.Boot
	listener *os.File
	fence    *fence.Fence // nil: none; PID 1's, so that it outlives each daemon
	stop     chan os.Signal

	mu   sync.Mutex
	last *guestapi.Init
}

type status struct {
	pid int
	ws  unix.WaitStatus
}

func (k *keeper) run() error {
	wake := make(chan os.Signal, 1)
	signal.Notify(wake, syscall.SIGCHLD)
	backoff := backoffMin
	for restarts := 0; ; restarts++ {
		began := time.Now()
		pid, reports, err := k.start(restarts)
		if err != nil {
			k.log.Error("cannot start the daemon", "error", err)
		} else {
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				k.listen(reports)
			}()
			stopped := k.attend(pid, wake)
			<-ended
			if stopped {
				return nil
			}
		}
		if time.Since(began) > healthy {
			backoff = backoffMin
		}
		timer := time.NewTimer(backoff)
		for waiting := true; waiting; {
			select {
			case <-timer.C:
				waiting = false
			case <-wake:
				k.reap()
			case <-k.stop:
				k.endAll(0)
				return nil
			}
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// attend reaps until the daemon pid is gone, or all were told to stop.
func (k *keeper) attend(pid int, wake <-chan os.Signal) (stopped bool) {
	for {
		for _, s := range k.reap() {
			if s.pid == pid {
				k.log.Error("the daemon ended", "status", int(s.ws))
				return false
			}
		}
		select {
		case <-wake:
		case <-k.stop:
			k.endAll(pid)
			return true
		}
	}
}

// reap takes the status of every child that has ended, also of those whose
// parents died before them.
func (k *keeper) reap() []status {
	var all []status
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return all
		}
		all = append(all, status{pid, ws})
	}
}

// endAll ends every process of the sandbox. Only the real PID 1 may address
// everybody; elsewhere it is the daemon alone.
func (k *keeper) endAll(daemon int) {
	target := -1
	if os.Getpid() != 1 {
		if target = daemon; daemon == 0 {
			return
		}
	}
	_ = unix.Kill(target, unix.SIGTERM)
	deadline := time.Now().Add(stopGrace)
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		switch {
		case err == unix.ECHILD:
			return
		case pid > 0:
			continue
		case time.Now().After(deadline):
			_ = unix.Kill(target, unix.SIGKILL)
			deadline = deadline.Add(stopGrace)
		}
		pause := time.NewTimer(5 * time.Millisecond)
		<-pause.C
	}
}

// start runs a daemon in a session of its own and passes it its document
// through a pipe.
func (k *keeper) start(restarts int) (pid int, reports *os.File, err error) {
	docR, docW, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer docR.Close()
	defer docW.Close()
	repR, repW, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer repW.Close()
	k.mu.Lock()
	doc := Document{Boot: k.boot, Init: k.last, System: os.Getpid() == 1, Restarts: restarts, ListenerFD: 3, ReportFD: 4}
	k.mu.Unlock()
	files := []uintptr{docR.Fd(), 1, 2, k.listener.Fd(), repW.Fd()}
	if dir := k.fence.File(); dir != nil {
		doc.FenceFD = len(files)
		files = append(files, dir.Fd())
	}
	// One processor is enough for the daemon, and the others are the sandbox's: a
	// wake-up from one thread to another costs more here than what it would win.
	pid, err = syscall.ForkExec("/proc/self/exe", []string{"skerry-guest", "serve"}, &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "GOMAXPROCS=1"},
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err == nil {
		docR.Close()
		err = json.NewEncoder(docW).Encode(doc)
	}
	if err != nil {
		repR.Close()
		if pid > 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		return 0, nil, err
	}
	return pid, repR, nil
}

// listen remembers each configuration the daemon reports, until it is gone.
func (k *keeper) listen(reports *os.File) {
	defer reports.Close()
	lines := bufio.NewReaderSize(reports, 64<<10)
	dec := json.NewDecoder(lines)
	for {
		var in guestapi.Init
		if err := dec.Decode(&in); err != nil {
			return
		}
		k.mu.Lock()
		k.last = &in
		if in.NewInitSecret != "" { // the next daemon must know no other
			k.boot.InitSecret = in.NewInitSecret
		}
		k.mu.Unlock()
	}
}

// Undumpable keeps the process's memory and descriptors from everybody inside
// who has no right to trace: also from root without that capability.
func Undumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("protecting the daemon's memory: %w", err)
	}
	return nil
}

// sealProgram keeps root inside from writing to the program that runs as PID 1:
// its pages are the file's, and code put there would have PID 1's rights and
// secret. Without the right to mount nobody can take that back.
func sealProgram() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if err := unix.Mount(exe, exe, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding %s: %w", exe, err)
	}
	if err := unix.Mount("", exe, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("making %s read-only: %w", exe, err)
	}
	return nil
}

// discardStdin closes the descriptor the secret came on.
func discardStdin() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	return unix.Dup3(int(null.Fd()), 0, 0)
}

func ensureDir(path string, mode os.FileMode) error {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return nil
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}
