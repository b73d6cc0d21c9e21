// Package oauth lets people in by what another system says of them: GitHub,
// Google or any OpenID Connect issuer. It owns the links between accounts and
// their identities elsewhere; accounts and sessions are account's.
//
// An identity opens the account it is linked to. One that is new links itself
// only to an account whose own address was proven, and only by an address that
// the provider has verified; otherwise whoever made the account with somebody
// else's address could be handed that somebody's logins, or the other way
// round.
package oauth

import (
	"context"
	"time"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Claim is who a provider says somebody is.
type Claim struct {
	Subject       string // stable and unique at the provider
	Email         string // lower case; "" when the provider does not say
	EmailVerified bool
	Name          string // display name, else login
}

// Provider is a system that knows people.
type Provider interface {
	// ID is the word in addresses and rows, Name what people read.
	ID() string
	Name() string
	// AuthURL is where the browser is sent.
	AuthURL(ctx context.Context, a Attempt) (string, error)
	// Exchange turns the code of the callback into a claim, having checked
	// signature, audience and nonce.
	Exchange(ctx context.Context, a Attempt, code string) (Claim, error)
}

// Attempt is one login under way. State is known to the browser and the
// provider, Nonce to us and the provider's signature, Verifier to us alone.
type Attempt struct {
	Redirect string `json:"-"` // where the provider sends the browser back to
	State    string `json:"-"`
	Nonce    string `json:"nonce"`
	Verifier string `json:"verifier"` // PKCE
	// Session is the one that links an identity to its user; nil for a login.
	Session *id.Session `json:"session,omitempty"`
}

// Pending is an attempt as the store keeps it.
type Pending struct {
	Provider string
	Sealed   []byte // the Attempt, under its state
	LinkUser *id.User
	UserCode string // of a device login to go on to; "" for none
}

// Identity is a link between an account and a provider.
type Identity struct {
	Provider  string
	Subject   string
	Email     string
	CreatedAt time.Time
}

// Store keeps identities and attempts. Each verb is one transaction.
type Store interface {
	// Begin stores an attempt by the hash of its state.
	Begin(ctx context.Context, stateHash []byte, p Pending, lifetime time.Duration) error
	// Spend removes an attempt; found is false for one that is unknown or expired.
	Spend(ctx context.Context, stateHash []byte) (p Pending, found bool, err error)
	// UserOf finds the account an identity opens and notes its present address.
	UserOf(ctx context.Context, provider string, claim Claim) (user id.User, found bool, err error)
	// Link ties an identity to a user, with its entry. Linking it again changes
	// nothing; one that is another user's is ErrIdentityTaken, and a second one of
	// the same provider ErrAlreadyLinked. A proven address that is the user's own
	// becomes proven. A user who is disabled by now is account.ErrDisabled, and
	// with in, a session that has ended account.ErrSessionEnded.
	Link(ctx context.Context, user id.User, in *id.Session, provider string, claim Claim, entry audit.Entry) error
	// Unlink removes it, unless the user could then no longer log in: ErrOnlyWayIn.
	Unlink(ctx context.Context, user id.User, provider string, entry audit.Entry) error
	// Identities are all of a user's, by provider.
	Identities(ctx context.Context, user id.User) ([]Identity, error)
	// Prune removes expired attempts.
	Prune(ctx context.Context) error
}

// Accounts is what this room needs of accounts.
type Accounts interface {
	// ByEmail finds an account; proven tells whether its address is its owner's.
	ByEmail(ctx context.Context, email string) (user id.User, proven, found bool, err error)
	// SignupProven makes an account without a password for a proven address, as
	// far as the sign-up policy allows, with its team. ErrEmailTaken when there is
	// one by now.
	SignupProven(ctx context.Context, by principal.Principal, email, name string) (id.User, error)
	// OpenSession logs an active user in.
	OpenSession(ctx context.Context, by principal.Principal, user id.User) (account.Auth, error)
}

// What callers match on.
var (
	ErrUnknownProvider = errs.NotFound("provider_not_found", "This way to log in is not configured here. GET /v1/auth/providers lists those that are.")
	ErrIdentityTaken   = errs.Conflict("identity_taken", "This identity is linked to another account here. Log in to that account and unlink it first.")
	ErrAlreadyLinked   = errs.Conflict("already_linked", "Another identity of this provider is linked to your account. Unlink it first.")
	ErrOnlyWayIn       = errs.Conflict("only_way_in", "This is the only way to log in to your account. Set a password or link another provider first.")
	ErrNotLinked       = errs.NotFound("identity_not_found", "This provider is not linked to your account.")
	errState           = errs.Unauthenticated("invalid_state", "This login was not begun in this browser, is over, or took longer than 10 minutes. Begin again.")
	errRefused         = errs.Unauthenticated("login_refused", "The provider did not let you in. Begin again, or log in another way.")
	errExchange        = errs.Unauthenticated("login_failed", "The provider's answer could not be verified. Begin again, or log in another way.")
	errUnverified      = errs.Forbidden("email_unverified", "The provider has not verified your email address. Verify it there, or log in another way.")
	errLinkRequired    = errs.Forbidden("link_required", "There is an account with your address. Log in to it and link this provider in its settings.")
)
