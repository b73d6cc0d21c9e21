package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Draft is a state that is being written. It ends with Keep or Discard.
type Draft struct {
	store  *Store
	id     id.Snapshot
	path   string // until it is sealed
	need   int64
	sealed bool
}

// Create begins a state that will take about need bytes. Reasons: disk_full,
// state_exists.
func (s *Store) Create(which id.Snapshot, need int64) (*Draft, error) {
	free, err := s.fs.Free(s.dir)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	s.mu.Lock()
	if s.states[which] != nil {
		s.mu.Unlock()
		return nil, errs.Conflict("state_exists", "This host has a saved state of that id already.").With("state_id", which.UUID().String())
	}
	if left := free - s.reserved; left < need+Reserve {
		s.mu.Unlock()
		return nil, full(need+Reserve, max(left, 0))
	}
	s.reserved += need
	s.states[which] = &entry{busy: true}
	s.mu.Unlock()
	d := &Draft{store: s, id: which, path: s.path(which) + drafted, need: need}
	err = s.take(d.path)
	if err == nil {
		err = s.fs.Mkdir(d.Dir())
	}
	if err != nil {
		d.Discard()
		return nil, s.blame(err, need)
	}
	return d, nil
}

// take makes a draft's directory, also where a former try could not be removed.
func (s *Store) take(path string) error {
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	if err := s.fs.Remove(path); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.debris, path)
	s.mu.Unlock()
	return s.fs.Mkdir(path)
}

// Dir is the empty directory the engine writes to.
func (d *Draft) Dir() string { return filepath.Join(d.path, imageDir) }

// Seal completes the state: when it returns nil a power cut changes nothing
// any more. Of m only what describes the sandbox need be set. It is not to be
// found by others before Keep.
func (d *Draft) Seal(ctx context.Context, m Manifest) (State, error) {
	s := d.store
	files, err := d.settle(ctx)
	if err != nil {
		return State{}, s.blame(err, d.need)
	}
	m.Format, m.ID, m.Files = format, d.id, files
	st, raw, err := seal(m)
	if err != nil {
		return State{}, fmt.Errorf("state: %w", err)
	}
	manifest := filepath.Join(d.path, manifestName)
	for _, step := range []func() error{
		func() error { return s.fs.Sync(d.Dir()) },
		func() error { return s.fs.WriteFile(manifest, raw) },
		func() error { return s.fs.Sync(manifest) },
		func() error { return s.fs.Sync(d.path) },
		func() error { return context.Cause(ctx) },
		func() error { return s.fs.Rename(d.path, s.path(d.id)) },
		func() error { d.sealed = true; return s.fs.Sync(s.dir) },
	} {
		if err := step(); err != nil {
			return State{}, s.blame(err, d.need)
		}
	}
	now, err := stamps(s.path(d.id), files)
	if err != nil {
		return State{}, fmt.Errorf("state: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.states[d.id]
	e.state, e.read = st, now
	return st, nil
}

// settle syncs every file while it is read back and hashed.
func (d *Draft) settle(ctx context.Context) ([]File, error) {
	entries, err := os.ReadDir(d.Dir())
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 || len(entries) > maxFiles {
		return nil, fmt.Errorf("state: the engine wrote %d files", len(entries))
	}
	var wg sync.WaitGroup
	synced := make([]error, len(entries))
	files := make([]File, len(entries))
	for i, e := range entries {
		if !e.Type().IsRegular() {
			err = fmt.Errorf("state: the engine wrote %s, which is no regular file", e.Name())
			break
		}
		path := filepath.Join(d.Dir(), e.Name())
		wg.Go(func() { synced[i] = d.store.fs.Sync(path) })
		if files[i], err = hashFile(ctx, path); err != nil {
			break
		}
	}
	wg.Wait()
	return files, errors.Join(append(synced, err)...)
}

// Keep lets others find a state that was sealed.
func (d *Draft) Keep() {
	s := d.store
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved -= d.need
	s.states[d.id].busy = false
	s.touch()
}

// Discard removes the draft, sealed or not, and returns when it can never be
// found again, as far as the disk lets it.
func (d *Draft) Discard() {
	s := d.store
	if d.sealed {
		doomedPath := s.path(d.id) + doomed
		if err := s.doom(s.path(d.id)); err != nil {
			s.logger.Error("a saved state nobody asked to keep cannot be removed", "snapshot_id", d.id.String(), "err", err)
		}
		d.path = doomedPath
	}
	empty(s.fs, filepath.Join(d.path, imageDir))
	s.remove(d.path)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved -= d.need
	delete(s.states, d.id)
	s.touch()
}

// Full tells whether err says that a disk is full. Engines say it in words.
func Full(err error) bool {
	return err != nil && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) ||
		strings.Contains(strings.ToLower(err.Error()), "no space left on device"))
}

// Blame gives a full disk its reason, with what was wanted and what there is;
// other errors are passed on.
func (d *Draft) Blame(err error) error { return d.store.blame(err, d.need) }

func (s *Store) blame(err error, need int64) error {
	if !Full(err) {
		return err
	}
	free, ferr := s.fs.Free(s.dir)
	if ferr != nil {
		free = 0
	}
	return full(need+Reserve, free).Because(err)
}

func full(need, free int64) *errs.Error {
	return errs.Exhausted("disk_full", fmt.Sprintf(
		"The host's disk is too full for the saved state: %d MB are needed, %d MB are free. Delete snapshots or paused sandboxes of this host, or enlarge its disk, and try again.",
		(need+1<<20-1)>>20, free>>20)).With("needed_bytes", need).With("free_bytes", free)
}
