package transfer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
)

// File is one to be put into an artifact.
type File struct {
	Name string // see artifact.ValidName
	Path string
	Mode fs.FileMode // permission bits it gets at its receiver's; 0 leaves them to it
}

// Uploaded is a stored artifact.
type Uploaded struct {
	Manifest  artifact.Digest            // of the stored manifest
	Files     map[string]artifact.Digest // SHA-256 of each whole file
	SizeBytes int64                      // of the files, zeros included
	SentBytes int64                      // of the content that the store lacked
}

// Upload stores files as one artifact under the grant in to. Chunks the store
// has are not sent again, so a broken upload is simply repeated. Files are in the
// manifest in the order given. Each is read once, in order; it must not change
// meanwhile, and a reader would notice.
func Upload(ctx context.Context, clients Clients, to artifact.Source, files []File, mediaType string, opts Options) (Uploaded, error) {
	opts = opts.filled()
	s, err := newSealer(to.Key, opts.Parallel)
	if err != nil {
		return Uploaded{}, err
	}
	defer s.close()
	u := upload{clients: clients, to: to, sealer: s, opts: opts}
	// A chunk that somebody else was to bring may have failed to come: once more
	// sends what is missing now.
	for again := false; ; again = true {
		up, err := u.run(ctx, files, mediaType)
		if err == nil || again || !errs.Is(err, "chunks_missing") {
			return up, err
		}
	}
}

type upload struct {
	clients  Clients
	to       artifact.Source
	sealer   *sealer
	opts     Options
	manifest artifact.Manifest
	plain    map[string]artifact.Digest
	done     int64 // read so far
	sent     int64
}

// piece is a chunk on its way, with its buffer.
type piece struct {
	file   int
	offset int64
	stored []byte
	chunk  artifact.Chunk
}

func (u *upload) run(ctx context.Context, files []File, mediaType string) (Uploaded, error) {
	u.manifest = artifact.Manifest{
		Version: artifact.ManifestVersion, MediaType: mediaType, ChunkSize: artifact.ChunkSize, Encrypted: len(u.to.Key) != 0,
	}
	u.plain, u.done = make(map[string]artifact.Digest, len(files)), 0
	open := make([]*os.File, 0, len(files))
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	if len(files) > artifact.MaxFiles {
		return Uploaded{}, errs.Invalid("too_many_files", fmt.Sprintf("An artifact has at most %d files.", artifact.MaxFiles))
	}
	for _, f := range files {
		file, size, err := openRegular(f.Path)
		if err != nil {
			return Uploaded{}, err
		}
		open = append(open, file)
		u.manifest.Size += size
		u.manifest.Files = append(u.manifest.Files, artifact.File{
			Name: f.Name, Size: size, Mode: uint32(f.Mode.Perm()), Digest: artifact.DigestOf(nil), // until it is known
		})
	}
	if u.manifest.Size > u.opts.MaxBytes {
		return Uploaded{}, tooLarge(u.opts.MaxBytes)
	}
	if err := u.manifest.Validate(); err != nil {
		return Uploaded{}, err
	}
	if err := u.chunks(ctx, open); err != nil {
		return Uploaded{}, err
	}
	return u.finish(ctx)
}

func openRegular(path string) (*os.File, int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errs.Invalid("not_a_file", "Only regular files can be uploaded.")
	}
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, info.Size(), nil
}

// chunks reads and seals one batch while the one before is sent, which bounds
// the memory.
func (u *upload) chunks(ctx context.Context, files []*os.File) error {
	group, ctx := errgroup.WithContext(ctx)
	batches := make(chan []*piece)
	free := make(chan *piece, 2*u.opts.Parallel)
	for range cap(free) {
		free <- &piece{}
	}
	group.Go(func() error {
		defer close(batches)
		return u.read(ctx, files, free, batches)
	})
	group.Go(func() error {
		for batch := range batches {
			if err := u.send(ctx, batch); err != nil {
				return err
			}
			for _, p := range batch {
				free <- p // never blocks: there is room for all
			}
		}
		return nil
	})
	return group.Wait()
}

