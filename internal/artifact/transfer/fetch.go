package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Want is what the receiver knows of an artifact beforehand; anything else is
// refused.
type Want struct {
	MediaType string
	// Files are the SHA-256 of whole files by name. Others may come with them; see
	// Place.
	Files map[string]artifact.Digest
}

// Place says where a file goes; an error of it ends the download before it
// begins.
type Place func(f artifact.File) (path string, err error)

// Into places files below a directory that is there, by their names.
func Into(dir string) Place {
	return func(f artifact.File) (string, error) { return filepath.Join(dir, filepath.FromSlash(f.Name)), nil }
}

// At places one file and refuses all others.
func At(name, path string) Place {
	return func(f artifact.File) (string, error) {
		if f.Name != name {
			return "", errs.Invalid("wrong_artifact", "The artifact has a file that nobody asked for.").With("file", f.Name)
		}
		return path, nil
	}
}

// Fetch downloads an artifact. Its files appear complete and checked, flushed to
// the disk, in the order of the manifest, or not at all; with the mode the
// manifest gives, or 0400. Their directories are made. What a broken download
// left in "<path>.part" is checked and used; a second Fetch to the same place
// meanwhile fails. Memory is flat, holes stay holes.
func Fetch(ctx context.Context, clients Clients, from artifact.Source, want Want, place Place, opts Options) error {
	opts = opts.filled()
	o, err := newOpener(from.Key, opts.Parallel)
	if err != nil {
		return err
	}
	defer o.close()
	f := &fetch{clients: clients, from: from, opts: opts, opener: o}
	if err := f.askManifest(ctx, want); err != nil {
		return err
	}
	var parts []*part
	defer func() {
		for _, p := range parts {
			p.close()
		}
	}()
	for i := range f.manifest.Files {
		p, err := f.file(ctx, i, want, place)
		if p != nil {
			parts = append(parts, p)
		}
		if err != nil {
			return f.giveUp(err, parts)
		}
	}
	return finish(parts)
}

// giveUp removes what would be of no use to another attempt, or of harm to
// others: content that is wrong as a whole, and what filled the disk.
func (f *fetch) giveUp(err error, parts []*part) error {
	err = diskFull(err, f.manifest.Size)
	if errors.Is(err, errWhole) || errs.Is(err, "disk_full") {
		for _, p := range parts {
			err = errors.Join(err, p.remove())
		}
	}
	return err
}

type fetch struct {
	clients   Clients
	from      artifact.Source
	opts      Options
	opener    *opener
	manifest  artifact.Manifest
	addresses *addresses
	buffers   sync.Pool

	mu   sync.Mutex
	done int64
}

func (f *fetch) askManifest(ctx context.Context, want Want) error {
	b, err := request{method: http.MethodGet, url: f.from.URL, limit: maxAnswer}.do(ctx, f.clients.Control)
	if err != nil {
		return fmt.Errorf("fetching the manifest: %w", err)
	}
	var answer manifestAnswer
	if err := json.Unmarshal(b, &answer); err != nil {
		return errs.Invalid("invalid_manifest", "The store answered something that is no manifest.").Because(err)
	}
	if artifact.DigestOf(answer.Manifest) != answer.Digest {
		return mismatch("The manifest does not match its digest.").With("digest", string(answer.Digest))
	}
	m, err := artifact.ParseManifest(answer.Manifest)
	switch {
	case err != nil:
		return err
	case m.MediaType != want.MediaType:
		return errs.Invalid("wrong_artifact", "The store's manifest is of another kind than the one asked for.").With("media_type", m.MediaType)
	case m.Encrypted && len(f.from.Key) == 0:
		return errs.FailedPrecondition("content_key_missing", "The artifact is encrypted, and no key came with its address.")
	case !m.Encrypted && len(f.from.Key) != 0:
		return errs.Invalid("wrong_artifact", "The artifact is not encrypted, and should be.")
	case m.Size > f.opts.MaxBytes:
		return tooLarge(f.opts.MaxBytes)
	}
	has := make(map[string]bool, len(m.Files))
	for _, file := range m.Files {
		has[file.Name] = true
	}
	for name := range want.Files {
		if !has[name] {
			return errs.Invalid("wrong_artifact", "The artifact lacks a file that it should have.").With("file", name)
		}
	}
	f.manifest, f.addresses = m, newAddresses(f, m, answer.Direct)
	f.buffers.New = func() any {
		return &chunkBuffers{stored: make([]byte, 0, artifact.MaxChunkBytes), raw: make([]byte, 0, artifact.ChunkSize)}
	}
	return nil
}

