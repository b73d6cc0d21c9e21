package filesystem

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	opRead  = "read"
	opWrite = "write"
)

// Signature is the proof a signed file URL carries. path is the decoded query
// value before anything is resolved; expires is in unix seconds and counts
// only when set.
func Signature(path, operation, user, token string, expires *int64) string {
	parts := []string{path, operation, user, token}
	if expires != nil {
		parts = append(parts, strconv.FormatInt(*expires, 10))
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// checkSignature returns nil when the query proves knowledge of the token. The
// signature is compared before the expiry is looked at, so a forger learns
// nothing about it.
func checkSignature(q url.Values, operation, token string, now time.Time) error {
	got := q.Get("signature")
	if got == "" {
		return fail(kindUser, "missing signature query parameter")
	}
	var expires *int64
	if raw := q.Get("signature_expiration"); raw != "" {
		n, err := strconv.ParseInt(raw, 10, 64)
		if err != nil {
			return fail(kindUser, "invalid signature")
		}
		expires = &n
	}
	want := Signature(q.Get("path"), operation, q.Get("username"), token, expires)
	if subtle.ConstantTimeCompare([]byte(want), []byte(got)) != 1 {
		return fail(kindUser, "invalid signature")
	}
	if expires != nil && *expires < now.Unix() {
		return fail(kindUser, "signature is already expired")
	}
	return nil
}
