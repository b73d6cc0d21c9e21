package keyring

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"

	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	secretSize = 32
	// boxVersion is the first byte of every sealed box: XChaCha20-Poly1305
	// under a key derived by HKDF-SHA-256 for the box's purpose.
	boxVersion = 1
)

// Secret is SKERRY_SECRET. It prints as nothing.
type Secret struct{ raw []byte }

// String keeps the secret out of logs.
func (Secret) String() string { return "[secret]" }

// GoString keeps the secret out of %#v.
func (Secret) GoString() string { return "[secret]" }

// ParseSecret reads 32 bytes in hex or base64, padded or not.
func ParseSecret(s string) (Secret, error) {
	s = strings.TrimSpace(s)
	decoders := []func(string) ([]byte, error){
		hex.DecodeString,
		base64.StdEncoding.DecodeString, base64.RawStdEncoding.DecodeString,
		base64.URLEncoding.DecodeString, base64.RawURLEncoding.DecodeString,
	}
	for _, decode := range decoders {
		if raw, err := decode(s); err == nil && len(raw) == secretSize {
			return Secret{raw: raw}, nil
		}
	}
	return Secret{}, errs.Invalid("invalid_secret", "SKERRY_SECRET must be 32 random bytes in hex or base64, for example from: openssl rand -hex 32")
}

// NewSecret makes a secret and the form in which it is configured.
func NewSecret() (secret Secret, configured string) {
	raw := make([]byte, secretSize)
	_, _ = rand.Read(raw) // never fails, see crypto/rand
	return Secret{raw: raw}, hex.EncodeToString(raw)
}

// subkey derives the key of one purpose. Purposes are constants of the code.
func (s Secret) subkey(purpose string) []byte {
	key, err := hkdf.Key(sha256.New, s.raw, nil, "skerry/"+purpose, chacha20poly1305.KeySize)
	if err != nil {
		panic("keyring: " + err.Error()) // only for a length beyond HKDF's reach
	}
	return key
}

// Seal encrypts plain for one purpose and binds it to context, for example the
// id of the row it lies in: a box opens nowhere else.
func (s Secret) Seal(purpose string, plain, context []byte) []byte {
	return SealWith(s.subkey("seal/"+purpose), plain, context)
}

// Open opens a box that Seal made for the same purpose and context.
func (s Secret) Open(purpose string, box, context []byte) ([]byte, error) {
	return OpenWith(s.subkey("seal/"+purpose), box, context)
}

// Derive computes 32 bytes that only holders of the secret can, the same on
// every call: the basis of tokens that must be repeatable. Parts are told
// apart: ("ab","c") and ("a","bc") differ.
func (s Secret) Derive(purpose string, parts ...[]byte) []byte {
	mac := hmac.New(sha256.New, s.subkey("derive/"+purpose))
	var length [8]byte
	for _, part := range parts {
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		mac.Write(length[:])
		mac.Write(part)
	}
	return mac.Sum(nil)
}

// SealWith is Seal under a key of the caller's, 32 bytes.
func SealWith(key, plain, context []byte) []byte {
	aead := newAEAD(key)
	box := make([]byte, 1+aead.NonceSize(), 1+aead.NonceSize()+len(plain)+aead.Overhead())
	box[0] = boxVersion
	_, _ = rand.Read(box[1:])
	return aead.Seal(box, box[1:], plain, context)
}

// OpenWith opens a box that SealWith made under the same key and context.
func OpenWith(key, box, context []byte) ([]byte, error) {
	aead := newAEAD(key)
	if len(box) < 1+aead.NonceSize() || box[0] != boxVersion {
		return nil, fmt.Errorf("open sealed box: unknown version or too short (%d bytes)", len(box))
	}
	nonce, sealed := box[1:1+aead.NonceSize()], box[1+aead.NonceSize():]
	plain, err := aead.Open(nil, nonce, sealed, context)
	if err != nil {
		return nil, fmt.Errorf("open sealed box: %w", err)
	}
	return plain, nil
}

func newAEAD(key []byte) cipher.AEAD {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		panic("keyring: " + err.Error()) // only for a key of the wrong length
	}
	return aead
}