// chunkBuffers hold one chunk on its way.
type chunkBuffers struct{ stored, raw []byte }

// file brings one file to its part, checked and flushed. A part that is not nil
// is to be closed also when there is an error.
func (f *fetch) file(ctx context.Context, i int, want Want, place Place) (*part, error) {
	file := f.manifest.Files[i]
	path, err := place(file)
	if err != nil {
		return nil, err
	}
	p, err := openPart(path, file, f.opener)
	if err != nil {
		return nil, err
	}
	plain := want.Files[file.Name]
	if ok, err := p.complete(ctx, plain); ok || err != nil {
		if err == nil {
			f.advance(file.Size)
		}
		return p, err
	}
	if err := p.prepare(); err != nil {
		return p, err
	}
	group, both := errgroup.WithContext(ctx)
	group.Go(func() error { return p.check(both, plain) })
	group.Go(func() error { return f.fill(both, p, i) })
	if err := group.Wait(); err != nil {
		return p, err
	}
	return p, p.flush()
}

// fill brings every chunk.
func (f *fetch) fill(ctx context.Context, p *part, file int) error {
	group, chunkCtx := errgroup.WithContext(ctx)
	group.SetLimit(f.opts.Parallel)
	end := int64(0)
	for i, c := range p.file.Chunks {
		if chunkCtx.Err() != nil {
			break
		}
		f.advance(c.Offset - end)
		end = c.Offset + c.RawSize
		group.Go(func() error {
			b := f.buffers.Get().(*chunkBuffers)
			defer f.buffers.Put(b)
			if err := f.chunk(chunkCtx, p, c, position{file, i}, b); err != nil {
				f.doubt(ctx, c.Digest, err)
				return at(err, p.file.Name, c)
			}
			p.arrived(i)
			f.advance(c.RawSize)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	f.advance(p.file.Size - end)
	return ctx.Err()
}

// chunk brings one chunk to its place in the file, unless it is there.
func (f *fetch) chunk(ctx context.Context, p *part, c artifact.Chunk, pos position, b *chunkBuffers) error {
	if p.resumed {
		b.raw = b.raw[:c.RawSize]
		if _, err := p.f.ReadAt(b.raw, c.Offset); err == nil && f.opener.is(b.raw, c) {
			return nil
		}
	}
	err := retry(ctx, func() (bool, error) {
		ref, err := f.addresses.of(ctx, pos, c.Digest)
		if err != nil {
			return false, err
		}
		stored, again, fresh, err := f.clients.chunkOnce(ctx, f.from.URL, ref, request{method: http.MethodGet, limit: c.Size}, b.stored)
		if err != nil {
			if fresh {
				f.addresses.forget(c.Digest)
			}
			return again, err
		}
		b.stored = stored
		return false, nil
	})
	if errs.Is(err, "answer_too_large") {
		return mismatch("A chunk of the store is longer than it should be.").Because(err)
	}
	if err != nil {
		return err
	}
	if b.raw, err = f.opener.open(b.stored, b.raw[:0], c); err != nil {
		return err
	}
	return p.write(b.raw, c.Offset)
}

// doubt tells the control plane of a chunk that is of no use, so that it is
// brought again; the error alone is what counts here.
func (f *fetch) doubt(ctx context.Context, d artifact.Digest, err error) {
	if !errs.Is(err, "content_mismatch") && !errs.Is(err, "chunk_missing") {
		return
	}
	if _, to, _, err := f.clients.reach(f.from.URL, "chunks/"+string(d)+"/doubt"); err == nil {
		_, _, _ = request{method: http.MethodPost, url: to, limit: maxErrorBody}.once(ctx, f.clients.Control, nil)
	}
}

func (f *fetch) advance(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done += n
	if f.opts.Progress != nil && n > 0 {
		f.opts.Progress(f.done, f.manifest.Size)
	}
}

// finish gives the files their names.
func finish(parts []*part) error {
	dirs := make(map[string]bool)
	for _, p := range parts {
		if p.there {
			continue
		}
		if err := os.Rename(p.f.Name(), p.path); err != nil {
			return err
		}
		dir := filepath.Dir(p.path)
		dirs[dir] = true
		if strings.Contains(p.file.Name, "/") { // it may have been made for the file
			dirs[filepath.Dir(dir)] = true
		}
	}
	var failed []error
	for dir := range dirs {
		failed = append(failed, syncDir(dir))
	}
	return errors.Join(failed...)
}
