package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
)

// part is a file on its way: complete and of its name only at the end.
type part struct {
	path    string
	file    artifact.File
	opener  *opener
	f       *os.File
	resumed bool // it may hold anything where it is not checked
	there   bool // the file has its name already

	mu   sync.Mutex
	came *sync.Cond
	here []bool // by chunk
}

// openPart opens the part of path and keeps others from it.
func openPart(path string, file artifact.File, o *opener) (*part, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path+".part", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	p := &part{path: path, file: file, opener: o, f: f, here: make([]bool, len(file.Chunks))}
	p.came = sync.NewCond(&p.mu)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(errs.Conflict("download_running", "Another download to this place is under way.").Because(err), f.Close())
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	p.resumed = info.Size() > 0
	return p, nil
}

func (p *part) close() { p.f.Close() }

func (p *part) remove() error {
	if p.there {
		return nil
	}
	return ignoreMissing(os.Remove(p.f.Name()))
}

// complete reports whether the file is there under its name already, as after a
// crash between two names. There is no part then.
func (p *part) complete(ctx context.Context, plain artifact.Digest) (bool, error) {
	if p.resumed {
		return false, nil
	}
	old, err := os.Open(p.path)
	if err != nil {
		return false, ignoreMissing(err)
	}
	defer old.Close()
	info, err := old.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() != p.file.Size || info.Mode().Perm() != p.mode() {
		return false, err
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(h, contextReader{ctx, old}, make([]byte, 1<<20)); err != nil {
		return false, err
	}
	if p.verdict([sha256.Size]byte(h.Sum(nil)), plain) != nil {
		return false, nil
	}
	if err := p.remove(); err != nil {
		return false, err
	}
	p.there = true
	return true, nil
}

func (p *part) mode() fs.FileMode {
	if p.file.Mode == 0 {
		return 0o400
	}
	return fs.FileMode(p.file.Mode)
}

// prepare gives the part its size, and makes holes of the ranges no chunk covers.
func (p *part) prepare() error {
	if err := p.f.Truncate(p.file.Size); err != nil {
		return err
	}
	end := int64(0)
	for _, c := range p.file.Chunks {
		if err := p.punch(end, c.Offset-end); err != nil {
			return err
		}
		end = c.Offset + c.RawSize
	}
	return p.punch(end, p.file.Size-end)
}

// punch makes a hole where the file may hold something.
func (p *part) punch(at, length int64) error {
	if !p.resumed || length == 0 {
		return nil
	}
	return unix.Fallocate(int(p.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, length)
}

// sparseBlock is the unit in which zeros are left out.
const sparseBlock = 4096

// write puts b at offset, leaving holes for blocks of zeros.
func (p *part) write(b []byte, offset int64) error {
	if err := p.punch(offset, int64(len(b))); err != nil {
		return err
	}
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
		if _, err := p.f.WriteAt(b[start:end], offset+int64(start)); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// arrived says that a chunk is in the file.
func (p *part) arrived(i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.here[i] = true
	p.came.Broadcast()
}

// wait returns when a chunk is in the file.
func (p *part) wait(ctx context.Context, i int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.here[i] && ctx.Err() == nil {
		p.came.Wait()
	}
	return ctx.Err()
}

// check reads the file behind the chunks that come: what is on the disk is what
// counts.
func (p *part) check(ctx context.Context, plain artifact.Digest) error {
	defer context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.came.Broadcast()
	})()
	h, buf, end := sha256.New(), make([]byte, 1<<20), int64(0)
	zeros := make([]byte, 1<<20)
	for i, c := range p.file.Chunks {
		if err := hashGap(ctx, h, zeros, c.Offset-end); err != nil {
			return err
		}
		if err := p.wait(ctx, i); err != nil {
			return err
		}
		if _, err := io.CopyBuffer(h, onlyReader{io.NewSectionReader(p.f, c.Offset, c.RawSize)}, buf); err != nil {
			return err
		}
		end = c.Offset + c.RawSize
	}
	if err := hashGap(ctx, h, zeros, p.file.Size-end); err != nil {
		return err
	}
	return p.verdict([sha256.Size]byte(h.Sum(nil)), plain)
}

// hashGap is hashZeros for what may take long.
func hashGap(ctx context.Context, h io.Writer, zeros []byte, n int64) error {
	for ; n > 0; n -= artifact.ChunkSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		hashZeros(h, zeros, min(n, artifact.ChunkSize))
	}
	return nil
}

// errWhole says that all chunks are right, and the file is not.
var errWhole = errors.New("transfer: the whole file is wrong")

// verdict compares a whole file's SHA-256 with the manifest's and, where it is
// known, with the one wanted.
func (p *part) verdict(sum [sha256.Size]byte, plain artifact.Digest) error {
	if got := artifact.ContentKey(nil).Digest(labelFile, sum); plain != "" && got != plain {
		return mismatch("A file of the artifact is another one than was asked for.").
			With("file", p.file.Name).With("digest", string(got)).With("wanted", string(plain)).Because(errWhole)
	}
	if p.opener.key.Digest(labelFile, sum) != p.file.Digest {
		return mismatch("A file of the artifact does not match its digest.").
			With("file", p.file.Name).With("wanted", string(p.file.Digest)).Because(errWhole)
	}
	return nil
}

// IsFile tells whether a file of an artifact, encrypted under key or not, is the
// one of that SHA-256.
func IsFile(f artifact.File, key artifact.ContentKey, plain artifact.Digest) bool {
	sum, err := hex.DecodeString(string(plain))
	return err == nil && len(sum) == sha256.Size && key.Digest(labelFile, [sha256.Size]byte(sum)) == f.Digest
}

func (p *part) flush() error { return errors.Join(p.f.Chmod(p.mode()), p.f.Sync()) }

// diskFull names the bytes when there is no room.
func diskFull(err error, size int64) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	return errs.Exhausted("disk_full", fmt.Sprintf("There is no room on this host's disk for an artifact of %d bytes.", size)).
		With("needed", size).Because(err)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// contextReader ends a copy when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// onlyReader hides what would make a copy forgo its buffer.
type onlyReader struct{ io.Reader }
