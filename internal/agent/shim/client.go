package shim

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// startWithin bounds how long a new shim may take to answer.
const startWithin = 10 * time.Second

// Client talks to the shim of one directory. It is safe for concurrent use and
// holds no connection between calls. When the shim has died it starts a new one
// and repeats every call that can be repeated, which is all but Spawn.
type Client struct {
	cfg Config

	mu      sync.Mutex
	started int // pid of a shim we started and have not collected
}

// Ensure returns a client of the directory's shim, starting one if none answers.
func Ensure(ctx context.Context, cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if len(cfg.Command) == 0 {
		return nil, errors.New("shim: no command to start it with")
	}
	c := &Client{cfg: cfg}
	if err := c.ensure(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// ensure makes sure that somebody answers. A shim that is being started by
// another agent wins by its lock; ours then ends by itself.
func (c *Client) ensure(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	for {
		res, err := c.roundTrip(ctx, request{Op: opInfo})
		if err == nil && res.Info != nil {
			c.settle(res.Info.PID)
			return nil
		}
		if c.collect() {
			if startErr := c.start(); startErr != nil {
				return startErr
			}
		}
		if !pause(ctx, 3*time.Millisecond) {
			return fmt.Errorf("shim: none answers on %s: %w", c.cfg.Socket, err)
		}
	}
}

// settle ends a shim of ours that lost against the one that answers: were it
// slow to start, it would come up later, when that one has been shut down.
func (c *Client) settle(answering int) {
	if c.started == 0 || c.started == answering {
		return
	}
	_ = unix.Kill(c.started, unix.SIGKILL) // our child, not collected
	_, _ = unix.Wait4(c.started, nil, 0, nil)
	c.started = 0
}

// collect reports whether no shim started by us lives, and clears its zombie.
func (c *Client) collect() bool {
	if c.started == 0 {
		return true
	}
	pid, err := unix.Wait4(c.started, nil, unix.WNOHANG, nil)
	if err == nil && pid == 0 {
		return false
	}
	c.started = 0
	return true
}

func (c *Client) start() error {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	defer null.Close()
	path := filepath.Join(c.cfg.Dir, "shim.log")
	if st, err := os.Stat(path); err == nil && st.Size() > 1<<20 {
		_ = os.Rename(path, path+".1")
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	defer log.Close()
	proc, err := os.StartProcess(c.cfg.Command[0], c.cfg.Command, &os.ProcAttr{
		Dir: "/", Env: append([]string{}, c.cfg.Env...),
		Files: []*os.File{null, log, log},
		Sys:   &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("shim: start %s: %w", c.cfg.Command[0], err)
	}
	c.started = proc.Pid
	return proc.Release()
}

// Info describes the running shim.
func (c *Client) Info(ctx context.Context) (Info, error) {
	res, err := c.call(ctx, request{Op: opInfo})
	if err != nil {
		return Info{}, err
	}
	return *res.Info, nil
}

// Spawn runs a client process to its end. The call is made at most once: when
// the shim dies under it the error is ErrInterrupted. When ctx ends the client
// process goes on; End stops it.
func (c *Client) Spawn(ctx context.Context, s Spawn) (Spawned, error) {
	if err := c.ensure(ctx); err != nil {
		return Spawned{}, err
	}
	res, err := c.roundTrip(ctx, request{Op: opSpawn, Spawn: &s})
	if err != nil && ctx.Err() == nil {
		return Spawned{}, fmt.Errorf("%w: %w", ErrInterrupted, err)
	}
	if err == nil {
		err = res.err()
	}
	if err != nil {
		return Spawned{}, err
	}
	return *res.Spawned, nil
}

// Watch follows a process and keeps its exit. console, when given, is drained
// again after a restart of the shim.
func (c *Client) Watch(ctx context.Context, p Process, console *Console) error {
	_, err := c.call(ctx, request{Op: opWatch, Process: p, Console: console})
	return err
}

// Wait blocks until the process has ended. One that nobody watched is watched
// from now on; for one that is gone the record is returned, or an exit that is
// not Known.
func (c *Client) Wait(ctx context.Context, p Process) (Exit, error) {
	res, err := c.call(ctx, request{Op: opWait, Process: p})
	if err != nil {
		return Exit{}, err
	}
	return *res.Exit, nil
}

// Signal sends a signal to exactly this process, ErrGone when it has ended.
func (c *Client) Signal(ctx context.Context, p Process, sig unix.Signal) error {
	_, err := c.call(ctx, request{Op: opSignal, Process: p, Signal: int(sig)})
	return err
}

// End kills what runs under a key, a client in flight included, and returns
// when it is gone, ErrBusy when it is not within the time. It succeeds on
// nothing.
func (c *Client) End(ctx context.Context, key string, within time.Duration) ([]Exit, error) {
	res, err := c.call(ctx, request{Op: opEnd, Process: Process{Key: key}, Timeout: within})
	return res.Exits, err
}

// List returns the processes that are watched.
func (c *Client) List(ctx context.Context) ([]Process, error) {
	res, err := c.call(ctx, request{Op: opList})
	return res.Processes, err
}

// Exits returns the kept records with a sequence number above since, oldest
// first.
func (c *Client) Exits(ctx context.Context, since int64) ([]Exit, error) {
	res, err := c.call(ctx, request{Op: opExits, Since: since})
	return res.Exits, err
}

// Shutdown ends the shim: ErrBusy while processes live, unless forced. Those go
// on without it.
func (c *Client) Shutdown(ctx context.Context, force bool) error {
	res, err := c.roundTrip(ctx, request{Op: opShutdown, Force: force})
	if err != nil {
		return err
	}
	if err := res.err(); err != nil {
		return err
	}
	// It is gone when its lock is.
	for {
		lock, err := lockDir(c.cfg.Dir)
		if err == nil {
			_ = lock.Close()
			break
		}
		if !pause(ctx, 2*time.Millisecond) {
			return ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.started != 0 && !c.collect() {
		if !pause(ctx, time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil
}

// call repeats a repeatable request over deaths of the shim, a few times.
func (c *Client) call(ctx context.Context, req request) (response, error) {
	var err error
	for range 4 {
		var res response
		if res, err = c.roundTrip(ctx, req); err == nil {
			return res, res.err()
		}
		if ctx.Err() != nil {
			return response{}, ctx.Err()
		}
		if err := c.ensure(ctx); err != nil {
			return response{}, err
		}
	}
	return response{}, fmt.Errorf("shim: %s: %w", req.Op, err)
}

func (c *Client) roundTrip(ctx context.Context, req request) (response, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.cfg.Socket)
	if err != nil {
		return response{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	b, err := json.Marshal(req)
	if err != nil {
		return response{}, err
	}
	if len(b) > maxMessage {
		return response{}, errors.New("shim: message too long")
	}
	if _, err := conn.Write(append(b, '\n')); err != nil {
		return response{}, err
	}
	res, err := readLine[response](bufio.NewReaderSize(conn, 1<<10))
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return res, err
}
