package account

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/mail"
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
	ErrUserNotFound       = errs.NotFound("user_not_found", "There is no such user.")
	ErrDisabled           = errs.Forbidden("account_disabled", "This account is disabled. Ask an admin of this Skerry.")
	ErrSessionEnded       = errs.Unauthenticated("session_ended", "This session has ended. Log in again.")
	errTooManyFailures    = errs.New(errs.CodeExhausted, "too_many_failures", "Too many wrong logins. Wait as Retry-After says.")
	errTooMany            = errs.Exhausted("rate_limited", "Too many requests. Wait as Retry-After says.")

	// ErrCredentialsMoved is a store's answer when a proof was overtaken: the
	// password was changed, or the user disabled, after it was checked.
	ErrCredentialsMoved = errs.Conflict("credentials_changed", "The password was changed just now. Try again.")
)

// The limits: how many wrong logins an address and an account may see, and how
// many letters and links may be asked for.
var (
	wrongLogins  = ratelimit.Rate{Burst: 10, Per: time.Minute}
	asksOfIP     = ratelimit.Rate{Burst: 20, Per: time.Hour}
	asksOfPerson = ratelimit.Rate{Burst: 5, Per: time.Hour}
	polls        = ratelimit.Rate{Burst: 1, Per: DevicePollInterval - time.Second}
)

// limiterKeys bounds the memory of each counter.
const limiterKeys = 50_000

// Config is what the service is made of.
type Config struct {
	Store  Store
	Signer Signer
	Hasher *Hasher
	Signup SignupPolicy
	Clock  clock.Clock
	Log    *slog.Logger
	// URL is where people reach Skerry; links and the cookie's rules follow it.
	URL string
	// Mailer is nil where no mail is sent.
	Mailer mail.Mailer
	// Invited returns the address that an invitation is for, "" when it does not
	// name one or does not work; nil where nobody is invited.
	Invited func(ctx context.Context, token string) (email string, err error)
}

// Service is the use cases of accounts.
type Service struct {
	store     Store
	signer    Signer
	hasher    *Hasher
	policy    SignupPolicy
	log       *slog.Logger
	url       string
	mailer    mail.Mailer
	invited   func(context.Context, string) (string, error)
	dummyHash string // what unknown accounts are checked against
	errands   chan errand

	byIP, byAccount       *ratelimit.Limiter // wrong logins
	askedByIP, askedByOne *ratelimit.Limiter // letters
	codesByUser           *ratelimit.Limiter // user codes that were not there
	pollsByDevice         *ratelimit.Limiter
}

// NewService returns the service. It computes one hash.
func NewService(ctx context.Context, c Config) (*Service, error) {
	dummy, err := c.Hasher.Hash(ctx, rand.Text())
	if err != nil {
		return nil, fmt.Errorf("make the dummy hash: %w", err)
	}
	limiter := func(rate ratelimit.Rate) *ratelimit.Limiter { return ratelimit.New(c.Clock, rate, limiterKeys) }
	return &Service{
		store: c.Store, signer: c.Signer, hasher: c.Hasher, policy: c.Signup, log: c.Log, url: strings.TrimRight(c.URL, "/"),
		invited: c.Invited, mailer: c.Mailer, dummyHash: dummy, errands: make(chan errand, maxErrands),
		byIP: limiter(wrongLogins), byAccount: limiter(wrongLogins),
		askedByIP: limiter(asksOfIP), askedByOne: limiter(asksOfPerson),
		codesByUser: limiter(wrongLogins), pollsByDevice: limiter(polls),
	}, nil
}

// URL is where people reach Skerry, without a slash at its end.
func (s *Service) URL() string { return s.url }

// Signup makes a user with a team of its own and logs in.
func (s *Service) Signup(ctx context.Context, by principal.Principal, r SignupRequest) (Auth, error) {
	r, err := r.normalize()
	if err != nil {
		return Auth{}, err
	}
	if err := s.admit(ctx, r); err != nil {
		return Auth{}, err
	}
	hash, err := s.hasher.Hash(ctx, r.Password)
	if err != nil {
		return Auth{}, err
	}
	user := User{ID: id.NewUser(), Email: r.Email, Name: r.Name}
	made := newAccount(audit.By(as(by, user)), user, hash)
	login, err := s.login(by, user, &made.Team)
	if err != nil {
		return Auth{}, err
	}
	made.Session, made.Receipt, made.Entries = &login.Session, login.Answer, append(made.Entries, login.Entry)
	if err := s.store.CreateAccount(ctx, made); err != nil {
		return Auth{}, err
	}
	return made.Receipt, nil
}

// admit decides whether an address may sign up: by the policy, or because
// somebody here invited it by name.
func (s *Service) admit(ctx context.Context, r SignupRequest) error {
	refused := s.policy.allow(r.Email)
	if refused == nil || r.Invitation == "" || s.invited == nil {
		return refused
	}
	email, err := s.invited(ctx, r.Invitation)
	if err == nil && email != r.Email {
		err = refused
	}
	return err
}

// newAccount is what signing up makes, but for the session.
func newAccount(log audit.AuditLogger, u User, hash string) Signup {
	t := team.New(team.DefaultName(u.Name))
	return Signup{
		User: u, PasswordHash: hash, Team: t,
		Entries: []audit.Entry{log.SignedUp(t.ID, u.ID), log.TeamCreated(t.ID, t.Name)},
	}
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
	for range 2 { // once more when the hash was renewed by another login meanwhile
		auth, err := s.loginOnce(ctx, by, email, password)
		if !errs.Is(err, ErrCredentialsMoved.Reason) {
			return auth, err
		}
	}
	return Auth{}, ErrInvalidCredentials
}

