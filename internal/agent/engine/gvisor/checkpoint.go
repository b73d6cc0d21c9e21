package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
)

// meta describes a checkpoint.
type meta struct {
	engine.CheckpointInfo
	ShmSize string `json:"shm_option,omitempty"` // runsc compares mount options
}

// The files of a checkpoint, with memory and without, in the order the sentry
// takes them.
var (
	imageFiles = []string{"checkpoint.img", "pages_meta.img", "pages.img"}
	diskFiles  = []string{"fscheckpoint.json", "multitar.img", "pages_meta.img", "pages.img"}
)

// writeWithin bounds the writing of a checkpoint: what an instance can have at
// most, to a slow disk.
func writeWithin(r engine.Resources) time.Duration {
	const slowest = 20 << 20 // bytes a second
	return 2*time.Minute + time.Duration((r.MemoryBytes+r.DiskBytes)/slowest)*time.Second
}

// Checkpoint implements engine.Engine. It always lets the sentry go on
// afterwards: a checkpoint that ends its source does so also when it fails.
func (e *Engine) Checkpoint(ctx context.Context, h engine.Handle, opts engine.CheckpointOptions) error {
	return e.withRunning(ctx, h, func(ctx context.Context, r *record) error {
		entries, err := os.ReadDir(opts.Dir)
		if err != nil {
			return fmt.Errorf("gvisor: %w", err)
		}
		if len(entries) > 0 {
			return fmt.Errorf("gvisor: the checkpoint directory %s is not empty", opts.Dir)
		}
		b, err := e.buildOf(ctx, r)
		if err != nil {
			return err
		}
		// Frozen or not, held or not: so it shall be again.
		frozen := e.cg.frozen(string(r.ID))
		if err := e.cg.setFrozen(ctx, string(r.ID), false); err != nil {
			return err
		}
		if err := e.settle(ctx, r); err != nil {
			return errors.Join(err, e.reinstate(ctx, r, true, frozen)) // held or not: as it is
		}
		held := r.Pause == pauseDone
		// A save holds the guest by itself; the pause keeps it from running after.
		if !opts.LeaveRunning {
			err = e.pause(ctx, r)
		}
		if err == nil {
			err = ctx.Err() // an image cannot be given up once it is begun
		}
		if err == nil {
			err = e.tryCheckpoint(ctx, r, b, opts)
		}
		if err != nil || opts.LeaveRunning {
			err = errors.Join(err, e.reinstate(ctx, r, held, frozen))
		}
		return err
	})
}

// tryCheckpoint writes the image. A sentry whose network goes on while it is
// saved changes what is being read: of some hundred saves among ending
// connections one fails, and is taken once more. With our patch for it
// (tools/runsc/0004) none of 5000 did. On failure the directory is empty.
func (e *Engine) tryCheckpoint(ctx context.Context, r *record, b build, opts engine.CheckpointOptions) error {
	for attempt := 1; ; attempt++ {
		err := e.writeCheckpoint(ctx, r, b, opts)
		if err == nil {
			return nil
		}
		again := attempt < saveAttempts && changedMeanwhile(err)
		if err := errors.Join(err, emptyDir(opts.Dir)); !again {
			return err
		}
		e.cfg.Logger.Warn("a save failed and is repeated", "instance_id", r.ID, "attempt", attempt, "error", err)
	}
}

// saveAttempts bounds how often a save is tried.
const saveAttempts = 4

// changedMeanwhile tells whether a save may have failed because of what changed
// while the sentry read it. That shows when it is read (a map has an element
// less) or when it is written out (one that was not there to be read). Whether
// it could not be written for another reason is not told apart but for a full
// disk: a repetition does no harm.
func changedMeanwhile(err error) bool {
	text := err.Error()
	return !errors.Is(err, unix.ENOSPC) &&
		(strings.Contains(text, "encoding error: ") || strings.Contains(text, "error serializing "))
}

// reinstate puts the instance back to how it was before Checkpoint, also when
// the caller has given up.
func (e *Engine) reinstate(ctx context.Context, r *record, held, frozen bool) error {
	ctx, cancel := patience(ctx, time.Minute)
	defer cancel()
	if !held {
		if err := e.unpause(ctx, r); err != nil {
			return err
		}
	}
	if frozen {
		return e.cg.setFrozen(ctx, string(r.ID), true)
	}
	return nil
}

