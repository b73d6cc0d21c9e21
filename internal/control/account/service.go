package account

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/ratelimit"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// What callers match on.
var (
	ErrEmailTaken         = errs.Conflict("email_taken", "There is an account with this email. Log in instead.").With("field", "email")
	ErrInvalidCredentials = errs.Unauthenticated("invalid_credentials", "Email or password is wrong.")
	errSessionEnded       = errs.Unauthenticated("session_ended", "This session has ended. Log in again.")
	errDisabled           = errs.Forbidden("account_disabled", "This account is disabled. Ask an admin of this Skerry.")
	errTooManyFailures    = errs.New(errs.CodeExhausted, "too_many_failures", "Too many wrong logins. Wait as Retry-After says.")
)

// wrongLogins is how many wrong logins an address and an account may see.
var wrongLogins = ratelimit.Rate{Burst: 10, Per: time.Minute}

// limiterKeys bounds the memory of the counters of wrong logins.
const limiterKeys = 50_000

// Service is the use cases of accounts.
type Service struct {
	store     Store
	signer    Signer
	hasher    *Hasher
	policy    SignupPolicy
	dummyHash string // what unknown accounts are checked against
	byIP      *ratelimit.Limiter
	byAccount *ratelimit.Limiter
}

// NewService returns the service. It computes one hash.
func NewService(ctx context.Context, store Store, signer Signer, hasher *Hasher, policy SignupPolicy, clock clock.Clock) (*Service, error) {
	dummy, err := hasher.Hash(ctx, rand.Text())
	if err != nil {
		return nil, fmt.Errorf("make the dummy hash: %w", err)
	}
	return &Service{
		store: store, signer: signer, hasher: hasher, policy: policy, dummyHash: dummy,
		byIP:      ratelimit.New(clock, wrongLogins, limiterKeys),
		byAccount: ratelimit.New(clock, wrongLogins, limiterKeys),
	}, nil
}

// Signup makes a user with a team of its own and logs in.
func (s *Service) Signup(ctx context.Context, by principal.Principal, r SignupRequest) (Auth, error) {
	r, err := r.normalize()
	if err != nil {
		return Auth{}, err
	}
	if err := s.policy.allow(r.Email); err != nil {
		return Auth{}, err
	}
	made, err := s.newAccount(ctx, by, r, false)
	if err != nil {
		return Auth{}, err
	}
	made.Session = &Session{ID: id.NewSession(), User: made.User.ID, Team: &made.Team.ID}
	made.Entries = append(made.Entries, audit.By(as(by, made.User)).LoggedIn(made.Team.ID, made.Session.ID))
	if made.Receipt, err = s.auth(made.User, &made.Team, *made.Session); err != nil {
		return Auth{}, err
	}
	if err := s.store.CreateAccount(ctx, made); err != nil {
		return Auth{}, err
	}
	return made.Receipt, nil
}

func (s *Service) newAccount(ctx context.Context, by principal.Principal, r SignupRequest, isAdmin bool) (Signup, error) {
	hash, err := s.hasher.Hash(ctx, r.Password)
	if err != nil {
		return Signup{}, err
	}
	u := User{ID: id.NewUser(), Email: r.Email, Name: r.Name, IsAdmin: isAdmin}
	t := team.New(team.DefaultName(r.Name))
	log := audit.By(by)
	if by.Kind == principal.KindAnonymous {
		log = audit.By(as(by, u))
	}
	return Signup{
		User: u, PasswordHash: hash, Team: t,
		Entries: []audit.Entry{log.SignedUp(t.ID, u.ID), log.TeamCreated(t.ID, t.Name)},
	}, nil
}

// as is the caller of a request that has just proven to be user.
func as(by principal.Principal, u User) principal.Principal {
	by.Kind, by.UserID, by.UserName, by.Email = principal.KindUser, u.ID, u.Name, u.Email
	return by
}

// Login checks a password and opens a session in the login team. Unknown and
// known addresses cost the same work and the same writes.
func (s *Service) Login(ctx context.Context, by principal.Principal, email, password string) (Auth, error) {
	email, err := NormalizeEmail(email)
	if err != nil {
		return Auth{}, err
	}
	ipKey := ratelimit.IPKey(by.IP)
	if wait := max(s.byIP.Wait(ipKey), s.byAccount.Wait(email)); wait > 0 {
		return Auth{}, errTooManyFailures.After(wait)
	}
	user, found, err := s.store.UserByEmail(ctx, email)
	if err != nil {
		return Auth{}, err
	}
	hash := user.PasswordHash
	if hash == "" {
		hash = s.dummyHash
	}
	ok, outdated, err := s.hasher.Verify(ctx, password, hash)
	if err != nil {
		return Auth{}, err
	}
	active, err := s.loginTeam(ctx, user.ID) // also for nobody, at the same cost
	if err != nil {
		return Auth{}, err
	}
	teamID := id.PlatformTeamID
	if active != nil {
		teamID = active.ID
	}
	if !ok || !found || user.PasswordHash == "" {
		s.byIP.Take(ipKey)
		s.byAccount.Take(email)
		if err := s.store.RecordFailure(ctx, audit.By(by).LoginFailed(teamID, email)); err != nil {
			return Auth{}, err
		}
		return Auth{}, ErrInvalidCredentials
	}
	if !user.IsActive {
		return Auth{}, errDisabled
	}
	newHash := ""
	if outdated {
		if newHash, err = s.hasher.Hash(ctx, password); err != nil {
			return Auth{}, err
		}
	}
	session := Session{ID: id.NewSession(), User: user.ID}
	if active != nil {
		session.Team = &active.ID
	}
	answer, err := s.auth(user.User, active, session)
	if err != nil {
		return Auth{}, err
	}
	entry := audit.By(as(by, user.User)).LoggedIn(teamID, session.ID)
	if err := s.store.CreateSession(ctx, session, by, user.PasswordHash, newHash, entry); err != nil {
		return Auth{}, err
	}
	return answer, nil
}

