package up

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/pg"
)

const downWithin = 90 * time.Second

// Down stops the up that runs on a data directory, wherever it was started
// from, and PostgreSQL, which may have outlived one that was killed. Sandboxes
// stay. Nothing running is fine.
func Down(ctx context.Context, data string, say func(string)) error {
	lock, err := down(ctx, data, say)
	if err == nil && lock != nil {
		lock.release()
	}
	return err
}

// down is Down, and keeps the lock. A data directory that does not exist gives
// none.
func down(ctx context.Context, data string, say func(string)) (*dirLock, error) {
	path := filepath.Join(data, "up.lock")
	lock, err := acquire(path)
	var held *HeldError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		say("nothing runs in " + data)
		return nil, nil
	case errors.As(err, &held):
		say(fmt.Sprintf("stopping Skerry at %s (process %d)", held.Holder.URL, held.Holder.PID))
		if err := held.Holder.signal(unix.SIGTERM); err != nil {
			return nil, fmt.Errorf("stop process %d: %w", held.Holder.PID, err)
		}
		ctx, cancel := context.WithTimeout(ctx, downWithin)
		defer cancel()
		if lock, err = waitFree(ctx, path); err != nil {
			return nil, fmt.Errorf("it has not stopped: %w", err)
		}
	case err != nil:
		return nil, err
	default:
		say("no `skerry up` runs in " + data)
	}
	if _, err := os.Stat(filepath.Join(data, "postgres")); err == nil {
		if err := (&pg.Cluster{Dir: filepath.Join(data, "postgres")}).Stop(ctx); err != nil {
			lock.release()
			return nil, fmt.Errorf("stop PostgreSQL: %w", err)
		}
	}
	return lock, nil
}

// owned are the entries of a data directory that are ours to remove; anything
// else in it was put there by somebody else and stays.
func owned() []string {
	return []string{"agent", "credentials.env", "join.json", "log", "postgres", "postgres.log", "postgres.lock", "scratch", "secret", "setup.json", "store", "up.log", "up.lock"}
}

// Purge stops everything and removes all that Skerry ever made on this machine
// for a data directory: sandboxes, network, mounts, cgroups, the database and
// every file. Killed in between, it is finished by the next one.
func Purge(ctx context.Context, data string, parts Parts, say func(string)) error {
	if resolved, err := filepath.EvalSymlinks(data); err == nil {
		data = resolved
	}
	lock, err := down(ctx, data, say)
	if err != nil || lock == nil {
		return err
	}
	defer lock.release()
	if _, err := os.Stat(AgentDir(data)); err == nil {
		if err := parts.PurgeAgent(ctx, AgentDir(data), say); err != nil {
			return fmt.Errorf("remove the sandboxes: %w", err)
		}
	}
	say("removing the data")
	if _, err := os.Lstat(filepath.Join(data, "postgres")); err == nil {
		if err := (&pg.Cluster{Dir: filepath.Join(data, "postgres")}).Remove(ctx); err != nil {
			return fmt.Errorf("remove the database: %w", err)
		}
	}
	for _, name := range owned() {
		if err := os.RemoveAll(filepath.Join(data, name)); err != nil {
			return err
		}
	}
	// What a write that was cut short left behind, see writeFile.
	for _, name := range []string{"secret", "setup.json", "join.json", "credentials.env"} {
		leftovers, err := filepath.Glob(filepath.Join(data, "."+name+".*"))
		if err != nil {
			return err
		}
		for _, file := range leftovers {
			if err := os.Remove(file); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(data); errors.Is(err, unix.ENOTEMPTY) {
		say(data + " is kept: it holds files that are not Skerry's")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}
