package account

import (
	"context"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/kernel/errs"
)

var (
	// ErrOwnsTeams is the answer to an owner who wants to be gone.
	ErrOwnsTeams = errs.Conflict("owns_teams", "You own a team that has other members. Transfer it to one of them, or delete it, then try again.")

	errWrongPassword   = errs.Forbidden("wrong_password", "The current password is wrong.")
	errPasswordMissing = errs.Field("password", "password is needed: your account has one.")
)

// Rename changes the caller's name.
func (s *Service) Rename(ctx context.Context, by principal.Principal, name string) (User, *team.Team, error) {
	name, err := NormalizeName(name)
	if err != nil {
		return User{}, nil, err
	}
	if err := s.store.Rename(ctx, by.UserID, name, audit.By(by).UserRenamed(trailOf(by), by.UserID, name)); err != nil {
		return User{}, nil, err
	}
	by.UserName = name
	return s.Me(ctx, by)
}

// prove checks the password of a logged-in user, who may have none. Wrong ones
// count like wrong logins.
func (s *Service) prove(ctx context.Context, by principal.Principal, password string, missing, wrong error) (Stored, error) {
	user, found, err := s.store.UserByID(ctx, by.UserID)
	if err != nil {
		return user, err
	}
	if !found || !user.IsActive {
		return user, ErrSessionEnded
	}
	if user.PasswordHash == "" {
		return user, nil
	}
	if password == "" {
		return user, missing
	}
	if wait := s.byAccount.Take(user.Email); wait > 0 {
		return user, errTooManyFailures.After(wait)
	}
	ok, _, err := s.verify(ctx, user, password)
	if ok || err != nil {
		s.byAccount.Give(user.Email)
	}
	if err != nil {
		return user, err
	}
	if !ok {
		if err := s.store.RecordFailure(ctx, audit.By(by).PasswordChangeFailed(trailOf(by), by.UserID)); err != nil {
			return user, err
		}
		return user, wrong
	}
	return user, nil
}

// ChangePassword sets the caller's password and ends all other sessions. An
// account that has one must show it.
func (s *Service) ChangePassword(ctx context.Context, by principal.Principal, current, password string) error {
	if err := checkPassword("new_password", password); err != nil {
		return err
	}
	missing := errs.Field("current_password", "current_password is needed: your account has a password.")
	user, err := s.prove(ctx, by, current, missing, errWrongPassword.With("field", "current_password"))
	if err != nil {
		return err
	}
	hash, err := s.hasher.Hash(ctx, password)
	if err != nil {
		return err
	}
	return s.store.ChangePassword(ctx, by.UserID, user.PasswordHash, hash, by.SessionID, audit.By(by).PasswordChanged(trailOf(by), by.UserID))
}

// Delete removes the caller's account, with the teams that nobody else is in.
// It is refused while others are in a team that the caller owns.
func (s *Service) Delete(ctx context.Context, by principal.Principal, password string) error {
	if _, err := s.prove(ctx, by, password, errPasswordMissing, errWrongPassword.With("field", "password")); err != nil {
		return err
	}
	return s.store.DeleteUser(ctx, by.UserID, audit.By(by))
}
