package state

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	stdhash "hash"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// A state may have its disk beside its image once more, in a form that any later
// build of the engine can boot from. It is not named by the state's digest, since
// it comes later or not at all; its description is put beside it last.
const (
	diskTar   = "disk.tar.zst"
	diskAbout = "disk.json"
)

// diskDescription binds a disk to its state and its bytes.
type diskDescription struct {
	State  string `json:"state"` // the state's digest
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// Content is how long it is when it is unpacked.
	Content int64 `json:"content"`
}

// errNoDisk is a state without a disk of its own.
var errNoDisk = errors.New("state: it has no portable disk")

func (h *Held) diskPath(name string) string { return filepath.Join(filepath.Dir(h.Dir), name) }

func (h *Held) describedDisk() (d diskDescription, err error) {
	raw, err := os.ReadFile(h.diskPath(diskAbout))
	if errors.Is(err, os.ErrNotExist) {
		return d, errNoDisk
	}
	if err == nil {
		err = json.Unmarshal(raw, &d)
	}
	if err == nil && d.State != h.Digest {
		err = errors.New("state: its portable disk is another state's")
	}
	return d, err
}

// HasDisk tells whether the state has a portable disk.
func (h *Held) HasDisk() bool {
	_, err := h.describedDisk()
	return err == nil
}

// KeepDisk puts what write gives beside the state, compressed, and returns how
// long it was before and after. When it fails there is none. One at a time for a
// state.
func (h *Held) KeepDisk(ctx context.Context, write func(w io.Writer) error) (content, size int64, err error) {
	draft, final := h.diskPath(diskTar+drafted), h.diskPath(diskTar)
	defer func() {
		if err != nil {
			_ = h.fs.Truncate(draft)
			_ = h.fs.Remove(draft)
		}
	}()
	d := diskDescription{State: h.Digest}
	if err := compress(ctx, draft, write, &d); err != nil {
		return 0, 0, fmt.Errorf("state: %w", err)
	}
	about, err := json.Marshal(d)
	if err != nil {
		return 0, 0, err
	}
	for _, step := range []func() error{
		func() error { return h.fs.Sync(draft) },
		func() error { return h.fs.Rename(draft, final) },
		func() error { return h.fs.Sync(filepath.Dir(h.Dir)) },
		func() error { return h.fs.WriteFile(h.diskPath(diskAbout+drafted), about) },
		func() error { return h.fs.Sync(h.diskPath(diskAbout + drafted)) },
		func() error { return h.fs.Rename(h.diskPath(diskAbout+drafted), h.diskPath(diskAbout)) },
		func() error { return h.fs.Sync(filepath.Dir(h.Dir)) },
	} {
		if err := step(); err != nil {
			return 0, 0, fmt.Errorf("state: %w", err)
		}
	}
	return d.Content, d.Size, nil
}

func compress(ctx context.Context, path string, write func(w io.Writer) error, d *diskDescription) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	packed := &counted{w: bufio.NewWriterSize(f, 1<<20), hash: sha256.New()}
	z, err := zstd.NewWriter(packed, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return err
	}
	plain := &counted{w: z}
	err = errors.Join(write(plain), context.Cause(ctx))
	if err = errors.Join(err, z.Close()); err != nil {
		return err
	}
	if err := packed.w.(*bufio.Writer).Flush(); err != nil {
		return err
	}
	d.Size, d.Content, d.SHA256 = packed.n, plain.n, hex.EncodeToString(packed.hash.Sum(nil))
	return f.Close()
}

// UnpackDisk writes the portable disk's content to path, zeros as holes. What is
// there when it fails is the caller's to remove.
func (h *Held) UnpackDisk(ctx context.Context, path string) error {
	d, err := h.describedDisk()
	if err != nil {
		return err
	}
	in, err := os.Open(h.diskPath(diskTar))
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	defer in.Close()
	packed := &counted{r: io.LimitReader(in, d.Size+1), hash: sha256.New()}
	z, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	plain := &counted{r: io.LimitReader(z, d.Content+1)}
	if err := copySparse(ctx, out, plain); err != nil {
		return damaged(h.ID, err)
	}
	_, err = io.Copy(io.Discard, packed) // to its end
	if err != nil || plain.n != d.Content || packed.n != d.Size || hex.EncodeToString(packed.hash.Sum(nil)) != d.SHA256 {
		return damaged(h.ID, errors.Join(err, errHash))
	}
	return errors.Join(out.Truncate(d.Content), out.Close())
}

// copySparse leaves out blocks of zeros.
func copySparse(ctx context.Context, out *os.File, in io.Reader) error {
	const block = 64 << 10
	buf, zeros := make([]byte, block), make([]byte, block)
	for at := int64(0); ; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := io.ReadFull(in, buf)
		if n > 0 && string(buf[:n]) != string(zeros[:n]) {
			if _, err := out.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// counted counts, and hashes, what passes.
type counted struct {
	w    io.Writer
	r    io.Reader
	hash stdhash.Hash // nil for none
	n    int64
}

func (c *counted) note(b []byte) {
	c.n += int64(len(b))
	if c.hash != nil {
		_, _ = c.hash.Write(b) // never fails
	}
}

// Write implements io.Writer.
func (c *counted) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.note(b[:n])
	return n, err
}

// Read implements io.Reader.
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.note(b[:n])
	return n, err
}
