package keyring

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"fmt"
)

// AuditSigner returns the name of the key that signs the heads of exported
// trails, and what signs with it.
func (k *Keyring) AuditSigner() (kid string, sign func(message []byte) []byte) {
	key := k.signingKey(KindAudit)
	return key.kid, func(message []byte) []byte { return ed25519.Sign(key.private, message) }
}

// AuditKeys returns all keys that ever signed heads, oldest first, by name.
func (k *Keyring) AuditKeys(ctx context.Context) ([]AuditKey, error) {
	stored, err := k.store.PublicKeys(ctx, KindAudit)
	if err != nil {
		return nil, err
	}
	keys := make([]AuditKey, len(stored))
	for i, s := range stored {
		public, err := x509.ParsePKIXPublicKey(s.Public)
		if err != nil {
			return nil, fmt.Errorf("parse the public key %s: %w", s.KID, err)
		}
		ed, ok := public.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("key %s is a %T", s.KID, public)
		}
		keys[i] = AuditKey{KID: s.KID, Public: ed}
	}
	return keys, nil
}

// AuditKey checks the heads of exported trails.
type AuditKey struct {
	KID    string
	Public ed25519.PublicKey
}
