// Package s3 keeps artifacts in a bucket of an S3-compatible service. Hosts are
// sent to the service itself, by presigned URLs.
package s3

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	// page is how many names a service lists at once.
	page = 1000
	// tries is how often a request is made that fails on the service's side.
	tries = 4

	checksumHeader = "X-Amz-Checksum-Sha256"
)

// Store is an artifact.Store in a bucket. It is an artifact.Presigner.
type Store struct {
	cfg  Config
	core minio.Core
}

// New is the store in cfg's bucket, which must be there; nothing is asked yet.
func New(cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("s3: %w", err)
	}
	u, err := url.Parse(cmp.Or(cfg.Endpoint, defaultEndpoint))
	if err != nil {
		return nil, fmt.Errorf("s3: %w", err)
	}
	opts := &minio.Options{
		Creds: credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, ""), Secure: u.Scheme == "https", MaxRetries: tries,
		// Without a region each presigned URL would ask for it.
		Region: cmp.Or(cfg.Region, defaultRegion), BucketLookup: minio.BucketLookupDNS,
	}
	if cfg.PathStyle {
		opts.BucketLookup = minio.BucketLookupPath
	}
	core, err := minio.NewCore(u.Host, opts)
	if err != nil {
		return nil, fmt.Errorf("s3: %w", err)
	}
	return &Store{cfg: cfg, core: *core}, nil
}

// Probe says whether the bucket is there and these keys may use it.
func (s *Store) Probe(ctx context.Context) error {
	there, err := s.core.BucketExists(ctx, s.cfg.Bucket)
	if err != nil {
		return fmt.Errorf("s3: bucket %s: %w", s.cfg.Bucket, err)
	}
	if !there {
		return fmt.Errorf("s3: there is no bucket %s, or not for these keys", s.cfg.Bucket)
	}
	return nil
}

func (s *Store) object(k artifact.Key) string { return s.cfg.name(k.String()) }

