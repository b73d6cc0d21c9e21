package browser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// stage is a network that has the browser in it and the ways out of it that it is
// given: to the server's own address, and that of a provider of identities. Nothing that happens to the machine's networks, as with
// each start of a sandbox, is noticed there; nothing else can be
// reached from there; and the line can be cut.
type stage struct {
	targets   []string
	listeners []net.Listener
	work      chan func()
	serving   sync.WaitGroup
	done      sync.WaitGroup // the thread

	mu    sync.Mutex
	down  bool
	lines map[net.Conn]struct{}
}

// newStage makes a stage on which targets, addresses of this machine, are served.
// prepare, when there is one, is called on its thread first.
func newStage(prepare func() error, targets ...string) (*stage, error) {
	s := &stage{targets: targets, work: make(chan func()), lines: map[net.Conn]struct{}{}}
	ready := make(chan error, 1)
	s.done.Go(func() {
		// The thread is in another network for good and ends with the goroutine.
		runtime.LockOSThread()
		var err error
		if prepare != nil {
			err = prepare()
		}
		if err == nil {
			err = s.open()
		}
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
	for i, listener := range s.listeners {
		s.serving.Go(func() { s.serve(listener, func() (net.Conn, error) { return net.Dial("tcp", s.targets[i]) }) })
	}
	return s, nil
}

func (s *stage) open() error {
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
		{"route", "add", "default", "via", "192.0.2.1"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	for _, target := range s.targets {
		listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", target)
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, listener)
	}
	return nil
}

// start begins a process on the stage.
func (s *stage) start(cmd *exec.Cmd) error {
	result := make(chan error, 1)
	s.work <- func() { result <- cmd.Start() }
	return <-result
}

// admit serves, on this machine, an address of the stage.
func (s *stage) admit(address string) error {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
	if err != nil {
		return err
	}
	s.listeners = append(s.listeners, listener)
	s.serving.Go(func() {
		s.serve(listener, func() (conn net.Conn, err error) {
			done := make(chan struct{})
			s.work <- func() {
				defer close(done)
				conn, err = net.Dial("tcp", address)
			}
			<-done
			return conn, err
		})
	})
	return nil
}

// ownMounts gives the calling thread mounts of its own, with no network named yet.
func ownMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	const names = "/run/netns"
	if err := os.MkdirAll(names, 0o755); err != nil {
		return err
	}
	return unix.Mount("rack", names, "tmpfs", 0, "")
}

func (s *stage) serve(listener net.Listener, dial func() (net.Conn, error)) {
	var lines sync.WaitGroup
	defer lines.Wait()
	for {
		inner, err := listener.Accept()
		if err != nil {
			return
		}
		lines.Go(func() { s.carry(inner, dial) })
	}
}

// carry takes one connection to where dial leads, and back.
func (s *stage) carry(inner net.Conn, dial func() (net.Conn, error)) {
	defer inner.Close()
	if !s.add(inner) {
		return
	}
	defer s.drop(inner)
	outer, err := dial()
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
	var err error
	for _, listener := range s.listeners {
		err = errors.Join(err, listener.Close())
	}
	s.cut(true)
	s.serving.Wait() // it may still dial
	close(s.work)
	s.done.Wait()
	return err
}
