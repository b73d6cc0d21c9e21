package engine

import (
	"context"
	"io"
)

// RootArchiver is an Engine that can say what an instance's disk has become.
type RootArchiver interface {
	// RootTar writes what a running instance has changed in its root tree as a tar
	// archive: the upper layer of an overlay, in which a character device 0/0
	// hides a name and the attribute trusted.overlay.opaque what a directory had
	// before. The instance goes on. What is written meanwhile is in the archive or
	// not; the archive is whole when it returns nil. An error of w, or the end of
	// ctx, ends it and leaves the instance as it was.
	RootTar(ctx context.Context, h Handle, w io.Writer) error
}

// RootTar asks e where it can; ErrUnsupported where not.
func RootTar(ctx context.Context, e Engine, h Handle, w io.Writer) error {
	a, ok := e.(RootArchiver)
	if !ok {
		return ErrUnsupported
	}
	return a.RootTar(ctx, h, w)
}
