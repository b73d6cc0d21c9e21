// Package transfer moves artifacts between hosts and the control plane. A host
// holds no credentials of the store: it is given a URL whose path carries a
// grant, signed and expiring, that allows one thing. Paths, below the base
// given to the Signer:
//
//	GET  /v1/store/<grant>/manifest         the manifest, with a URL per chunk
//	GET  /v1/store/<grant>/chunks/<digest>  a chunk named in that manifest
//	POST /v1/store/<grant>/chunks           which of these chunks are missing
//	PUT  /v1/store/<grant>/chunks/<digest>  store a chunk
//	PUT  /v1/store/<grant>/manifest         store the manifest, last
//
// URLs in answers may point elsewhere (a presigned URL of an object store).
package transfer

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/id"
)

var errNotYet = errors.New("transfer: not there yet")

// Signer makes and checks grants.
type Signer struct{}

// NewSigner uses secret, at least 32 bytes, to sign.
func NewSigner(secret []byte, clk clock.Clock) (*Signer, error) { return nil, errNotYet }

// ReadURL lets its holder read one manifest of team and the chunks it names.
// base is the control plane's address without a trailing slash.
func (s *Signer) ReadURL(base string, team id.Team, manifest artifact.Digest, ttl time.Duration) string {
	return ""
}

// WriteURL lets its holder store chunks and one manifest for team, under an
// upload the control plane knows by id.
func (s *Signer) WriteURL(base string, team id.Team, uploadID string, ttl time.Duration) string {
	return ""
}

// Options of the server's side.
type Options struct {
	// MaxArtifactBytes bounds the size a manifest may declare; 0 is 64 GiB.
	MaxArtifactBytes int64
	Logger           *slog.Logger
}

// NewHandler serves the paths under /v1/store/ from store.
func NewHandler(store artifact.Store, signer *Signer, opts Options) http.Handler { return nil }

// Progress is told the bytes of the file that are done. Calls are serial.
type Progress func(done, total int64)

// FetchOptions bound a download.
type FetchOptions struct {
	// Digest is what the file must have; required.
	Digest artifact.Digest
	// MaxBytes bounds the file; 0 is 64 GiB.
	MaxBytes int64
	Progress Progress
}

// Fetch downloads the artifact to dst, which appears complete and checked or
// not at all. What a broken download left in dst+".part" is checked and used.
// Memory is flat, holes stay holes.
func Fetch(ctx context.Context, hc *http.Client, manifestURL, dst string, opts FetchOptions) error {
	return errNotYet
}

// Uploaded is a stored artifact.
type Uploaded struct {
	Manifest       artifact.Digest // of the manifest: what ReadURL is given
	Digest         artifact.Digest // of the whole file
	SizeBytes      int64
	TransferredRaw int64 // bytes of chunks the store lacked, before compression
}

// Upload stores the file at src under the grant in writeURL. Chunks the store
// has are not sent again, so a broken upload is simply repeated.
func Upload(ctx context.Context, hc *http.Client, writeURL, src string, progress Progress) (Uploaded, error) {
	return Uploaded{}, errNotYet
}
