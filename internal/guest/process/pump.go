package process

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// buffers are lent only while there is something to read: a quiet process
// holds none.
var buffers = sync.Pool{New: func() any { b := make([]byte, readSize); return &b }}

// pump carries one descriptor's output to the hub until nothing can come any
// more. After the end was told it goes on reading, to nowhere, as long as a
// grandchild holds a pipe: closing it would kill that grandchild at its next
// line of output.
type pump struct {
	file    *os.File
	from    stream
	size    int
	drained chan struct{} // closed when all the process wrote was published

	exitedAt atomic.Pointer[time.Time] // nil while it runs
	backlog  atomic.Int64              // bytes in the pipe at the exit, less those read since
}

func newPump(f *os.File, from stream, size int) *pump {
	return &pump{file: f, from: from, size: size, drained: make(chan struct{})}
}

// processExited starts the grace.
func (p *pump) processExited() {
	if rc, err := p.file.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) {
			if n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
				p.backlog.Add(int64(n))
			}
		})
	}
	now := time.Now()
	p.exitedAt.Store(&now)
	_ = p.file.SetReadDeadline(now.Add(grace))
}

func (p *pump) run(h *hub) {
	open := p.publish(h)
	close(p.drained)
	if open && p.from != terminal {
		_ = p.file.SetReadDeadline(time.Time{})
		for {
			if err := p.read(func([]byte) {}); err != nil {
				break
			}
		}
	}
	if p.from != terminal {
		p.file.Close() // a terminal's descriptor is also its input, and closed as such
	}
}

// publish returns when the output ended, or fell silent after the exit; then
// open says that somebody may still write.
func (p *pump) publish(h *hub) (open bool) {
	for {
		at := p.exitedAt.Load()
		if at != nil {
			if time.Since(*at) > graceMax && p.backlog.Load() <= 0 {
				return true
			}
			_ = p.file.SetReadDeadline(time.Now().Add(grace))
		}
		err := p.read(func(b []byte) {
			if p.exitedAt.Load() != nil {
				p.backlog.Add(int64(-len(b)))
			}
			h.publish(p.from, b)
		})
		switch {
		case err == nil:
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return false
		case p.waiting() == 0:
			return true
		}
	}
}

// waiting is how many bytes could be read at once.
func (p *pump) waiting() int {
	n := 0
	rc, err := p.file.SyscallConn()
	if err != nil {
		return 0
	}
	if err := rc.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil {
		return 0
	}
	return n
}

// read passes what one system call returned to use, which must not keep it.
func (p *pump) read(use func([]byte)) error {
	rc, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var buf *[]byte
	var n int
	var readErr error
	err = rc.Read(func(fd uintptr) bool {
		if buf == nil {
			buf = buffers.Get().(*[]byte)
		}
		for {
			n, readErr = unix.Read(int(fd), (*buf)[:p.size])
			if readErr != unix.EINTR {
				break
			}
		}
		if readErr == unix.EAGAIN {
			buffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	if buf != nil {
		defer buffers.Put(buf)
	}
	switch {
	case err != nil:
		return err
	case readErr != nil:
		return readErr // EIO is how a terminal says that nobody is left
	case n <= 0:
		return io.EOF
	}
	use((*buf)[:n])
	return nil
}
