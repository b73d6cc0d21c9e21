package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Digest is a SHA-256 in 64 lower-case hex digits. Only ParseDigest and
// DigestOf make one; a value from elsewhere is checked with Validate.
type Digest string

// ParseDigest reads exactly the 64 digits, or those after "sha256:".
func ParseDigest(s string) (Digest, error) {
	d := Digest(strings.TrimPrefix(s, "sha256:"))
	return d, d.Validate()
}

// DigestOf is the digest of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest(hex.EncodeToString(sum[:]))
}

// Validate reports whether d has the one allowed form.
func (d Digest) Validate() error {
	if len(d) != 2*sha256.Size {
		return errs.Invalid("invalid_digest", "A digest is a SHA-256 in 64 lower-case hex digits.")
	}
	for i := range len(d) {
		if c := d[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return errs.Invalid("invalid_digest", "A digest is a SHA-256 in 64 lower-case hex digits.")
		}
	}
	return nil
}

// Kind is what a blob is.
type Kind string

// The kinds.
const (
	KindChunk    Kind = "chunks"
	KindManifest Kind = "manifests"
)

// Prefix is a team's blobs of one kind.
type Prefix struct {
	Team id.Team
	Kind Kind
}

// String is the path "teams/<uuid>/<kind>/".
func (p Prefix) String() string {
	return "teams/" + p.Team.UUID().String() + "/" + string(p.Kind) + "/"
}

// Validate reports whether p is well formed.
func (p Prefix) Validate() error {
	if p.Kind != KindChunk && p.Kind != KindManifest {
		return errBadKey()
	}
	return nil
}

// Key names one blob: a team, a kind, the digest of the content, and a number
// that is never given out twice. A removal that comes late therefore never hits
// the same content stored anew. Blobs of different teams are different blobs,
// whatever they hold. Its fields cannot form a path that leaves the store.
type Key struct {
	Prefix
	Digest Digest
	Object int64 // at least 1
}

// ChunkKey names a chunk of team.
func ChunkKey(team id.Team, d Digest, object int64) Key {
	return Key{Prefix: Prefix{Team: team, Kind: KindChunk}, Digest: d, Object: object}
}

// ManifestKey names a manifest of team.
func ManifestKey(team id.Team, d Digest, object int64) Key {
	return Key{Prefix: Prefix{Team: team, Kind: KindManifest}, Digest: d, Object: object}
}

// Name is the last part of the path, "<sha256>.<object as 16 hex digits>". Lists
// are in its order.
func (k Key) Name() string { return fmt.Sprintf("%s.%016x", string(k.Digest), k.Object) }

// String is the path "teams/<uuid>/<kind>/<name>".
func (k Key) String() string { return k.Prefix.String() + k.Name() }

// Validate reports whether k is well formed. Stores refuse keys that are not.
func (k Key) Validate() error {
	if err := k.Prefix.Validate(); err != nil {
		return err
	}
	if k.Object < 1 {
		return errBadKey()
	}
	return k.Digest.Validate()
}

// ParseKey reads the form String writes, and only that.
func ParseKey(s string) (Key, error) {
	parts := strings.Split(s, "/")
	if len(parts) != 4 || parts[0] != "teams" {
		return Key{}, errBadKey()
	}
	u, err := uuid.Parse(parts[1])
	if err != nil || u.String() != parts[1] {
		return Key{}, errBadKey()
	}
	return Prefix{Team: id.Team{}.FromUUID(u), Kind: Kind(parts[2])}.Parse(parts[3])
}

// Parse reads the name of a blob of p, as Key.Name writes it.
func (p Prefix) Parse(name string) (Key, error) {
	digest, number, _ := strings.Cut(name, ".")
	object, err := strconv.ParseInt(number, 16, 64)
	k := Key{Prefix: p, Digest: Digest(digest), Object: object}
	if err != nil || k.Validate() != nil || k.Name() != name {
		return Key{}, errBadKey()
	}
	return k, nil
}

func errBadKey() error {
	return errs.Invalid("invalid_store_key", "A store key is teams/<team>/chunks|manifests/<sha256>.<object>.")
}
