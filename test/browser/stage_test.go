package browser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// stage is a network that has the browser in it and one way out of it, to the
// server's own address. Nothing that happens to the machine's networks, as with
// each start of a sandbox, is noticed there; nothing that is not the server can
// be reached from there; and the line can be cut.
type stage struct {
	target   string
	listener net.Listener
	work     chan func()
	done     sync.WaitGroup

	mu    sync.Mutex
	down  bool
	lines map[net.Conn]struct{}
}

// newStage makes a stage on which target, an address of this machine, is served.
func newStage(target string) (*stage, error) {
	s := &stage{target: target, work: make(chan func()), lines: map[net.Conn]struct{}{}}
	ready := make(chan error, 1)
	s.done.Go(func() {
		// The thread is in another network for good and ends with the goroutine.
		runtime.LockOSThread()
		err := s.open()
		ready <- err
		if err != nil {
			return
		}
		for do := range s.work {
			do()
		}
	})
	if err := <-ready; err != nil {
		s.done.Wait()
		return nil, fmt.Errorf("a network for the browser: %w", err)
	}
	s.done.Go(s.serve)
	return s, nil
}

func (s *stage) open() (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	// A browser that sees a loopback alone takes itself for offline.
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "outside", "type", "veth", "peer", "name", "nowhere"},
		{"address", "add", "192.0.2.2/24", "dev", "outside"},
		{"link", "set", "outside", "up"},
		{"link", "set", "nowhere", "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	s.listener, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", s.target)
	return err
}

// start begins a process on the stage.
func (s *stage) start(cmd *exec.Cmd) error {
	result := make(chan error, 1)
	s.work <- func() { result <- cmd.Start() }
	return <-result
}

func (s *stage) serve() {
	var lines sync.WaitGroup
	defer lines.Wait()
	for {
		inner, err := s.listener.Accept()
		if err != nil {
			return
		}
		lines.Go(func() { s.carry(inner) })
	}
}

// carry takes one connection to the server and back.
func (s *stage) carry(inner net.Conn) {
	defer inner.Close()
	if !s.add(inner) {
		return
	}
	defer s.drop(inner)
	outer, err := net.Dial("tcp", s.target)
	if err != nil {
		return
	}
	defer outer.Close()
	if !s.add(outer) {
		return
	}
	defer s.drop(outer)
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(inner, outer)
		_ = inner.(*net.TCPConn).CloseWrite()
	})
	_, _ = io.Copy(outer, inner)
	_ = outer.(*net.TCPConn).CloseWrite()
	back.Wait()
}

func (s *stage) add(line net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.down {
		s.lines[line] = struct{}{}
	}
	return !s.down
}

func (s *stage) drop(line net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.lines, line)
}

// cut ends every connection; while down, new ones end at once.
func (s *stage) cut(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	for line := range s.lines {
		_ = line.Close()
	}
}

// close ends the network. Processes on it have to be gone.
func (s *stage) close() error {
	err := s.listener.Close()
	s.cut(true)
	close(s.work)
	s.done.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
