package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/golang-jwt/jwt/v5"

	"skerry.dev/skerry/internal/kernel/id"
)

const (
	// statementType is the type in the header of a statement that a host was
	// deleted. Nothing else that the platform's CA signs has it.
	statementType = "skerry-host-deleted"

	maxStatement = 8 << 10
)

// ErrDeleted is the platform's signed word that this host was deleted.
var ErrDeleted = errors.New("identity: this host was deleted from its installation")

// ErrLeft is a host that was deleted and has nothing left: no sandboxes and no
// credentials.
var ErrLeft = errors.New("identity: this host was deleted from its installation, and nothing of it is left here; `skerry join` makes this machine a new host")

// farewell is what is on disk of a deletion, from the moment it is believed.
type farewell struct {
	Statement string `json:"statement"`
	// TokenHash is of the registration token the host had, so that a start with
	// the same settings is known from one that shall make a new host.
	TokenHash string `json:"token_hash"`
	// Done says that no sandbox is left.
	Done bool `json:"done"`
}

func (s store) farewellPath() string { return filepath.Join(s.dir, "deleted.json") }

func (s store) farewell() (f farewell, ok bool, err error) {
	ok, err = read(s.farewellPath(), &f)
	return f, ok, err
}

// Deleted is closed when this host learns that it was deleted. Its owner
// destroys the sandboxes, then calls Leave. A crash before that is made up for:
// the next Open returns an identity that knows.
func (i *Identity) Deleted() <-chan struct{} { return i.deleted }

// gone judges a 410. Only with a statement that the platform signed, naming
// installation and host, does it mean anything; otherwise it is a refusal like
// any other.
func (i *Identity) gone(r *Refused) error {
	m := i.current.Load()
	if m == nil || r.statement == "" {
		return r
	}
	if err := m.verifyStatement(r.statement); err != nil {
		i.cfg.Logger.Error("the statement that this host was deleted is not the platform's; nothing is destroyed", "err", err)
		return r
	}
	i.believe.Lock()
	defer i.believe.Unlock()
	if i.isDeleted() {
		return errors.Join(ErrDeleted, r)
	}
	if err := write(i.store.farewellPath(), farewell{Statement: r.statement, TokenHash: m.creds.TokenHash}, i.cfg.Step); err != nil {
		return errors.Join(r, err) // said again at the next contact
	}
	i.cfg.Step(StepStated)
	close(i.deleted)
	return errors.Join(ErrDeleted, r)
}

// resume takes up a deletion that an earlier run believed and did not finish.
func (i *Identity) resume(f farewell) {
	m := i.current.Load()
	if m == nil {
		return
	}
	if err := m.verifyStatement(f.Statement); err != nil {
		i.cfg.Logger.Error("the kept statement that this host was deleted is not the platform's; nothing is destroyed", "err", err)
		return
	}
	close(i.deleted)
}

func (i *Identity) isDeleted() bool {
	select {
	case <-i.deleted:
		return true
	default:
		return false
	}
}

// Leave drops the credentials and the key of a deleted host whose sandboxes are
// destroyed. What stays is the note that it left.
func (i *Identity) Leave() error {
	if !i.isDeleted() {
		return errors.New("identity: this host was not deleted")
	}
	f, ok, err := i.store.farewell()
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("identity: %s is gone", i.store.farewellPath())
	}
	f.Done = true
	if err := write(i.store.farewellPath(), f, i.cfg.Step); err != nil {
		return err
	}
	i.cfg.Step(StepNothingLeft)
	return i.store.remove(i.store.credentialsPath(), i.store.keyPath(), i.store.offerPath())
}

// forget finishes a Leave that a crash cut short. It returns ErrLeft, or nil
// where a registration token came since that makes this machine another host.
func (i *Identity) forget(f farewell) error {
	if err := i.store.remove(i.store.credentialsPath(), i.store.keyPath()); err != nil {
		return err
	}
	if i.cfg.Token == "" || hash(i.cfg.Token) == f.TokenHash {
		return ErrLeft
	}
	i.cfg.Step(StepForgotten)
	return i.store.remove(i.store.farewellPath())
}

// verifyStatement checks a statement that this host was deleted: signed by the
// platform's CA itself, of the right type, about this installation and host.
// It does not expire: the ids of hosts are never used again.
func (m *material) verifyStatement(text string) error {
	if len(text) > maxStatement {
		return fmt.Errorf("identity: a statement of %d bytes", len(text))
	}
	method, err := methodOf(m.ca.PublicKey)
	if err != nil {
		return err
	}
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{method.Alg()}), jwt.WithIssuer(fingerprint(m.ca)), jwt.WithSubject(id.FormatHost(m.creds.HostID)),
	)
	var claims jwt.RegisteredClaims
	_, err = parser.ParseWithClaims(text, &claims, func(t *jwt.Token) (any, error) {
		if t.Header["typ"] != statementType {
			return nil, fmt.Errorf("identity: a statement of type %v", t.Header["typ"])
		}
		return m.ca.PublicKey, nil
	})
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	if claims.IssuedAt == nil {
		return errors.New("identity: a statement without its time")
	}
	return nil
}

// methodOf is the one algorithm that fits a key.
func methodOf(key any) (jwt.SigningMethod, error) {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return jwt.SigningMethodES256, nil
		case elliptic.P384():
			return jwt.SigningMethodES384, nil
		}
	case ed25519.PublicKey:
		return jwt.SigningMethodEdDSA, nil
	}
	return nil, fmt.Errorf("identity: nothing is verified by a key of type %T", key)
}
