package artifact

import "log/slog"

// Source is where a host finds the bytes of an artifact, or puts them.
type Source struct {
	// URL is good for a limited time and for this artifact alone; whoever has it
	// may use it, so that it is never logged.
	URL string
	// Key is what the bytes are encrypted under; empty for what is not secret.
	Key ContentKey
}

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
