package image

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"skerry.dev/skerry/internal/artifact"
)

// Config says where the cache lives and how much it may hold.
type Config struct {
	// Dir is the cache's directory, absolute, of this agent instance alone.
	Dir string
	// GuestBinary is the guest daemon that sandboxes find as /.skerry/guest.
	GuestBinary string
	// MaxBytes bounds the image files on disk; 0 is no bound. Images in use are
	// never removed for it.
	MaxBytes int64
	// WarmMounts is how many unused images stay mounted; 0 is 4.
	WarmMounts int
	Logger     *slog.Logger
}

// Image is what the control plane names.
type Image struct {
	Digest    artifact.Digest // of the whole file
	SizeBytes int64
	// ManifestURL is where it is fetched from when this host lacks it.
	ManifestURL string
}

// GuestPath is the guest daemon's path inside every root tree.
const GuestPath = "/.skerry/guest"

var errNotYet = errors.New("image: not there yet")

// Cache hands out root trees. Safe for concurrent use.
type Cache struct{}

// New opens the cache. Nothing is mounted before Recover or Acquire.
func New(cfg Config) (*Cache, error) { return nil, errNotYet }

// Acquire returns the read-only root tree of img for owner, fetching, checking
// and mounting what is missing. Concurrent calls for one image share the work.
// Repeated for the same owner it returns the same tree and counts once.
func (c *Cache) Acquire(ctx context.Context, img Image, owner string, hc *http.Client) (rootDir string, err error) {
	return "", errNotYet
}

// Release gives the tree back. Succeeds on what is not held.
func (c *Cache) Release(ctx context.Context, digest artifact.Digest, owner string) error {
	return errNotYet
}

// Recover is called once at the agent's start with every owner the journal
// knows. It mounts what they need and is missing, and unmounts what nobody owns.
func (c *Cache) Recover(ctx context.Context, owners map[string]artifact.Digest) error {
	return errNotYet
}

// Has reports whether the image's file is on this host, complete.
func (c *Cache) Has(digest artifact.Digest) bool { return false }

// Leaks lists mounts below Dir that no owner and no warm place accounts for.
func (c *Cache) Leaks(ctx context.Context) ([]string, error) { return nil, errNotYet }

// Purge unmounts and removes everything below Dir.
func (c *Cache) Purge(ctx context.Context) error { return errNotYet }
