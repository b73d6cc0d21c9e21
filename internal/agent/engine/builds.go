package engine

import "context"

// Build is one build of an engine's program.
type Build struct {
	Version string
	Digest  string // SHA-256 of the program, hex
}

// Kept is a build on this machine.
type Kept struct {
	Build

	Path      string // of the program; it is not written to again
	SizeBytes int64
}

// Builder is what an engine is besides that has several builds of its program
// side by side: instances stay with the one they were started by, checkpoints
// are restored under the one that made them, all else is done by the current.
type Builder interface {
	// Builds lists those kept, the current one first.
	Builds(ctx context.Context) ([]Kept, error)
	// Keep copies the program at path, which must be exactly that build. It
	// succeeds at once on what is kept already.
	Keep(ctx context.Context, path string, want Build) error
	// SweepBuilds removes what no instance needs, no state whose versions inUse
	// tells, and nobody asked for lately. It calls inUse at most once, when it has
	// seen the instances.
	SweepBuilds(ctx context.Context, inUse func() map[string]bool) error
}

// DiskBooter is an engine that starts an instance on a disk that RootTar wrote,
// whatever build of it did.
type DiskBooter interface {
	// StartWithDisk is Start, but with the archive at path as what was changed in
	// the root tree. The instance is there to have its disk saved: its memory may
	// not be.
	StartWithDisk(ctx context.Context, h Handle, path string) (Handle, error)
}

// StartWithDisk asks e where it can; ErrUnsupported where not.
func StartWithDisk(ctx context.Context, e Engine, h Handle, path string) (Handle, error) {
	b, ok := e.(DiskBooter)
	if !ok {
		return nil, ErrUnsupported
	}
	return b.StartWithDisk(ctx, h, path)
}