func (e *Engine) writeCheckpoint(ctx context.Context, r *record, b build, opts engine.CheckpointOptions) error {
	m := meta{CheckpointInfo: engine.CheckpointInfo{
		Format: engine.CheckpointFormat, Engine: name, Version: b.Version, CPUFeatures: b.features,
		Memory: !opts.DiskOnly, DiskBytes: r.Resources.DiskBytes,
	}}
	err := e.image(ctx, r, opts)
	if err != nil {
		return err
	}
	spec, err := readSpec(r.path("bundle"))
	if err != nil {
		return err
	}
	m.ShmSize = shmOptionOf(spec.Mounts)
	if m.Files, err = engine.FilesOf(opts.Dir); err != nil {
		return err
	}
	return engine.WriteCheckpointAs(opts.Dir, m)
}

// image has the sentry write memory and disk, or the disk alone. It cannot be
// told to stop: when the caller gives up, its end is awaited, since until then
// the guest stands still and a second save would come in its way.
func (e *Engine) image(ctx context.Context, r *record, opts engine.CheckpointOptions) error {
	names, method := imageFiles, callCheckpoint
	var arg any = saveOptions{Metadata: map[string]string{"compression": "none"}, HavePagesFile: true, Resume: true}
	if opts.DiskOnly {
		names, method, arg = diskFiles, callSaveDisk, saveDiskOptions{}
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, name := range names {
		f, err := os.OpenFile(filepath.Join(opts.Dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("gvisor: %w", err)
		}
		files = append(files, f)
	}
	own, cancel := patience(ctx, writeWithin(r.Resources))
	defer cancel()
	err := e.call(own, r.ID, method, arg, files, nil)
	if err == nil {
		err = ctx.Err()
	}
	return err
}

// Restore implements engine.Engine. Memory is loaded while the guest already
// runs; the directory may be removed at once. It is done by the build that made
// the checkpoint, and so is all that follows.
func (e *Engine) Restore(ctx context.Context, h engine.Handle, dir string) (engine.Handle, error) {
	info, err := engine.ReadCheckpoint(dir)
	if err == nil && info.Engine != name {
		err = info.Fits(engine.Capabilities{Name: name})
	}
	if err != nil {
		return nil, err
	}
	b, leave, err := e.builds.take(ctx, info.Version)
	if err != nil {
		return nil, err
	}
	defer leave()
	m, err := verify(dir, b)
	if err != nil {
		return nil, err
	}
	r, err := e.find(h)
	if err != nil {
		return nil, err
	}
	if r.Resources.DiskBytes != m.DiskBytes {
		return nil, fmt.Errorf("gvisor: the checkpoint has a disk of %d bytes, not %d: %w", m.DiskBytes, r.Resources.DiskBytes, engine.ErrUnsupported)
	}
	if !m.Memory {
		return e.launch(ctx, h, b, "run", []string{"-fs-restore-image-path=" + dir})
	}
	// Memory may differ from the source's, but for what was made from it there.
	spec, err := readSpec(r.path("bundle"))
	if err != nil {
		return nil, err
	}
	for i := range spec.Mounts {
		for j, option := range spec.Mounts[i].Options {
			if strings.HasPrefix(option, "size=") {
				spec.Mounts[i].Options[j] = m.ShmSize
			}
		}
	}
	if err := writeSpec(r.path("bundle"), spec); err != nil {
		return nil, err
	}
	return e.launch(ctx, h, b, "restore", []string{"-background", "-image-path=" + dir})
}

// verify reads a checkpoint's description and finds it whole and fitting.
func verify(dir string, b build) (meta, error) {
	info, err := engine.ReadCheckpoint(dir)
	if err == nil {
		err = info.Fits(engine.Capabilities{Name: name, Version: b.Version, CPUFeatures: b.features})
	}
	if err == nil {
		err = info.Whole(dir)
	}
	var m meta
	if err == nil {
		err = engine.ReadCheckpointAs(dir, &m)
	}
	return m, err
}

// emptyDir removes what a failed checkpoint left. The files are emptied first:
// gVisor's stub processes that were born during the checkpoint have inherited
// them, and would keep the space until the instance ends.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil //nolint:nilerr // there is nothing then
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		_ = os.Truncate(path, 0)
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}
