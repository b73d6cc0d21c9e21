package process

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	pb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/internal/guest/awake"
	"skerry.dev/skerry/internal/guest/passwd"
	"skerry.dev/skerry/internal/guest/procfs"
)

const (
	pipeSize     = 1 << 20
	readSize     = 256 << 10 // a system call costs dearly in some guest kernels
	terminalRead = 16 << 10
	// grace is how long the output must be silent after the exit before the end
	// is told: a grandchild may hold the pipe open for ever.
	grace = 100 * time.Millisecond
	// graceMax bounds the wait for a grandchild that never falls silent. What
	// the process itself wrote is read whatever it takes.
	graceMax = 2 * time.Second
)

// exit is how a process ended.
type exit struct {
	code   int32
	exited bool
	status string
	err    string
}

func exitOf(ws unix.WaitStatus) *exit {
	if ws.Signaled() {
		text := "signal: " + ws.Signal().String()
		if ws.CoreDump() {
			text += " (core dumped)"
		}
		return &exit{code: -1, status: text, err: text}
	}
	e := &exit{code: int32(ws.ExitStatus()), exited: true, status: fmt.Sprintf("exit status %d", ws.ExitStatus())}
	if e.code != 0 {
		e.err = e.status
	}
	return e
}

// command is one process that a client started, with all that is held for it.
type command struct {
	id     string
	tag    *string
	config *pb.ProcessConfig
	replay bool
	pid    int
	hub    *hub
	in     *input
	tty    *os.File // terminal master, else nil

	ready    chan struct{} // closed when started or failed
	failed   error
	exited   chan struct{} // closed when the process itself is gone
	status   unix.WaitStatus
	ended    chan struct{} // closed when its end was told
	deadline *awake.Timer
	kept     *awake.Timer // until the result is forgotten; guarded by the manager
	expired  atomic.Bool

	pumps []*pump
}

// request is a start with everything resolved.
type request struct {
	user  passwd.User
	dir   string
	env   []string
	argv0 string
	argv  []string
	size  *pb.PTY_Size // nil for pipes
	stdin bool
}

// launch starts the program of c. Nothing of it remains open on failure.
func (m *Manager) launch(c *command, r request) (err error) {
	var ours []*os.File
	var theirs []int
	defer func() {
		for _, fd := range theirs {
			unix.Close(fd)
		}
		if err != nil {
			for _, f := range ours {
				f.Close()
			}
		}
	}()
	sys := &syscall.SysProcAttr{Setsid: true}
	if m.root {
		sys.Credential = &syscall.Credential{Uid: r.user.UID, Gid: r.user.GID, Groups: r.user.Groups}
	}
	files := make([]uintptr, 3)
	if r.size != nil {
		master, slave, err := pty.Open()
		if err != nil {
			return fmt.Errorf("opening a terminal: %w", err)
		}
		defer slave.Close()
		ours = append(ours, master)
		if err := pty.Setsize(master, winsize(r.size)); err != nil {
			return fmt.Errorf("setting the terminal's size: %w", err)
		}
		if m.root {
			if err := slave.Chown(int(r.user.UID), -1); err != nil {
				return fmt.Errorf("giving the terminal to its user: %w", err)
			}
		}
		sys.Setctty = true
		fd := slave.Fd()
		files[0], files[1], files[2] = fd, fd, fd
		c.tty, c.in = master, newInput(master)
		c.pumps = []*pump{newPump(master, terminal, terminalRead)}
	} else {
		files[0] = m.null.Fd()
		c.in = newInput(nil)
		if r.stdin {
			pw, pr, err := pipe(false)
			if err != nil {
				return err
			}
			ours, theirs = append(ours, pw), append(theirs, pr)
			files[0], c.in = uintptr(pr), newInput(pw)
		}
		for i, from := range []stream{stdout, stderr} {
			pr, pw, err := pipe(true)
			if err != nil {
				return err
			}
			ours, theirs = append(ours, pr), append(theirs, pw)
			files[1+i] = uintptr(pw)
			c.pumps = append(c.pumps, newPump(pr, from, readSize))
		}
	}
	c.pid, err = m.spawner.start(r.argv0, r.argv, &syscall.ProcAttr{Dir: r.dir, Env: r.env, Files: files, Sys: sys})
	if err != nil {
		code := connect.CodeInvalidArgument
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOMEM) {
			code = connect.CodeResourceExhausted
		}
		return connect.NewError(code, fmt.Errorf("error starting process '%s': %w", r.argv0, err))
	}
	return nil
}

// pipe returns a pipe whose one end, ours, waits in the runtime's poller: the
// reading end when read is set. The other, a bare descriptor, blocks as programs
// expect.
func pipe(read bool) (ours *os.File, theirs int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, 0, fmt.Errorf("making a pipe: %w", err)
	}
	// A smaller pipe than asked for is only slower.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	mine, theirs, access := fds[1], fds[0], unix.O_RDONLY
	if read {
		mine, theirs, access = fds[0], fds[1], unix.O_WRONLY
	}
	if _, err := unix.FcntlInt(uintptr(theirs), unix.F_SETFL, access); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, 0, fmt.Errorf("making a pipe: %w", err)
	}
	return os.NewFile(uintptr(mine), "|"), theirs, nil
}

func winsize(s *pb.PTY_Size) *pty.Winsize {
	clamp := func(n, fallback uint32) uint16 {
		if n == 0 {
			n = fallback
		}
		return uint16(min(n, 1<<16-1))
	}
	return &pty.Winsize{Cols: clamp(s.GetCols(), 80), Rows: clamp(s.GetRows(), 24)}
}

// attend follows a launched process to its end. It returns when nothing of it
// is held any more.
func (m *Manager) attend(c *command) {
	var wg sync.WaitGroup
	for _, p := range c.pumps {
		wg.Go(func() { p.run(c.hub) })
	}
	<-c.exited
	if c.deadline != nil {
		c.deadline.Stop()
	}
	if c.tty != nil {
		// The terminal hangs up with its leader; not every guest kernel says so.
		signalSession(c.pid, unix.SIGHUP)
	}
	for _, p := range c.pumps {
		p.processExited()
	}
	for _, p := range c.pumps {
		<-p.drained
	}
	c.hub.finish(exitOf(c.status))
	m.finished(c)
	close(c.ended)
	c.in.abandon()
	wg.Wait()
}

// resize changes the terminal's size and tells every process group of its
// session: the kernel of some guests tells nobody.
func (c *command) resize(size *pb.PTY_Size) error {
	if err := pty.Setsize(c.tty, winsize(size)); err != nil {
		return err
	}
	signalSession(c.pid, unix.SIGWINCH)
	return nil
}

func signalSession(session int, sig unix.Signal) {
	groups, err := procfs.Groups(session)
	if err != nil {
		return
	}
	for _, g := range groups {
		_ = unix.Kill(-g, sig)
	}
}
