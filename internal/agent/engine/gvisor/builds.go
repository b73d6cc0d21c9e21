package gvisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/shim"
)

var _ engine.Builder = (*Engine)(nil)

// Builds implements engine.Builder.
func (e *Engine) Builds(ctx context.Context) ([]engine.Kept, error) {
	shipped, _ := e.builds.shipped(ctx) // without it the others are still there
	all, err := e.builds.list()
	var out []engine.Kept
	for _, a := range all {
		k := engine.Kept{Build: engine.Build{Version: a.Version, Digest: a.Digest}, Path: e.builds.programOf(a.Digest)}
		if st, err := os.Stat(k.Path); err == nil {
			k.SizeBytes = st.Size()
			out = append(out, k)
		}
	}
	slices.SortStableFunc(out, func(a, b engine.Kept) int {
		return cmp.Or(order(b.Digest == shipped.Digest, a.Digest == shipped.Digest), strings.Compare(a.Version, b.Version))
	})
	return out, err
}

// order puts true after false.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Keep implements engine.Builder.
func (e *Engine) Keep(ctx context.Context, path string, want engine.Build) error {
	_, err := e.builds.keep(ctx, path, want)
	return err
}

// SweepBuilds implements engine.Builder.
func (e *Engine) SweepBuilds(ctx context.Context, inUse func() map[string]bool) error {
	if _, err := e.builds.shipped(ctx); err != nil {
		return err
	}
	return e.builds.sweep(e.runPrograms, inUse)
}

// diskAnnotation names an archive that the root's upper layer is filled from.
const diskAnnotation = "dev.gvisor.tar.rootfs.upper"

var _ engine.DiskBooter = (*Engine)(nil)

// StartWithDisk implements engine.DiskBooter. The annotation would be demanded of
// whoever restores the instance's memory.
func (e *Engine) StartWithDisk(ctx context.Context, h engine.Handle, path string) (engine.Handle, error) {
	r, err := e.find(h)
	if err != nil {
		return nil, err
	}
	spec, err := readSpec(r.path("bundle"))
	if err != nil {
		return nil, err
	}
	spec.Annotations = map[string]string{diskAnnotation: path}
	if err := writeSpec(r.path("bundle"), spec); err != nil {
		return nil, err
	}
	return e.Start(ctx, h)
}

// runPrograms are the digests of the builds that instances were started by.
func (e *Engine) runPrograms() (map[string]bool, error) {
	dir := filepath.Join(e.cfg.StateDir, "instances")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	out := map[string]bool{}
	for _, entry := range entries {
		name, ok := strings.CutSuffix(entry.Name(), ".json")
		if !ok {
			continue
		}
		r, err := e.load(engine.InstanceID(name))
		if errors.Is(err, engine.ErrNotFound) {
			continue // ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		out[r.Build] = true
	}
	return out, nil
}

// buildOf is what a running instance was started by. One whose build is not kept
// still has the program it runs.
func (e *Engine) buildOf(ctx context.Context, r *record) (build, error) {
	e.builds.mu.Lock()
	defer e.builds.mu.Unlock()
	if r.Build != "" {
		if b, err := e.builds.byDigest(ctx, r.Build); !errors.Is(err, engine.ErrNoBuild) {
			return b, err
		}
	}
	b, err := e.builds.keepLocked(ctx, fmt.Sprintf("/proc/%d/exe", r.Process.PID), engine.Build{Digest: r.Build})
	if err == nil && !shim.Alive(r.Process) {
		err = fmt.Errorf("%w: %s", engine.ErrExited, r.ID)
	}
	if err != nil {
		return build{}, err
	}
	r.Build = b.Digest
	return b, e.save(r)
}

// ask runs a program for what it says.
func (e *Engine) ask(ctx context.Context, program, arg string) (string, error) {
	res, err := e.shim.Spawn(ctx, shim.Spawn{
		Key: "probe-" + fmt.Sprint(time.Now().UnixNano()), Argv: []string{program, arg}, Timeout: 10 * time.Second,
	})
	if err != nil {
		return "", fmt.Errorf("gvisor: runsc %s: %w", arg, err)
	}
	if res.Code != 0 {
		return "", fmt.Errorf("gvisor: runsc %s ended with status %d: %.200s", arg, res.Code, res.Output)
	}
	return res.Output, nil
}
