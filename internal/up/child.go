package up

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

const (
	leastPause = 200 * time.Millisecond
	mostPause  = 10 * time.Second
	// steady is how long a child must have run for its next death to count as
	// the first.
	steady     = time.Minute
	stopWithin = 25 * time.Second
)

// starter starts processes from one thread that lives as long as it does: the
// kernel takes "my parent has died" for the death of the starting thread.
type starter struct {
	requests chan startRequest
	done     chan struct{}
}

type startRequest struct {
	cmd    *exec.Cmd
	result chan<- error
}

func newStarter() *starter {
	s := &starter{requests: make(chan startRequest), done: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		defer close(s.done)
		for r := range s.requests {
			r.result <- r.cmd.Start()
		}
	}()
	return s
}

func (s *starter) start(cmd *exec.Cmd) error {
	result := make(chan error, 1)
	s.requests <- startRequest{cmd, result}
	return <-result
}

func (s *starter) close() {
	close(s.requests)
	<-s.done
}

// child is one of our own programs, kept running.
type child struct {
	name    string
	program string
	args    []string
	environ func() []string // asked at each start
	log     *logFile
	say     func(string)
	starter *starter

	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	deaths int   // in a row
	last   error // of the last death
}

// run starts the child and starts it again when it ends, until stop.
func (c *child) run(ctx context.Context) {
	ctx, c.cancel = context.WithCancel(ctx)
	c.wg.Go(func() {
		wait := leastPause
		for {
			began := time.Now()
			err := c.once(ctx)
			if ctx.Err() != nil {
				return
			}
			if time.Since(began) >= steady {
				wait = leastPause
				c.died(nil)
			}
			c.died(err)
			c.say(fmt.Sprintf("%s ended (%v); starting it again in %s. Its log: %s", c.name, err, wait, c.log.path))
			if !pause(ctx, wait) {
				return
			}
			wait = min(2*wait, mostPause)
		}
	})
}

// once runs the child to its end. When ctx ends it is asked to stop, and killed
// when it does not.
func (c *child) once(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, c.program, c.args...)
	cmd.Env = c.environ()
	cmd.Stdout, cmd.Stderr = c.log, c.log
	// A group of its own, so that Ctrl-C reaches the supervisor alone, which
	// stops everything in order; and the end of it with the supervisor's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopWithin
	if err := c.starter.start(cmd); err != nil {
		return err
	}
	err := cmd.Wait()
	if err == nil {
		err = errors.New("exit status 0")
	}
	return err
}

func (c *child) died(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.deaths = 0
		return
	}
	c.deaths++
	c.last = err
}

// failing returns an error with the end of the child's log when it does not
// stay up.
func (c *child) failing() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deaths < 3 {
		return nil
	}
	return fmt.Errorf("the %s does not stay up (%w). The end of %s:\n%s", c.name, c.last, c.log.path, c.log.tail(12))
}

// stop ends the child and waits for it. Stopping one that was never run is
// fine.
func (c *child) stop() {
	if c.cancel != nil {
		c.cancel()
	}
	c.wg.Wait()
	c.log.close()
}
