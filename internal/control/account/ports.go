package account

import (
	"context"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/kernel/id"
)

// Stored is a user as the store keeps one.
type Stored struct {
	User
	PasswordHash string // "" for accounts that log in by OAuth only
	IsActive     bool
}

// Signup is everything that a sign-up makes, in one transaction.
type Signup struct {
	User         User
	PasswordHash string
	Team         team.Team
	Session      *Session // nil for an account made by an operator
	Entries      []audit.Entry
	// Receipt is kept for a repetition of the same request.
	Receipt Auth
}

// Store keeps users and sessions. Each verb is one transaction.
type Store interface {
	// CreateAccount makes the user, the default team, the owner's membership
	// and the session. A taken address is ErrEmailTaken. It takes part in
	// idempotency: see package idempotency.
	CreateAccount(ctx context.Context, s Signup) error
	// UserByEmail returns the user, or found false.
	UserByEmail(ctx context.Context, email string) (user Stored, found bool, err error)
	// GetDefaultTeamForUser returns the living team to log in to: the default
	// one, else the one joined first; nil when there is none.
	GetDefaultTeamForUser(ctx context.Context, user id.User) (*team.Team, error)
	// TeamOf returns a living team as a member sees it; nil when it is gone or
	// the user no member.
	TeamOf(ctx context.Context, user id.User, team id.Team) (*team.Team, error)
	// CreateSession stores a login, from where it came, and its entry. When newHash is not empty it
	// replaces oldHash, unless the password was changed meanwhile.
	CreateSession(ctx context.Context, session Session, by principal.Principal, oldHash, newHash string, entry audit.Entry) error
	// RecordFailure stores the entry of a refused login.
	RecordFailure(ctx context.Context, entry audit.Entry) error
	// EndSession ends a session with its entry; ending it again changes nothing.
	EndSession(ctx context.Context, session id.Session, entry audit.Entry) error
	// PrincipalOf reads user, session, membership and team in one query; found
	// is false when the session has ended or the user is disabled.
	PrincipalOf(ctx context.Context, session id.Session) (p principal.Principal, found bool, err error)
	// LivingSessions are those of the given ones that PrincipalOf would find, and
	// what their rights rest on.
	LivingSessions(ctx context.Context, sessions []id.Session) (map[id.Session]principal.Standing, error)
	// MakeAdmin makes an existing user an active platform admin, with the entry
	// granted only if that changes anything. A newHash that is not empty becomes
	// the password's and ends all sessions of the user, with the entry reset.
	MakeAdmin(ctx context.Context, user id.User, newHash string, granted, reset audit.Entry) error
	// DeleteOldSessions forgets a bounded number of sessions that ended or
	// expired before keep and returns how many.
	DeleteOldSessions(ctx context.Context, keep time.Duration) (int64, error)
}

// Signer makes the tokens; the keyring does.
type Signer interface {
	SignUser(c keyring.UserClaims) (token string, expires time.Time, err error)
}