// Put implements artifact.Store. The content is held in memory, for it is checked
// before the service sees it; a blob is small.
func (s *Store) Put(ctx context.Context, key artifact.Key, r io.Reader, size int64) error {
	if err := key.Validate(); err != nil {
		return err
	}
	if size < 0 || size > artifact.MaxManifestBytes {
		return errs.New(errs.CodeTooLarge, "too_large", "A blob of the store is at most 32 MiB.")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := s.Stat(ctx, key)
	if err != nil && !errors.Is(err, artifact.ErrNotFound) {
		return err
	}
	if err == nil && info.Size == size {
		if sound, err := artifact.Sound(ctx, s, key); err != nil || sound {
			return err
		}
	}
	content, err := io.ReadAll(io.LimitReader(r, size+1))
	switch {
	case err != nil:
		return fmt.Errorf("storing %s: %w", key, err)
	case int64(len(content)) != size:
		return fmt.Errorf("storing %s: %w", key, artifact.ErrSizeMismatch)
	case artifact.DigestOf(content) != key.Digest:
		return fmt.Errorf("storing %s: %w", key, artifact.ErrDigestMismatch)
	}
	opts := minio.PutObjectOptions{ContentType: "application/octet-stream", DisableMultipart: true}
	if _, err := s.core.PutObject(ctx, s.cfg.Bucket, s.object(key), bytes.NewReader(content), size, "", string(key.Digest), opts); err != nil {
		return fmt.Errorf("storing %s: %w", key, err)
	}
	return nil
}

// Open implements artifact.Store.
func (s *Store) Open(ctx context.Context, key artifact.Key) (io.ReadCloser, artifact.Info, error) {
	if err := key.Validate(); err != nil {
		return nil, artifact.Info{}, err
	}
	r, info, _, err := s.core.GetObject(ctx, s.cfg.Bucket, s.object(key), minio.GetObjectOptions{})
	if err != nil {
		return nil, artifact.Info{}, missing(key, err)
	}
	return r, artifact.Info{Key: key, Size: info.Size, Modified: info.LastModified}, nil
}

// Stat implements artifact.Store.
func (s *Store) Stat(ctx context.Context, key artifact.Key) (artifact.Info, error) {
	if err := key.Validate(); err != nil {
		return artifact.Info{}, err
	}
	info, err := s.core.StatObject(ctx, s.cfg.Bucket, s.object(key), minio.StatObjectOptions{})
	if err != nil {
		return artifact.Info{}, missing(key, err)
	}
	return artifact.Info{Key: key, Size: info.Size, Modified: info.LastModified}, nil
}

// Delete implements artifact.Store.
func (s *Store) Delete(ctx context.Context, key artifact.Key) error {
	if err := key.Validate(); err != nil {
		return err
	}
	err := s.core.RemoveObject(ctx, s.cfg.Bucket, s.object(key), minio.RemoveObjectOptions{})
	if err = missing(key, err); err != nil && !errors.Is(err, artifact.ErrNotFound) {
		return err
	}
	return nil
}

// List implements artifact.Store.
func (s *Store) List(ctx context.Context, prefix artifact.Prefix, after string, limit int) ([]artifact.Info, error) {
	if err := prefix.Validate(); err != nil {
		return nil, err
	}
	if limit <= 0 {
		return nil, nil
	}
	below := s.cfg.name(prefix.String())
	opts := minio.ListObjectsOptions{Prefix: below, Recursive: true, MaxKeys: min(page, limit)}
	if after != "" {
		opts.StartAfter = below + after
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var out []artifact.Info
	for o := range s.core.ListObjectsIter(ctx, s.cfg.Bucket, opts) {
		if o.Err != nil {
			return nil, fmt.Errorf("listing %s: %w", prefix, o.Err)
		}
		if key, err := prefix.Parse(strings.TrimPrefix(o.Key, below)); err == nil {
			out = append(out, artifact.Info{Key: key, Size: o.Size, Modified: o.LastModified})
		}
		if len(out) == limit {
			break
		}
	}
	return out, ctx.Err()
}

// PresignGet implements artifact.Presigner.
func (s *Store) PresignGet(ctx context.Context, key artifact.Key, ttl time.Duration) (string, error) {
	if err := key.Validate(); err != nil {
		return "", err
	}
	u, err := s.core.PresignHeader(ctx, http.MethodGet, s.cfg.Bucket, s.object(key), ttl, nil, nil)
	if err != nil {
		return "", fmt.Errorf("presigning %s: %w", key, err)
	}
	return u.String(), nil
}

// PresignPut implements artifact.Presigner. Length and checksum are part of the
// signature.
func (s *Store) PresignPut(ctx context.Context, key artifact.Key, size int64, ttl time.Duration) (string, http.Header, error) {
	if err := key.Validate(); err != nil {
		return "", nil, err
	}
	sum, err := hex.DecodeString(string(key.Digest))
	if err != nil {
		return "", nil, err
	}
	header := http.Header{}
	header.Set(checksumHeader, base64.StdEncoding.EncodeToString(sum))
	signed := header.Clone()
	signed.Set("Content-Length", strconv.FormatInt(size, 10))
	u, err := s.core.PresignHeader(ctx, http.MethodPut, s.cfg.Bucket, s.object(key), ttl, nil, signed)
	if err != nil {
		return "", nil, fmt.Errorf("presigning %s: %w", key, err)
	}
	return u.String(), header, nil
}

func missing(key artifact.Key, err error) error {
	if err == nil {
		return nil
	}
	if answer := minio.ToErrorResponse(err); answer.StatusCode == http.StatusNotFound && answer.Code != minio.NoSuchBucket {
		return fmt.Errorf("%s: %w", key, artifact.ErrNotFound)
	}
	return fmt.Errorf("%s: %w", key, err)
}
