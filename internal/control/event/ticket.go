package event

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// ticketLifetime is how long a ticket waits to be used.
const ticketLifetime = 30 * time.Second

const ticketPrefix = "skt_"

// Ticket opens one stream, once.
type Ticket struct {
	Secret    string
	ExpiresAt time.Time
}

// TicketStore keeps tickets by their hashes.
type TicketStore interface {
	// Insert stores a ticket for a session or a key and returns when it expires.
	Insert(ctx context.Context, hash []byte, operation, resource string, session *id.Session, key *id.APIKey, lifetime time.Duration) (time.Time, error)
	// Spend removes a ticket and returns whose it was; found is false for one that
	// is unknown, expired, or for something else.
	Spend(ctx context.Context, hash []byte, operation, resource string) (session *id.Session, key *id.APIKey, found bool, err error)
	// Prune removes those that expired.
	Prune(ctx context.Context) error
}

// Callers find who a session or key stands for, by what the database says now.
type Callers interface {
	BySession(ctx context.Context, session id.Session) (principal.Principal, error)
	ByKey(ctx context.Context, key id.APIKey) (principal.Principal, error)
}

// Tickets issues and redeems.
type Tickets struct {
	store   TicketStore
	callers Callers
}

// NewTickets returns the service.
func NewTickets(store TicketStore, callers Callers) *Tickets {
	return &Tickets{store: store, callers: callers}
}

var errTicket = errs.Unauthenticated("invalid_ticket", "This ticket is unknown, spent, older than 30 seconds, or for another stream. Ask for a new one.")

// Issue makes a ticket with which the caller may call one operation on one
// resource ("" for none), once and soon. Whether it may call it at all is for
// the one who asks here, and is looked at again when the ticket is used.
func (t *Tickets) Issue(ctx context.Context, by principal.Principal, operation, resource string) (Ticket, error) {
	secret := make([]byte, 20)
	_, _ = rand.Read(secret) // never fails
	ticket := Ticket{Secret: ticketPrefix + hex.EncodeToString(secret)}
	var session *id.Session
	var key *id.APIKey
	switch by.Kind {
	case principal.KindUser:
		session = &by.SessionID
	case principal.KindAPIKey:
		key = &by.APIKeyID
	default:
		return Ticket{}, errs.Unauthenticated("unauthenticated", "Log in, or use an API key.")
	}
	hash := sha256.Sum256([]byte(ticket.Secret))
	var err error
	ticket.ExpiresAt, err = t.store.Insert(ctx, hash[:], operation, resource, session, key, ticketLifetime)
	return ticket, err
}

// Redeem spends a ticket and returns whom it stands for.
func (t *Tickets) Redeem(ctx context.Context, ticket, operation, resource string) (principal.Principal, error) {
	hash := sha256.Sum256([]byte(ticket))
	session, key, found, err := t.store.Spend(ctx, hash[:], operation, resource)
	switch {
	case err != nil:
		return principal.Principal{}, err
	case !found:
		return principal.Principal{}, errTicket
	case session != nil:
		return t.callers.BySession(ctx, *session)
	default:
		return t.callers.ByKey(ctx, *key)
	}
}

// Run removes expired tickets until ctx ends.
func (t *Tickets) Run(ctx context.Context) error {
	ticker := time.NewTicker(pruneEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			// What stays expires all the same.
			_ = observe.Round(ctx, "ticket_retention", t.store.Prune)
		}
	}
}
