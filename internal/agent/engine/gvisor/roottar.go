package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
)

// callRootTar writes the upper layer of the root to the file beside it. The
// sentry holds the file system's tree meanwhile, not its files: a guest that
// makes or removes names waits. With our patch for it (tools/runsc/0005) it
// needs no memory for the files, whatever their size.
const callRootTar = "Fs.TarRootfsUpperLayer"

// rootTarOptions are its argument. Without a name the sandbox's first container
// is meant, the only one.
type rootTarOptions struct {
	ContainerID string
}

var _ engine.RootArchiver = (*Engine)(nil)

// RootTar implements engine.RootArchiver.
func (e *Engine) RootTar(ctx context.Context, h engine.Handle, w io.Writer) error {
	return e.withRunning(ctx, h, func(ctx context.Context, r *record) error {
		frozen := e.cg.frozen(string(r.ID))
		if err := e.cg.setFrozen(ctx, string(r.ID), false); err != nil {
			return err
		}
		err := e.rootTar(ctx, r, w)
		if frozen {
			err = errors.Join(err, e.reinstate(ctx, r, true, frozen))
		}
		if err != nil && !e.alive(r) {
			return fmt.Errorf("%w: %s: %w", engine.ErrExited, r.ID, err)
		}
		return err
	})
}

func (e *Engine) rootTar(ctx context.Context, r *record, w io.Writer) error {
	from, to, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("gvisor: %w", err)
	}
	// Fewer turns between the two; the default does as well.
	_, _ = unix.FcntlInt(to.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	taken := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(w, struct{ io.Reader }{from}, make([]byte, 1<<20))
		_ = from.Close() // a sentry that still writes is told
		taken <- err
	}()
	err = e.call(ctx, r.ID, callRootTar, rootTarOptions{}, []*os.File{to}, nil)
	_ = to.Close()
	if err != nil {
		_ = from.Close() // whose caller has gone would write for ever
	}
	if terr := <-taken; terr != nil && (err == nil || !errors.Is(terr, os.ErrClosed)) {
		return terr // the sentry's error is its consequence
	}
	return err
}
