package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
)

// FetchOptions bound a download.
type FetchOptions struct {
	// Digest is what the file must have; required.
	Digest artifact.Digest
	// MaxBytes bounds the file; 0 is 64 GiB.
	MaxBytes int64
	Progress Progress
}

// Fetch downloads the artifact to dst, which appears complete and checked, with
// mode 0400, or not at all. What a broken download left in dst+".part" is
// checked and used; a second Fetch of the same dst meanwhile fails. Memory is
// flat, holes stay holes.
func Fetch(ctx context.Context, hc *http.Client, manifestURL, dst string, opts FetchOptions) error {
	if err := opts.Digest.Validate(); err != nil {
		return err
	}
	if opts.MaxBytes <= 0 {
		opts.MaxBytes = defaultMaxArtifact
	}
	f := fetch{hc: hc, url: manifestURL, opts: opts}
	if err := f.askManifest(ctx); err != nil {
		return err
	}
	part := dst + ".part"
	file, err := os.OpenFile(part, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errs.Conflict("download_running", "Another download of this artifact is under way.").Because(err)
	}
	f.file = file
	if err := f.fill(ctx); err != nil {
		return err
	}
	if err := f.check(ctx); err != nil {
		if errs.Is(err, "content_mismatch") { // of no use to the next attempt either
			err = errors.Join(err, os.Remove(part))
		}
		return err
	}
	if err := errors.Join(file.Chmod(0o400), file.Sync()); err != nil {
		return err
	}
	if err := os.Rename(part, dst); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dst))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

type fetch struct {
	hc       *http.Client
	url      string
	opts     FetchOptions
	manifest artifact.Manifest
	urls     map[artifact.Digest]string
	file     *os.File
	resumed  bool // the file may hold anything where it is not checked

	mu   sync.Mutex
	done int64
}

func (f *fetch) askManifest(ctx context.Context) error {
	b, err := request{method: http.MethodGet, url: f.url, limit: maxAnswer}.do(ctx, f.hc, nil)
	if err != nil {
		return fmt.Errorf("fetching the manifest: %w", err)
	}
	var answer manifestAnswer
	if err := json.Unmarshal(b, &answer); err != nil {
		return errs.Invalid("invalid_manifest", "The store answered something that is no manifest.").Because(err)
	}
	m, err := artifact.ParseManifest(answer.Manifest)
	switch {
	case err != nil:
		return err
	case m.Digest != f.opts.Digest:
		return errs.Invalid("wrong_artifact", "The store's manifest is of another artifact than the one asked for.")
	case m.Size > f.opts.MaxBytes:
		return tooLarge(f.opts.MaxBytes)
	}
	f.manifest, f.urls = m, answer.URLs
	return nil
}

// fill brings every range of the file to what the manifest says.
func (f *fetch) fill(ctx context.Context) error {
	info, err := f.file.Stat()
	if err != nil {
		return err
	}
	f.resumed = info.Size() > 0
	if err := f.file.Truncate(f.manifest.Size); err != nil {
		return err
	}
	if err := f.clearGaps(); err != nil {
		return err
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(artifact.ChunkSize), zstd.WithDecoderConcurrency(parallel))
	if err != nil {
		return err
	}
	defer decoder.Close()
	buffers := sync.Pool{New: func() any {
		return &chunkBuffers{stored: make([]byte, 0, artifact.MaxChunkBytes), raw: make([]byte, 0, artifact.ChunkSize)}
	}}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, c := range f.manifest.Chunks {
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			b := buffers.Get().(*chunkBuffers)
			defer buffers.Put(b)
			if err := f.chunk(groupCtx, c, b, decoder); err != nil {
				return fmt.Errorf("fetching the chunk at %d: %w", c.Offset, err)
			}
			f.advance(c.RawSize)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

type chunkBuffers struct{ stored, raw []byte }

// clearGaps makes holes of the ranges no chunk covers.
func (f *fetch) clearGaps() error {
	at := int64(0)
	for _, c := range append(f.manifest.Chunks[:len(f.manifest.Chunks):len(f.manifest.Chunks)], artifact.Chunk{Offset: f.manifest.Size}) {
		if gap := c.Offset - at; gap > 0 {
			if err := f.punch(at, gap); err != nil {
				return err
			}
			f.advance(gap)
		}
		at = c.Offset + c.RawSize
	}
	return nil
}

// punch makes a hole where the file may hold something.
func (f *fetch) punch(at, length int64) error {
	if !f.resumed {
		return nil
	}
	return unix.Fallocate(int(f.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, length)
}

func (f *fetch) chunk(ctx context.Context, c artifact.Chunk, b *chunkBuffers, decoder *zstd.Decoder) error {
	if f.resumed {
		b.raw = b.raw[:c.RawSize]
		if _, err := f.file.ReadAt(b.raw, c.Offset); err == nil && artifact.DigestOf(b.raw) == c.RawDigest {
			return nil
		}
	}
	ref, ok := f.urls[c.Digest]
	if !ok {
		return errs.Invalid("invalid_manifest", "The store names no address for a chunk of its manifest.")
	}
	from, err := resolve(f.url, ref)
	if err != nil {
		return err
	}
	b.stored, err = request{method: http.MethodGet, url: from, limit: c.Size}.do(ctx, f.hc, b.stored)
	if err != nil {
		return err
	}
	if int64(len(b.stored)) != c.Size || artifact.DigestOf(b.stored) != c.Digest {
		return errs.Invalid("content_mismatch", "A chunk of the store does not match its digest.")
	}
	raw, err := decoder.DecodeAll(b.stored, b.raw[:0])
	if err != nil || int64(len(raw)) != c.RawSize || artifact.DigestOf(raw) != c.RawDigest {
		return errs.Invalid("content_mismatch", "A chunk of the store does not decompress to what its manifest says.").Because(err)
	}
	b.raw = raw
	if err := f.punch(c.Offset, c.RawSize); err != nil {
		return err
	}
	return writeSparse(f.file, raw, c.Offset)
}

// sparseBlock is the unit in which zeros are left out.
const sparseBlock = 4096

// writeSparse writes b at offset, leaving holes for blocks of zeros.
func writeSparse(f *os.File, b []byte, offset int64) error {
	for start := 0; start < len(b); {
		end := min(start+sparseBlock, len(b))
		if isZero(b[start:end]) {
			start = end
			continue
		}
		for end < len(b) {
			next := min(end+sparseBlock, len(b))
			if isZero(b[end:next]) {
				break
			}
			end = next
		}
		if _, err := f.WriteAt(b[start:end], offset+int64(start)); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// check reads the whole file once more: what is on the disk is what counts.
func (f *fetch) check(ctx context.Context) error {
	h := sha256.New()
	r := &contextReader{ctx: ctx, r: io.NewSectionReader(f.file, 0, f.manifest.Size)}
	if _, err := io.CopyBuffer(h, r, make([]byte, 1<<20)); err != nil {
		return err
	}
	if hex.EncodeToString(h.Sum(nil)) != string(f.manifest.Digest) {
		return errs.Invalid("content_mismatch", "The downloaded file does not match its digest.")
	}
	return nil
}

func (f *fetch) advance(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done += n
	if f.opts.Progress != nil {
		f.opts.Progress(f.done, f.manifest.Size)
	}
}

// contextReader ends a copy when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
