package account

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/mail"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/ratelimit"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/logkey"
)

// LinkKind is what a one-time link is for.
type LinkKind string

// The kinds of links.
const (
	LinkPassword LinkKind = "password_reset"
	LinkEmail    LinkKind = "email_proof"
)

// LinkLifetime is how long a link works.
const LinkLifetime = time.Hour

// Link is a one-time link as it is kept.
type Link struct {
	Kind  LinkKind
	Hash  []byte
	User  id.User
	Email string // it works while this is the user's address
}

// OneTimeLink is a link as it is handed over, once.
type OneTimeLink struct {
	URL       string    `json:"url"`
	ExpiresAt time.Time `json:"expires_at"`
}

// ErrInvalidLink is the answer to every link that does not work.
var ErrInvalidLink = errs.Invalid("invalid_link", "This link is wrong, was used already or has expired. Ask for a new one.")

var (
	errMailBusy  = errs.Unavailable("busy", "Too many letters are waiting to be sent. Try again.").After(30 * time.Second)
	errMailTried = []time.Duration{2 * time.Second, 10 * time.Second} // pauses between attempts
)

const (
	linkSecret   = 32 // bytes
	maxErrands   = 256
	errandRunner = 4
)

// newSecret makes a text that nobody can guess.
func newSecret() string {
	var b [linkSecret]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// urlOf is where a link leads. The secret is in the fragment, which browsers
// send to nobody.
func (s *Service) urlOf(kind LinkKind, secret string) string {
	if kind == LinkEmail {
		return s.url + "/login/email#token=" + secret
	}
	return s.url + "/reset#token=" + secret
}

// errand is a letter that was asked for. Nothing is looked up before the answer
// is given, so that neither its bytes nor its time tell who has an account.
type errand struct {
	kind  LinkKind
	email string
	by    principal.Principal
}

// RequestPasswordReset has a link mailed to the account with an address, if
// there is one and there is mail.
func (s *Service) RequestPasswordReset(_ context.Context, by principal.Principal, email string) error {
	email, err := NormalizeEmail(email)
	if err != nil {
		return err
	}
	return s.send(errand{kind: LinkPassword, email: email, by: by})
}

// RequestEmailProof has a link mailed to the caller's address, if there is mail.
func (s *Service) RequestEmailProof(_ context.Context, by principal.Principal) error {
	return s.send(errand{kind: LinkEmail, email: by.Email, by: by})
}

func (s *Service) send(e errand) error {
	if wait := s.askedByIP.Take(ratelimit.IPKey(e.by.IP)); wait > 0 {
		return errTooMany.After(wait)
	}
	if wait := s.askedByOne.Take(e.email); wait > 0 {
		return errTooMany.After(wait)
	}
	if s.mailer == nil {
		return nil
	}
	select {
	case s.errands <- e:
		return nil
	default:
		return errMailBusy
	}
}

// Run sends letters until ctx ends. What waits then is dropped: whoever misses
// a letter asks again.
func (s *Service) Run(ctx context.Context) error {
	done := make(chan struct{})
	for range errandRunner {
		go func() {
			defer func() { done <- struct{}{} }()
			for {
				select {
				case <-ctx.Done():
					return
				case e := <-s.errands:
					if err := s.run(ctx, e); err != nil && ctx.Err() == nil {
						s.log.WarnContext(ctx, "a letter was not sent", "kind", string(e.kind), logkey.RequestID, e.by.RequestID, logkey.Error, err)
					}
				}
			}
		}()
	}
	for range errandRunner {
		<-done
	}
	return nil
}

// run makes the link and mails it. The link is made first: a letter never holds
// one that does not work.
func (s *Service) run(ctx context.Context, e errand) error {
	user, found, err := s.store.UserByEmail(ctx, e.email)
	if err != nil || !found || !user.IsActive {
		return err
	}
	active, err := s.store.GetDefaultTeamForUser(ctx, user.ID)
	if err != nil {
		return err
	}
	secret := newSecret()
	link := Link{Kind: e.kind, Hash: hashOf(secret), User: user.ID, Email: user.Email}
	log := audit.By(e.by)
	letter, entry := s.passwordLetter(user.User, secret), log.PasswordLinkSent(auditTeam(active), user.ID)
	if e.kind == LinkEmail {
		letter, entry = s.emailLetter(user.User, secret), log.EmailLinkSent(auditTeam(active), user.ID)
	}
	if _, err := s.store.CreateLink(ctx, link, nil, entry); err != nil {
		return err
	}
	for _, pause := range errMailTried {
		if err = s.mailer.Send(ctx, letter); err == nil {
			return nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
	}
	return s.mailer.Send(ctx, letter)
}

func (s *Service) passwordLetter(u User, secret string) mail.Message {
	return mail.Message{To: u.Email, Subject: "Set a new password for Skerry", Text: "Hello " + u.Name + ",\n\n" +
		"somebody asked for a new password for your account at " + s.url + ".\nIf it was you, set one here within an hour:\n\n" +
		s.urlOf(LinkPassword, secret) + "\n\nIf it was not you, do nothing: your password stays as it is.\n"}
}

func (s *Service) emailLetter(u User, secret string) mail.Message {
	return mail.Message{To: u.Email, Subject: "Is this your address?", Text: "Hello " + u.Name + ",\n\n" +
		"an account at " + s.url + " goes by this address.\nIf it is yours, say so here within an hour:\n\n" +
		s.urlOf(LinkEmail, secret) + "\n\nIf it is not yours, do nothing.\n"}
}

// ConfirmPasswordReset sets the password of whom a link was made for and ends
// all sessions.
func (s *Service) ConfirmPasswordReset(ctx context.Context, by principal.Principal, secret, password string) error {
	if err := CheckPassword(password); err != nil {
		return err
	}
	user, active, err := s.linkOf(ctx, LinkPassword, secret)
	if err != nil {
		return err
	}
	hash, err := s.hasher.Hash(ctx, password)
	if err != nil {
		return err
	}
	return s.store.UsePasswordLink(ctx, hashOf(secret), user.ID, hash, audit.By(as(by, user)).PasswordSetByLink(active, user.ID))
}

// ConfirmEmail proves the address that a link was mailed to.
func (s *Service) ConfirmEmail(ctx context.Context, by principal.Principal, secret string) error {
	user, active, err := s.linkOf(ctx, LinkEmail, secret)
	if err != nil {
		return err
	}
	return s.store.UseEmailLink(ctx, hashOf(secret), user.ID, audit.By(as(by, user)).EmailProven(active, user.ID))
}

// linkOf finds whose a link is, and in which trail its use belongs.
func (s *Service) linkOf(ctx context.Context, kind LinkKind, secret string) (User, id.Team, error) {
	user, found, err := s.store.FindLink(ctx, kind, hashOf(secret))
	if err != nil {
		return User{}, id.Team{}, err
	}
	if !found {
		return User{}, id.Team{}, ErrInvalidLink
	}
	active, err := s.store.GetDefaultTeamForUser(ctx, user.ID)
	return user, auditTeam(active), err
}
