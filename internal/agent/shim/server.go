package shim

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/kernel/lifecycle"
)

// maxConnections bounds the calls in flight; most of them are waits.
const maxConnections = 4096

type server struct {
	cfg    Config
	bootID string
	exits  *exitLog
	group  *lifecycle.Group

	mu      sync.Mutex
	clients map[int]chan unix.WaitStatus
	spawns  map[string]*spawning
	watched map[Process]*watched
	orphans []orphan
}

// ErrRunning: another shim holds the directory.
var ErrRunning = errors.New("shim: another one runs in this directory")

// Main is the shim process. It takes the whole process over: it becomes a child
// subreaper and collects all children, so that nothing else may run beside it.
// It returns on a Shutdown request, on SIGTERM while it follows nothing, or
// when ctx ends; what it follows goes on in each case.
func Main(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	debug.SetGCPercent(25)
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "watch"), 0o700); err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	if err := os.Chmod(cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("shim: become subreaper: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	exits, err := openExitLog(filepath.Join(cfg.Dir, "exits.jsonl"), cfg.MaxExits)
	if err != nil {
		return err
	}
	defer exits.close()
	listener, err := listen(cfg.Socket)
	if err != nil {
		return err
	}

	group, ctx := lifecycle.NewGroup(ctx)
	s := &server{
		cfg: cfg, bootID: strings.TrimSpace(string(boot)), exits: exits, group: group,
		clients: map[int]chan unix.WaitStatus{}, spawns: map[string]*spawning{}, watched: map[Process]*watched{},
	}
	group.Go(s.reap)
	group.Go(s.signals)
	group.Go(func(ctx context.Context) error { return s.serve(ctx, listener) })
	resumed := s.resume()
	if resumed != nil {
		group.Stop()
	}
	err = group.Wait()
	_ = os.Remove(cfg.Socket)
	return errors.Join(resumed, err)
}

// lockDir makes sure of one shim per directory; the lock ends with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("shim: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, ErrRunning
	}
	return f, nil
}

// listen takes the socket over from a dead shim; the lock is held.
func listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("shim: %w", err)
	}
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("shim: %w", err)
	}
	return l, nil
}

// signals keeps a closed terminal and Ctrl-C away. They are caught and not
// ignored, because children would inherit the latter.
func (s *server) signals(ctx context.Context) error {
	c := make(chan os.Signal, 4)
	signal.Notify(c, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM)
	defer signal.Stop(c)
	for {
		select {
		case sig := <-c:
			if sig == unix.SIGTERM && s.mayShutdown(false) == nil {
				s.group.Stop()
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *server) serve(ctx context.Context, l *net.UnixListener) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	slots := make(chan struct{}, maxConnections)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			<-slots
			s.cfg.Logger.Error("accept", "error", err)
			pause(ctx, 10*time.Millisecond)
			continue
		}
		s.group.Go(func(ctx context.Context) error {
			defer func() { <-slots }()
			s.handle(ctx, conn)
			return nil
		})
	}
}

// handle serves one call: a line in, a line out.
func (s *server) handle(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if !samePeer(conn) {
		return
	}
	in := bufio.NewReaderSize(conn, 1<<10)
	req, err := readLine[request](in)
	if err != nil {
		return
	}
	// A caller that goes away ends its wait, and nothing else.
	var gone sync.WaitGroup
	callCtx, hangUp := context.WithCancel(ctx)
	gone.Go(func() {
		_, _ = in.ReadByte()
		hangUp()
	})
	res := s.do(ctx, callCtx, req)
	if b, err := json.Marshal(res); err == nil {
		_ = conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, _ = conn.Write(append(b, '\n'))
	}
	_ = conn.Close()
	gone.Wait()
	hangUp()
	if req.Op == opShutdown && res.Error == "" {
		s.group.Stop()
	}
}

// do runs one request; call ends when the caller hangs up, ctx with the shim.
func (s *server) do(ctx, call context.Context, req request) (res response) {
	var err error
	switch req.Op {
	case opInfo:
		s.mu.Lock()
		n := len(s.watched)
		s.mu.Unlock()
		res.Info = &Info{Protocol: protocolVersion, PID: os.Getpid(), Watched: n, LastSeq: s.exits.last()}
	case opSpawn:
		if req.Spawn == nil {
			return failed(errors.New("shim: spawn what?"))
		}
		res.Spawned, err = s.spawn(ctx, req.Spawn)
	case opWatch:
		_, err = s.watch(req.Process, req.Console)
	case opWait:
		res.Exit, err = s.wait(call, req.Process)
	case opSignal:
		err = signalProcess(req.Process, unix.Signal(req.Signal))
	case opEnd:
		res.Exits, err = s.end(call, req.Process.Key, req.Timeout)
	case opList:
		s.mu.Lock()
		for p := range s.watched {
			res.Processes = append(res.Processes, p)
		}
		s.mu.Unlock()
	case opExits:
		res.Exits = s.exits.since(req.Since)
	case opShutdown:
		err = s.mayShutdown(req.Force)
	default:
		err = fmt.Errorf("shim: unknown request %q", req.Op)
	}
	if err != nil {
		return failed(err)
	}
	return res
}

func (s *server) mayShutdown(force bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.watched) + len(s.spawns); n > 0 && !force {
		return fmt.Errorf("%w: %d", ErrBusy, n)
	}
	return nil
}

func (s *server) wait(ctx context.Context, p Process) (*Exit, error) {
	w, err := s.watch(p, nil)
	if err != nil {
		return nil, err
	}
	select {
	case <-w.done:
		return &w.exit, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// end kills everything under a key, the client in flight first, and waits until
// it is gone.
func (s *server) end(ctx context.Context, key string, timeout time.Duration) ([]Exit, error) {
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	s.mu.Lock()
	flight := s.spawns[key]
	s.mu.Unlock()
	if flight != nil {
		flight.cancel()
		select {
		case <-flight.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: a client under %s does not end", ErrBusy, key)
		}
	}
	var all []*watched
	s.mu.Lock()
	for p, w := range s.watched {
		if p.Key == key {
			all = append(all, w)
		}
	}
	s.mu.Unlock()
	for _, w := range all {
		if err := signalProcess(w.Process, unix.SIGKILL); err != nil && !errors.Is(err, ErrGone) {
			return nil, err
		}
	}
	var exits []Exit
	for _, w := range all {
		select {
		case <-w.done:
			exits = append(exits, w.exit)
		case <-ctx.Done():
			return exits, fmt.Errorf("%w: %d of %s does not end", ErrBusy, w.PID, key)
		}
	}
	return exits, nil
}

// samePeer lets only our own user in, should the file modes ever be wrong.
func samePeer(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return err == nil && credErr == nil && int(cred.Uid) == os.Geteuid()
}

func readLine[T any](r *bufio.Reader) (v T, err error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return v, err
		}
		if len(line) > maxMessage {
			return v, errors.New("shim: message too long")
		}
	}
	return v, json.Unmarshal(line, &v)
}
