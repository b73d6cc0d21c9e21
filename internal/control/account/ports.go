package account

import (
	"context"
	"net/netip"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
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
	PasswordHash string // "" for none
	Proven       bool   // the address is known to be the user's own
	Team         team.Team
	Session      *Session // nil for an account made by an operator
	Entries      []audit.Entry
	// Receipt is kept for a repetition of the same request.
	Receipt Auth
}

// Login is a session about to be opened: what a store writes, and the answer
// once it is written. A store verb that logs somebody in in another way takes
// one too, and writes Session, from where By came, with Entry.
type Login struct {
	Session Session
	By      principal.Principal
	Entry   audit.Entry
	Answer  Auth
}

// Refreshing is what a session is to whoever presents one of its refresh
// tokens.
type Refreshing struct {
	User    User
	Team    *team.Team // nil without an active one
	Counter int64      // of the current refresh token
}

// Store keeps users and sessions. Each verb is one transaction. A verb that is
// given entries writes them with the change, and none without one.
type Store interface {
	sessionStore
	passwordStore
	deviceStore
	adminStore

	// CreateAccount makes the user, the default team, the owner's membership
	// and the session. A taken address is ErrEmailTaken. It takes part in
	// idempotency: see package idempotency.
	CreateAccount(ctx context.Context, s Signup) error
	// UserByEmail returns the user, or found false.
	UserByEmail(ctx context.Context, email string) (user Stored, found bool, err error)
	// UserByID returns the user, or found false.
	UserByID(ctx context.Context, user id.User) (found Stored, ok bool, err error)
	// ProvenByEmail finds a user and whether the address was proven to be theirs.
	ProvenByEmail(ctx context.Context, email string) (user id.User, proven, found bool, err error)
	// GetDefaultTeamForUser returns the living team to log in to: the default
	// one, else the one joined first; nil when there is none.
	GetDefaultTeamForUser(ctx context.Context, user id.User) (*team.Team, error)
	// TeamOf returns a living team as a member sees it; nil when it is gone or
	// the user no member.
	TeamOf(ctx context.Context, user id.User, team id.Team) (*team.Team, error)
	// Rename changes a user's name; the same name is no change.
	Rename(ctx context.Context, user id.User, name string, entry audit.Entry) error
	// DeleteUser removes a user with all memberships and sessions, and the teams
	// that nobody else is in, with their keys and invitations; what runs in these
	// is ended by the teams' own sweep. ErrOwnsTeams while others are in a team
	// that the user owns, ErrLastAdmin.
	DeleteUser(ctx context.Context, user id.User, log audit.AuditLogger) error
	// DeleteOld forgets a bounded number of sessions that ended or expired before
	// keep, and of links and device logins that expired, and returns how many.
	DeleteOld(ctx context.Context, keep time.Duration) (int64, error)
}

// sessionStore keeps the sessions.
type sessionStore interface {
	// CreateSession opens a session for a user whose password is still the one
	// with oldHash; an empty oldHash means that another proof was given. When
	// newHash is not empty it replaces oldHash. A user who was disabled, or whose
	// password was changed, is ErrCredentialsMoved.
	CreateSession(ctx context.Context, login Login, oldHash, newHash string) error
	// RecordFailure stores the entry of a refused attempt.
	RecordFailure(ctx context.Context, entry audit.Entry) error
	// EndSession ends a user's session and tells why; ended is false when it had
	// ended, or is another user's.
	EndSession(ctx context.Context, user id.User, session id.Session, reason string, entry audit.Entry) (ended bool, err error)
	// ListSessions returns a page of a user's living sessions, newest first.
	ListSessions(ctx context.Context, user id.User, p page.Request) (page.Page[SessionInfo], error)
	// PrincipalOf reads user, session, membership and team in one query; found
	// is false when the session has ended or the user is disabled.
	PrincipalOf(ctx context.Context, session id.Session) (p principal.Principal, found bool, err error)
	// LivingSessions are those of the given ones that PrincipalOf would find, and
	// what their rights rest on.
	LivingSessions(ctx context.Context, sessions []id.Session) (map[id.Session]principal.Standing, error)
	// AdvanceRefresh makes the refresh token after presented the current one, if
	// presented, with presentedHash, is that now; else it changes nothing. It
	// returns the session as it is then; found is false for one that ended.
	AdvanceRefresh(ctx context.Context, session id.Session, presented int64, presentedHash, nextHash []byte) (r Refreshing, found bool, err error)
	// SwitchTeam makes a team of the user's the session's active one and returns
	// it; ErrTeamNotFound for one that is not there, ErrNotMember.
	SwitchTeam(ctx context.Context, user id.User, session id.Session, to id.Team, entry audit.Entry) (team.Team, error)
}

