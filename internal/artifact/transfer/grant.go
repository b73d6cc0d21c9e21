package transfer

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"time"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	pathPrefix   = "/v1/store/"
	grantVersion = 1
	minSecret    = 32
	maxUploadID  = 64
	// A grant is version, operation, team, expiry, subject and signature.
	grantFixed = 1 + 1 + 16 + 8
)

type operation byte

const (
	opRead  operation = 'r'
	opWrite operation = 'w'
)

// grant is what its holder may do until it expires.
type grant struct {
	op       operation
	team     id.Team
	expires  time.Time       // whole seconds
	manifest artifact.Digest // for reading
	uploadID string          // for writing
}

// Signer makes and checks grants. Safe for concurrent use.
type Signer struct {
	key []byte
	clk clock.Clock
}

// NewSigner signs with a key derived from secret, which is at least 32 bytes.
func NewSigner(secret []byte, clk clock.Clock) (*Signer, error) {
	if len(secret) < minSecret {
		return nil, errs.FailedPrecondition("weak_secret", "The secret that signs store URLs has fewer than 32 bytes.")
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("skerry artifact grant"))
	return &Signer{key: mac.Sum(nil), clk: clk}, nil
}

// ReadURL lets its holder read one manifest of team and the chunks it names;
// it is what Fetch is given. base is the control plane's address without a
// trailing slash.
func (s *Signer) ReadURL(base string, team id.Team, manifest artifact.Digest, ttl time.Duration) string {
	g := grant{op: opRead, team: team, expires: s.clk.Now().Add(ttl), manifest: manifest}
	return base + pathPrefix + s.seal(g) + "/manifest"
}

// WriteURL lets its holder store chunks and manifests for team, under an upload
// the control plane knows by id (at most 64 bytes); it is what Upload is given.
func (s *Signer) WriteURL(base string, team id.Team, uploadID string, ttl time.Duration) string {
	g := grant{op: opWrite, team: team, expires: s.clk.Now().Add(ttl), uploadID: uploadID}
	return base + pathPrefix + s.seal(g) + "/manifest"
}

func (s *Signer) seal(g grant) string {
	u := g.team.UUID()
	b := append([]byte{grantVersion, byte(g.op)}, u[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(g.expires.Unix()))
	if g.op == opRead {
		b = append(b, g.manifest...)
	} else {
		b = append(b, g.uploadID...)
	}
	return base64.RawURLEncoding.EncodeToString(append(b, s.sign(b)...))
}

func (s *Signer) sign(b []byte) []byte {
	mac := hmac.New(sha256.New, s.key)
	mac.Write(b)
	return mac.Sum(nil)
}

// open checks a token. What is refused is refused alike, but for a grant that
// was good and has expired.
func (s *Signer) open(token string) (grant, error) {
	bad := errs.Unauthenticated("invalid_grant", "The address of the store is not one we gave out. Ask for a new one.")
	if len(token) > base64.RawURLEncoding.EncodedLen(grantFixed+hex.EncodedLen(sha256.Size)+sha256.Size) {
		return grant{}, bad
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) <= grantFixed+sha256.Size {
		return grant{}, bad
	}
	payload, signature := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if !hmac.Equal(signature, s.sign(payload)) || payload[0] != grantVersion {
		return grant{}, bad
	}
	g := grant{
		op: operation(payload[1]), team: id.Team{}.FromUUID(uuid.UUID(payload[2:18])),
		expires: time.Unix(int64(binary.BigEndian.Uint64(payload[18:])), 0),
	}
	subject := string(payload[grantFixed:])
	switch g.op {
	case opRead:
		g.manifest = artifact.Digest(subject)
		if g.manifest.Validate() != nil {
			return grant{}, bad
		}
	case opWrite:
		g.uploadID = subject
		if len(subject) > maxUploadID {
			return grant{}, bad
		}
	default:
		return grant{}, bad
	}
	if !s.clk.Now().Before(g.expires) {
		return grant{}, errs.Unauthenticated("grant_expired", "The address of the store has expired. Ask for a new one.")
	}
	return g, nil
}
