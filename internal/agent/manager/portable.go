package manager

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
)

// keepDiskWithin bounds how long the instance of a paused sandbox stays for its
// disk to be kept.
const keepDiskWithin = time.Minute

// keepDisk puts the disk of a sandbox that was just paused beside its state, in a
// form that no build of the engine is needed for. It is done behind the pause's
// answer, from the instance that is still there and held: the pause is no longer
// for it, and nothing is woken. It is for the worst case; a command that comes in
// between ends it, and without it the state is as good.
func (m *Manager) keepDisk(ctx context.Context, p *pausing) {
	if p.req.Reason == ReasonHostShutdown {
		return // there is no time
	}
	ctx, cancel := context.WithTimeout(ctx, keepDiskWithin)
	defer cancel()
	held, err := m.cfg.States.Hold(ctx, p.state.ID)
	if err != nil {
		m.log(p.rec).Warn("the disk of a paused sandbox is not kept on its own", "err", err)
		return
	}
	defer held.Release()
	began := time.Now()
	content, size, err := held.KeepDisk(ctx, func(w io.Writer) error { return engine.RootTar(ctx, p.engine, p.rec.Handle, w) })
	switch {
	case errors.Is(err, engine.ErrUnsupported), ctx.Err() != nil && err != nil:
		m.log(p.rec).Debug("the disk of a paused sandbox is not kept on its own", "err", err)
		return
	case err != nil:
		m.log(p.rec).Warn("the disk of a paused sandbox is not kept on its own", "err", err)
		return
	}
	m.log(p.rec).Info("the disk of a paused sandbox is kept on its own", "content_bytes", content, "size_bytes", size, "took", time.Since(began))
	m.step(StepKeepDisk)
}

// rebuilt makes a checkpoint of the state's disk under this release's build of the
// engine, from the form that no build is needed for.
func (b *build) rebuilt(ctx context.Context) (string, error) {
	archive := filepath.Join(b.m.workDir(b.rec), "disk.tar")
	defer os.Remove(archive) // an undo removes it with the working directory
	if err := b.held.UnpackDisk(ctx, archive); err != nil {
		return "", err
	}
	h, err := engine.StartWithDisk(ctx, b.engine, b.rec.Handle, archive)
	if err != nil {
		return "", err
	}
	b.rec.EngineVersion = b.m.cfg.Versions[b.rec.Spec.Engine]
	return b.saved(ctx, h)
}
