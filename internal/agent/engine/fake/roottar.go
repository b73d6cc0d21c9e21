package fake

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
)

// RootTar is the method's name for faults and steps.
const RootTar = "RootTar"

var _ engine.RootArchiver = (*Engine)(nil)

// RootTar implements engine.RootArchiver: what was written is the guest's files.
func (e *Engine) RootTar(ctx context.Context, h engine.Handle, w io.Writer) error {
	i, after, err := e.enter(ctx, RootTar, h)
	if err != nil {
		return err
	}
	i.mu.Lock()
	files, running := copyFiles(i.files), i.running()
	i.mu.Unlock()
	if !running {
		return fmt.Errorf("%w: %s", engine.ErrExited, i.Spec.ID)
	}
	out := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		content := files[name]
		err := out.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: "." + path.Clean("/"+strings.TrimPrefix(name, "/")), Mode: 0o644,
			Size: int64(len(content)), ModTime: time.Unix(1, 0),
		})
		if err == nil {
			_, err = out.Write(content)
		}
		if err != nil {
			return fmt.Errorf("fake: %w", err)
		}
	}
	return after(out.Close())
}
