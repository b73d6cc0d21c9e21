// Package idempotency makes a repeated create answer like the first one and
// make nothing new. The HTTP plumbing puts a Request into the context of each
// create that came with an Idempotency-Key; a room's HTTP slice wraps its use
// case in Do; the room's store wraps its transaction's work in
// idempotencypg.Once, which stores a receipt of what was made in the same
// transaction. The receipt is JSON of the room's own type, small, and enough
// to build the answer again: it may hold one-time secrets, because it is
// sealed under a key that only the holder of the Idempotency-Key has.
//
//	created, err := idempotency.Do(ctx, h.replays, func(ctx context.Context) (apikey.Created, error) {
//		return h.keys.Create(ctx, principal.From(ctx), request)
//	})
//
// A create that failed stores nothing; its repetition runs again.
package idempotency

import (
	"context"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Window is how long a key is remembered.
const Window = 24 * time.Hour

// MaxKeyLength bounds the header.
const MaxKeyLength = 255

// Request identifies one create, repeated or not. It holds no secret but the
// key its receipts are sealed under.
type Request struct {
	Caller   string
	KeyHash  []byte // 32 bytes; the Idempotency-Key itself is not kept
	BodyHash []byte // 32 bytes over operation, the caller's standing, and body
	sealKey  []byte
}

// NewRequest makes the identity of a create from its caller, its
// Idempotency-Key, and what it asks for. All are hashed under keys derived
// from secret, so that neither weak keys nor passwords in bodies can be guessed
// from the stored hashes.
func NewRequest(secret keyring.Secret, caller, key, operation string, body []byte) Request {
	c, k := []byte(caller), []byte(key)
	return Request{
		Caller:   caller,
		KeyHash:  secret.Derive("idempotency/key", c, k),
		BodyHash: secret.Derive("idempotency/body", c, k, []byte(operation), body),
		sealKey:  secret.Derive("idempotency/seal", c, k),
	}
}

// LockID is the number of the advisory lock that holds back duplicates.
func (r Request) LockID() int64 { return int64(binary.BigEndian.Uint64(r.KeyHash)) }

// Seal encrypts a receipt.
func (r Request) Seal(receipt []byte) []byte {
	return keyring.SealWith(r.sealKey, receipt, r.KeyHash)
}

// Stored is what a former request with the same key left.
type Stored struct {
	BodyHash []byte
	Receipt  []byte // sealed
}

// ErrConflict is the answer to a key that was used for something else.
var ErrConflict = errs.Conflict("idempotency_conflict", "This Idempotency-Key was used for a different request, or in another team or role, within 24 hours. Use a new one.")

// Open returns the receipt of a former request, or ErrConflict when that one
// asked for something else.
func (r Request) Open(s Stored) ([]byte, error) {
	if subtle.ConstantTimeCompare(s.BodyHash, r.BodyHash) != 1 {
		return nil, ErrConflict
	}
	receipt, err := keyring.OpenWith(r.sealKey, s.Receipt, r.KeyHash)
	if err != nil {
		return nil, fmt.Errorf("open a stored receipt: %w", err)
	}
	return receipt, nil
}

type contextKey struct{}

// With returns a context that carries r.
func With(ctx context.Context, r Request) context.Context {
	return context.WithValue(ctx, contextKey{}, r)
}

// From returns the create's identity, if its caller gave it one.
func From(ctx context.Context) (Request, bool) {
	r, ok := ctx.Value(contextKey{}).(Request)
	return r, ok
}

// Replay is how a store's transaction ends when the object exists already. It
// travels as an error, so that the transaction is rolled back, and is caught
// by Do.
type Replay struct{ Receipt []byte }

// Error implements error.
func (*Replay) Error() string { return "this create was done before" }

// Store finds receipts and forgets old ones.
type Store interface {
	// Find returns what a former request left, within the window.
	Find(ctx context.Context, caller string, keyHash []byte) (Stored, bool, error)
	// DeleteExpired forgets a bounded number of keys older than the window and
	// returns how many; call it until it returns zero.
	DeleteExpired(ctx context.Context) (int64, error)
}

// Service answers repeated creates.
type Service struct {
	store Store
	turns turns
}

// NewService returns the service on a store.
func NewService(store Store) *Service {
	return &Service{store: store, turns: turns{busy: map[string]*turn{}}}
}

// Do runs create, or answers with what it returned the first time. T is what
// the room's store passed to Once as receipt, as JSON. A duplicate that comes
// while the first is in flight waits for it, on this server in memory, across
// servers in the database.
func Do[T any](ctx context.Context, s *Service, create func(ctx context.Context) (T, error)) (T, error) {
	var answer T
	r, ok := From(ctx)
	if !ok {
		return create(ctx)
	}
	done, err := s.turns.take(ctx, r.Caller+"\x00"+string(r.KeyHash))
	if err != nil {
		return answer, err
	}
	defer done()
	// First, because what a create depends on may have changed since.
	stored, found, err := s.store.Find(ctx, r.Caller, r.KeyHash)
	if err != nil {
		return answer, err
	}
	var receipt []byte
	if found {
		receipt, err = r.Open(stored)
	} else {
		answer, err = create(ctx)
		var replay *Replay
		if !errors.As(err, &replay) {
			return answer, err
		}
		receipt, err = replay.Receipt, nil
	}
	if err != nil {
		return answer, err
	}
	var again T
	if err := json.Unmarshal(receipt, &again); err != nil {
		return again, fmt.Errorf("read a stored receipt: %w", err)
	}
	return again, nil
}

// Sweep forgets all keys older than the window.
func (s *Service) Sweep(ctx context.Context) error {
	for {
		n, err := s.store.DeleteExpired(ctx)
		if err != nil || n == 0 {
			return err
		}
	}
}
