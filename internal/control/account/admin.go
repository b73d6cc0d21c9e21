package account

import (
	"context"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// AdminUser is a user as platform admins see one.
type AdminUser struct {
	User
	IsActive    bool
	EmailProven bool
	CreatedAt   time.Time
	LastLoginAt time.Time // zero for never, or longer ago than sessions are kept
}

// ErrLastAdmin protects the last one who can let others in.
var ErrLastAdmin = errs.Conflict("last_admin", "This is the last active platform admin. Make another one first.")

// Users lists all users whose email or name contains search.
func (s *Service) Users(ctx context.Context, search string, p page.Request) (page.Page[AdminUser], error) {
	return s.store.ListUsers(ctx, search, p)
}

// SetAdmin makes a user a platform admin, or no longer.
func (s *Service) SetAdmin(ctx context.Context, by principal.Principal, user id.User, enabled bool) (AdminUser, error) {
	log := audit.By(by)
	return s.store.SetAdmin(ctx, user, enabled, func(email string) audit.Entry {
		if enabled {
			return log.AdminGranted(user, email)
		}
		return log.AdminRevoked(user, email)
	})
}

// SetActive disables a user, who is refused from the next request on, or enables
// one again, who logs in anew.
func (s *Service) SetActive(ctx context.Context, by principal.Principal, user id.User, enabled bool) (AdminUser, error) {
	return s.store.SetActive(ctx, user, enabled, func(email string) audit.Entry { return audit.By(by).UserActiveSet(user, email, enabled) })
}

// CreateResetLink makes a link with which a user sets a new password, to be
// handed over by the admin who made it.
func (s *Service) CreateResetLink(ctx context.Context, by principal.Principal, user id.User) (OneTimeLink, error) {
	found, ok, err := s.store.UserByID(ctx, user)
	switch {
	case err != nil:
		return OneTimeLink{}, err
	case !ok:
		return OneTimeLink{}, ErrUserNotFound
	case !found.IsActive:
		return OneTimeLink{}, errs.FailedPrecondition(ErrDisabled.Reason, "This account is disabled. Enable it first.")
	}
	secret := newSecret()
	link := OneTimeLink{URL: s.urlOf(LinkPassword, secret)}
	link.ExpiresAt, err = s.store.CreateLink(ctx, Link{Kind: LinkPassword, Hash: hashOf(secret), User: user, Email: found.Email},
		func(expires time.Time) any { return OneTimeLink{URL: link.URL, ExpiresAt: expires} },
		audit.By(by).PasswordLinkIssued(user, found.Email))
	return link, err
}

// EnsureAdmin makes sure that an active platform admin with this address and
// this password exists; it makes the account with a team when there is none. It
// is the operator's act, not a sign-up: the policy does not count, and an
// account that somebody else made under the address is taken from them, with
// the keys, invitations and linked identities they made. A password that is
// replaced ends the account's sessions. Repeating it changes nothing.
func (s *Service) EnsureAdmin(ctx context.Context, email, password string) error {
	log := audit.By(principal.System("operator"))
	for range 2 { // once more when another process made it meanwhile
		r, err := SignupRequest{Email: email, Password: password, Name: "Admin"}.normalize()
		if err != nil {
			return err
		}
		user, found, err := s.store.UserByEmail(ctx, r.Email)
		if err != nil {
			return err
		}
		if found {
			newHash, err := s.unlessCurrent(ctx, user, r.Password)
			if err != nil {
				return err
			}
			return s.store.MakeAdmin(ctx, user.ID, newHash, log)
		}
		hash, err := s.hasher.Hash(ctx, r.Password)
		if err != nil {
			return err
		}
		made := newAccount(log, User{ID: id.NewUser(), Email: r.Email, Name: r.Name, IsAdmin: true}, hash)
		made.Entries = append(made.Entries, log.AdminGranted(made.User.ID, made.User.Email))
		if err = s.store.CreateAccount(ctx, made); !errs.Is(err, ErrEmailTaken.Reason) {
			return err
		}
	}
	return ErrEmailTaken
}

// unlessCurrent is the hash of a password, or empty when it is the user's.
func (s *Service) unlessCurrent(ctx context.Context, user Stored, password string) (string, error) {
	if user.PasswordHash != "" {
		ok, _, err := s.hasher.Verify(ctx, password, user.PasswordHash)
		if err != nil || ok {
			return "", err
		}
	}
	return s.hasher.Hash(ctx, password)
}
