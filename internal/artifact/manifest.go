package artifact

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	// ManifestVersion is the only version that is read.
	ManifestVersion = 2
	// ChunkSize is the length of a chunk's raw content; a file's last one is
	// shorter.
	ChunkSize = 4 << 20
	// MaxChunkBytes bounds a stored chunk: compression of noise adds a little, and
	// so does encryption.
	MaxChunkBytes = ChunkSize + ChunkSize/16
	// MaxChunks bounds a manifest, and MaxBytes what its files are together.
	MaxChunks = 1 << 16
	MaxBytes  = MaxChunks * ChunkSize
	// MaxFiles bounds the files of one artifact.
	MaxFiles = 1024
	// MaxManifestBytes bounds its JSON.
	MaxManifestBytes = 32 << 20

	maxMediaType = 128
	maxName      = 128
)

// What artifacts are.
const (
	// MediaTypeErofs is a template's read-only root tree: one file, ImageFile.
	MediaTypeErofs = "application/vnd.skerry.image.erofs"
	// MediaTypeState is a saved state: its files as its directory has them.
	MediaTypeState = "application/vnd.skerry.state"
	// MediaTypeEngine is the program of an engine: one file, EngineFile.
	MediaTypeEngine = "application/vnd.skerry.engine"
	// MediaTypeContext is what a build copies from: one tar file, ContextFile.
	MediaTypeContext = "application/vnd.skerry.context.tar"

	ImageFile   = "image"
	EngineFile  = "engine"
	ContextFile = "context"
)

// Manifest is a bundle of files and the chunks they consist of. Its own digest
// is that of its Encode.
type Manifest struct {
	Version   int    `json:"version"`
	MediaType string `json:"media_type"`
	Size      int64  `json:"size"` // of all files together, bytes, zeros included
	ChunkSize int64  `json:"chunk_size"`
	// Encrypted says that chunks are under their team's key, and that digests of
	// what is in them are too (see Chunk).
	Encrypted bool   `json:"encrypted"`
	Files     []File `json:"files"`
}

// File is put together from chunks. Ranges no chunk covers are zeros and take no
// space anywhere.
type File struct {
	Name string `json:"name"` // see ValidName
	Size int64  `json:"size"`
	// Digest is of the whole file, zeros included: a SHA-256, or if encrypted what
	// ContentKey.Digest makes of it.
	Digest Digest `json:"digest"`
	// Mode is the permission bits; 0 leaves them to the receiver.
	Mode   uint32  `json:"mode,omitempty"`
	Chunks []Chunk `json:"chunks"` // ascending by offset
}

// Chunk is one stored piece: a zstd frame, sealed if encrypted. Digest and Size
// are those of the stored bytes, which is what the store and every receiver
// check before they open anything; RawDigest is of the content, made as that of
// a file, and lets a half-written file be checked without its chunks.
type Chunk struct {
	Offset    int64  `json:"offset"` // in the file, a multiple of the chunk size
	RawSize   int64  `json:"raw_size"`
	RawDigest Digest `json:"raw_digest"`
	Size      int64  `json:"size"`
	Digest    Digest `json:"digest"`
}

// Encode returns the one JSON form, which names the manifest by its digest.
func (m Manifest) Encode() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	files := make([]File, len(m.Files))
	copy(files, m.Files)
	for i := range files {
		if files[i].Chunks == nil {
			files[i].Chunks = []Chunk{}
		}
	}
	m.Files = files
	return json.Marshal(m)
}

// ParseManifest reads and validates a manifest in the form Encode writes, and
// only that, so that one manifest has one digest.
func ParseManifest(b []byte) (Manifest, error) {
	if len(b) > MaxManifestBytes {
		return Manifest{}, badManifest("it is too large")
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return Manifest{}, badManifest("it is not JSON of this kind")
	}
	again, err := m.Encode()
	if err != nil {
		return Manifest{}, err
	}
	if !bytes.Equal(again, b) {
		return Manifest{}, badManifest("it is not in the canonical form")
	}
	return m, nil
}

