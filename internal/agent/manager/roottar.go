package manager

import (
	"context"
	"errors"
	"io"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// ImageOf is the image a running sandbox runs on. Reasons: unknown_sandbox,
// stale_incarnation, sandbox_not_running.
func (m *Manager) ImageOf(sandbox id.Sandbox, incarnation uint64) (journal.Image, error) {
	rec, _, err := m.find(sandbox, incarnation)
	return rec.Spec.Image, err
}

// RootTar writes what a running sandbox has changed over its image; see
// engine.RootArchiver. A pause waits for it, a destroy ends it. Reasons: those of
// ImageOf, export_unsupported, export_failed.
func (m *Manager) RootTar(ctx context.Context, sandbox id.Sandbox, incarnation uint64, w io.Writer) error {
	rec, _, err := m.find(sandbox, incarnation)
	if err != nil {
		return err
	}
	eng, err := m.engine(rec.Spec.Engine)
	if err != nil {
		return err
	}
	err = engine.RootTar(ctx, eng, rec.Handle, w)
	var typed *errs.Error
	switch {
	case err == nil, errors.As(err, &typed):
		return err
	case errors.Is(err, engine.ErrUnsupported):
		return errs.FailedPrecondition("export_unsupported", "The sandbox's engine cannot make an image of it.").Because(err)
	}
	return gone(err, "export_failed", "The engine did not say what the sandbox has changed. Try again.")
}
