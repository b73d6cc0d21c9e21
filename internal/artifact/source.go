package artifact

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"

	"skerry.dev/skerry/internal/kernel/errs"
)

// Source is where a host finds the bytes of an artifact, or puts them.
type Source struct {
	// URL is good for a limited time and for this artifact alone; whoever has it
	// may use it, so that it is never logged.
	URL string
	// Key is what the bytes are encrypted under; empty for what is not secret.
	Key ContentKey
}

// String keeps addresses and keys out of whatever prints them.
func (Source) String() string { return "[source]" }

// GoString is String.
func (s Source) GoString() string { return s.String() }

// LogValue implements slog.LogValuer.
func (s Source) LogValue() slog.Value { return slog.StringValue(s.String()) }

// ContentKey is a team's: 32 bytes, or none.
type ContentKey []byte

// ContentKeyBytes is how long a key is.
const ContentKeyBytes = 32

// String keeps keys out of whatever prints them.
func (ContentKey) String() string { return "[key]" }

// GoString is String.
func (k ContentKey) GoString() string { return k.String() }

// LogValue implements slog.LogValuer.
func (k ContentKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Validate reports whether k is a key, or none.
func (k ContentKey) Validate() error {
	if len(k) != 0 && len(k) != ContentKeyBytes {
		return errs.Invalid("invalid_content_key", "A key for content is 32 bytes.")
	}
	return nil
}

// Digest is what a digest of raw content is known by: itself without a key;
// under a key something that tells nobody else what the content is. label keeps
// uses apart.
func (k ContentKey) Digest(label string, sum [sha256.Size]byte) Digest {
	if len(k) == 0 {
		return Digest(hex.EncodeToString(sum[:]))
	}
	return Digest(hex.EncodeToString(k.Derive(label, sum[:])))
}

// Derive makes 32 bytes of the key, a label without zero bytes, and data.
func (k ContentKey) Derive(label string, data []byte) []byte {
	mac := hmac.New(sha256.New, k)
	mac.Write([]byte(label))
	mac.Write([]byte{0})
	mac.Write(data)
	return mac.Sum(nil)
}
