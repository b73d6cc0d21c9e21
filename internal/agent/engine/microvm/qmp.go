package microvm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// monitor is a conversation with a machine's program. It hears one client at a
// time: whoever has the instance's turn.
type monitor struct {
	conn *net.UnixConn
	in   *bufio.Reader
	stop func() bool
}

// answerWithin bounds one answer of the monitor; what takes longer is asked for
// again.
const answerWithin = 20 * time.Second

// maxAnswer bounds one line of the monitor, which a guest may have taken over.
const maxAnswer = 1 << 20

// dialAt connects to a socket in a directory whose path may be too long for one.
func dialAt(ctx context.Context, dir, name string) (*net.UnixConn, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", filepath.Join("/proc/self/fd", strconv.Itoa(fd), name))
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("microvm: not a unix connection: %T", c), c.Close())
	}
	return u, nil
}

// dialMonitor connects and takes the greeting.
func dialMonitor(ctx context.Context, dir string) (*monitor, error) {
	c, err := dialAt(ctx, dir, qmpSocket)
	if err != nil {
		return nil, fmt.Errorf("microvm: monitor: %w", err)
	}
	m := &monitor{conn: c, in: bufio.NewReaderSize(c, maxAnswer)}
	m.stop = context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	if err := c.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return nil, errors.Join(err, m.close())
	}
	if _, err = m.line(); err == nil {
		err = m.do("qmp_capabilities", nil, nil)
	}
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

func (m *monitor) close() error {
	m.stop()
	return m.conn.Close()
}

func (m *monitor) line() ([]byte, error) {
	b, err := m.in.ReadSlice('\n')
	if err != nil {
		return nil, fmt.Errorf("microvm: monitor: %w", err)
	}
	return b, nil
}

// do executes a command; out, if not nil, takes what it returns.
func (m *monitor) do(command string, args, out any) error {
	return m.send(command, args, nil, out)
}

// pass is do with an open file, for commands that take one.
func (m *monitor) pass(command string, args any, f *os.File, out any) error {
	return m.send(command, args, f, out)
}

func (m *monitor) send(command string, args any, f *os.File, out any) error {
	q := map[string]any{"execute": command}
	if args != nil {
		q["arguments"] = args
	}
	b, err := json.Marshal(q)
	if err != nil {
		return err
	}
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	if err := m.conn.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	if _, _, err := m.conn.WriteMsgUnix(append(b, '\n'), rights, nil); err != nil {
		return fmt.Errorf("microvm: monitor: %s: %w", command, err)
	}
	for {
		b, err := m.line()
		if err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		var a struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := json.Unmarshal(b, &a); err != nil {
			return fmt.Errorf("microvm: monitor: %s: %w", command, err)
		}
		switch {
		case a.Error != nil && strings.Contains(a.Error.Desc, "No space left"):
			return fmt.Errorf("microvm: %s: %w", command, unix.ENOSPC)
		case a.Error != nil:
			return fmt.Errorf("microvm: %s: %.500s", command, a.Error.Desc)
		case a.Return == nil: // an event
			continue
		case out != nil:
			return json.Unmarshal(a.Return, out)
		}
		return nil
	}
}

// status is the machine's: "running", "paused", "inmigrate" …
func (m *monitor) status() (string, error) {
	var s struct {
		Status string `json:"status"`
	}
	err := m.do("query-status", nil, &s)
	return s.Status, err
}

// saveDevices writes all of the machine but its memory and its disks to f. The
// machine stands still.
func (m *monitor) saveDevices(f *os.File) error {
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := m.pass("add-fd", nil, f, &set); err != nil {
		return err
	}
	err := m.do("xen-save-devices-state", map[string]any{"filename": "/dev/fdset/" + strconv.Itoa(set.ID), "live": false}, nil)
	return errors.Join(err, m.do("remove-fd", map[string]any{"fdset-id": set.ID}, nil))
}

// loadDevices reads what saveDevices wrote into a machine that waits for it.
func (m *monitor) loadDevices(ctx context.Context, f *os.File) error {
	if err := m.pass("getfd", map[string]any{"fdname": "devices"}, f, nil); err != nil {
		return err
	}
	if err := m.do("migrate-incoming", map[string]any{"uri": "fd:devices"}, nil); err != nil {
		return err
	}
	return poll(ctx, answerWithin, func() error {
		var s struct {
			Status string `json:"status"`
			Desc   string `json:"error-desc"`
		}
		if err := m.do("query-migrate", nil, &s); err != nil {
			return err
		}
		if s.Status != "completed" {
			return fmt.Errorf("microvm: the checkpoint is not loaded: %s %.500s", s.Status, s.Desc)
		}
		return nil
	})
}
