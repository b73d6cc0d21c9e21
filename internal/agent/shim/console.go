package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	consolePipe  = 256 << 10
	consoleBurst = 4 << 20
	consoleRate  = 8 << 20 // bytes per second once the burst is spent
	consoleMax   = 2 << 20
)

func (c *Console) limit() int64 {
	if c.MaxBytes <= 0 {
		return consoleMax
	}
	return c.MaxBytes
}

// create makes the pipe and returns its two ends: ours to read, and the
// process's, which can read as well so that the pipe never breaks under it.
func (c *Console) create() (reader, process *os.File, err error) {
	if err := os.Remove(c.FIFO); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("shim: console: %w", err)
	}
	if err := unix.Mkfifo(c.FIFO, 0o600); err != nil {
		return nil, nil, fmt.Errorf("shim: console %s: %w", c.FIFO, err)
	}
	if reader, err = c.open(); err != nil {
		return nil, nil, err
	}
	// Opened by hand: the runtime would put it into its poller, and in
	// non-blocking mode, which the process would inherit.
	fd, err := unix.Open(c.FIFO, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = reader.Close()
		return nil, nil, fmt.Errorf("shim: console %s: %w", c.FIFO, err)
	}
	// More room means that a guest seldom waits while a new shim starts. Over
	// the user's pipe quota the kernel refuses, and the default does.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, consolePipe)
	return reader, os.NewFile(uintptr(fd), c.FIFO), nil
}

func (c *Console) open() (*os.File, error) {
	f, err := os.OpenFile(c.FIFO, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("shim: console: %w", err)
	}
	return f, nil
}

// drain copies the pipe into the bounded log until its last writer is gone or
// ctx ends. What cannot be written is dropped: a full disk must not block the
// guest. It closes the reader.
func (c *Console) drain(ctx context.Context, reader *os.File) {
	defer reader.Close()
	stop := context.AfterFunc(ctx, func() { _ = reader.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	out := &rotating{path: c.Log, max: c.limit() / 2}
	defer out.close()
	budget, last := int64(consoleBurst), time.Now()
	buf := make([]byte, 16<<10)
	for {
		n, err := reader.Read(buf)
		out.write(buf[:n])
		if err != nil { // io.EOF, or the deadline
			return
		}
		now := time.Now()
		budget = min(consoleBurst, budget+int64(now.Sub(last).Seconds()*consoleRate)) - int64(n)
		last = now
		if budget < 0 && !pause(ctx, time.Duration(-budget)*time.Second/consoleRate) {
			return
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// rotating is a log file that becomes path.1 when it is full.
type rotating struct {
	path string
	max  int64
	file *os.File
	size int64
}

func (r *rotating) write(b []byte) {
	if len(b) == 0 {
		return
	}
	if r.file != nil && r.size+int64(len(b)) > r.max {
		r.close()
	}
	if r.file == nil && !r.reopen(int64(len(b))) {
		return
	}
	n, _ := r.file.Write(b)
	r.size += int64(n)
}

// reopen opens the log with room for n more bytes, moving a full one aside.
func (r *rotating) reopen(n int64) bool {
	if st, err := os.Stat(r.path); err == nil && st.Size()+n > r.max {
		if os.Rename(r.path, r.path+".1") != nil && os.Remove(r.path) != nil {
			return false
		}
	}
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return false
	}
	r.file = f
	r.size, _ = f.Seek(0, io.SeekEnd)
	return true
}

func (r *rotating) close() {
	if r.file != nil {
		_ = r.file.Close()
		r.file = nil
	}
}
