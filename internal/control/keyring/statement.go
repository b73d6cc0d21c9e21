package keyring

import (
	"crypto/ecdsa"
	"fmt"

	"github.com/golang-jwt/jwt/v5"

	"skerry.dev/skerry/internal/kernel/id"
)

// HostDeletedType is the typ in the header of a statement that a host was
// deleted. No other token of ours has it.
const HostDeletedType = "skerry-host-deleted"

// SignHostDeleted makes the statement that this installation has deleted a
// host: a JWT signed with the CA's own key (ES256), which every host can check
// with the CA it holds. iss is the CA's fingerprint, which names the
// installation, sub the host's id, iat when it was made. It does not expire: a
// deleted host never comes back.
func (k *Keyring) SignHostDeleted(host id.Host) (string, error) {
	k.mu.RLock()
	key := k.ca.key
	k.mu.RUnlock()
	return signHostDeleted(key, jwt.RegisteredClaims{
		Issuer: k.CASHA256(), Subject: host.String(), IssuedAt: jwt.NewNumericDate(k.clock.Now()),
	})
}

func signHostDeleted(key *ecdsa.PrivateKey, claims jwt.RegisteredClaims) (string, error) {
	token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	token.Header["typ"] = HostDeletedType
	signed, err := token.SignedString(key)
	if err != nil {
		return "", fmt.Errorf("sign the statement about %s: %w", claims.Subject, err)
	}
	return signed, nil
}
