package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// watched is one process the shim follows, and what a file in Dir/watch says so
// that the next shim can go on.
type watched struct {
	Process
	Console *Console `json:"console,omitempty"`
	BootID  string   `json:"boot_id"`

	done chan struct{} // closed when exit is set
	exit Exit
}

func (s *server) watchPath(p Process) string {
	return filepath.Join(s.cfg.Dir, "watch", fmt.Sprintf("%s.%d.json", p.Key, p.PID))
}

// watch follows p from now on and is repeatable. A process that is gone already
// gets its exit record at once.
func (s *server) watch(p Process, console *Console) (*watched, error) {
	if err := validKey(p.Key); err != nil {
		return nil, err
	}
	if p.PID <= 0 {
		return nil, errors.New("shim: no pid to watch")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if w, ok := s.watched[p]; ok {
		return w, nil
	}
	w := &watched{Process: p, Console: console, BootID: s.bootID, done: make(chan struct{})}
	if e, ok := s.exits.find(p); ok {
		w.exit = e
		close(w.done)
		return w, nil
	}
	if err := s.remember(w); err != nil {
		return nil, err
	}
	s.followLocked(w)
	return w, nil
}

// remember writes the file of w. A crash of the machine may lose it: then the
// process is gone as well.
func (s *server) remember(w *watched) error {
	b, err := json.Marshal(w)
	if err != nil {
		return err
	}
	path := s.watchPath(w.Process)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	return os.Rename(path+".new", path)
}

// followLocked waits for the end of w: through the reaper when it is our child,
// else by pidfd.
func (s *server) followLocked(w *watched) {
	s.watched[w.Process] = w
	if o, ok := s.takeOrphanLocked(w.PID, w.Start); ok {
		s.finishLocked(w, o.status, true)
		return
	}
	fd, err := openProcess(w.Process)
	if err != nil {
		s.finishLocked(w, 0, false)
		return
	}
	if isChild(w.PID) {
		_ = unix.Close(fd) // the reaper needs the lock we hold to collect it
		return
	}
	s.group.Go(func(ctx context.Context) error {
		status, known, err := awaitEnd(ctx, w.Process, fd)
		if ctx.Err() != nil {
			return nil // the next shim goes on
		}
		if err != nil {
			s.cfg.Logger.Error("cannot follow a process", "key", w.Key, "pid", w.PID, "error", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		// It may have become our child in the meantime.
		if o, ok := s.takeOrphanLocked(w.PID, w.Start); ok {
			status, known = o.status, true
		}
		if _, ok := s.watched[w.Process]; ok {
			s.finishLocked(w, status, known)
		}
		return nil
	})
}

func (s *server) finishLocked(w *watched, status unix.WaitStatus, known bool) {
	e := Exit{Process: w.Process, Known: known, Code: -1}
	if known && status.Exited() {
		e.Code = status.ExitStatus()
	} else if known && status.Signaled() {
		e.Signal = int(status.Signal())
	}
	e, err := s.exits.add(e)
	if err != nil {
		s.cfg.Logger.Error("exit record is not durable", "key", w.Key, "pid", w.PID, "error", err)
	}
	delete(s.watched, w.Process)
	_ = os.Remove(s.watchPath(w.Process))
	w.exit = e
	close(w.done)
}

// resume takes up what the previous shim followed.
func (s *server) resume() error {
	dir := filepath.Join(s.cfg.Dir, "watch")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		w := &watched{done: make(chan struct{})}
		b, err := os.ReadFile(path)
		if err != nil || json.Unmarshal(b, w) != nil || !strings.HasSuffix(path, ".json") {
			s.cfg.Logger.Warn("dropping an unreadable file", "path", path)
			_ = os.Remove(path)
			continue
		}
		s.mu.Lock()
		switch _, recorded := s.exits.find(w.Process); {
		case recorded:
			_ = os.Remove(path)
		case w.BootID != s.bootID:
			s.finishLocked(w, 0, false)
		default:
			s.followLocked(w)
		}
		_, alive := s.watched[w.Process]
		s.mu.Unlock()
		if alive && w.Console != nil {
			s.drain(w.Console, nil)
		}
	}
	return nil
}

// drain starts copying a console; reader is nil after a restart.
func (s *server) drain(c *Console, reader *os.File) {
	if reader == nil {
		var err error
		if reader, err = c.open(); err != nil {
			s.cfg.Logger.Warn("a console is lost", "fifo", c.FIFO, "error", err)
			return
		}
	}
	s.group.Go(func(ctx context.Context) error {
		c.drain(ctx, reader)
		return nil
	})
}

func validKey(key string) error {
	if key == "" || len(key) > 128 {
		return errors.New("shim: a key has 1 to 128 characters")
	}
	for _, c := range []byte(key) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return fmt.Errorf("shim: key %q: only a-z, 0-9, - and _", key)
		}
	}
	return nil
}
