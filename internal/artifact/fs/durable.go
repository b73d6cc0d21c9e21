package fs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// staleAfter is longer than the slowest upload of one chunk.
const staleAfter = 24 * time.Hour

// removeStale removes what killed processes left half-written. Files of other
// processes that still write are younger.
func (s *Store) removeStale() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, tempDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < staleAfter {
			continue
		}
		if err := ignoreMissing(os.Remove(filepath.Join(s.dir, tempDir, e.Name()))); err != nil {
			return err
		}
	}
	return nil
}

// mkdirSynced makes dir below root and flushes each directory that gained an
// entry, so that a file renamed into dir cannot vanish with its parents.
func mkdirSynced(root, dir string) error {
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if dir != root {
		if err := mkdirSynced(root, parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
