// Package buildcontext reads the archives that builds copy files from. An
// archive is what somebody sent: it is indexed within bounds, nothing of it is
// ever unpacked here, and no name in it leads out of it.
package buildcontext

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"skerry.dev/skerry/internal/dockerignore"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Bounds of an archive.
const (
	maxEntries = 200_000
	maxName    = 4096
	maxNames   = 32 << 20 // bytes of all names and links
	maxDepth   = 200
	maxLinks   = 40
)

// epoch is the time of what no header names.
func epoch() time.Time { return time.Unix(0, 0) }

// refused is what an archive that cannot be used is answered with.
func refused(format string, args ...any) *errs.Error {
	return errs.Invalid("invalid_context", "The build context cannot be used: "+fmt.Sprintf(format, args...)+".")
}

// entry is one thing in the archive.
type entry struct {
	name   string // clean, relative; "." is the root
	kind   byte   // tar.TypeDir, TypeReg or TypeSymlink
	mode   int64
	link   string
	size   int64
	offset int64 // of the content in the archive
	// modified is kept, for tools that compare times; it is no part of a digest.
	modified time.Time
}

// Archive is an indexed context. It is safe for concurrent use.
type Archive struct {
	file    *os.File
	entries map[string]*entry
	sorted  []*entry // by name; a directory before what is in it
	ignore  dockerignore.Patterns

	mu     sync.Mutex
	hashes map[*entry][sha256.Size]byte
}

// Open indexes the archive in the file, as it is or packed by gzip or zstd. What
// is packed is unpacked to scratch, a new file, of at most maxBytes.
func Open(ctx context.Context, name, scratch string, maxBytes int64) (*Archive, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open a build context: %w", err)
	}
	plain, err := unpacked(ctx, file, scratch, maxBytes)
	if plain != file {
		file.Close()
	}
	if err != nil {
		return nil, err
	}
	a := &Archive{file: plain, entries: map[string]*entry{}, hashes: map[*entry][sha256.Size]byte{}}
	if err := a.index(ctx); err != nil {
		plain.Close()
		return nil, err
	}
	return a, nil
}

// Close lets go of the file.
func (a *Archive) Close() error { return a.file.Close() }

// unpacked returns the file itself, or what it unpacks to.
func unpacked(ctx context.Context, file *os.File, scratch string, maxBytes int64) (*os.File, error) {
	head := make([]byte, 4)
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return file, fmt.Errorf("read a build context: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return file, fmt.Errorf("read a build context: %w", err)
	}
	var from io.Reader
	switch magic := string(head[:n]); {
	case strings.HasPrefix(magic, "\x1f\x8b"):
		gz, err := gzip.NewReader(bufio.NewReaderSize(file, 1<<20))
		if err != nil {
			return file, refused("its gzip data is broken")
		}
		from = gz
	case magic == "\x28\xb5\x2f\xfd":
		dec, err := zstd.NewReader(file, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return file, refused("its zstd data is broken")
		}
		defer dec.Close()
		from = dec
	default:
		return file, nil
	}
	out, err := os.OpenFile(scratch, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return file, fmt.Errorf("unpack a build context: %w", err)
	}
	written, err := io.Copy(out, io.LimitReader(until{ctx, from}, maxBytes+1))
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err != nil && !writing(err):
		err = refused("its compressed data is broken")
	case err == nil && written > maxBytes:
		err = refused("unpacked it has more than %d MB", maxBytes>>20)
	case err == nil:
		_, err = out.Seek(0, io.SeekStart)
	}
	if err != nil {
		out.Close()
		return file, err
	}
	return out, nil
}

// until is a reader that ends with ctx.
type until struct {
	ctx context.Context
	r   io.Reader
}

func (u until) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// writing reports whether an error is of our own disk.
func writing(err error) bool {
	var e *os.PathError
	return errors.As(err, &e)
}

