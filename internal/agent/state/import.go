package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	incoming = ".in" // being fetched, or left to be gone on with
	// resumable is how long what a broken fetch left waits for the next one.
	resumable = 24 * time.Hour
)

// Copy is a state of another host's.
type Copy struct {
	ID id.Snapshot
	// Digest is that of its manifest; anything else is refused.
	Digest    string
	SizeBytes int64
}

// Part is one file of a state as it travels: Name is relative to the state's
// directory, with slashes. Mode is that of a copy.
type Part struct {
	Name, Path string
	Mode       fs.FileMode
}

// Parts are the files of a held state, state.json last. A copy has them all.
func (h *Held) Parts() []Part {
	dir := filepath.Dir(h.Dir)
	out := make([]Part, 0, len(h.Files)+4)
	add := func(name string, mode fs.FileMode) {
		out = append(out, Part{Name: name, Path: filepath.Join(dir, filepath.FromSlash(name)), Mode: mode})
	}
	for _, f := range h.Files {
		add(imageDir+"/"+f.Name, 0o600)
	}
	if h.HasDisk() {
		add(diskTar, 0o600)
		add(diskAbout, 0o600)
	}
	if h.GuestFile() != "" {
		add(guestFile, 0o555)
	}
	add(manifestName, 0o600)
	return out
}

// Accepts tells whether a file of that name may be part of a state.
func Accepts(name string) bool {
	switch name {
	case manifestName, diskTar, diskAbout, guestFile:
		return true
	}
	base, ok := strings.CutPrefix(name, imageDir+"/")
	return ok && base != "" && base == filepath.Base(base)
}

// Import brings a state that another host has: fill puts its parts below dir by
// their names, and finds there what a broken try left, which is kept for a day.
// The state exists when every byte was read and found to be what its digest
// names; nothing else ever gets its name. It succeeds at once on what is there,
// but that it brings the daemon that one lacks, where the copy has it, and puts a
// good copy in the place of a damaged one. One at a time for a state.
// Reasons: disk_full, state_exists (another one has the id), content_mismatch.
func (s *Store) Import(ctx context.Context, want Copy, fill func(ctx context.Context, dir string) error) (State, error) {
	if st, ok, err := s.already(ctx, want, fill); ok || err != nil {
		return st, err
	}
	e, need, err := s.expect(ctx, want)
	if err != nil {
		return State{}, err
	}
	st, read, err := s.bring(ctx, want, fill)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved -= need
	e.busy = false
	switch {
	case err == nil:
		e.state, e.read, e.fault = st, read, nil
	case e.fault == nil: // it is none yet
		delete(s.states, want.ID)
	}
	s.touch()
	if err != nil {
		return State{}, s.blame(err, need)
	}
	return st, nil
}

// already finds a copy that is here and whole.
func (s *Store) already(ctx context.Context, want Copy, fill func(ctx context.Context, dir string) error) (State, bool, error) {
	st, ok := s.Get(want.ID)
	if !ok {
		return State{}, false, nil
	}
	if st.Digest != want.Digest {
		return State{}, false, errs.Conflict("state_exists", "This host has another saved state of that id.").
			With("state_id", want.ID.UUID().String()).With("digest", st.Digest)
	}
	h, err := s.Hold(ctx, want.ID)
	switch {
	case err == nil:
		defer h.Release()
		if !guestOf(ctx, s.path(want.ID), st.Manifest) {
			err = s.mend(ctx, h, fill)
		}
		return st, true, err
	case !errs.Is(err, "state_damaged"):
		return State{}, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.states[want.ID]; e != nil && e.fault == nil {
		e.fault = err
	}
	return State{}, false, nil
}

// expect takes the state's name and room on the disk for what is still missing.
func (s *Store) expect(ctx context.Context, want Copy) (*entry, int64, error) {
	free, err := s.fs.Free(s.dir)
	if err != nil {
		return nil, 0, fmt.Errorf("state: %w", err)
	}
	need := max(want.SizeBytes-usedBelow(s.path(want.ID)+incoming), 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		e := s.states[want.ID]
		if e == nil || e.fault != nil && !e.busy && e.holders == 0 {
			break
		}
		if !e.busy && e.fault == nil {
			return nil, 0, errs.Conflict("state_exists", "This host has just come to have the saved state. Try again.").With("state_id", want.ID.UUID().String())
		}
		wait := s.changed
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
		}
		s.mu.Lock()
		if ctx.Err() != nil {
			return nil, 0, context.Cause(ctx)
		}
	}
	if left := free - s.reserved; left < need+Reserve {
		return nil, 0, full(need+Reserve, max(left, 0))
	}
	s.reserved += need
	e := s.states[want.ID]
	if e == nil {
		e = &entry{}
		s.states[want.ID] = e
	}
	e.busy = true
	return e, need, nil
}

