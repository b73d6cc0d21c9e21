package transfer

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	pathPrefix   = "/v1/store/"
	grantVersion = 2
	minSecret    = 32
	// A grant is version, operation, artifact, host, expiry and signature.
	grantPayload = 1 + 1 + 16 + 16 + 8
	grantBytes   = grantPayload + sha256.Size
)

type operation byte

const (
	opRead  operation = 'r'
	opWrite operation = 'w'
)

// grant is what one host may do with one artifact until it expires.
type grant struct {
	op       operation
	artifact id.Artifact
	host     id.Host
	expires  time.Time // whole seconds
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

// ReadURL lets host read an artifact; it is what Fetch is given. base is the
// control plane's address without a trailing slash. Whether the host still may
// is asked again with each request.
func (s *Signer) ReadURL(base string, a id.Artifact, host id.Host, ttl time.Duration) string {
	return s.url(base, opRead, a, host, ttl)
}

// WriteURL lets host put an artifact that is uploading; it is what Upload is
// given.
func (s *Signer) WriteURL(base string, a id.Artifact, host id.Host, ttl time.Duration) string {
	return s.url(base, opWrite, a, host, ttl)
}

func (s *Signer) url(base string, op operation, a id.Artifact, host id.Host, ttl time.Duration) string {
	return base + pathPrefix + s.seal(grant{op: op, artifact: a, host: host, expires: s.clk.Now().Add(ttl)}) + "/manifest"
}

func (s *Signer) seal(g grant) string {
	a, h := g.artifact.UUID(), g.host.UUID()
	b := append(make([]byte, 0, grantBytes), grantVersion, byte(g.op))
	b = append(append(b, a[:]...), h[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(g.expires.Unix()))
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
	if len(token) != base64.RawURLEncoding.EncodedLen(grantBytes) {
		return grant{}, bad
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) != grantBytes {
		return grant{}, bad
	}
	payload, signature := b[:grantPayload], b[grantPayload:]
	if !hmac.Equal(signature, s.sign(payload)) || payload[0] != grantVersion {
		return grant{}, bad
	}
	g := grant{
		op: operation(payload[1]), artifact: id.Artifact{}.FromUUID(uuid.UUID(payload[2:18])), host: id.Host{}.FromUUID(uuid.UUID(payload[18:34])),
		expires: time.Unix(int64(binary.BigEndian.Uint64(payload[34:])), 0),
	}
	if g.op != opRead && g.op != opWrite {
		return grant{}, bad
	}
	if !s.clk.Now().Before(g.expires) {
		return grant{}, errs.Unauthenticated("grant_expired", "The address of the store has expired. Ask for a new one.")
	}
	return g, nil
}
