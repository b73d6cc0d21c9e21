package state

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	format       = 1
	imageDir     = "image"
	manifestName = "state.json"

	maxFiles    = 64
	maxManifest = 1 << 20
	hashBuffer  = 1 << 20
)

// Manifest describes a saved state.
type Manifest struct {
	Format      int         `json:"format"`
	ID          id.Snapshot `json:"id"`
	Sandbox     id.Sandbox  `json:"sandbox"` // it was taken of
	Incarnation uint64      `json:"incarnation"`
	Engine      string      `json:"engine"`
	// EngineVersion is exact: a state with memory starts under an equal one only.
	EngineVersion string `json:"engine_version"`
	// GuestDigest is the SHA-256 of the guest daemon in the memory, hex, without
	// which that cannot start. Empty without memory, and in states of releases that
	// did not write it down: they are tried with the daemon at hand.
	GuestDigest string `json:"guest_digest,omitempty"`
	// CPUFeatures are what the machine had, sorted; empty without memory.
	CPUFeatures []string          `json:"cpu_features,omitempty"`
	ImageDigest string            `json:"image_digest"`
	Resources   journal.Resources `json:"resources"`
	// Memory tells whether running processes are in it, or the disk alone.
	Memory bool `json:"memory"`
	// InitSecret is what the daemon in the memory knows the host by.
	InitSecret string `json:"init_secret,omitempty"`
	// GuestSeq is the last event of the daemon that was forwarded before.
	GuestSeq  int64     `json:"guest_seq,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	// Files are those of the engine's image, by name.
	Files []File `json:"files"`
}

// File is one file of an image.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// State is a complete saved state.
type State struct {
	Manifest
	// Digest is the SHA-256 of the manifest, hex; it names every byte.
	Digest string
	// SizeBytes of the image.
	SizeBytes int64
}

// envelope is state.json: the manifest's own bytes beside their hash.
type envelope struct {
	Digest   string          `json:"digest"`
	Manifest json.RawMessage `json:"manifest"`
}

func seal(m Manifest) (State, []byte, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return State{}, nil, err
	}
	s := State{Manifest: m, Digest: hash(raw), SizeBytes: size(m)}
	out, err := json.Marshal(envelope{Digest: s.Digest, Manifest: raw})
	return s, out, err
}

// read opens a state and finds it whole, as far as sizes tell.
func read(dir string, want id.Snapshot) (State, error) {
	f, err := os.Open(filepath.Join(dir, manifestName))
	if err != nil {
		return State{}, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return State{}, err
	}
	var e envelope
	if err := json.Unmarshal(raw, &e); err != nil {
		return State{}, fmt.Errorf("%s: %w", manifestName, err)
	}
	if hash(e.Manifest) != e.Digest {
		return State{}, fmt.Errorf("%s does not match its digest", manifestName)
	}
	var m Manifest
	if err := json.Unmarshal(e.Manifest, &m); err != nil {
		return State{}, fmt.Errorf("%s: %w", manifestName, err)
	}
	if m.Format != format {
		return State{}, fmt.Errorf("written in format %d, this agent knows %d", m.Format, format)
	}
	if m.ID != want {
		return State{}, fmt.Errorf("%s is that of %s", manifestName, m.ID)
	}
	if _, err := stamps(dir, m.Files); err != nil {
		return State{}, err
	}
	return State{Manifest: m, Digest: e.Digest, SizeBytes: size(m)}, nil
}

func size(m Manifest) (n int64) {
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// stamp is what changes whenever somebody writes to a file.
type stamp struct {
	inode          uint64
	modified, meta syscall.Timespec
}

// stamps finds every file with its size.
func stamps(dir string, files []File) ([]stamp, error) {
	out := make([]stamp, len(files))
	for i, f := range files {
		if f.Name != filepath.Base(f.Name) {
			return nil, fmt.Errorf("a file is named %q", f.Name)
		}
		info, err := os.Lstat(filepath.Join(dir, imageDir, f.Name))
		if err != nil {
			return nil, err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is no regular file", f.Name)
		}
		if info.Size() != f.Size {
			return nil, fmt.Errorf("%s has %d bytes, not %d", f.Name, info.Size(), f.Size)
		}
		out[i] = stamp{inode: st.Ino, modified: st.Mtim, meta: st.Ctim}
	}
	return out, nil
}

var errHash = errors.New("the bytes are not those that were saved")

// verify reads every byte.
func verify(ctx context.Context, dir string, files []File) error {
	for _, f := range files {
		got, err := hashFile(ctx, filepath.Join(dir, imageDir, f.Name))
		if err != nil {
			return err
		}
		if got.Size != f.Size || got.SHA256 != f.SHA256 {
			return fmt.Errorf("%s: %w", f.Name, errHash)
		}
	}
	return nil
}

func hashFile(ctx context.Context, path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, hashBuffer)
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return File{}, context.Cause(ctx)
		}
		got, err := f.Read(buf)
		_, _ = h.Write(buf[:got]) // never fails
		n += int64(got)
		if errors.Is(err, io.EOF) {
			return File{Name: filepath.Base(path), Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
		}
		if err != nil {
			return File{}, err
		}
	}
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
