// Package artifact is the contract of the store that keeps the bytes of
// templates and snapshots: content-addressed blobs, per team, and the manifest
// that puts chunks together to files again.
//
// The store keeps bytes and nothing else. Whether an artifact exists is decided
// by a row of the control plane; the order of writing is chunks, manifest, row.
package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Errors a Store returns, wrapped.
var (
	// ErrNotFound: there is no such blob.
	ErrNotFound = errors.New("artifact: no such blob")
	// ErrDigestMismatch: the bytes are not those the key names. Nothing was stored.
	ErrDigestMismatch = errors.New("artifact: content does not match its digest")
	// ErrSizeMismatch: more or fewer bytes than announced. Nothing was stored.
	ErrSizeMismatch = errors.New("artifact: content does not match its size")
)

// Info describes a stored blob.
type Info struct {
	Key      Key
	Size     int64
	Modified time.Time
}

// Store keeps blobs. All methods are safe for concurrent use, also by several
// processes. A blob never changes once it exists, but back to what it should be.
type Store interface {
	// Put stores size bytes of r under key. The content's SHA-256 must be the
	// key's digest. When it returns nil the blob survives a power cut; when it
	// fails, nothing of it is visible. Storing what exists already succeeds and
	// may leave r unread; what exists and is not what the key says is replaced.
	Put(ctx context.Context, key Key, r io.Reader, size int64) error
	// Open returns the content, to be closed by the caller, and its size.
	// ErrNotFound when there is none.
	Open(ctx context.Context, key Key) (io.ReadCloser, Info, error)
	// Stat describes the blob; ErrNotFound when there is none.
	Stat(ctx context.Context, key Key) (Info, error)
	// Delete removes the blob and succeeds on nothing. Readers that have it open
	// read on.
	Delete(ctx context.Context, key Key) error
	// List returns up to limit blobs of a team and kind in ascending order of
	// Key.Name, those after the given name only ("" from the start). Fewer than
	// limit means there are no more.
	List(ctx context.Context, prefix Prefix, after string, limit int) ([]Info, error)
}

// Sound reads a blob and says whether it is what its key names; false when it is
// not there.
func Sound(ctx context.Context, s Store, key Key) (bool, error) {
	r, _, err := s.Open(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return false, fmt.Errorf("reading %s: %w", key, err)
	}
	return hex.EncodeToString(h.Sum(nil)) == string(key.Digest), nil
}

// Presigner is a Store that others may be sent to: whoever has such an address
// may do that one thing until ttl is over, without asking anybody. Addresses are
// never logged.
type Presigner interface {
	PresignGet(ctx context.Context, key Key, ttl time.Duration) (url string, err error)
	// PresignPut is for exactly size bytes, sent with the header that comes with
	// the address. The store itself may not check that they are what the key names:
	// whoever reads them does.
	PresignPut(ctx context.Context, key Key, size int64, ttl time.Duration) (url string, header http.Header, err error)
}
