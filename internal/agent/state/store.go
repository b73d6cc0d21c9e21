package state

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	// Reserve is what a state must leave free on the disk, for the journal and
	// for sandboxes that write.
	Reserve = 64 << 20

	drafted = ".new" // being written
	doomed  = ".del" // being removed
)

// Store is safe for concurrent use.
type Store struct {
	dir    string
	fs     FS
	logger *slog.Logger

	sweeping sync.Mutex // held while debris is removed, or its name taken

	mu       sync.Mutex
	states   map[id.Snapshot]*entry
	reserved int64           // promised to drafts
	debris   map[string]bool // paths that could not be removed yet
	changed  chan struct{}   // closed and replaced whenever an entry is let go
}

// entry is one state. Guarded by Store.mu.
type entry struct {
	state State
	fault error // why it cannot be used
	// read is what the files looked like when all their bytes were last right.
	read    []stamp
	holders int
	busy    bool // being written or removed
}

// Open returns the store on a directory, which it makes, and removes what was
// never completed. A nil fs is Disk.
func Open(dir string, fs FS, logger *slog.Logger) (*Store, error) {
	if fs == nil {
		fs = Disk{}
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	s := &Store{
		dir: dir, fs: fs, logger: logger, states: make(map[id.Snapshot]*entry),
		debris: make(map[string]bool), changed: make(chan struct{}),
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasSuffix(e.Name(), drafted) || strings.HasSuffix(e.Name(), doomed) {
			s.debris[path] = true
			continue
		}
		if strings.HasSuffix(e.Name(), incoming) {
			continue // Tidy looks at these
		}
		which, ok := parse(e.Name())
		if !ok {
			logger.Warn("something that is no saved state lies among them", "path", path)
			continue
		}
		for _, name := range []string{diskTar, diskAbout} { // of a disk that was not done
			_ = fs.Remove(filepath.Join(path, name+drafted))
		}
		st, err := read(path, which)
		if err != nil {
			logger.Error("a saved state is damaged", "snapshot_id", which.String(), "err", err)
		}
		s.states[which] = &entry{state: st, fault: err}
	}
	s.Tidy()
	return s, nil
}

// name is the directory's: the bare id in hex.
func name(which id.Snapshot) string {
	u := which.UUID()
	return hex.EncodeToString(u[:])
}

func parse(name string) (id.Snapshot, bool) {
	b, err := hex.DecodeString(name)
	if err != nil || len(b) != len(uuid.UUID{}) || strings.ToLower(name) != name {
		return id.Snapshot{}, false
	}
	return id.Snapshot{}.FromUUID(uuid.UUID(b)), true
}

func (s *Store) path(which id.Snapshot) string { return filepath.Join(s.dir, name(which)) }

// Tidy removes what could not be removed before, and what broken fetches left.
func (s *Store) Tidy() {
	s.tidyIncoming()
	s.mu.Lock()
	var paths []string
	for p := range s.debris {
		paths = append(paths, p)
	}
	s.mu.Unlock()
	for _, p := range paths {
		s.clear(p)
	}
}

// remove removes a tree now, or later.
func (s *Store) remove(path string) {
	s.mu.Lock()
	s.debris[path] = true
	s.mu.Unlock()
	s.clear(path)
}

// clear removes debris, if it still is that: a draft may have taken its name.
func (s *Store) clear(path string) {
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	s.mu.Lock()
	still := s.debris[path]
	s.mu.Unlock()
	if !still {
		return
	}
	if err := s.fs.Remove(path); err != nil {
		s.logger.Warn("remains of a saved state cannot be removed yet", "path", path, "err", err)
		return
	}
	s.mu.Lock()
	delete(s.debris, path)
	s.mu.Unlock()
}

// touch wakes those who wait for an entry. Called with s.mu held.
func (s *Store) touch() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Get returns a complete state.
func (s *Store) Get(which id.Snapshot) (State, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.states[which]
	if e == nil || e.busy || e.fault != nil {
		return State{}, false
	}
	return e.state, true
}

// Has tells whether there is such a state, damaged ones included.
func (s *Store) Has(which id.Snapshot) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.states[which]
	return e != nil && !e.busy
}

// List returns all complete states, by id.
func (s *Store) List() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []State
	for _, e := range s.states {
		if !e.busy && e.fault == nil {
			out = append(out, e.state)
		}
	}
	slices.SortFunc(out, func(a, b State) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	return out
}

// Newest returns, for each sandbox, the state that was taken of it last.
func (s *Store) Newest() map[id.Sandbox]State {
	out := make(map[id.Sandbox]State)
	for _, st := range s.List() {
		if have, ok := out[st.Sandbox]; !ok || st.CreatedAt.After(have.CreatedAt) {
			out[st.Sandbox] = st
		}
	}
	return out
}

// Held is a state that stays until Release.
type Held struct {
	State
	// Dir is the engine's image.
	Dir  string
	fs   FS
	once sync.Once
	let  func()
}

// Release lets the state go; it may be repeated.
func (h *Held) Release() { h.once.Do(h.let) }

// Hold returns a state whose every byte was read and found right since it was
// last written to, and keeps it until Release. Reasons: unknown_state,
// state_damaged.
func (s *Store) Hold(ctx context.Context, which id.Snapshot) (*Held, error) {
	s.mu.Lock()
	e := s.states[which]
	switch {
	case e == nil || e.busy:
		s.mu.Unlock()
		return nil, errs.NotFound("unknown_state", "This host has no such saved state.").With("state_id", which.UUID().String())
	case e.fault != nil:
		s.mu.Unlock()
		return nil, damaged(which, e.fault)
	}
	e.holders++
	st, known := e.state, e.read
	s.mu.Unlock()
	h := &Held{State: st, fs: s.fs, Dir: filepath.Join(s.path(which), imageDir), let: func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		e.holders--
		s.touch()
	}}
	now, err := stamps(s.path(which), st.Files)
	if err == nil && !slices.Equal(now, known) {
		err = verify(ctx, s.path(which), st.Files)
	}
	if err != nil {
		h.Release()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, damaged(which, err)
	}
	s.mu.Lock()
	e.read = now
	s.mu.Unlock()
	return h, nil
}

func damaged(which id.Snapshot, err error) error {
	return errs.FailedPrecondition("state_damaged", "The saved state on this host is damaged and was not used.").
		With("state_id", which.UUID().String()).Because(err)
}

// Delete removes a state and returns when it can never come back. It succeeds
// on nothing, removes damaged ones as well, and waits for those who hold it.
func (s *Store) Delete(ctx context.Context, which id.Snapshot) error {
	s.mu.Lock()
	var e *entry
	for {
		if e = s.states[which]; e == nil {
			s.mu.Unlock()
			s.forget(which)
			return nil
		}
		if !e.busy && e.holders == 0 {
			break
		}
		wait := s.changed
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.mu.Lock()
	}
	e.busy = true
	s.mu.Unlock()
	err := s.doom(s.path(which))
	s.mu.Lock()
	e.busy = false
	if err == nil {
		delete(s.states, which)
	}
	s.touch()
	s.mu.Unlock()
	if err != nil {
		return errs.Unavailable("state_not_removed", "The saved state could not be removed. Try again.").Because(err)
	}
	s.remove(s.path(which) + doomed)
	return nil
}

// doom takes a state's name away for good; what it holds goes later.
func (s *Store) doom(path string) error {
	err := s.fs.Rename(path, path+doomed)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	return s.fs.Sync(s.dir)
}