// bring fills the directory and gives it its name when all is right. What is
// wrong is removed, what is incomplete stays.
func (s *Store) bring(ctx context.Context, want Copy, fill func(context.Context, string) error) (st State, read []stamp, err error) {
	dir := s.path(want.ID) + incoming
	if err := s.reopen(dir); err != nil {
		return st, nil, err
	}
	if err := fill(ctx, dir); err != nil {
		return st, nil, err
	}
	st, read, err = s.inspect(ctx, dir, want)
	if err != nil {
		if errs.Is(err, "content_mismatch") {
			s.remove(dir)
		}
		return st, nil, err
	}
	paths := []string{filepath.Join(dir, imageDir), dir}
	for _, f := range st.Files {
		paths = append(paths, filepath.Join(dir, imageDir, f.Name))
	}
	for _, p := range []string{manifestName, diskTar, diskAbout, guestFile} {
		if _, err := os.Stat(filepath.Join(dir, p)); err == nil {
			paths = append(paths, filepath.Join(dir, p))
		}
	}
	for _, p := range paths {
		if err := s.fs.Sync(p); err != nil {
			return st, nil, err
		}
	}
	if err := context.Cause(ctx); err != nil {
		return st, nil, err
	}
	// A damaged one makes way. Its sandbox, if it is one's, has the new one as soon
	// as that has the name; in between it has none, and it is fetched again.
	if err := s.doom(s.path(want.ID)); err != nil {
		return st, nil, err
	}
	if err := s.fs.Rename(dir, s.path(want.ID)); err != nil {
		return st, nil, err
	}
	s.remove(s.path(want.ID) + doomed)
	if err := s.fs.Sync(s.dir); err != nil {
		// Nobody is told of it, so that it must not be there at the next start.
		return st, nil, errors.Join(err, s.doom(s.path(want.ID)))
	}
	return st, read, nil
}

// reopen makes the directory, or finds the one of a broken try.
func (s *Store) reopen(dir string) error {
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	s.mu.Lock()
	left := s.debris[dir]
	s.mu.Unlock()
	if left {
		if err := s.fs.Remove(dir); err != nil {
			return err
		}
		s.mu.Lock()
		delete(s.debris, dir)
		s.mu.Unlock()
	}
	for _, d := range []string{dir, filepath.Join(dir, imageDir)} {
		if _, err := os.Lstat(d); err == nil {
			continue
		}
		if err := s.fs.Mkdir(d); err != nil {
			return err
		}
	}
	now := time.Now()
	return os.Chtimes(dir, now, now)
}

// inspect reads every byte of what came.
func (s *Store) inspect(ctx context.Context, dir string, want Copy) (State, []stamp, error) {
	wrong := func(err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return errs.Invalid("content_mismatch", "What was fetched is not the saved state that was asked for: "+err.Error()).
			With("state_id", want.ID.UUID().String()).Because(err)
	}
	st, err := read(dir, want.ID)
	if err == nil && st.Digest != want.Digest {
		err = fmt.Errorf("its digest is %s", st.Digest)
	}
	if err == nil {
		err = verify(ctx, dir, st.Files)
	}
	if err == nil {
		err = s.drop(ctx, dir, st)
	}
	if err != nil {
		return State{}, nil, wrong(err)
	}
	now, err := stamps(dir, st.Files)
	return st, now, err
}

// drop removes what the state does not consist of.
func (s *Store) drop(ctx context.Context, dir string, st State) error {
	names := []string{manifestName, imageDir, diskTar, diskAbout}
	if st.GuestDigest != "" && guestOf(ctx, dir, st.Manifest) { // what has it not is as good for its disk
		names = append(names, guestFile)
	}
	var of []string
	for _, f := range st.Files {
		of = append(of, f.Name)
	}
	for d, keep := range map[string][]string{dir: names, filepath.Join(dir, imageDir): of} {
		entries, err := os.ReadDir(d)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if !slices.Contains(keep, entry.Name()) {
				if err := s.fs.Remove(filepath.Join(d, entry.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// forget removes what a broken fetch of a state left.
func (s *Store) forget(which id.Snapshot) {
	if dir := s.path(which) + incoming; exists(dir) {
		s.remove(dir)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}

// tidyIncoming removes what broken fetches left that nobody went on with.
func (s *Store) tidyIncoming() {
	left, _ := filepath.Glob(filepath.Join(s.dir, "*"+incoming))
	for _, dir := range left {
		info, err := os.Lstat(dir)
		if err != nil {
			continue
		}
		which, ok := parse(strings.TrimSuffix(filepath.Base(dir), incoming))
		s.sweeping.Lock()
		s.mu.Lock()
		e := s.states[which]
		old := !ok || e != nil && !e.busy && e.fault == nil && e.holders == 0 || (e == nil || !e.busy) && time.Since(info.ModTime()) > resumable
		if old {
			s.debris[dir] = true
		}
		s.mu.Unlock()
		s.sweeping.Unlock()
	}
}

// usedBelow is what the files below dir take on the disk.
func usedBelow(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // what is not there takes nothing
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				n += st.Blocks * 512
			}
		}
		return nil
	})
	return n
}
