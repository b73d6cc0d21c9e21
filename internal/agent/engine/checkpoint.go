package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// CheckpointFile describes a checkpoint inside its directory. Engines write it
// last: a directory without it holds no checkpoint.
const CheckpointFile = "engine.json"

// CheckpointFormat is the format engines write and read.
const CheckpointFormat = 1

// maxCheckpointFile bounds what is read of a description.
const maxCheckpointFile = 1 << 20

// CheckpointInfo says what a checkpoint is and what it must find again. An
// engine may keep more of its own in the same file.
type CheckpointInfo struct {
	Format  int    `json:"format"`
	Engine  string `json:"engine"`
	Version string `json:"engine_version"` // exact; no other build restores it
	// CPUFeatures are those of the machine it was made on. The guest has seen
	// them and may use them, so that each must be there again.
	CPUFeatures []string `json:"cpu_features"`
	// Memory is false when only the disk was kept: a restore boots afresh.
	Memory    bool  `json:"memory"`
	DiskBytes int64 `json:"disk_bytes"` // the disk's limit, which must be the same
	// Files are all others in the directory with their sizes.
	Files map[string]int64 `json:"files"`
}

// ReadCheckpoint reads the description in dir. It does not look at the files.
func ReadCheckpoint(dir string) (CheckpointInfo, error) {
	var info CheckpointInfo
	err := ReadCheckpointAs(dir, &info)
	if err == nil && info.Format != CheckpointFormat {
		err = fmt.Errorf("engine: checkpoint of format %d, this release knows %d: %w", info.Format, CheckpointFormat, ErrUnsupported)
	}
	return info, err
}

// ReadCheckpointAs is ReadCheckpoint for the engine's own type, which embeds a
// CheckpointInfo.
func ReadCheckpointAs(dir string, v any) error {
	f, err := os.Open(filepath.Join(dir, CheckpointFile))
	if err != nil {
		return fmt.Errorf("engine: %s holds no complete checkpoint: %w", dir, err)
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxCheckpointFile)).Decode(v); err != nil {
		return fmt.Errorf("engine: %s holds an unreadable checkpoint: %w", dir, err)
	}
	return nil
}

// WriteCheckpointAs writes the description v, which is or embeds a
// CheckpointInfo. Making it safe on disk is the caller's.
func WriteCheckpointAs(dir string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, CheckpointFile), b, 0o600); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	return nil
}

// Whole reports what is missing of the files in dir, by their sizes.
func (i CheckpointInfo) Whole(dir string) error {
	for name, size := range i.Files {
		if name == "" || name != filepath.Base(name) {
			return fmt.Errorf("engine: the checkpoint names a file %q", name)
		}
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("engine: incomplete checkpoint: %w", err)
		}
		if !st.Mode().IsRegular() || st.Size() != size {
			return fmt.Errorf("engine: %s of the checkpoint has %d bytes, not %d", name, st.Size(), size)
		}
	}
	return nil
}

// Fits reports why an engine of these capabilities cannot restore it; the error
// is an ErrUnsupported and names both sides.
func (i CheckpointInfo) Fits(c Capabilities) error {
	switch {
	case i.Engine != c.Name:
		return fmt.Errorf("engine: the checkpoint was made by engine %s, this is %s: %w", i.Engine, c.Name, ErrUnsupported)
	case i.Version != c.Version:
		return fmt.Errorf("engine: the checkpoint was made by %s %s, this is %s: %w", i.Engine, i.Version, c.Version, ErrUnsupported)
	case !i.Memory:
		return nil // boots afresh, on whatever is there
	}
	missing := slices.DeleteFunc(slices.Clone(i.CPUFeatures), func(f string) bool { return slices.Contains(c.CPUFeatures, f) })
	if len(missing) > 0 {
		return fmt.Errorf("engine: the checkpoint needs a processor with %s, which this one lacks: %w", strings.Join(missing, ", "), ErrUnsupported)
	}
	return nil
}

// FilesOf lists the regular files of dir with their sizes, for a description.
// It fails on anything else and when there is none.
func FilesOf(dir string) (map[string]int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	files := make(map[string]int64, len(entries))
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return nil, fmt.Errorf("engine: %w", err)
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("engine: %s in the checkpoint is no file", entry.Name())
		}
		files[entry.Name()] = info.Size()
	}
	if len(files) == 0 {
		return nil, errors.New("engine: the checkpoint has no files")
	}
	return files, nil
}
