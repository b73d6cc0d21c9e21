package fleet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stopWithin is how long a process may take to end in order.
const stopWithin = 30 * time.Second

// Process is one of Skerry's own programs, started and ended at will.
type Process struct {
	machine *machine
	program string
	args    []string
	env     func() []string // asked at each start
	log     string

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
	err    error
}

// Start starts it; one that runs is left alone.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.aliveLocked() {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(p.log), 0o711); err != nil {
		return err
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.program, p.args...)
	cmd.Env, cmd.Dir = p.env(), "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.machine.do(cmd.Start); err != nil {
		return err
	}
	exited := make(chan struct{})
	p.cmd, p.exited = cmd, exited
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(exited)
	}()
	return nil
}

func (p *Process) aliveLocked() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Alive reports whether it runs.
func (p *Process) Alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.aliveLocked()
}

// PID is its number, 0 when it was never started.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Kill ends it at once, as kill -9 does, and returns when it is gone.
func (p *Process) Kill() { _ = p.end(syscall.SIGKILL) }

// Stop ends it in order.
func (p *Process) Stop() error { return p.end(syscall.SIGTERM) }

// Freeze stops it in the middle of whatever it does, until the returned
// function is called.
func (p *Process) Freeze() (thaw func()) {
	pid := p.PID()
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	return func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
}

func (p *Process) end(with syscall.Signal) error {
	p.mu.Lock()
	if !p.aliveLocked() {
		p.mu.Unlock()
		return nil
	}
	cmd, exited := p.cmd, p.exited
	p.mu.Unlock()
	// Not collected before exited closes, so the number is still its own.
	_ = cmd.Process.Signal(with)
	timer := time.NewTimer(stopWithin)
	defer timer.Stop()
	select {
	case <-exited:
		return nil
	case <-timer.C:
		_ = cmd.Process.Kill()
		<-exited
		return fmt.Errorf("%s did not stop within %s\n%s", filepath.Base(p.log), stopWithin, p.Log())
	}
}

// Ended is closed when it has ended, with why; call it after Start.
func (p *Process) Ended() (<-chan struct{}, func() error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exited == nil {
		never := make(chan struct{})
		return never, func() error { return errors.New("it was never started") }
	}
	return p.exited, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.err
	}
}

// Log is the end of what it wrote, without the requests it served.
func (p *Process) Log() string {
	raw, _ := os.ReadFile(p.log)
	var kept []string
	for line := range strings.Lines(string(raw)) {
		if !strings.Contains(line, `"level":"INFO","msg":"request"`) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept[max(0, len(kept)-60):], "")
}
