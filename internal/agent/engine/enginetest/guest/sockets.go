package main

import (
	"io"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// sockets are what the guest holds open, to see what becomes of it.
type sockets struct {
	mu    sync.Mutex
	out   net.Conn
	ended string // how reading from out ended; empty while it has not
}

// dial opens the one connection to the outside and reads from it.
func (s *sockets) dial(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.out, s.ended = c, ""
	s.mu.Unlock()
	go func() {
		_, err := io.Copy(io.Discard, c)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ended = "end of file"; err != nil {
			s.ended = err.Error()
		}
	}()
	return nil
}

// state tells how the connection does, and what a write on it says.
func (s *sockets) state() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{"read": s.ended}
	if s.out != nil {
		if _, err := s.out.Write([]byte("x")); err != nil {
			out["write"] = err.Error()
		}
	}
	return out
}

// listen answers on a port with the number of connections so far.
func (s *sockets) listen(port int) error {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	go func() {
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, strconv.Itoa(n))
			_ = c.Close()
		}
	}()
	return nil
}

// echo sends back what comes, on any number of connections.
func (s *sockets) echo(port int) error {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return nil
}

// churn opens connections to addr for as long as the guest lives, each a little
// after the last one, and ends each at once. Where the other end does not close
// it as well, the kernel forgets it a second later.
func (s *sockets) churn(addr string, pause time.Duration) {
	const linger2 = 8 // TCP_LINGER2, in seconds
	d := net.Dialer{Timeout: time.Second, Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if fail := raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, linger2, 1) }); fail != nil {
			return fail
		}
		return err
	}}
	go func() {
		for range time.Tick(pause) {
			if c, err := d.Dial("tcp", addr); err == nil {
				_ = c.Close()
			}
		}
	}()
}
