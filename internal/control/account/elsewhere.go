package account

import (
	"context"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// What follows is for those who know people by another proof than a password.

// ByEmail finds an account by a normalized address, and whether the address was
// proven to be its owner's.
func (s *Service) ByEmail(ctx context.Context, email string) (user id.User, proven, found bool, err error) {
	return s.store.ProvenByEmail(ctx, email)
}

// SignupProven makes an account without a password for an address that was just
// proven, with a team of its own, as far as the policy allows. It does not log
// in. ErrEmailTaken when there is one by now.
func (s *Service) SignupProven(ctx context.Context, by principal.Principal, email, name string) (id.User, error) {
	if err := s.policy.allow(email); err != nil {
		return id.User{}, err
	}
	u := User{ID: id.NewUser(), Email: email, Name: name}
	made := newAccount(audit.By(as(by, u)), u, "")
	made.Proven = true
	return u.ID, s.store.CreateAccount(ctx, made)
}

// OpenSession logs a user in who has proven who they are.
func (s *Service) OpenSession(ctx context.Context, by principal.Principal, user id.User) (Auth, error) {
	found, ok, err := s.store.UserByID(ctx, user)
	switch {
	case err != nil:
		return Auth{}, err
	case !ok:
		return Auth{}, ErrInvalidCredentials
	case !found.IsActive:
		return Auth{}, ErrDisabled
	}
	login, err := s.prepareLogin(ctx, by, found.User)
	if err != nil {
		return Auth{}, err
	}
	if err := s.store.CreateSession(ctx, login, "", ""); err != nil {
		if errs.Is(err, ErrCredentialsMoved.Reason) {
			return Auth{}, ErrDisabled
		}
		return Auth{}, err
	}
	return login.Answer, nil
}
