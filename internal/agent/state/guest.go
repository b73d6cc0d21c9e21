package state

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"skerry.dev/skerry/internal/kernel/errs"
)

// guestFile is the program of the daemon that is in a state's memory, which maps
// it: it is started from no other. Most states of a host have the same, by names of
// one file. Like the disk on its own it is not named by the state's digest, but its
// content is; without it the disk is as good.
const guestFile = "guest"

// KeepGuest puts the daemon's program at path, which is never written to again,
// into the draft, beside what the engine writes. Seal is told its digest. fs.ErrNotExist
// changes nothing.
func (d *Draft) KeepGuest(path string) error {
	file := filepath.Join(d.path, guestFile)
	err := d.store.fs.Link(path, file)
	if err == nil {
		err = d.store.fs.Sync(file)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.store.blame(err, d.need)
}

// GuestFile is the program of the daemon in the state's memory; empty when it has
// none, or does not have it any more. Whether it is the right one is for its user
// to find out.
func (h *Held) GuestFile() string {
	file := filepath.Join(filepath.Dir(h.Dir), guestFile)
	if h.GuestDigest == "" || !exists(file) {
		return ""
	}
	return file
}

// IsGuest tells whether a part of that name is a daemon's program.
func IsGuest(name string) bool { return name == guestFile }

// GuestFiles are the daemons' programs that states here have, by digest. Whether
// they are the right ones is for their user to find out.
func (s *Store) GuestFiles() map[string]string {
	out := map[string]string{}
	for _, st := range s.List() {
		if file := filepath.Join(s.path(st.ID), guestFile); st.GuestDigest != "" && exists(file) {
			out[st.GuestDigest] = file
		}
	}
	return out
}

// guestOf tells whether the state in dir has the daemon that it needs.
func guestOf(ctx context.Context, dir string, m Manifest) bool {
	if m.GuestDigest == "" {
		return true
	}
	got, err := hashFile(ctx, filepath.Join(dir, guestFile))
	return err == nil && got.SHA256 == m.GuestDigest
}

// mend brings a state here the daemon that it lacks, out of a copy that may have
// it. All else is found there already. One that has it not either, or that cannot
// be had, changes nothing: the state is as good as it was.
func (s *Store) mend(ctx context.Context, h *Held, fill func(ctx context.Context, dir string) error) error {
	own, dir := filepath.Dir(h.Dir), s.path(h.ID)+incoming
	err := s.reopen(dir)
	for _, p := range h.Parts() {
		if to := filepath.Join(dir, filepath.FromSlash(p.Name)); err == nil && !exists(to) {
			err = s.fs.Link(p.Path, to)
		}
	}
	if err == nil {
		err = fill(ctx, dir)
	}
	if err == nil && !guestOf(ctx, dir, h.Manifest) {
		err = errs.NotFound("guest_build_missing", "Nobody has the daemon of the saved state.")
	}
	for _, step := range []func() error{
		func() error { return s.fs.Sync(filepath.Join(dir, guestFile)) },
		func() error { return s.fs.Rename(filepath.Join(dir, guestFile), filepath.Join(own, guestFile)) },
		func() error { return s.fs.Sync(own) },
	} {
		if err == nil {
			err = step()
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		s.logger.Warn("the daemon of a saved state is not here, and could not be fetched", "snapshot_id", h.ID.String(), "guest_digest", h.GuestDigest, "err", err)
	}
	s.remove(dir)
	return nil
}
