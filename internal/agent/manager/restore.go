package manager

import (
	"context"
	"errors"

	"skerry.dev/skerry/internal/agent/engine"
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
	h, err := b.engine.Restore(ctx, b.rec.Handle, b.held.Dir)
	switch {
	case errors.Is(err, engine.ErrUnsupported):
		return errs.FailedPrecondition("state_incompatible", "The saved state does not fit this host: "+err.Error()).Because(err)
	case err != nil:
		return blame(err, "engine_failed", "The engine could not start the sandbox from its saved state. Try again.")
	}
	secret := b.rec.InitSecret
	if b.held.Memory {
		secret, b.rec.GuestSeq = b.held.InitSecret, b.held.GuestSeq
	}
	b.started(h, secret)
	return nil
}
