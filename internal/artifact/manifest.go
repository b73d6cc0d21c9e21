package artifact

import (
	"bytes"
	"encoding/json"
	"fmt"

	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	// ManifestVersion is the only version there is.
	ManifestVersion = 1
	// ChunkSize is the length of a chunk's raw content; the last one is shorter.
	ChunkSize = 4 << 20
	// MaxChunkBytes bounds a stored chunk: compression of noise adds a little.
	MaxChunkBytes = ChunkSize + ChunkSize/16
	// MaxChunks bounds a manifest, and so the file at 256 GiB.
	MaxChunks = 1 << 16
	// MaxManifestBytes bounds its JSON.
	MaxManifestBytes = 32 << 20
	// MediaTypeErofs is a template's read-only root tree.
	MediaTypeErofs = "application/vnd.skerry.image.erofs"

	maxMediaType = 128
)

// Manifest puts a file together from chunks. Ranges no chunk covers are zeros
// and take no space anywhere. Its own digest is that of its Encode.
type Manifest struct {
	Version   int     `json:"version"`
	MediaType string  `json:"media_type"`
	Digest    Digest  `json:"digest"` // of the whole file, zeros included
	Size      int64   `json:"size"`   // of the whole file, bytes
	ChunkSize int64   `json:"chunk_size"`
	Chunks    []Chunk `json:"chunks"` // ascending by offset
}

// Chunk is one stored piece: a zstd frame. Digest and Size are those of the
// stored, compressed bytes, which is what the store and every receiver check
// before they decompress anything; RawDigest lets a half-written file be
// checked without its chunks.
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
	if m.Chunks == nil {
		m.Chunks = []Chunk{}
	}
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
	case m.Digest.Validate() != nil:
		return badManifest("its digest is malformed")
	case m.Size < 0 || m.Size > MaxChunks*ChunkSize:
		return badManifest("its size is out of range")
	case m.ChunkSize != ChunkSize:
		return badManifest("its chunk size is unknown")
	case len(m.Chunks) > MaxChunks:
		return badManifest("it has too many chunks")
	case m.MediaType == "" || len(m.MediaType) > maxMediaType:
		return badManifest("its media type is missing or too long")
	}
	for _, c := range []byte(m.MediaType) {
		// Characters JSON writes as they are.
		if c <= ' ' || c >= 0x7f || bytes.IndexByte([]byte(`"\<>&`), c) >= 0 {
			return badManifest("its media type is malformed")
		}
	}
	next := int64(0)
	for i, c := range m.Chunks {
		switch {
		case c.Offset < next || c.Offset%ChunkSize != 0 || c.Offset >= m.Size:
			return badManifest(fmt.Sprintf("chunk %d is out of place", i))
		case c.RawSize != min(ChunkSize, m.Size-c.Offset):
			return badManifest(fmt.Sprintf("chunk %d has the wrong length", i))
		case c.Size <= 0 || c.Size > MaxChunkBytes:
			return badManifest(fmt.Sprintf("chunk %d has an impossible stored size", i))
		case c.Digest.Validate() != nil || c.RawDigest.Validate() != nil:
			return badManifest(fmt.Sprintf("chunk %d has a malformed digest", i))
		}
		next = c.Offset + ChunkSize
	}
	return nil
}

func badManifest(why string) error {
	return errs.Invalid("invalid_manifest", "The manifest is refused: "+why+".")
}
