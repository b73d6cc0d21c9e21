package up

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// holder is who holds the lock, as the lock file tells.
type holder struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot; with the pid it names a process for good
	URL   string `json:"url"`
	Ready bool   `json:"ready"`
}

// HeldError is a data directory on which another up runs.
type HeldError struct{ Holder holder }

func (e *HeldError) Error() string {
	return fmt.Sprintf("Skerry is already running here, at %s (process %d)", e.Holder.URL, e.Holder.PID)
}

// dirLock excludes other ups and downs from a data directory. The kernel frees
// it when its process ends, however that is.
type dirLock struct{ f *os.File }

func acquire(path string) (*dirLock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return &dirLock{f}, nil
	}
	defer f.Close()
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	var h holder
	if raw, err := os.ReadFile(path); err == nil {
		_ = json.Unmarshal(raw, &h) // being written this moment: unknown
	}
	return nil, &HeldError{h}
}

// tell writes who we are. The file is written in place: it is the lock.
func (l *dirLock) tell(url string, ready bool) error {
	start, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	raw, err := json.Marshal(holder{PID: os.Getpid(), Start: start, URL: url, Ready: ready})
	if err != nil {
		return err
	}
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	_, err = l.f.WriteAt(raw, 0)
	return err
}

func (l *dirLock) release() {
	_ = l.f.Truncate(0)
	_ = l.f.Close()
}

// waitFree waits until nobody holds the lock and takes it.
func waitFree(ctx context.Context, path string) (*dirLock, error) {
	for {
		l, err := acquire(path)
		var held *HeldError
		if err == nil || !errors.As(err, &held) {
			return l, err
		}
		if !pause(ctx, 50*time.Millisecond) {
			return nil, errors.Join(err, ctx.Err())
		}
	}
}

// signal sends sig to exactly the process that wrote the lock.
func (h holder) signal(sig unix.Signal) error {
	if h.PID <= 1 {
		return errors.New("the lock file does not say who holds it")
	}
	fd, err := unix.PidfdOpen(h.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Read after the pidfd was opened: the answer is about the process we hold.
	if start, err := startTime(h.PID); err != nil || start != h.Start {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
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
