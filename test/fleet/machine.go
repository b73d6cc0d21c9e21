package fleet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// machine is a thread that processes are started from. They get its namespaces
// and end with it: the kernel takes the death of the starting thread for that
// of the parent.
type machine struct {
	work chan func()
	done chan struct{}
	// net is a descriptor of its network namespace; -1: this process's own.
	net int
}

// newMachine starts a thread, which prepares itself with enter before it takes
// on anything.
func newMachine(enter func() error) (*machine, error) {
	m := &machine{work: make(chan func()), done: make(chan struct{}), net: -1}
	ready := make(chan error, 1)
	go func() {
		defer close(m.done)
		// Never unlocked: the thread ends with this goroutine and carries no
		// other into its namespaces.
		runtime.LockOSThread()
		if enter != nil {
			if err := enter(); err != nil {
				ready <- err
				return
			}
			fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				ready <- err
				return
			}
			m.net = fd
		}
		ready <- nil
		for f := range m.work {
			f()
		}
	}()
	return m, <-ready
}

// do runs f on the machine's thread. What f starts in goroutines is not on it.
func (m *machine) do(f func() error) error {
	result := make(chan error, 1)
	m.work <- func() { result <- f() }
	return <-result
}

// run runs a command on the machine to its end.
func (m *machine) run(cmd *exec.Cmd) error {
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := m.do(cmd.Start); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out.String())
	}
	return nil
}

// close ends the thread, and with the last process in it the machine's
// namespaces.
func (m *machine) close() error {
	close(m.work)
	<-m.done
	if m.net < 0 {
		return nil
	}
	return unix.Close(m.net)
}

// enterOwn moves the calling thread into namespaces of its own, in which of all
// that is below base only dir exists, and no namespace has a name yet.
func enterOwn(base, dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	const stage, names = "/mnt", "/run/netns"
	if err := os.MkdirAll(names, 0o755); err != nil {
		return err
	}
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{dir, stage, "", unix.MS_BIND},
		{"fleet", base, "tmpfs", 0},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if err := unix.Mount(stage, dir, "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s: %w", dir, err)
	}
	return unix.Mount("fleet", names, "tmpfs", 0, "")
}

// holds lists what sandboxes left on a machine: mounts below dir, links and
// namespaces.
func (m *machine) holds(dir string) (found []string, err error) {
	err = m.do(func() error {
		mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(mounts)) {
			if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
				found = append(found, "mount "+fields[4])
			}
		}
		named, err := filepath.Glob("/run/netns/*")
		if err != nil {
			return err
		}
		for _, n := range named {
			found = append(found, "namespace "+n)
		}
		links, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(links)) {
			if name, _, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && strings.HasPrefix(name, "sk") {
				found = append(found, "link "+name)
			}
		}
		return nil
	})
	return found, err
}

// tables lists the nftables of the machine.
func (m *machine) tables() ([]string, error) {
	cmd := exec.Command("nft", "list", "tables")
	var out strings.Builder
	cmd.Stdout = &out
	if err := m.do(cmd.Start); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, errors.Join(errors.New("nft list tables"), err)
	}
	return strings.Fields(strings.ReplaceAll(out.String(), "table inet ", "")), nil
}
