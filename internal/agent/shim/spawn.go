package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	spawnTimeout = time.Minute
	outputTail   = 8 << 10
)

// spawning is a client in flight; cancel ends it.
type spawning struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// spawn runs a client to its end. A caller that goes away does not end it: the
// outcome is on record under the key for the next one.
func (s *server) spawn(ctx context.Context, req *Spawn) (*Spawned, error) {
	if err := validKey(req.Key); err != nil {
		return nil, err
	}
	if len(req.Argv) == 0 || len(req.Stdin) > MaxStdin {
		return nil, fmt.Errorf("shim: a program is required, and at most %d bytes of input", MaxStdin)
	}
	timeout := req.Timeout
	if timeout <= 0 {
		timeout = spawnTimeout
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	flight := &spawning{cancel: cancel, done: make(chan struct{})}
	defer close(flight.done)
	s.mu.Lock()
	if s.spawns[req.Key] != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("%w: a start under key %s is in flight", ErrBusy, req.Key)
	}
	s.spawns[req.Key] = flight
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.spawns, req.Key)
		s.mu.Unlock()
	}()

	pid, status, out, err := s.startClient(req)
	if err != nil {
		return nil, err
	}
	var ended unix.WaitStatus
	timedOut := false
	select {
	case ended = <-status:
	case <-ctx.Done():
		return nil, errors.New("shim: shutting down")
	case <-limit.Done():
		// Not collected yet, or collected and its status in the channel: then the
		// pid may be another's, and only the reaper's lock tells.
		s.mu.Lock()
		if _, ok := s.clients[pid]; ok {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		s.mu.Unlock()
		ended, timedOut = <-status, errors.Is(limit.Err(), context.DeadlineExceeded)
	}
	res := &Spawned{Code: ended.ExitStatus(), Output: out.finish(), TimedOut: timedOut}
	if ended.Signaled() {
		res.Code = 128 + int(ended.Signal())
	}
	if res.Code != 0 || req.PIDFile == "" {
		return res, nil
	}
	return res, s.adopt(req, res)
}

// adopt watches what the client left running.
func (s *server) adopt(req *Spawn, res *Spawned) error {
	b, err := os.ReadFile(req.PIDFile)
	if err != nil {
		return fmt.Errorf("shim: pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return fmt.Errorf("shim: pid file %s does not hold a pid", req.PIDFile)
	}
	start, err := StartTime(pid)
	if err != nil { // it has ended, and is in the list of orphans
		s.mu.Lock()
		o, ok := s.takeOrphanLocked(pid, 0)
		if ok {
			start = o.start
			s.orphans = append(s.orphans, o)
		}
		s.mu.Unlock()
		if !ok {
			return fmt.Errorf("%w: pid %d of the pid file", ErrGone, pid)
		}
	}
	res.Process = Process{Key: req.Key, PID: pid, Start: start}
	_, err = s.watch(res.Process, req.Console)
	return err
}

// startClient starts the client in a session of its own and returns the channel
// its status arrives on.
func (s *server) startClient(req *Spawn) (int, <-chan unix.WaitStatus, *tail, error) {
	stdin, err := filled(req.Stdin)
	if err != nil {
		return 0, nil, nil, err
	}
	defer stdin.Close()

	out := &tail{}
	var output, reader *os.File
	if req.Console != nil {
		reader, output, err = req.Console.create()
	} else {
		out.reader, output, err = os.Pipe()
	}
	if err != nil {
		return 0, nil, nil, err
	}
	defer output.Close()

	// The lock keeps the reaper from collecting a client that is not listed yet.
	status := make(chan unix.WaitStatus, 1)
	s.mu.Lock()
	proc, err := os.StartProcess(req.Argv[0], req.Argv, &os.ProcAttr{
		Dir:   req.Dir,
		Env:   append([]string{}, req.Env...),
		Files: []*os.File{stdin, output, output},
		// A client must not go on when nobody is left who could end it. What it
		// has started is not hit.
		Sys: &unix.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL},
	})
	pid := 0
	if err == nil {
		pid = proc.Pid
		s.clients[pid] = status
		_ = proc.Release()
	}
	s.mu.Unlock()
	if err != nil {
		out.close()
		if reader != nil {
			_ = reader.Close()
		}
		return 0, nil, nil, fmt.Errorf("shim: start %s: %w", req.Argv[0], err)
	}
	if reader != nil {
		s.drain(req.Console, reader)
	}
	out.start()
	return pid, status, out, nil
}

// filled returns the reading end of a pipe that holds b and then ends.
func filled(b []byte) (*os.File, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("shim: stdin: %w", err)
	}
	defer unix.Close(p[1])
	r := os.NewFile(uintptr(p[0]), "stdin")
	for len(b) > 0 {
		n, err := unix.Write(p[1], b)
		if err != nil && err != unix.EINTR {
			_ = r.Close()
			return nil, fmt.Errorf("shim: stdin: %w", err)
		}
		b = b[max(n, 0):]
	}
	return r, nil
}

// tail keeps the end of what a client writes.
type tail struct {
	reader *os.File
	wg     sync.WaitGroup
	buf    []byte
}

func (t *tail) start() {
	if t.reader == nil {
		return
	}
	t.wg.Go(func() {
		b := make([]byte, 4<<10)
		for {
			n, err := t.reader.Read(b)
			t.buf = append(t.buf, b[:n]...)
			if over := len(t.buf) - outputTail; over > 0 {
				t.buf = append(t.buf[:0], t.buf[over:]...)
			}
			if err != nil {
				return
			}
		}
	})
}

// finish returns the tail once the client has ended. Something it left behind
// may hold the pipe open; that is not waited for.
func (t *tail) finish() string {
	if t.reader == nil {
		return ""
	}
	_ = t.reader.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	t.wg.Wait()
	t.close()
	return strings.ToValidUTF8(string(t.buf), "�")
}

func (t *tail) close() {
	if t.reader != nil {
		_ = t.reader.Close()
	}
}
