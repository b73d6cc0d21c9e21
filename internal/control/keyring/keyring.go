package keyring

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Kind is what a key is for. Keys of users and hosts are different ones, so
// that a token of the one is never valid where the other's is wanted.
type Kind string

// The kinds of keys.
const (
	KindUserJWT Kind = "user_jwt"
	KindHostJWT Kind = "host_jwt"
	KindAudit   Kind = "audit" // signs the heads of exported trails
	KindCA      Kind = "ca"
)

// StoredKey is a key as the database keeps it.
type StoredKey struct {
	KID       string
	Kind      Kind
	Sealed    []byte // the private key, PKCS #8, sealed
	Public    []byte // PKIX public key, or the certificate for a CA; DER
	CreatedAt time.Time
}

// PublicKey is what everybody may know of a key.
type PublicKey struct {
	KID    string
	Public []byte // PKIX, DER
}

// Store keeps the keys.
type Store interface {
	// Keys returns all keys that are not retired, oldest first.
	Keys(ctx context.Context) ([]StoredKey, error)
	// PublicKeys returns the public keys of a kind by their names, oldest first,
	// the retired ones too.
	PublicKeys(ctx context.Context, kind Kind) ([]PublicKey, error)
	// Ensure calls create while no other server can, with the kinds that have
	// no key yet, stores what it returns, and returns all keys like Keys.
	// Repeating it changes nothing.
	Ensure(ctx context.Context, kinds []Kind, create func(missing []Kind) ([]StoredKey, error)) ([]StoredKey, error)
}

// reloadEvery bounds how often tokens of an unknown key make us read the
// database: anybody can send those.
const reloadEvery = 5 * time.Second

// Keyring is the platform's keys, safe for concurrent use.
type Keyring struct {
	Secret
	store Store
	clock clock.Clock

	mu       sync.RWMutex
	signing  map[Kind]signingKey  // the newest of each kind
	verify   map[string]verifyKey // by kid
	ca       authority
	reloaded time.Time
}

type signingKey struct {
	kid     string
	private ed25519.PrivateKey
}

type verifyKey struct {
	kind   Kind
	public ed25519.PublicKey
}

// Load reads the platform's keys and makes those that do not exist yet; of
// several servers that start at once, one makes them and all use the same. It
// fails when the keys were sealed under another secret.
func Load(ctx context.Context, store Store, secret Secret, clock clock.Clock) (*Keyring, error) {
	k := &Keyring{Secret: secret, store: store, clock: clock}
	keys, err := store.Ensure(ctx, []Kind{KindUserJWT, KindHostJWT, KindAudit, KindCA}, k.create)
	if err != nil {
		return nil, err
	}
	if err := k.use(keys); err != nil {
		return nil, err
	}
	return k, nil
}

func (k *Keyring) create(missing []Kind) ([]StoredKey, error) {
	made := make([]StoredKey, 0, len(missing))
	for _, kind := range missing {
		var key StoredKey
		var err error
		if kind == KindCA {
			key, err = k.newCA()
		} else {
			key, err = k.newSigningKey(kind)
		}
		if err != nil {
			return nil, fmt.Errorf("make a %s key: %w", kind, err)
		}
		made = append(made, key)
	}
	return made, nil
}

func (k *Keyring) newSigningKey(kind Kind) (StoredKey, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return StoredKey{}, err
	}
	return k.seal(kind, private, public)
}

// seal turns a fresh key pair into its row.
func (k *Keyring) seal(kind Kind, private, public any) (StoredKey, error) {
	privateDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return StoredKey{}, err
	}
	publicDER, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return StoredKey{}, err
	}
	var name [8]byte
	_, _ = rand.Read(name[:])
	kid := hex.EncodeToString(name[:])
	return StoredKey{
		KID: kid, Kind: kind, Public: publicDER,
		Sealed: k.Seal("platform_keys", privateDER, []byte(string(kind)+"/"+kid)),
	}, nil
}

func (k *Keyring) unseal(key StoredKey) (any, error) {
	der, err := k.Open("platform_keys", key.Sealed, []byte(string(key.Kind)+"/"+key.KID))
	if err != nil {
		return nil, errs.FailedPrecondition("wrong_secret",
			"SKERRY_SECRET is not the one under which this database's keys were sealed. Set the same secret on all servers.").Because(err)
	}
	return x509.ParsePKCS8PrivateKey(der)
}

// use puts a set of stored keys, oldest first, to work.
func (k *Keyring) use(keys []StoredKey) error {
	signing := map[Kind]signingKey{}
	verify := map[string]verifyKey{}
	var ca authority
	for _, key := range keys {
		private, err := k.unseal(key)
		if err != nil {
			return err
		}
		if key.Kind == KindCA {
			if ca, err = newAuthority(key.Public, private); err != nil {
				return fmt.Errorf("key %s: %w", key.KID, err)
			}
			continue
		}
		edKey, ok := private.(ed25519.PrivateKey)
		if !ok {
			return fmt.Errorf("key %s is a %T", key.KID, private)
		}
		signing[key.Kind] = signingKey{kid: key.KID, private: edKey}
		verify[key.KID] = verifyKey{kind: key.Kind, public: edKey.Public().(ed25519.PublicKey)}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.signing, k.verify, k.ca, k.reloaded = signing, verify, ca, k.clock.Now()
	return nil
}

// verifying finds a public key by its name; one made by another server since
// the last look is fetched.
func (k *Keyring) verifying(ctx context.Context, kid string) (verifyKey, bool) {
	k.mu.RLock()
	key, ok := k.verify[kid]
	fresh := k.clock.Now().Sub(k.reloaded) < reloadEvery
	k.mu.RUnlock()
	if ok || fresh {
		return key, ok
	}
	k.mu.Lock()
	k.reloaded = k.clock.Now() // also when the read fails: it is a bound
	k.mu.Unlock()
	keys, err := k.store.Keys(ctx)
	if err != nil || k.use(keys) != nil {
		return verifyKey{}, false
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	key, ok = k.verify[kid]
	return key, ok
}

func (k *Keyring) signingKey(kind Kind) signingKey {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.signing[kind]
}