// passwordStore keeps passwords and one-time links.
type passwordStore interface {
	// ChangePassword replaces oldHash ("" for none), and ends all of the user's
	// sessions but keep, with what else could become one. ErrCredentialsMoved when
	// the stored hash is another.
	ChangePassword(ctx context.Context, user id.User, oldHash, newHash string, keep id.Session, entry audit.Entry) error
	// CreateLink stores the hash of a one-time link to an address of a user and
	// returns until when it works. It takes part in idempotency with the receipt,
	// nil for none, which is told that time.
	CreateLink(ctx context.Context, link Link, receipt func(expires time.Time) any, entry audit.Entry) (time.Time, error)
	// FindLink returns whose a link is that works; found is false for any other.
	FindLink(ctx context.Context, kind LinkKind, hash []byte) (user User, found bool, err error)
	// UsePasswordLink spends the link and does as ChangePassword, whatever the
	// password was, to all sessions. Where the address was never proven, providers
	// that were linked are unlinked: another may have linked them. ErrInvalidLink
	// when it was spent meanwhile.
	UsePasswordLink(ctx context.Context, hash []byte, user id.User, newHash string, entry audit.Entry) error
	// UseEmailLink spends the link and notes that the address is proven.
	UseEmailLink(ctx context.Context, hash []byte, user id.User, entry audit.Entry) error
}

// deviceStore keeps logins that are approved in a browser.
type deviceStore interface {
	// CreateDeviceLogin stores one; ErrCodeTaken when its user code is in use. It
	// takes part in idempotency with the receipt.
	CreateDeviceLogin(ctx context.Context, d NewDeviceLogin, receipt func(expires time.Time) any) (time.Time, error)
	// PendingDeviceLogin returns one that waits for a decision.
	PendingDeviceLogin(ctx context.Context, userCode string) (d DeviceLogin, found bool, err error)
	// DecideDeviceLogin approves one for a user or denies it; found is false when
	// it waits no more. entry is told the name of what asked.
	DecideDeviceLogin(ctx context.Context, userCode string, user id.User, approve bool, entry func(client string) audit.Entry) (found bool, err error)
	// DeviceLoginOf tells how one stands that was not exchanged yet.
	DeviceLoginOf(ctx context.Context, deviceHash []byte) (s DeviceStanding, found bool, err error)
	// SpendDeviceLogin exchanges an approved one for a session, once; ok is false
	// when it cannot be any more.
	SpendDeviceLogin(ctx context.Context, deviceHash []byte, login Login) (ok bool, err error)
}

// adminStore is what operators and platform admins do.
type adminStore interface {
	// MakeAdmin makes an existing user an active platform admin. A newHash that
	// is not empty becomes the password's and ends all sessions of the user. An
	// account that was no admin's and gets a new password is taken from whoever
	// made it: with its linked identities, and the API keys and open invitations
	// of the teams it owns.
	MakeAdmin(ctx context.Context, user id.User, newHash string, log audit.AuditLogger) error
	// ListUsers returns a page of users, newest first, whose email or name
	// contains search, whatever the case.
	ListUsers(ctx context.Context, search string, p page.Request) (page.Page[AdminUser], error)
	// SetAdmin makes a user a platform admin, or no longer. ErrLastAdmin when none
	// would be left; ErrUserNotFound. The same again is no change.
	SetAdmin(ctx context.Context, user id.User, enabled bool, entry func(email string) audit.Entry) (AdminUser, error)
	// SetActive enables or disables a user; disabling ends all sessions and what
	// could become one. Errors as SetAdmin's.
	SetActive(ctx context.Context, user id.User, enabled bool, entry func(email string) audit.Entry) (AdminUser, error)
}

// Signer makes the tokens; the keyring does.
type Signer interface {
	SignUser(c keyring.UserClaims) (token string, expires time.Time, err error)
	// Derive is keyring.Secret's: what must be repeatable without being kept.
	Derive(purpose string, parts ...[]byte) []byte
}

// SessionInfo is a session as its user sees it.
type SessionInfo struct {
	ID         id.Session
	UserAgent  string
	IP         netip.Addr // the zero one for none
	CreatedAt  time.Time
	LastUsedAt time.Time
	ExpiresAt  time.Time
}
