package process

import (
	"errors"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openFiles is how many files a command may have open before it raises the limit
// itself, if the hard limit allows so many. The daemon's own is higher.
const openFiles = 65_536

var errNoClone = errors.New("this kernel cannot start a process with clean signal handlers")

// call is one system call of a child before its program runs, as the assembly
// reads it.
type call struct {
	nr   uintptr
	args [4]uintptr
	soft uintptr // not 0: it may fail
}

// cloneArgs is struct clone_args of the kernel, in its first version.
type cloneArgs struct {
	flags      uint64
	_          [3]uint64 // a descriptor, and where to write ids
	exitSignal uint64
	_          [3]uint64 // a stack and thread-local storage: as the parent's
}

// vfork starts a child in the parent's memory, which stands still until the
// child's program runs or the child has ended. The child makes the calls one
// after the other; the last of them is execve. The first that fails leaves its
// errno in failed and ends the child.
//
//go:noescape
func vfork(args *cloneArgs, size uintptr, calls *call, failed *uintptr) (pid, errno uintptr)

// cloner starts programs with as few system calls as the kernel allows, because
// each of them costs dearly in some guest kernels: Go's own fork resets each of
// about sixty signal handlers by a call of its own, and learns through a pipe
// whether the program runs.
type cloner struct {
	unable atomic.Bool
	limit  *unix.Rlimit // of open files, for the child
}

func newCloner() *cloner { return &cloner{limit: fileLimit()} }

// start is syscall.ForkExec for what the daemon asks of it: a session of its
// own, three files, and perhaps an account and a controlling terminal.
func (c *cloner) start(argv0 string, argv []string, attr *syscall.ProcAttr) (int, error) {
	if !c.unable.Load() && fits(attr) {
		pid, err := c.clone(argv0, argv, attr)
		if !errors.Is(err, errNoClone) {
			return pid, err
		}
		c.unable.Store(true)
	}
	return syscall.ForkExec(argv0, argv, attr)
}

// fits reports whether no file stands where another has to go.
func fits(attr *syscall.ProcAttr) bool {
	for _, fd := range attr.Files {
		if fd < uintptr(len(attr.Files)) {
			return false
		}
	}
	return len(attr.Files) == 3
}

func (c *cloner) clone(argv0 string, argv []string, attr *syscall.ProcAttr) (int, error) {
	var pin runtime.Pinner // all that the child reads by address
	defer pin.Unpin()
	path, err := text(&pin, argv0)
	if err != nil {
		return 0, err
	}
	args, err := texts(&pin, argv)
	if err != nil {
		return 0, err
	}
	env, err := texts(&pin, attr.Env)
	if err != nil {
		return 0, err
	}
	dir, err := text(&pin, attr.Dir)
	if err != nil {
		return 0, err
	}
	pin.Pin(c.limit)

	calls := make([]call, 0, 16)
	do := func(nr uintptr, args ...uintptr) {
		c := call{nr: nr}
		copy(c.args[:], args)
		calls = append(calls, c)
	}
	do(unix.SYS_SETSID)
	if cred := attr.Sys.Credential; cred != nil {
		var groups uintptr
		if len(cred.Groups) > 0 {
			pin.Pin(&cred.Groups[0])
			groups = uintptr(unsafe.Pointer(&cred.Groups[0]))
		}
		do(unix.SYS_SETGROUPS, uintptr(len(cred.Groups)), groups)
		do(unix.SYS_SETGID, uintptr(cred.Gid))
		do(unix.SYS_SETUID, uintptr(cred.Uid))
	}
	if attr.Dir != "" {
		do(unix.SYS_CHDIR, dir)
	}
	for i, fd := range attr.Files {
		do(unix.SYS_DUP3, fd, uintptr(i), 0) // the copy is not closed when the program runs
	}
	if attr.Sys.Setctty {
		do(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 1)
	}
	do(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(c.limit)), 0)
	calls[len(calls)-1].soft = 1
	do(unix.SYS_EXECVE, path, args, env)

	how := &cloneArgs{flags: unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_CLEAR_SIGHAND, exitSignal: uint64(unix.SIGCHLD)}
	failed := new(uintptr)
	pin.Pin(&calls[0])
	pin.Pin(how)
	pin.Pin(failed)
	pid, errno := vfork(how, unsafe.Sizeof(*how), &calls[0], failed)
	switch {
	case errno == 0 && *failed == 0:
		return int(pid), nil
	case errno == 0:
		reap(int(pid))
		return 0, syscall.Errno(*failed)
	case errno == uintptr(unix.ENOSYS), errno == uintptr(unix.EINVAL), errno == uintptr(unix.EPERM):
		return 0, errNoClone
	}
	return 0, syscall.Errno(errno)
}

// reap takes the status of a child that never became a program.
func reap(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			return
		}
	}
}

// fileLimit is what a command begins with; the daemon's own was raised by Go.
func fileLimit() *unix.Rlimit {
	l := &unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, l); err != nil {
		l.Max = openFiles
	}
	l.Cur = min(openFiles, l.Max)
	return l
}

func text(pin *runtime.Pinner, s string) (uintptr, error) {
	p, err := unix.BytePtrFromString(s)
	if err != nil {
		return 0, err
	}
	pin.Pin(p)
	return uintptr(unsafe.Pointer(p)), nil
}

// texts is a list that ends with a null, as programs get them.
func texts(pin *runtime.Pinner, all []string) (uintptr, error) {
	list := make([]uintptr, len(all)+1)
	for i, s := range all {
		p, err := text(pin, s)
		if err != nil {
			return 0, err
		}
		list[i] = p
	}
	pin.Pin(&list[0])
	return uintptr(unsafe.Pointer(&list[0])), nil
}
