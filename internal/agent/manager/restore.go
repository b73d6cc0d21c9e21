package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/kernel/errs"
)

// openState finds the saved state whole before anything else is touched, and
// keeps it until the create is over.
func (b *build) openState(ctx context.Context) error {
	spec := b.rec.Spec
	held, err := b.m.cfg.States.Hold(ctx, spec.State)
	if err != nil {
		return err
	}
	b.held = held
	switch {
	case held.Engine != spec.Engine:
		return unfit("engine", held.Engine, spec.Engine)
	case held.ImageDigest != spec.Image.Digest:
		return unfit("template image", held.ImageDigest, spec.Image.Digest)
	case held.Resources.DiskBytes != spec.Resources.DiskBytes:
		return unfit("disk size", held.Resources.DiskBytes, spec.Resources.DiskBytes)
	}
	return nil
}

// guestBuildMissing is the reason where the daemon in a state's memory is gone.
const guestBuildMissing = "guest_build_missing"

func unfit(what string, have, want any) error {
	return errs.FailedPrecondition("state_incompatible", "The saved state has another "+what+" than the sandbox is to have.").
		With("state", have).With("wanted", want)
}

// ownDaemon is the one in the state's memory.
func (b *build) ownDaemon() Daemon {
	return Daemon{Digest: b.held.GuestDigest, File: b.held.GuestFile()}
}

// restore starts the instance from the state. Its daemon, where the state has
// memory, knows the host by the secret of the place it was taken at.
func (b *build) restore(ctx context.Context) error {
	dir, secret := b.held.Dir, b.rec.InitSecret
	b.rec.EngineVersion = b.held.EngineVersion
	switch {
	case b.held.Memory && b.rec.Spec.DiskOnly:
		disk, err := b.disk(ctx)
		if err != nil {
			return b.unrestored(err)
		}
		defer os.RemoveAll(disk) // an undo removes it with the working directory
		dir = disk
	case b.held.Memory:
		b.woken, secret, b.rec.GuestSeq = true, b.held.InitSecret, b.held.GuestSeq
	}
	h, err := b.engine.Restore(ctx, b.rec.Handle, dir)
	if !b.woken && dir == b.held.Dir && errors.Is(err, engine.ErrNoBuild) && b.held.HasDisk() {
		if dir, err = b.rebuilt(ctx); err == nil {
			defer os.RemoveAll(dir)
			h, err = b.engine.Restore(ctx, b.rec.Handle, dir)
		}
	}
	if err != nil {
		return b.unrestored(err)
	}
	b.started(h, secret)
	return nil
}

// unrestored says why a state could not be started from.
func (b *build) unrestored(err error) error {
	st := b.held
	remedy := "Its memory cannot come back here without it; its disk may: try again without memory."
	if b.rec.Spec.DiskOnly && st.Memory {
		remedy = "Its disk was not kept in a form that does without it, so that nothing of it can be started here until it is back."
	}
	switch {
	case errors.Is(err, engine.ErrNoBuild):
		return errs.FailedPrecondition("engine_build_missing", fmt.Sprintf(
			"The saved state was made by %s %s, which this host does not have. %s", st.Engine, st.EngineVersion, remedy)).
			With("engine", st.Engine).With("version", st.EngineVersion).Because(err)
	case errs.Is(err, guestBuildMissing):
		return errs.FailedPrecondition(guestBuildMissing,
			"The saved state was made with another build of the sandbox daemon, which neither this host nor the state's copies have. "+remedy).
			With("guest_digest", st.GuestDigest).Because(err)
	}
	if errors.Is(err, engine.ErrUnsupported) {
		return errs.FailedPrecondition("state_incompatible", "The saved state does not fit this host: "+err.Error()).Because(err)
	}
	return blame(err, "engine_failed", "The engine could not start the sandbox from its saved state. Try again.")
}

// disk makes a checkpoint of the disk alone of a state with memory, and prepares
// the instance anew, in a network slot that nobody has used. It is made from the
// form that needs nothing of what saved the state; without that, by just that.
func (b *build) disk(ctx context.Context) (string, error) {
	if b.held.HasDisk() {
		dir, err := b.rebuilt(ctx)
		if err == nil || ctx.Err() != nil {
			return dir, err
		}
		b.m.log(b.rec).Warn("the disk of a saved state is of no use on its own", "snapshot_id", b.held.ID.String(), "err", err)
		if err := b.anew(ctx); err != nil {
			return "", err
		}
	}
	return b.woke(ctx)
}

// woke wakes a state with memory, whose engine keeps memory and disk in one image,
// for as long as it takes to save the disk alone, without its daemon being told
// anything.
func (b *build) woke(ctx context.Context) (string, error) {
	b.rec.EngineVersion = b.held.EngineVersion
	if own := b.ownDaemon(); own.Digest != "" && own.Digest != b.rec.Guest {
		if err := b.acquire(ctx, own); err != nil {
			return "", err
		}
		if err := b.prepare(ctx); err != nil {
			return "", err
		}
	}
	h, err := b.engine.Restore(ctx, b.rec.Handle, b.held.Dir)
	if err != nil {
		return "", err
	}
	return b.saved(ctx, h)
}

// saved saves the disk of an instance that is there for nothing else, ends it,
// and prepares anew.
func (b *build) saved(ctx context.Context, h engine.Handle) (string, error) {
	b.rec.Handle = h
	dir := filepath.Join(b.m.workDir(b.rec), "boot")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	if err := b.engine.Checkpoint(ctx, h, engine.CheckpointOptions{Dir: dir, DiskOnly: true}); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, b.anew(ctx)
}

// anew ends the instance and prepares it once more, on the daemon of this host.
func (b *build) anew(ctx context.Context) error {
	if err := b.engine.Destroy(ctx, b.rec.Instance); err != nil {
		return err
	}
	if err := b.m.releaseSlot(ctx, b.rec); err != nil {
		return err
	}
	b.rec.Slot = -1
	if err := b.claimSlot(ctx); err != nil {
		return err
	}
	if err := b.acquire(ctx, Daemon{}); err != nil {
		return err
	}
	return b.prepare(ctx)
}

// keepDaemon puts the daemon of an instance beside a state with its memory. What
// is gone from the host's disk while it runs is no reason not to save the sandbox.
func (m *Manager) keepDaemon(draft *state.Draft, rec journal.Record) error {
	if rec.Guest == "" {
		return nil
	}
	err := draft.KeepGuest(m.cfg.Images.DaemonFile(rec.Guest))
	if errors.Is(err, fs.ErrNotExist) {
		m.log(rec).Error("the guest daemon of a sandbox is not kept with its state: it is gone", "guest_digest", rec.Guest)
		return nil
	}
	return err
}
