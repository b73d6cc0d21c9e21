package main

import (
	"io"
	"net"
	"strconv"
	"sync"
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