func (s *Service) loginOnce(ctx context.Context, by principal.Principal, email, password string) (Auth, error) {
	ipKey := ratelimit.IPKey(by.IP)
	// The account's token is taken before the hash and given back to who was not
	// wrong: guesses side by side are counted like those one after the other.
	if wait := s.byIP.Wait(ipKey); wait > 0 {
		return Auth{}, errTooManyFailures.After(wait)
	}
	if wait := s.byAccount.Take(email); wait > 0 {
		return Auth{}, errTooManyFailures.After(wait)
	}
	wrong := false
	defer func() {
		if !wrong {
			s.byAccount.Give(email)
		}
	}()
	user, found, err := s.store.UserByEmail(ctx, email)
	if err != nil {
		return Auth{}, err
	}
	ok, outdated, err := s.verify(ctx, user, password)
	if err != nil {
		return Auth{}, err
	}
	active, err := s.store.GetDefaultTeamForUser(ctx, user.ID) // also for nobody, at the same cost
	if err != nil {
		return Auth{}, err
	}
	if !ok || !found {
		wrong = true
		s.byIP.Take(ipKey)
		if err := s.store.RecordFailure(ctx, audit.By(by).LoginFailed(auditTeam(active), email)); err != nil {
			return Auth{}, err
		}
		return Auth{}, ErrInvalidCredentials
	}
	if !user.IsActive {
		return Auth{}, ErrDisabled
	}
	newHash := ""
	if outdated {
		if newHash, err = s.hasher.Hash(ctx, password); err != nil {
			return Auth{}, err
		}
	}
	login, err := s.login(by, user.User, active)
	if err != nil {
		return Auth{}, err
	}
	if err := s.store.CreateSession(ctx, login, user.PasswordHash, newHash); err != nil {
		return Auth{}, err
	}
	return login.Answer, nil
}

// verify compares a password with a user's; whoever has none, or does not
// exist, costs the same and is never right.
func (s *Service) verify(ctx context.Context, user Stored, password string) (ok, outdated bool, err error) {
	hash := user.PasswordHash
	if hash == "" {
		hash = s.dummyHash
	}
	ok, outdated, err = s.hasher.Verify(ctx, password, hash)
	return ok && user.PasswordHash != "", outdated, err
}

// auditTeam is the team whose trail shows what a user does: the active one, else
// the platform's.
func auditTeam(active *team.Team) id.Team {
	if active == nil {
		return id.PlatformTeamID
	}
	return active.ID
}

// prepareLogin is a login of a user who has proven who they are in some other
// way than by password, in the login team, for a store verb to write.
func (s *Service) prepareLogin(ctx context.Context, by principal.Principal, user User) (Login, error) {
	active, err := s.store.GetDefaultTeamForUser(ctx, user.ID)
	if err != nil {
		return Login{}, err
	}
	return s.login(by, user, active)
}

func (s *Service) login(by principal.Principal, user User, active *team.Team) (Login, error) {
	session := Session{ID: id.NewSession(), User: user.ID}
	if active != nil {
		session.Team = &active.ID
	}
	answer, err := s.auth(user, active, session.ID)
	if err != nil {
		return Login{}, err
	}
	answer.Refresh = s.refreshToken(session.ID, 1)
	session.RefreshHash = hashOf(answer.Refresh)
	return Login{Session: session, By: by, Entry: audit.By(as(by, user)).LoggedIn(auditTeam(active), session.ID), Answer: answer}, nil
}

// auth signs a token; the refresh token is added by who knows it.
func (s *Service) auth(user User, active *team.Team, session id.Session) (Auth, error) {
	claims := keyring.UserClaims{User: user.ID, Session: session, Name: user.Name, Email: user.Email, IsAdmin: user.IsAdmin}
	if active != nil {
		claims.Team, claims.Role = &active.ID, string(active.Role)
	}
	token, expires, err := s.signer.SignUser(claims)
	if err != nil {
		return Auth{}, err
	}
	return Auth{Token: token, ExpiresAt: expires, User: user, Team: active}, nil
}

// AuthenticateUser finds who a verified token stands for, by what the database
// says now.
func (s *Service) AuthenticateUser(ctx context.Context, claims keyring.UserClaims) (principal.Principal, error) {
	p, err := s.BySession(ctx, claims.Session)
	if err == nil && p.UserID != claims.User {
		return principal.Principal{}, ErrSessionEnded
	}
	return p, err
}

// BySession finds who a session stands for, by what the database says now.
func (s *Service) BySession(ctx context.Context, session id.Session) (principal.Principal, error) {
	p, found, err := s.store.PrincipalOf(ctx, session)
	if err == nil && !found {
		err = ErrSessionEnded
	}
	return p, err
}

// LivingSessions are those of the given ones that still stand for somebody, and
// what their rights rest on.
func (s *Service) LivingSessions(ctx context.Context, sessions []id.Session) (map[id.Session]principal.Standing, error) {
	return s.store.LivingSessions(ctx, sessions)
}

// keepSessions is how long a session is remembered after its end.
const keepSessions = 30 * 24 * time.Hour

// Sweep forgets sessions that ended long ago, and links and device logins that
// nobody can use any more.
func (s *Service) Sweep(ctx context.Context) error {
	for {
		n, err := s.store.DeleteOld(ctx, keepSessions)
		if err != nil || n == 0 {
			return err
		}
	}
}
