package transfer

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"

	"github.com/klauspost/compress/zstd"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Labels of what is derived from a team's key.
const (
	labelRaw   = "skerry raw"   // digests of chunks' content
	labelFile  = "skerry file"  // digests of files
	labelChunk = "skerry chunk" // keys of chunks
	labelNonce = "skerry nonce"
)

const nonceBytes = 12

// sealer makes stored chunks. Safe for concurrent use.
type sealer struct {
	key     artifact.ContentKey
	encoder *zstd.Encoder
}

func newSealer(key artifact.ContentKey, parallel int) (*sealer, error) {
	if err := key.Validate(); err != nil {
		return nil, err
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(parallel),
		zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false))
	return &sealer{key: key, encoder: enc}, err
}

func (s *sealer) close() { _ = s.encoder.Close() } // nothing is buffered

// seal makes the stored form of raw in into's memory, and describes it.
func (s *sealer) seal(raw, into []byte) (stored []byte, c artifact.Chunk, err error) {
	c.RawSize = int64(len(raw))
	c.RawDigest = s.key.Digest(labelRaw, sha256.Sum256(raw))
	if len(s.key) == 0 {
		stored = s.encoder.EncodeAll(raw, into[:0])
	} else {
		aead, err := chunkCipher(s.key, c.RawDigest)
		if err != nil {
			return into, c, err
		}
		stored = s.encoder.EncodeAll(raw, append(into[:0], make([]byte, nonceBytes)...))
		frame := stored[nonceBytes:]
		// Another release may pack the same content otherwise: one key, but never
		// two frames under one nonce.
		sum := sha256.Sum256(frame)
		copy(stored[:nonceBytes], s.key.Derive(labelNonce, sum[:]))
		// The cipher's text takes the place of the frame.
		stored = aead.Seal(stored[:nonceBytes], bytes.Clone(stored[:nonceBytes]), frame, nil)
	}
	c.Size, c.Digest = int64(len(stored)), artifact.DigestOf(stored)
	return stored, c, nil
}

func chunkCipher(key artifact.ContentKey, raw artifact.Digest) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key.Derive(labelChunk, []byte(raw)))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// opener reads stored chunks. Safe for concurrent use.
type opener struct {
	key     artifact.ContentKey
	decoder *zstd.Decoder
}

func newOpener(key artifact.ContentKey, parallel int) (*opener, error) {
	if err := key.Validate(); err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(artifact.ChunkSize), zstd.WithDecoderConcurrency(parallel))
	return &opener{key: key, decoder: dec}, err
}

func (o *opener) close() { o.decoder.Close() }

// open appends the content of a stored chunk to into, having checked it before
// it was unpacked and after. stored is overwritten.
func (o *opener) open(stored, into []byte, c artifact.Chunk) ([]byte, error) {
	if int64(len(stored)) != c.Size || artifact.DigestOf(stored) != c.Digest {
		return into, mismatch("A chunk of the store does not match its digest.")
	}
	frame := stored
	if len(o.key) != 0 {
		aead, err := chunkCipher(o.key, c.RawDigest)
		if err != nil {
			return into, err
		}
		if len(stored) < nonceBytes+aead.Overhead() {
			return into, mismatch("A chunk of the store is too short.")
		}
		frame, err = aead.Open(stored[nonceBytes:nonceBytes], stored[:nonceBytes], stored[nonceBytes:], nil)
		if err != nil {
			return into, mismatch("A chunk of the store is not under this key.").Because(err)
		}
	}
	raw, err := o.decoder.DecodeAll(frame, into)
	if err != nil || int64(len(raw)) != c.RawSize || !o.is(raw, c) {
		return into, mismatch("A chunk of the store does not hold what its manifest says.").Because(err)
	}
	return raw, nil
}

// is reports whether raw is the chunk's content.
func (o *opener) is(raw []byte, c artifact.Chunk) bool {
	return o.key.Digest(labelRaw, sha256.Sum256(raw)) == c.RawDigest
}

func mismatch(message string) *errs.Error { return errs.Invalid("content_mismatch", message) }