// loginTeam is the team a login begins in; nil when the user has no living one.
func (s *Service) loginTeam(ctx context.Context, user id.User) (*team.Team, error) {
	return s.store.GetDefaultTeamForUser(ctx, user)
}

func (s *Service) auth(user User, active *team.Team, session Session) (Auth, error) {
	claims := keyring.UserClaims{
		User: user.ID, Session: session.ID, Team: session.Team, Name: user.Name, Email: user.Email, IsAdmin: user.IsAdmin,
	}
	if active != nil {
		claims.Role = string(active.Role)
	}
	token, expires, err := s.signer.SignUser(claims)
	if err != nil {
		return Auth{}, err
	}
	return Auth{Token: token, ExpiresAt: expires, User: user, Team: active}, nil
}

// Logout ends the caller's session; the next request with its token is refused.
func (s *Service) Logout(ctx context.Context, by principal.Principal) error {
	return s.store.EndSession(ctx, by.SessionID, audit.By(by).LoggedOut(by.TeamID, by.SessionID))
}

// Me returns the caller and the active team, nil without one.
func (s *Service) Me(ctx context.Context, by principal.Principal) (User, *team.Team, error) {
	user := User{ID: by.UserID, Email: by.Email, Name: by.UserName, IsAdmin: by.IsAdmin}
	if !by.HasTeam {
		return user, nil, nil
	}
	active, err := s.store.TeamOf(ctx, by.UserID, by.TeamID)
	return user, active, err
}

// AuthenticateUser finds who a verified token stands for, by what the database
// says now.
func (s *Service) AuthenticateUser(ctx context.Context, claims keyring.UserClaims) (principal.Principal, error) {
	p, err := s.BySession(ctx, claims.Session)
	if err == nil && p.UserID != claims.User {
		return principal.Principal{}, errSessionEnded
	}
	return p, err
}

// BySession finds who a session stands for, by what the database says now.
func (s *Service) BySession(ctx context.Context, session id.Session) (principal.Principal, error) {
	p, found, err := s.store.PrincipalOf(ctx, session)
	if err == nil && !found {
		err = errSessionEnded
	}
	return p, err
}

// LivingSessions are those of the given ones that still stand for somebody, and
// what their rights rest on.
func (s *Service) LivingSessions(ctx context.Context, sessions []id.Session) (map[id.Session]principal.Standing, error) {
	return s.store.LivingSessions(ctx, sessions)
}

// EnsureAdmin makes sure that an active platform admin with this address and
// this password exists; it makes the account with a team when there is none. It
// is the operator's act, not a sign-up: the policy does not count, and an
// account that somebody else made under the address is taken from them. A
// password that is replaced ends the account's sessions. Repeating it changes
// nothing.
func (s *Service) EnsureAdmin(ctx context.Context, email, password string) error {
	by := audit.By(principal.System("operator"))
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
			newHash, err := s.unlessCurrent(ctx, user.PasswordHash, r.Password)
			if err != nil {
				return err
			}
			return s.store.MakeAdmin(ctx, user.ID, newHash, by.AdminGranted(user.ID, user.Email), by.PasswordReset(user.ID, user.Email))
		}
		account, err := s.newAccount(ctx, principal.System("operator"), r, true)
		if err != nil {
			return err
		}
		account.Entries = append(account.Entries, by.AdminGranted(account.User.ID, account.User.Email))
		if err = s.store.CreateAccount(ctx, account); !errs.Is(err, ErrEmailTaken.Reason) {
			return err
		}
	}
	return ErrEmailTaken
}

// unlessCurrent is the hash of a password, or empty when the stored one is of
// the same password.
func (s *Service) unlessCurrent(ctx context.Context, stored, password string) (string, error) {
	if stored != "" {
		ok, _, err := s.hasher.Verify(ctx, password, stored)
		if err != nil || ok {
			return "", err
		}
	}
	return s.hasher.Hash(ctx, password)
}

// keepSessions is how long a session is remembered after its end.
const keepSessions = 30 * 24 * time.Hour

// Sweep forgets sessions that ended long ago.
func (s *Service) Sweep(ctx context.Context) error {
	for {
		n, err := s.store.DeleteOldSessions(ctx, keepSessions)
		if err != nil || n == 0 {
			return err
		}
	}
}
