package vminit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/guest/vmapi"
)

// The files in the initramfs that name the modules to load, in order, one a
// line: at once, and when the workload starts.
const (
	modulesFirst = "/modules/order"
	modulesLate  = "/modules/late"
)

// Run is all of PID 1. It returns only what kept it from beginning.
func Run() error {
	if err := mountSystem(); err != nil {
		return err
	}
	if err := loadModules(modulesFirst); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	fmt.Println(vmapi.Ready)
	if strings.Contains(" "+strings.TrimSpace(string(line))+" ", " "+vmapi.Probe+" ") {
		return Off()
	}
	port, err := openPort(30 * time.Second)
	if err != nil {
		return err
	}
	m := &machine{port: port}
	return m.serve()
}

// Off turns the machine off; the host's program ends with it.
func Off() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) }

func mountSystem() error {
	for _, m := range []struct{ kind, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"cgroup2", "/cg"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

func loadModules(list string) error {
	order, err := os.ReadFile(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil // all is built in
	}
	if err != nil {
		return err
	}
	for name := range strings.Lines(string(order)) {
		name = strings.TrimSpace(name)
		f, err := os.Open(filepath.Join(filepath.Dir(list), name))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	return nil
}

// openPort finds the port by its name: its number depends on the machine.
func openPort(within time.Duration) (*os.File, error) {
	var found string
	err := until(within, func() error {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, path := range names {
			if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == vmapi.Port {
				found = filepath.Join("/dev", filepath.Base(filepath.Dir(path)))
			}
		}
		if found == "" {
			return errors.New("no virtio port named " + vmapi.Port)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// Blocking, and read by one thread: the port's poll says hang-up while no host
	// listens.
	fd, err := unix.Open(found, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), found), nil
}

// until calls f until it succeeds, for at most so long; then its last error is
// returned. Nobody waits for the time as such.
func until(within time.Duration, f func() error) error {
	for end := time.Now().Add(within); ; {
		err := f()
		if err == nil || time.Now().After(end) {
			return err
		}
		<-time.After(2 * time.Millisecond)
	}
}

// machine is what the host may ask of.
type machine struct {
	port *os.File

	mu      sync.Mutex
	work    *workload // once started
	net     *vmapi.Net
	flushed bool // the disk's file system stands still
}

// serve answers to the end of the machine.
func (m *machine) serve() error {
	// The kernel sends a signal when a host comes; a machine that waits does
	// nothing.
	woken := make(chan os.Signal, 1)
	signal.Notify(woken, unix.SIGIO)
	if err := notify(m.port); err != nil {
		return fmt.Errorf("the host's port: %w", err)
	}
	in := bufio.NewReaderSize(m.port, vmapi.MaxRequest)
	for {
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF): // no host listens
			select {
			case <-woken:
			case <-time.After(time.Second): // should a signal be lost
			}
			continue
		case err != nil:
			return fmt.Errorf("the host's port: %w", err)
		}
		var q vmapi.Request
		// What was cut off by a snapshot, or by a host that died, is no request.
		if json.Unmarshal(bytes.TrimSpace(line), &q) != nil || q.Op == "" {
			continue
		}
		a, err := m.answer(&q)
		if a.ID = q.ID; err != nil {
			a.Error = err.Error()
			a.Error = a.Error[:min(len(a.Error), vmapi.MaxResponse/8)]
		}
		b, err := json.Marshal(a)
		if err != nil {
			return err
		}
		if _, err := m.port.Write(append(append([]byte{'\n'}, b...), '\n')); err != nil {
			fmt.Fprintln(os.Stderr, "skerry: answer:", err)
		}
	}
}

// notify has the kernel send SIGIO for what happens to the port.
func notify(port *os.File) error {
	fd := port.Fd()
	if _, err := unix.FcntlInt(fd, unix.F_SETOWN, os.Getpid()); err != nil {
		return err
	}
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(fd, unix.F_SETFL, flags|unix.O_ASYNC)
	}
	return err
}

func (m *machine) answer(q *vmapi.Request) (a vmapi.Response, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.work == nil && q.Op != vmapi.OpHello && q.Op != vmapi.OpStart {
		return a, errors.New("not started")
	}
	switch q.Op {
	case vmapi.OpHello:
		var u unix.Utsname
		err = unix.Uname(&u)
		a.Release = unix.ByteSliceToString(u.Release[:])
	case vmapi.OpStart:
		err = m.start(q)
	case vmapi.OpStill:
		err = m.still(q.Flush)
	case vmapi.OpGo:
		err = m.proceed(q)
	case vmapi.OpUsage:
		var st unix.Statfs_t
		err = unix.Statfs(diskDir, &st)
		a.Used = int64(st.Blocks-st.Bfree) * st.Bsize
	default:
		err = fmt.Errorf("operation %q is not known", q.Op)
	}
	return a, err
}

func (m *machine) start(q *vmapi.Request) error {
	if m.work != nil || q.Start == nil || q.Net == nil {
		return errors.New("started already, or with what is not told")
	}
	if err := errors.Join(setClock(q.Now), mixIn(q.Entropy)); err != nil {
		return err
	}
	if err := errors.Join(loadModules(modulesLate), plug(nil, q.Net)); err != nil {
		return err
	}
	m.net = q.Net
	w, err := startWorkload(q.Start)
	if err == nil {
		m.work = w
	}
	return err
}

// still stops the workload. On failure it goes on.
func (m *machine) still(flush bool) error {
	err := m.work.freeze(true)
	if err == nil && flush && !m.flushed {
		err = onDisk(fiFreeze)
		m.flushed = err == nil
	}
	if err != nil {
		err = errors.Join(err, m.loosen())
	}
	return err
}

// loosen undoes still.
func (m *machine) loosen() error {
	var err error
	if m.flushed {
		if err = onDisk(fiThaw); err == nil {
			m.flushed = false
		}
	}
	return errors.Join(err, m.work.freeze(false))
}

// proceed makes the machine fit for now and here, and only then lets the
// workload go on.
func (m *machine) proceed(q *vmapi.Request) error {
	err := errors.Join(setClock(q.Now), mixIn(q.Entropy))
	if err == nil && q.Net != nil {
		if err = plug(m.net, q.Net); err == nil {
			m.net = q.Net
		}
	}
	if err == nil && q.Copied {
		err = hangUp()
	}
	if err != nil {
		return err
	}
	return m.loosen()
}

// From linux/fs.h.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// onDisk freezes the disk's file system, which writes all to it, or thaws it.
func onDisk(op uint) error {
	f, err := os.Open(diskDir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), op, 0); err != nil {
		return fmt.Errorf("freeze or thaw the disk: %w", err)
	}
	return nil
}

func setClock(ns int64) error {
	if ns == 0 {
		return nil
	}
	ts := unix.NsecToTimespec(ns)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}