// Validate checks everything that can be known without the chunks.
func (m Manifest) Validate() error {
	switch {
	case m.Version != ManifestVersion:
		return badManifest("its version is unknown")
	case m.Size < 0 || m.Size > MaxBytes:
		return badManifest("its size is out of range")
	case m.ChunkSize != ChunkSize:
		return badManifest("its chunk size is unknown")
	case len(m.Files) == 0 || len(m.Files) > MaxFiles:
		return badManifest("it has no files or too many")
	case m.MediaType == "" || len(m.MediaType) > maxMediaType:
		return badManifest("its media type is missing or too long")
	}
	for _, c := range []byte(m.MediaType) {
		// Characters JSON writes as they are.
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"\<>&`, c) >= 0 {
			return badManifest("its media type is malformed")
		}
	}
	size, chunks := int64(0), 0
	names := make(map[string]bool, len(m.Files))
	for i, f := range m.Files {
		if err := f.validate(); err != nil {
			return badManifest(fmt.Sprintf("file %d: %s", i, err))
		}
		if dir, _, nested := strings.Cut(f.Name, "/"); names[f.Name] || (nested && names[dir]) {
			return badManifest(fmt.Sprintf("file %d: its name is taken", i))
		}
		names[f.Name] = true
		size += f.Size // each is at most MaxBytes, and there are few
		chunks += len(f.Chunks)
	}
	for _, f := range m.Files {
		if dir, _, nested := strings.Cut(f.Name, "/"); nested && names[dir] {
			return badManifest("a file has the name of another one's directory")
		}
	}
	if size != m.Size {
		return badManifest("its size is not that of its files")
	}
	if chunks > MaxChunks {
		return badManifest("it has too many chunks")
	}
	return nil
}

type fault string

func (f fault) Error() string { return string(f) }

func (f File) validate() error {
	switch {
	case !ValidName(f.Name):
		return fault("its name is malformed")
	case f.Digest.Validate() != nil:
		return fault("its digest is malformed")
	case f.Size < 0 || f.Size > MaxBytes:
		return fault("its size is out of range")
	case f.Mode > 0o777:
		return fault("its mode has more than permission bits")
	}
	next := int64(0)
	for i, c := range f.Chunks {
		switch {
		case c.Offset < next || c.Offset%ChunkSize != 0 || c.Offset >= f.Size:
			return fault(fmt.Sprintf("chunk %d is out of place", i))
		case c.RawSize != min(ChunkSize, f.Size-c.Offset):
			return fault(fmt.Sprintf("chunk %d has the wrong length", i))
		case c.Size <= 0 || c.Size > MaxChunkBytes:
			return fault(fmt.Sprintf("chunk %d has an impossible stored size", i))
		case c.Digest.Validate() != nil || c.RawDigest.Validate() != nil:
			return fault(fmt.Sprintf("chunk %d has a malformed digest", i))
		}
		next = c.Offset + ChunkSize
	}
	return nil
}

// ValidName reports whether a file may be called so: one or two components of
// letters, digits, ".", "_" and "-", none of dots alone.
func ValidName(name string) bool {
	if len(name) > maxName || strings.Count(name, "/") > 1 {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if strings.Trim(part, ".") == "" {
			return false
		}
		for _, c := range []byte(part) {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("._-", c) < 0 {
				return false
			}
		}
	}
	return true
}

// Pieces are the sizes of chunks by the digest of what is stored, all
// that the artifact needs. One digest with two sizes is refused.
func (m Manifest) Pieces() (map[Digest]int64, error) {
	out := make(map[Digest]int64)
	for _, f := range m.Files {
		for _, c := range f.Chunks {
			if size, ok := out[c.Digest]; ok && size != c.Size {
				return nil, badManifest("it gives one chunk two sizes")
			}
			out[c.Digest] = c.Size
		}
	}
	return out, nil
}

func badManifest(why string) error {
	return errs.Invalid("invalid_manifest", "The manifest is refused: "+why+".")
}
