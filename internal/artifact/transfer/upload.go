package transfer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Uploaded is a stored artifact.
type Uploaded struct {
	Manifest       artifact.Digest // of the manifest: what ReadURL is given
	Digest         artifact.Digest // of the whole file
	SizeBytes      int64
	TransferredRaw int64 // bytes of chunks the store lacked, before compression
}

// Upload stores the file at src under the grant in writeURL. Chunks the store
// has are not sent again, so a broken upload is simply repeated. The file is
// read once, in order; it must not change meanwhile, and a reader would notice.
func Upload(ctx context.Context, hc *http.Client, writeURL, src, mediaType string, progress Progress) (Uploaded, error) {
	file, err := os.Open(src)
	if err != nil {
		return Uploaded{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return Uploaded{}, err
	}
	if !info.Mode().IsRegular() {
		return Uploaded{}, errs.Invalid("not_a_file", "Only a regular file can be uploaded.")
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return Uploaded{}, err
	}
	defer encoder.Close()
	u := upload{
		hc: hc, url: writeURL, file: file, encoder: encoder, whole: sha256.New(), progress: progress,
		manifest: artifact.Manifest{Version: artifact.ManifestVersion, MediaType: mediaType, Size: info.Size(), ChunkSize: artifact.ChunkSize},
	}
	if err := u.chunks(ctx); err != nil {
		return Uploaded{}, err
	}
	return u.finish(ctx)
}

type upload struct {
	hc       *http.Client
	url      string
	file     *os.File
	encoder  *zstd.Encoder
	whole    hash.Hash
	manifest artifact.Manifest
	sent     int64
	progress Progress
}

// piece is one chunk on its way; its buffers are used again.
type piece struct {
	chunk       artifact.Chunk
	raw, stored []byte
}

// chunks sends the file a few chunks at a time, which bounds the memory.
func (u *upload) chunks(ctx context.Context) error {
	batch := make([]*piece, parallel)
	for i := range batch {
		batch[i] = &piece{raw: make([]byte, 0, artifact.ChunkSize), stored: make([]byte, 0, artifact.MaxChunkBytes)}
	}
	n := 0
	flush := func() error {
		if err := u.send(ctx, batch[:n]); err != nil {
			return err
		}
		n = 0
		return nil
	}
	for at := int64(0); at < u.manifest.Size; at += artifact.ChunkSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := u.read(batch[n], at)
		if err != nil {
			return err
		}
		if data {
			n++
		}
		if n == len(batch) {
			if err := flush(); err != nil {
				return err
			}
		}
		if u.progress != nil {
			u.progress(min(at+artifact.ChunkSize, u.manifest.Size), u.manifest.Size)
		}
	}
	return flush()
}

// read fills p with the chunk at offset; false when it is all zeros.
func (u *upload) read(p *piece, offset int64) (bool, error) {
	length := min(artifact.ChunkSize, u.manifest.Size-offset)
	p.raw = p.raw[:length]
	if u.hole(offset, length) {
		clear(p.raw)
		u.whole.Write(p.raw)
		return false, nil
	}
	if _, err := io.ReadFull(io.NewSectionReader(u.file, offset, length), p.raw); err != nil {
		return false, fmt.Errorf("reading the file at %d: %w", offset, err)
	}
	u.whole.Write(p.raw)
	p.chunk = artifact.Chunk{Offset: offset, RawSize: length}
	return !isZero(p.raw), nil
}

// hole reports whether the file system knows of no data there.
func (u *upload) hole(offset, length int64) bool {
	next, err := unix.Seek(int(u.file.Fd()), offset, unix.SEEK_DATA)
	return errors.Is(err, unix.ENXIO) || (err == nil && next >= offset+length)
}

// send compresses a batch and stores what the store lacks.
func (u *upload) send(ctx context.Context, batch []*piece) error {
	if len(batch) == 0 {
		return nil
	}
	var group errgroup.Group
	for _, p := range batch {
		group.Go(func() error {
			p.stored = u.encoder.EncodeAll(p.raw, p.stored[:0])
			p.chunk.Size, p.chunk.Digest, p.chunk.RawDigest = int64(len(p.stored)), artifact.DigestOf(p.stored), artifact.DigestOf(p.raw)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	missing, err := u.ask(ctx, batch)
	if err != nil {
		return err
	}
	sending, ctx := errgroup.WithContext(ctx)
	for _, p := range batch {
		u.manifest.Chunks = append(u.manifest.Chunks, p.chunk)
		ref, ok := missing[p.chunk.Digest]
		if !ok {
			continue
		}
		delete(missing, p.chunk.Digest) // equal chunks are sent once
		u.sent += p.chunk.RawSize
		sending.Go(func() error {
			to, err := resolve(u.url, ref)
			if err != nil {
				return err
			}
			_, err = request{method: http.MethodPut, url: to, body: p.stored, contentType: "application/zstd", limit: maxErrorBody}.do(ctx, u.hc, nil)
			if err != nil {
				return fmt.Errorf("storing the chunk at %d: %w", p.chunk.Offset, err)
			}
			return nil
		})
	}
	return sending.Wait()
}

func (u *upload) ask(ctx context.Context, batch []*piece) (map[artifact.Digest]string, error) {
	var q missingQuestion
	for _, p := range batch {
		q.Digests = append(q.Digests, p.chunk.Digest)
	}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	to, err := resolve(u.url, "chunks")
	if err != nil {
		return nil, err
	}
	b, err := request{method: http.MethodPost, url: to, body: body, contentType: "application/json", limit: maxAskBytes * 16}.do(ctx, u.hc, nil)
	if err != nil {
		return nil, fmt.Errorf("asking which chunks are missing: %w", err)
	}
	var answer missingAnswer
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, errs.Invalid("invalid_answer", "The store's answer makes no sense.").Because(err)
	}
	return answer.Missing, nil
}

// finish stores the manifest: from here on the artifact can be read.
func (u *upload) finish(ctx context.Context) (Uploaded, error) {
	u.manifest.Digest = artifact.Digest(hex.EncodeToString(u.whole.Sum(nil)))
	body, err := u.manifest.Encode()
	if err != nil {
		return Uploaded{}, err
	}
	b, err := request{method: http.MethodPut, url: u.url, body: body, contentType: "application/json", limit: maxErrorBody}.do(ctx, u.hc, nil)
	if err != nil {
		return Uploaded{}, fmt.Errorf("storing the manifest: %w", err)
	}
	var answer storedAnswer
	want := artifact.DigestOf(body)
	if err := json.Unmarshal(b, &answer); err != nil || answer.Digest != want {
		return Uploaded{}, errs.Invalid("invalid_answer", "The store names another manifest than the one it was given.").Because(err)
	}
	return Uploaded{Manifest: want, Digest: u.manifest.Digest, SizeBytes: u.manifest.Size, TransferredRaw: u.sent}, nil
}

// isZero compares b with itself, one byte on.
func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}
