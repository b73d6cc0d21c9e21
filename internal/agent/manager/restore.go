package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"skerry.dev/skerry/internal/agent/engine"
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

func unfit(what string, have, want any) error {
	return errs.FailedPrecondition("state_incompatible", "The saved state has another "+what+" than the sandbox is to have.").
		With("state", have).With("wanted", want)
}

// restore starts the instance from the state. Its daemon, where the state has
// memory, knows the host by the secret of the place it was taken at.
func (b *build) restore(ctx context.Context) error {
	dir, secret := b.held.Dir, b.rec.InitSecret
	b.rec.EngineVersion = b.held.EngineVersion
	switch {
	case b.held.Memory && b.rec.Spec.DiskOnly:
		disk, err := b.disk(ctx)
		if errors.Is(err, engine.ErrNoBuild) && b.held.HasDisk() {
			disk, err = b.rebuilt(ctx)
		}
		if err != nil {
			return unrestored(b.held.State, err)
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
		return unrestored(b.held.State, err)
	}
	b.started(h, secret)
	return nil
}

// unrestored says why a state could not be started from.
func unrestored(st state.State, err error) error {
	if errors.Is(err, engine.ErrNoBuild) {
		return errs.FailedPrecondition("engine_build_missing", fmt.Sprintf(
			"The saved state was made by %s %s, which this host does not have. Its memory cannot come back here without it; its disk may: try again without memory.", st.Engine, st.EngineVersion)).
			With("engine", st.Engine).With("version", st.EngineVersion).Because(err)
	}
	if errors.Is(err, engine.ErrUnsupported) {
		return errs.FailedPrecondition("state_incompatible", "The saved state does not fit this host: "+err.Error()).Because(err)
	}
	return blame(err, "engine_failed", "The engine could not start the sandbox from its saved state. Try again.")
}

// disk takes the disk out of a state with memory, whose engine keeps the two in
// one image: it is woken for as long as it takes to save the disk alone, without
// its daemon being told anything, and ended. It returns the image's directory,
// and the instance is prepared anew, in a network slot that nobody has used.
func (b *build) disk(ctx context.Context) (string, error) {
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
		return "", err
	}
	if err := b.engine.Destroy(ctx, b.rec.Instance); err != nil {
		return "", err
	}
	if err := b.m.releaseSlot(ctx, b.rec); err != nil {
		return "", err
	}
	b.rec.Slot = -1
	if err := b.claimSlot(ctx); err != nil {
		return "", err
	}
	return dir, b.prepare(ctx)
}
