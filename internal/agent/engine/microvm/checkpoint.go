package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/guest/vmapi"
)

// Files of a checkpoint beside its description.
const (
	memoryFile  = "memory"  // extents; only with memory
	devicesFile = "devices" // all else of the machine; only with memory
	diskOut     = "disk"    // extents
)

// meta describes a checkpoint.
type meta struct {
	engine.CheckpointInfo
	Machine machine `json:"machine"`
}

// source is a checkpoint to start from.
type source struct {
	meta
	dir string
}

// writeWithin bounds the writing of a checkpoint, to a slow disk.
func writeWithin(r *record) time.Duration {
	const slowest = 20 << 20 // bytes a second
	return 2*time.Minute + time.Duration((r.Machine.MemoryBytes+r.Resources.DiskBytes)/slowest)*time.Second
}

// Checkpoint implements engine.Engine. The workload is stopped inside first, so
// that a copy has its own clock, randomness and address before anything of it
// runs; then the machine, whose memory and disk are of one moment.
func (e *Engine) Checkpoint(ctx context.Context, h engine.Handle, opts engine.CheckpointOptions) error {
	return e.withRunning(ctx, h, func(ctx context.Context, r *record) error {
		entries, err := os.ReadDir(opts.Dir)
		if err != nil {
			return fmt.Errorf("microvm: %w", err)
		}
		if len(entries) > 0 {
			return fmt.Errorf("microvm: the checkpoint directory %s is not empty", opts.Dir)
		}
		was := r.Still
		// Until this is done, an agent that finds it lets it go on.
		r.Still, r.Saving = true, !was
		if err := e.save(r); err != nil {
			return err
		}
		err = e.checkpoint(ctx, r, opts, was)
		if err != nil {
			err = errors.Join(err, emptyDir(opts.Dir))
		}
		own, cancel := patience(ctx, 2*goOnWithin)
		defer cancel()
		switch {
		case !was && (err != nil || opts.LeaveRunning):
			return errors.Join(err, e.goOn(own, r))
		case err != nil: // as still as it was
			err = errors.Join(err, e.monitored(own, r, func(m *monitor) error { return m.do("stop", nil, nil) }))
		}
		r.Saving = false
		return errors.Join(err, e.save(r))
	})
}

// checkpoint writes the image and leaves the machine standing still.
func (e *Engine) checkpoint(ctx context.Context, r *record, opts engine.CheckpointOptions, was bool) error {
	if was { // the workload cannot be stopped inside, nor the disk be whole, without the machine
		if err := e.monitored(ctx, r, func(m *monitor) error { return m.do("cont", nil, nil) }); err != nil {
			return err
		}
	}
	asking, cancel := context.WithTimeout(ctx, goOnWithin)
	defer cancel()
	if _, err := e.ask(asking, r, vmapi.Request{Op: vmapi.OpStill, Flush: opts.DiskOnly}); err != nil {
		return err
	}
	ctx, cancel = context.WithTimeout(ctx, writeWithin(r))
	defer cancel()
	var err error
	if opts.DiskOnly {
		err = e.monitored(ctx, r, func(m *monitor) error { return m.do("stop", nil, nil) })
	} else {
		err = e.saveMachine(ctx, r, opts.Dir)
	}
	if err == nil {
		err = pack(ctx, r.path(diskFile), fsBytes(r.Resources), filepath.Join(opts.Dir, diskOut))
	}
	if err == nil && !e.alive(r) {
		err = fmt.Errorf("%w: %s", engine.ErrExited, r.ID)
	}
	if err != nil {
		return err
	}
	return e.describe(ctx, r, opts)
}

// saveMachine stops the machine and writes all of it but its disks to dir.
func (e *Engine) saveMachine(ctx context.Context, r *record, dir string) error {
	err := e.monitored(ctx, r, func(m *monitor) error {
		if err := m.do("stop", nil, nil); err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(dir, devicesFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("microvm: %w", err)
		}
		defer f.Close()
		return m.saveDevices(f)
	})
	if err != nil {
		return err
	}
	return pack(ctx, fmt.Sprintf("/proc/%d/fd/%d", r.Process.PID, memoryFD), r.Machine.MemoryBytes, filepath.Join(dir, memoryFile))
}

func (e *Engine) describe(ctx context.Context, r *record, opts engine.CheckpointOptions) error {
	can := e.Probe(ctx)
	if can.Version == "" {
		return fmt.Errorf("microvm: what made the checkpoint cannot be told: %s", strings.Join(can.Reasons, "; "))
	}
	m := meta{CheckpointInfo: engine.CheckpointInfo{
		Format: engine.CheckpointFormat, Engine: name, Version: can.Version, CPUFeatures: can.CPUFeatures,
		Memory: !opts.DiskOnly, DiskBytes: r.Resources.DiskBytes,
	}, Machine: r.Machine}
	var err error
	if m.Files, err = engine.FilesOf(opts.Dir); err != nil {
		return err
	}
	return engine.WriteCheckpointAs(opts.Dir, m)
}

// pack writes the extents of the file at from.
func pack(ctx context.Context, from string, size int64, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	defer src.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	err = packExtents(out, src, size, ctx.Err)
	if closing := out.Close(); err == nil && closing != nil {
		err = fmt.Errorf("microvm: %w", closing)
	}
	return err
}

// Restore implements engine.Engine.
func (e *Engine) Restore(ctx context.Context, h engine.Handle, dir string) (engine.Handle, error) {
	info, err := engine.ReadCheckpoint(dir)
	if err == nil {
		can := e.Probe(ctx)
		if !info.Memory {
			can.Version = info.Version // a disk is a disk, whatever wrote it
		}
		err = info.Fits(can)
	}
	if err == nil {
		err = info.Whole(dir)
	}
	from := &source{dir: dir}
	if err == nil {
		err = engine.ReadCheckpointAs(dir, &from.meta)
	}
	if err != nil {
		return nil, err
	}
	r, err := e.find(h)
	if err != nil {
		return nil, err
	}
	if r.Resources.DiskBytes != from.DiskBytes {
		return nil, fmt.Errorf("microvm: the checkpoint has a disk of %d bytes, not %d: %w", from.DiskBytes, r.Resources.DiskBytes, engine.ErrUnsupported)
	}
	if from.Memory && !slices.Equal(r.Machine.RootBytes, from.Machine.RootBytes) {
		return nil, fmt.Errorf("microvm: the checkpoint was made on other images of the root tree: %w", engine.ErrUnsupported)
	}
	return e.launch(ctx, h, from)
}

// unpackDisk fills an empty disk.
func (s *source) unpackDisk(dst *os.File, size int64) error {
	f, err := os.Open(filepath.Join(s.dir, diskOut))
	if err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	defer f.Close()
	return unpackExtents(dst, f, size)
}

// resume loads the rest of a machine whose memory is there, and runs it.
func (e *Engine) resume(ctx context.Context, r *record, from *source) error {
	f, err := os.Open(filepath.Join(from.dir, devicesFile))
	if err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	defer f.Close()
	return e.monitored(ctx, r, func(m *monitor) error {
		if err := m.loadDevices(ctx, f); err != nil {
			return err
		}
		return m.do("cont", nil, nil)
	})
}

// emptyDir removes what a failed checkpoint left.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil //nolint:nilerr // there is nothing then
	}
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
	}
	return err
}
