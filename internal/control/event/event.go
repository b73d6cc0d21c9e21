// Package event tells those who watch what changed: ids and kinds, never
// contents. What is told is a hint to read again; nothing is decided by it.
//
// Changes are written to an outbox in their own transactions, by the audit
// trail and by the sandboxes' history. A Feed reads it once for all who watch on
// this server. Browsers, which cannot send headers with a stream, open theirs
// with a ticket.
package event

import (
	"context"
	"strconv"
	"strings"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Event is one change.
type Event struct {
	At       Position
	Team     id.Team
	Kind     string // sandbox.paused
	Resource string // an id in its wire form
	Scope    audit.Scope
	Time     time.Time
}

// Position is a place in the outbox. Rows are in the order of their
// transactions' ids, so that one that commits late is not passed over.
type Position struct{ Tx, ID int64 }

// String is the form on the wire, the id of a server-sent event.
func (p Position) String() string {
	return strconv.FormatInt(p.Tx, 10) + "-" + strconv.FormatInt(p.ID, 10)
}

// ParsePosition reads the wire form.
func ParsePosition(s string) (Position, error) {
	tx, row, ok := strings.Cut(s, "-")
	p := Position{}
	var errTx, errID error
	p.Tx, errTx = strconv.ParseInt(tx, 10, 64)
	p.ID, errID = strconv.ParseInt(row, 10, 64)
	if !ok || errTx != nil || errID != nil || p.Tx < 0 || p.ID < 0 || p.String() != s {
		return Position{}, errs.Invalid("invalid_event_id", "Last-Event-ID must be the id of an event of this stream. Leave it out to begin with what comes next.")
	}
	return p, nil
}

// Store reads the outbox. Each verb is one statement.
type Store interface {
	// End is where the outbox ends now: what commits later comes after it.
	End(ctx context.Context) (Position, error)
	// After returns what came after p, oldest first, up to the first transaction
	// that may still add something.
	After(ctx context.Context, p Position, limit int) ([]Event, error)
	// Between returns what came after p for one team, not beyond to, oldest first.
	Between(ctx context.Context, team id.Team, p, to Position, limit int) ([]Event, error)
	// BetweenAll is Between for all teams.
	BetweenAll(ctx context.Context, p, to Position, limit int) ([]Event, error)
	// Kept reports whether nothing after p was pruned.
	Kept(ctx context.Context, p Position) (bool, error)
	// Prune removes a bounded number of events older than keep, and says how many.
	Prune(ctx context.Context, keep time.Duration) (int64, error)
}