// read walks through the files in order and hands on what is not zeros.
func (u *upload) read(ctx context.Context, files []*os.File, free <-chan *piece, batches chan<- []*piece) error {
	var batch []*piece
	var sealing errgroup.Group
	flush := func() error {
		if err := sealing.Wait(); err != nil || len(batch) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case batches <- batch:
		}
		batch = nil
		return nil
	}
	defer func() { _ = sealing.Wait() }() // none outlives its buffers
	zeros := make([]byte, 1<<20)
	raws := make(chan []byte, u.opts.Parallel) // free again once they are sealed
	for range cap(raws) {
		raws <- make([]byte, artifact.ChunkSize)
	}
	for i, file := range files {
		size, whole := u.manifest.Files[i].Size, sha256.New()
		for offset := int64(0); offset < size; offset += artifact.ChunkSize {
			length := min(artifact.ChunkSize, size-offset)
			if isHole(file, offset, length) {
				hashZeros(whole, zeros, length)
				if err := ctx.Err(); err != nil {
					return err
				}
				u.advance(length)
				continue
			}
			var p *piece
			select {
			case <-ctx.Done():
				return ctx.Err()
			case p = <-free:
			}
			p.file, p.offset = i, offset
			raw := (<-raws)[:length]
			if _, err := io.ReadFull(io.NewSectionReader(file, offset, length), raw); err != nil {
				return fmt.Errorf("reading %s at %d: %w", u.manifest.Files[i].Name, offset, err)
			}
			whole.Write(raw)
			batch = append(batch, p)
			sealing.Go(func() error {
				defer func() { raws <- raw[:artifact.ChunkSize] }()
				return p.seal(u.sealer, raw)
			})
			u.advance(length)
			if len(batch) == u.opts.Parallel {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		u.name(i, whole)
	}
	return flush()
}

func (u *upload) advance(n int64) {
	u.done += n
	if u.opts.Progress != nil {
		u.opts.Progress(u.done, u.manifest.Size)
	}
}

// name notes the digests of a file that was read.
func (u *upload) name(i int, whole hash.Hash) {
	sum := [sha256.Size]byte(whole.Sum(nil))
	f := &u.manifest.Files[i]
	u.plain[f.Name] = artifact.ContentKey(nil).Digest(labelFile, sum)
	f.Digest = u.to.Key.Digest(labelFile, sum)
}

// seal makes the stored form; none of zeros.
func (p *piece) seal(s *sealer, raw []byte) (err error) {
	p.chunk = artifact.Chunk{}
	if isZero(raw) {
		return nil
	}
	if p.stored == nil {
		p.stored = make([]byte, 0, artifact.MaxChunkBytes)
	}
	p.stored, p.chunk, err = s.seal(raw, p.stored)
	p.chunk.Offset = p.offset
	return err
}

// isHole reports whether the file system knows of no data there.
func isHole(f *os.File, offset, length int64) bool {
	next, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	return errors.Is(err, unix.ENXIO) || (err == nil && next >= offset+length)
}

func hashZeros(h io.Writer, zeros []byte, n int64) {
	for n > 0 {
		k := min(n, int64(len(zeros)))
		_, _ = h.Write(zeros[:k]) // a hash takes all
		n -= k
	}
}

// send notes a batch in the manifest and stores what the store lacks.
func (u *upload) send(ctx context.Context, batch []*piece) error {
	batch = withData(batch)
	if len(batch) == 0 {
		return nil
	}
	missing, err := u.claim(ctx, batch)
	if err != nil {
		return err
	}
	sending, ctx := errgroup.WithContext(ctx)
	sending.SetLimit(u.opts.Parallel)
	for _, p := range batch {
		f := &u.manifest.Files[p.file]
		f.Chunks = append(f.Chunks, p.chunk)
		t, ok := missing[p.chunk.Digest]
		if !ok {
			continue
		}
		delete(missing, p.chunk.Digest) // equal chunks are sent once
		u.sent += p.chunk.RawSize
		sending.Go(func() error { return at(u.put(ctx, p, t), f.Name, p.chunk) })
	}
	return sending.Wait()
}

// withData leaves out pieces of zeros.
func withData(batch []*piece) []*piece {
	var out []*piece
	for _, p := range batch {
		if p.chunk.Size > 0 {
			out = append(out, p)
		}
	}
	return out
}

// claim makes the chunks part of the artifact and hears which are missing.
func (u *upload) claim(ctx context.Context, batch []*piece) (map[artifact.Digest]target, error) {
	var q claimQuestion
	seen := make(map[artifact.Digest]bool, len(batch))
	for _, p := range batch {
		if !seen[p.chunk.Digest] {
			seen[p.chunk.Digest] = true
			q.Chunks = append(q.Chunks, Piece{Digest: p.chunk.Digest, Size: p.chunk.Size})
		}
	}
	_, to, _, err := u.clients.reach(u.to.URL, "chunks")
	if err != nil {
		return nil, err
	}
	var answer claimAnswer
	if err := ask(ctx, u.clients.Control, to, q, &answer, maxTargets); err != nil {
		return nil, fmt.Errorf("asking which chunks are missing: %w", err)
	}
	return answer.Missing, nil
}

func (u *upload) put(ctx context.Context, p *piece, t target) error {
	return retry(ctx, func() (bool, error) {
		q := request{method: http.MethodPut, body: p.stored, contentType: "application/octet-stream", header: t.Header, limit: maxErrorBody}
		_, again, fresh, err := u.clients.chunkOnce(ctx, u.to.URL, t.URL, q, nil)
		if !fresh {
			return again, err
		}
		missing, askErr := u.claim(ctx, []*piece{p})
		if askErr != nil {
			return false, askErr
		}
		next, still := missing[p.chunk.Digest]
		if !still {
			return false, nil // somebody else brought it
		}
		t = next
		return true, err
	})
}

// finish stores the manifest: from here on the artifact can be read.
func (u *upload) finish(ctx context.Context) (Uploaded, error) {
	body, err := u.manifest.Encode()
	if err != nil {
		return Uploaded{}, err
	}
	b, err := request{method: http.MethodPut, url: u.to.URL, body: body, contentType: "application/json", limit: maxErrorBody}.do(ctx, u.clients.Control)
	if err != nil {
		return Uploaded{}, fmt.Errorf("storing the manifest: %w", err)
	}
	var answer storedAnswer
	want := artifact.DigestOf(body)
	if err := json.Unmarshal(b, &answer); err != nil || answer.Digest != want {
		return Uploaded{}, errs.Invalid("invalid_answer", "The store names another manifest than the one it was given.").Because(err)
	}
	return Uploaded{Manifest: want, Files: u.plain, SizeBytes: u.manifest.Size, SentBytes: u.sent}, nil
}

// isZero compares b with itself, one byte on.
func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}
