package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/shim"
)

// metaName is our own file in a checkpoint directory, written last: without it
// the directory is not a checkpoint.
const metaName = "skerry.json"

// meta describes a checkpoint, and what it must find again.
type meta struct {
	Format   int              `json:"format"`
	Version  string           `json:"engine_version"`
	DiskOnly bool             `json:"disk_only"`
	Disk     int64            `json:"disk_bytes"`
	ShmSize  string           `json:"shm_option"` // runsc compares mount options
	Files    map[string]int64 `json:"files"`      // name to size: a short one would show up only in mid-run
}

const metaFormat = 1

// checkpointWithin bounds one client; the time goes into writing memory.
const checkpointWithin = 10 * time.Minute

// Checkpoint implements engine.Engine. It always lets runsc leave the guest
// running: a checkpoint that stops its source destroys it also when it fails.
func (e *Engine) Checkpoint(ctx context.Context, h engine.Handle, opts engine.CheckpointOptions) error {
	return e.withRunning(ctx, h, func(ctx context.Context, r *record) error {
		entries, err := os.ReadDir(opts.Dir)
		if err != nil {
			return fmt.Errorf("gvisor: %w", err)
		}
		if len(entries) > 0 {
			return fmt.Errorf("gvisor: the checkpoint directory %s is not empty", opts.Dir)
		}
		version, err := e.version(ctx)
		if err != nil {
			return err
		}
		wasFrozen := e.cg.frozen(string(r.ID))
		if err := e.cg.setFrozen(ctx, string(r.ID), false); err != nil {
			return err
		}
		if err := e.pause(ctx, r); err != nil {
			return errors.Join(err, e.reinstate(ctx, r, wasFrozen))
		}
		if err := e.writeCheckpoint(ctx, r, version, opts); err != nil {
			return errors.Join(err, e.reinstate(ctx, r, wasFrozen), emptyDir(opts.Dir))
		}
		if opts.LeaveRunning {
			return e.reinstate(ctx, r, wasFrozen)
		}
		return e.cg.setFrozen(ctx, string(r.ID), true)
	})
}

// reinstate puts the instance back to how it was before Checkpoint, also when
// the caller has given up.
func (e *Engine) reinstate(ctx context.Context, r *record, frozen bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	// The client of a call that was given up may still be at work.
	if err := e.unpause(ctx, r); err != nil {
		return err
	}
	if frozen {
		return e.cg.setFrozen(ctx, string(r.ID), true)
	}
	return nil
}

// pause stops the guest's tasks inside the sentry, so that nothing changes
// between the image and the end. It is recorded first: after a crash Thaw must
// know.
func (e *Engine) pause(ctx context.Context, r *record) error {
	if r.Paused {
		return nil
	}
	r.Paused = true
	if err := e.save(r); err != nil {
		return err
	}
	_, err := e.runsc(ctx, r, shim.Spawn{}, "pause", string(r.ID))
	return err
}

func (e *Engine) unpause(ctx context.Context, r *record) error {
	if !r.Paused {
		return nil
	}
	err := poll(ctx, time.Minute, func() error {
		_, err := e.runsc(ctx, r, shim.Spawn{}, "resume", string(r.ID))
		if errors.Is(err, shim.ErrBusy) {
			return err
		}
		// Not paused after all: the pause itself was cut off.
		if err != nil && strings.Contains(err.Error(), "not paused") || err == nil {
			r.Paused = false
		}
		return nil
	})
	if err == nil && r.Paused {
		err = fmt.Errorf("gvisor: %s cannot be resumed", r.ID)
	}
	return errors.Join(err, e.save(r))
}

func (e *Engine) writeCheckpoint(ctx context.Context, r *record, version string, opts engine.CheckpointOptions) error {
	command := "checkpoint"
	if opts.DiskOnly {
		command = "fscheckpoint"
	}
	_, err := e.runsc(ctx, r, shim.Spawn{Timeout: checkpointWithin},
		command, "-leave-running", "-image-path="+opts.Dir, string(r.ID))
	if err != nil {
		return err
	}
	spec, err := readSpec(r.path("bundle"))
	if err != nil {
		return err
	}
	m := meta{Format: metaFormat, Version: version, DiskOnly: opts.DiskOnly, Disk: r.Resources.DiskBytes, Files: map[string]int64{}}
	m.ShmSize = shmOptionOf(spec.Mounts)
	entries, err := os.ReadDir(opts.Dir)
	if err != nil {
		return fmt.Errorf("gvisor: %w", err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return fmt.Errorf("gvisor: %w", err)
		}
		m.Files[entry.Name()] = info.Size()
	}
	if len(m.Files) == 0 {
		return errors.New("gvisor: runsc wrote no checkpoint")
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(opts.Dir, metaName), b, 0o600); err != nil {
		return fmt.Errorf("gvisor: %w", err)
	}
	return nil
}

// Restore implements engine.Engine. Memory is loaded while the guest already
// runs; the directory may be removed at once.
func (e *Engine) Restore(ctx context.Context, h engine.Handle, dir string) (engine.Handle, error) {
	m, err := e.verify(ctx, dir)
	if err != nil {
		return nil, err
	}
	r, err := e.find(h)
	if err != nil {
		return nil, err
	}
	if r.Resources.DiskBytes != m.Disk {
		return nil, fmt.Errorf("gvisor: the checkpoint has a disk of %d bytes, not %d: %w", m.Disk, r.Resources.DiskBytes, engine.ErrUnsupported)
	}
	if m.DiskOnly {
		return e.launch(ctx, h, "run", []string{"-fs-restore-image-path=" + dir})
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
	return e.launch(ctx, h, "restore", []string{"-background", "-image-path=" + dir})
}

// verify reads a checkpoint's description and finds it whole.
func (e *Engine) verify(ctx context.Context, dir string) (*meta, error) {
	b, err := os.ReadFile(filepath.Join(dir, metaName))
	if err != nil {
		return nil, fmt.Errorf("gvisor: %s holds no complete checkpoint: %w", dir, err)
	}
	var m meta
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("gvisor: %s holds an unreadable checkpoint: %w", dir, err)
	}
	if m.Format != metaFormat {
		return nil, fmt.Errorf("gvisor: checkpoint of format %d, this engine knows %d: %w", m.Format, metaFormat, engine.ErrUnsupported)
	}
	version, err := e.version(ctx)
	if err != nil {
		return nil, err
	}
	if m.Version != version {
		return nil, fmt.Errorf("gvisor: made by engine version %s, this is %s: %w", m.Version, version, engine.ErrUnsupported)
	}
	for name, size := range m.Files {
		if name != filepath.Base(name) {
			return nil, fmt.Errorf("gvisor: checkpoint names a file %q", name)
		}
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("gvisor: incomplete checkpoint: %w", err)
		}
		if st.Size() != size {
			return nil, fmt.Errorf("gvisor: %s of the checkpoint has %d bytes, not %d", name, st.Size(), size)
		}
	}
	return &m, nil
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
