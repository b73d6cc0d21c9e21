// Package fs keeps artifacts in a directory. A blob is a file below
// teams/<team>/<kind>/<first two digits>/; it is written elsewhere, checked,
// flushed and renamed, so that a name never stands for half a blob.
package fs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"skerry.dev/skerry/internal/artifact"
)

// tempDir holds what is being written. Left-overs of a killed process are
// removed by New when they are older than any upload.
const (
	tempDir    = "tmp"
	copyBuffer = 256 << 10
)

// Store is an artifact.Store in a directory.
type Store struct{ dir string }

var _ artifact.Store = (*Store)(nil)

// New opens the store in dir, making it when it is missing.
func New(dir string) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(dir, tempDir), 0o700); err != nil {
		return nil, fmt.Errorf("opening the artifact store: %w", err)
	}
	s := &Store{dir: dir}
	return s, s.removeStale()
}

func shard(d artifact.Digest) string { return string(d[:2]) }

func (s *Store) path(k artifact.Key) string {
	return filepath.Join(s.kindDir(k.Prefix), shard(k.Digest), k.Name())
}

func (s *Store) kindDir(p artifact.Prefix) string {
	return filepath.Join(s.dir, filepath.FromSlash(p.String()))
}

// Put implements artifact.Store.
func (s *Store) Put(ctx context.Context, key artifact.Key, r io.Reader, size int64) (err error) {
	if err := key.Validate(); err != nil {
		return err
	}
	if info, err := s.Stat(ctx, key); err == nil && info.Size == size {
		// It is put again when somebody doubts it, or an answer was lost. One that
		// cannot be read is no better than a wrong one.
		if sound, err := artifact.Sound(ctx, s, key); err == nil && sound {
			// Another Put may have renamed it and not have come further.
			return syncDir(filepath.Dir(s.path(key)))
		}
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, tempDir), "put-")
	if err != nil {
		return fmt.Errorf("storing %s: %w", key, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			err = errors.Join(err, ignoreMissing(os.Remove(f.Name())))
		}
	}()
	h := sha256.New()
	// One byte more than announced tells a longer stream.
	src := io.LimitReader(contextReader{ctx, r}, size+1)
	n, err := io.CopyBuffer(io.MultiWriter(f, h), src, make([]byte, copyBuffer))
	switch {
	case err != nil:
		return fmt.Errorf("storing %s: %w", key, err)
	case n != size:
		return fmt.Errorf("storing %s: %w", key, artifact.ErrSizeMismatch)
	case hex.EncodeToString(h.Sum(nil)) != string(key.Digest):
		return fmt.Errorf("storing %s: %w", key, artifact.ErrDigestMismatch)
	}
	if err := errors.Join(f.Chmod(0o600), f.Sync()); err != nil {
		return fmt.Errorf("storing %s: %w", key, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("storing %s: %w", key, err)
	}
	path := s.path(key)
	if err := mkdirSynced(s.dir, filepath.Dir(path)); err != nil {
		return fmt.Errorf("storing %s: %w", key, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("storing %s: %w", key, err)
	}
	return syncDir(filepath.Dir(path))
}

// Open implements artifact.Store.
func (s *Store) Open(_ context.Context, key artifact.Key) (io.ReadCloser, artifact.Info, error) {
	if err := key.Validate(); err != nil {
		return nil, artifact.Info{}, err
	}
	f, err := os.Open(s.path(key))
	if err != nil {
		return nil, artifact.Info{}, missing(key, err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, artifact.Info{}, err
	}
	return f, artifact.Info{Key: key, Size: info.Size(), Modified: info.ModTime()}, nil
}

// Stat implements artifact.Store.
func (s *Store) Stat(_ context.Context, key artifact.Key) (artifact.Info, error) {
	if err := key.Validate(); err != nil {
		return artifact.Info{}, err
	}
	info, err := os.Stat(s.path(key))
	if err != nil {
		return artifact.Info{}, missing(key, err)
	}
	return artifact.Info{Key: key, Size: info.Size(), Modified: info.ModTime()}, nil
}

// Delete implements artifact.Store.
func (s *Store) Delete(_ context.Context, key artifact.Key) error {
	if err := key.Validate(); err != nil {
		return err
	}
	return ignoreMissing(os.Remove(s.path(key)))
}

// List implements artifact.Store. Memory is bounded by one of 256 shards.
func (s *Store) List(ctx context.Context, prefix artifact.Prefix, after string, limit int) ([]artifact.Info, error) {
	if err := prefix.Validate(); err != nil {
		return nil, err
	}
	shards, err := names(s.kindDir(prefix))
	if err != nil {
		return nil, err
	}
	var out []artifact.Info
	for _, sh := range shards {
		if len(after) >= 2 && sh < after[:2] {
			continue
		}
		blobs, err := names(filepath.Join(s.kindDir(prefix), sh))
		if err != nil {
			return nil, err
		}
		for _, name := range blobs {
			if len(out) >= limit {
				return out, nil
			}
			key, err := prefix.Parse(name)
			if err != nil || name <= after {
				continue
			}
			info, err := s.Stat(ctx, key)
			if errors.Is(err, artifact.ErrNotFound) {
				continue // deleted meanwhile
			}
			if err != nil {
				return nil, err
			}
			out = append(out, info)
		}
	}
	return out, nil
}

// names lists a directory in ascending order; a missing one is empty.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		out = append(out, e.Name())
	}
	slices.Sort(out)
	return out, nil
}

func missing(key artifact.Key, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", key, artifact.ErrNotFound)
	}
	return fmt.Errorf("%s: %w", key, err)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// contextReader ends a copy when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