// index reads all headers.
func (a *Archive) index(ctx context.Context) error {
	a.add(&entry{name: ".", kind: tar.TypeDir, mode: 0o755, modified: epoch()})
	links := map[*entry]string{}
	names := 0
	r := tar.NewReader(a.file)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if writing(err) {
				return fmt.Errorf("read a build context: %w", err)
			}
			return refused("it is no tar archive, or is cut")
		}
		at, err := a.file.Seek(0, io.SeekCurrent)
		if err != nil {
			return fmt.Errorf("read a build context: %w", err)
		}
		e := &entry{mode: h.Mode & 0o7777, link: h.Linkname, offset: at, modified: h.ModTime}
		switch h.Typeflag {
		case tar.TypeReg: // the reader makes one of what old archives have
			e.kind, e.size = tar.TypeReg, h.Size
		case tar.TypeDir:
			e.kind = tar.TypeDir
		case tar.TypeSymlink:
			e.kind = tar.TypeSymlink
		case tar.TypeLink:
			e.kind = tar.TypeReg
		case tar.TypeGNUSparse:
			return refused("%q is sparse; make the archive without --sparse", clip(h.Name))
		default:
			continue // what is no file is not copied
		}
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") {
				return refused("%q is sparse; make the archive without --sparse", clip(h.Name))
			}
		}
		if e.name, err = inside(h.Name); err != nil {
			return err
		}
		if names += len(e.name) + len(e.link); names > maxNames {
			return refused("its names have more than %d MB together", maxNames>>20)
		}
		if strings.ContainsRune(e.link, 0) || len(e.link) > maxName {
			return refused("%q leads to what is no name", clip(h.Name))
		}
		if err := a.parents(e.name); err != nil {
			return err
		}
		a.add(e)
		if h.Typeflag == tar.TypeLink {
			links[e] = h.Linkname
		}
		if len(a.entries) > maxEntries {
			return refused("it has more than %d files", maxEntries)
		}
	}
	for e, to := range links {
		name, err := inside(to)
		if err != nil {
			return err
		}
		for hops := 0; ; hops++ { // a link to a link
			target := a.entries[name]
			if target == nil || target.kind != tar.TypeReg || target == e || hops == maxLinks {
				return refused("%q is linked to %q, which is no file in it", clip(e.name), clip(to))
			}
			next, again := links[target]
			if !again {
				e.size, e.offset, e.mode, e.link = target.size, target.offset, target.mode, ""
				break
			}
			if name, err = inside(next); err != nil {
				return err
			}
		}
	}
	return a.leaveOut(ctx)
}

// inside is a name as it is within the archive.
func inside(name string) (string, error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") || len(clean) > maxName || strings.ContainsRune(clean, 0) {
		return "", refused("the name %q leads out of it", clip(name))
	}
	if strings.Count(clean, "/") >= maxDepth {
		return "", refused("%q lies more than %d directories deep", clip(name), maxDepth)
	}
	return clean, nil
}

func (a *Archive) add(e *entry) {
	a.entries[e.name] = e
}

// parents makes the directories above a name that no header names.
func (a *Archive) parents(name string) error {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		switch e := a.entries[dir]; {
		case e == nil:
			a.add(&entry{name: dir, kind: tar.TypeDir, mode: 0o755, modified: epoch()})
		case e.kind != tar.TypeDir:
			return refused("%q lies below %q, which is no directory", clip(name), clip(dir))
		default:
			return nil
		}
	}
	return nil
}

// leaveOut applies the context's own .dockerignore, which whoever packed it may
// not have heeded, and sorts what is left.
func (a *Archive) leaveOut(ctx context.Context) error {
	if e := a.entries[dockerignore.FileName]; e != nil && e.kind == tar.TypeReg && e.size <= dockerignore.MaxBytes {
		text, err := io.ReadAll(a.content(e))
		if err != nil {
			return fmt.Errorf("read a build context: %w", err)
		}
		if a.ignore, err = dockerignore.Parse(text); err != nil {
			return refused("%v", err)
		}
	}
	for name, e := range a.entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if name != "." && a.ignore.Excludes(name) {
			delete(a.entries, name)
			continue
		}
		a.sorted = append(a.sorted, e)
	}
	for _, e := range a.sorted { // what is kept in a directory that is not
		if err := a.parents(e.name); err != nil {
			return err
		}
	}
	a.sorted = a.sorted[:0]
	for _, e := range a.entries {
		a.sorted = append(a.sorted, e)
	}
	slices.SortFunc(a.sorted, func(x, y *entry) int { return slices.Compare(strings.Split(x.name, "/"), strings.Split(y.name, "/")) })
	return nil
}

func (a *Archive) content(e *entry) io.Reader { return io.NewSectionReader(a.file, e.offset, e.size) }

// hash is of a file's content, made once.
func (a *Archive) hash(e *entry) ([sha256.Size]byte, error) {
	a.mu.Lock()
	sum, ok := a.hashes[e]
	a.mu.Unlock()
	if ok {
		return sum, nil
	}
	h := sha256.New()
	if n, err := io.Copy(h, a.content(e)); err != nil || n != e.size {
		return sum, errors.Join(refused("it is cut"), err)
	}
	h.Sum(sum[:0])
	a.mu.Lock()
	a.hashes[e] = sum
	a.mu.Unlock()
	return sum, nil
}

const maxQuoted = 100

func clip(s string) string {
	s = strings.ToValidUTF8(s, "�")
	if len(s) > maxQuoted {
		return strings.ToValidUTF8(s[:maxQuoted], "") + "…"
	}
	return s
}
