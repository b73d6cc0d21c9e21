// Package mem keeps artifacts in memory, for tests.
package mem

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"skerry.dev/skerry/internal/artifact"
)

// Store is an artifact.Store in memory. The zero value is ready.
type Store struct {
	mu    sync.Mutex
	blobs map[artifact.Key]blob
}

type blob struct {
	content  []byte
	modified time.Time
}

var _ artifact.Store = (*Store)(nil)

// Put implements artifact.Store.
func (s *Store) Put(ctx context.Context, key artifact.Key, r io.Reader, size int64) error {
	if err := key.Validate(); err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(r, size+1))
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case int64(len(b)) != size:
		return fmt.Errorf("%s: %w", key, artifact.ErrSizeMismatch)
	case artifact.DigestOf(b) != key.Digest:
		return fmt.Errorf("%s: %w", key, artifact.ErrDigestMismatch)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blobs == nil {
		s.blobs = make(map[artifact.Key]blob)
	}
	if was, ok := s.blobs[key]; !ok || artifact.DigestOf(was.content) != key.Digest {
		s.blobs[key] = blob{content: b, modified: time.Now()}
	}
	return nil
}

// Spoil changes a blob that is there, as a failing disk does; its size stays.
func (s *Store) Spoil(key artifact.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blobs[key]
	b.content = bytes.Clone(b.content)
	b.content[len(b.content)/2] ^= 1
	s.blobs[key] = b
}

// Open implements artifact.Store.
func (s *Store) Open(ctx context.Context, key artifact.Key) (io.ReadCloser, artifact.Info, error) {
	info, err := s.Stat(ctx, key)
	if err != nil {
		return nil, artifact.Info{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return io.NopCloser(bytes.NewReader(s.blobs[key].content)), info, nil
}

// Stat implements artifact.Store.
func (s *Store) Stat(_ context.Context, key artifact.Key) (artifact.Info, error) {
	if err := key.Validate(); err != nil {
		return artifact.Info{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.blobs[key]
	if !ok {
		return artifact.Info{}, fmt.Errorf("%s: %w", key, artifact.ErrNotFound)
	}
	return artifact.Info{Key: key, Size: int64(len(b.content)), Modified: b.modified}, nil
}

// Delete implements artifact.Store.
func (s *Store) Delete(_ context.Context, key artifact.Key) error {
	if err := key.Validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.blobs, key)
	return nil
}

// List implements artifact.Store.
func (s *Store) List(_ context.Context, prefix artifact.Prefix, after string, limit int) ([]artifact.Info, error) {
	if err := prefix.Validate(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []artifact.Info
	for k, b := range s.blobs {
		if k.Prefix == prefix && k.Name() > after {
			out = append(out, artifact.Info{Key: k, Size: int64(len(b.content)), Modified: b.modified})
		}
	}
	slices.SortFunc(out, func(a, b artifact.Info) int { return strings.Compare(a.Key.Name(), b.Key.Name()) })
	return out[:min(limit, len(out))], nil
}
