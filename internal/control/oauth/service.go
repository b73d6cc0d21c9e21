package oauth

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/logkey"
	"skerry.dev/skerry/internal/kernel/observe"
)

const (
	// AttemptLifetime is how long a person may take at the provider.
	AttemptLifetime = 10 * time.Minute
	pruneEvery      = 10 * time.Minute
)

// Service is the use cases of the room.
type Service struct {
	store     Store
	accounts  Accounts
	providers []Provider
	url       string // the platform's own, without a slash at the end
	log       *slog.Logger
}

// NewService returns the service; providers in the order in which they are
// shown.
func NewService(store Store, accounts Accounts, providers []Provider, url string, log *slog.Logger) *Service {
	return &Service{store: store, accounts: accounts, providers: providers, url: strings.TrimRight(url, "/"), log: log}
}

// Providers are those that are configured.
func (s *Service) Providers() []Provider { return slices.Clone(s.providers) }

func (s *Service) provider(name string) (Provider, error) {
	for _, p := range s.providers {
		if p.ID() == name {
			return p, nil
		}
	}
	return nil, ErrUnknownProvider
}

// Start begins a login, or with link the linking of an identity to that user,
// which its session must live to see. It returns the address the browser goes to, and the state that the browser must
// bring back in a cookie as well.
func (s *Service) Start(ctx context.Context, provider string, link *principal.Principal, userCode string) (url, state string, err error) {
	p, err := s.provider(provider)
	if err != nil {
		return "", "", err
	}
	a := Attempt{Redirect: s.redirect(provider), State: rand.Text() + rand.Text(), Nonce: rand.Text(), Verifier: rand.Text() + rand.Text()}
	var linkUser *id.User
	if link != nil {
		linkUser, a.Session = &link.UserID, &link.SessionID
	}
	plain, err := json.Marshal(a)
	if err != nil {
		return "", "", err
	}
	if url, err = p.AuthURL(ctx, a); err != nil {
		return "", "", s.unreachable(ctx, provider, err)
	}
	pending := Pending{Provider: provider, Sealed: keyring.SealWith(sealKey(a.State), plain, []byte(provider)), LinkUser: linkUser, UserCode: userCode}
	if err := s.store.Begin(ctx, stateHash(a.State), pending, AttemptLifetime); err != nil {
		return "", "", err
	}
	return url, a.State, nil
}

func (s *Service) redirect(provider string) string {
	return s.url + "/v1/auth/oauth/" + provider + "/callback"
}

func (s *Service) unreachable(ctx context.Context, provider string, err error) error {
	s.log.WarnContext(ctx, "a login provider does not answer as it should", "provider", provider, logkey.Error, err)
	return errs.Unavailable("provider_unavailable", "The provider cannot be reached. Try again, or log in another way.").Because(err)
}

// Callback is what the browser brings back from the provider.
type Callback struct {
	Provider string
	State    string
	Cookie   string // the state, from the browser that began
	Code     string
	Error    string // why there is no code
}

// Outcome is how an attempt ended.
type Outcome struct {
	// Auth is the new session; nil when an identity was linked.
	Auth *account.Auth
	// UserCode is the device login to go on to; "" for none.
	UserCode string
}

// Finish ends an attempt: it logs in, after linking or making an account where
// that is right, or links.
func (s *Service) Finish(ctx context.Context, by principal.Principal, c Callback) (Outcome, error) {
	p, err := s.provider(c.Provider)
	if err != nil {
		return Outcome{}, err
	}
	if c.State == "" || subtle.ConstantTimeCompare([]byte(c.State), []byte(c.Cookie)) != 1 {
		return Outcome{}, errState
	}
	pending, found, err := s.store.Spend(ctx, stateHash(c.State))
	if err != nil {
		return Outcome{}, err
	}
	if !found || pending.Provider != c.Provider {
		return Outcome{}, errState
	}
	if c.Error != "" || c.Code == "" {
		return Outcome{}, errRefused.With("provider_error", clean(c.Error))
	}
	a := Attempt{Redirect: s.redirect(c.Provider), State: c.State}
	plain, err := keyring.OpenWith(sealKey(c.State), pending.Sealed, []byte(c.Provider))
	if err != nil {
		return Outcome{}, err
	}
	if err := json.Unmarshal(plain, &a); err != nil {
		return Outcome{}, err
	}
	claim, err := p.Exchange(ctx, a, c.Code)
	if err != nil {
		s.log.WarnContext(ctx, "a login at a provider could not be verified", "provider", c.Provider, logkey.Error, err)
		return Outcome{}, errExchange.Because(err)
	}
	if claim.Subject == "" || len(claim.Subject) > 255 {
		return Outcome{}, errExchange
	}
	if email, err := account.NormalizeEmail(claim.Email); err == nil {
		claim.Email = email
	} else {
		claim.Email, claim.EmailVerified = "", false
	}
	if pending.LinkUser != nil {
		if a.Session == nil {
			return Outcome{}, errState
		}
		return Outcome{}, s.link(ctx, by, *pending.LinkUser, a.Session, c.Provider, claim)
	}
	user, err := s.user(ctx, by, c.Provider, claim)
	if err != nil {
		return Outcome{}, err
	}
	auth, err := s.accounts.OpenSession(ctx, by, user)
	if err != nil {
		return Outcome{}, err
	}
	return Outcome{Auth: &auth, UserCode: pending.UserCode}, nil
}

// user finds the account that a claim opens, links it or makes it.
func (s *Service) user(ctx context.Context, by principal.Principal, provider string, claim Claim) (id.User, error) {
	user, found, err := s.store.UserOf(ctx, provider, claim)
	if err != nil || found {
		return user, err
	}
	if claim.Email == "" || !claim.EmailVerified {
		return id.User{}, errUnverified
	}
	for range 2 { // once more when the account was made meanwhile
		user, proven, found, err := s.accounts.ByEmail(ctx, claim.Email)
		switch {
		case err != nil:
			return id.User{}, err
		case found && !proven:
			return id.User{}, errLinkRequired
		case found:
			return user, s.link(ctx, by, user, nil, provider, claim)
		}
		user, err = s.accounts.SignupProven(ctx, by, claim.Email, displayName(claim))
		if errs.Is(err, account.ErrEmailTaken.Reason) {
			continue
		}
		if err != nil {
			return id.User{}, err
		}
		// A process that dies here leaves a proven account, which the next login links.
		return user, s.link(ctx, by, user, nil, provider, claim)
	}
	return id.User{}, account.ErrEmailTaken
}

func (s *Service) link(ctx context.Context, by principal.Principal, user id.User, in *id.Session, provider string, claim Claim) error {
	if by.Kind != principal.KindUser { // who just proved to be the user
		by.Kind, by.UserID, by.UserName = principal.KindUser, user, clean(claim.Name)
	}
	return s.store.Link(ctx, user, in, provider, claim, audit.By(by).IdentityLinked(user, provider))
}

// displayName is the provider's, cut to what a name may be.
func displayName(c Claim) string {
	local, _, _ := strings.Cut(c.Email, "@")
	return cmp.Or(clean(c.Name), clean(local), "User")
}

// clean makes a foreign text fit for a name: printable, and at most 100
// characters.
func clean(s string) string {
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "")))
	if runes := []rune(s); len(runes) > 100 {
		s = strings.TrimSpace(string(runes[:100]))
	}
	return s
}

// Identities lists those of the caller.
func (s *Service) Identities(ctx context.Context, by principal.Principal) ([]Identity, error) {
	return s.store.Identities(ctx, by.UserID)
}

// Unlink removes one of the caller's.
func (s *Service) Unlink(ctx context.Context, by principal.Principal, provider string) error {
	return s.store.Unlink(ctx, by.UserID, provider, audit.By(by).IdentityUnlinked(by.UserID, provider))
}

// Run removes expired attempts until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	ticker := time.NewTicker(pruneEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := observe.Round(ctx, "login_retention", s.store.Prune); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "cannot remove expired logins", logkey.Error, err)
		}
	}
}

func stateHash(state string) []byte {
	sum := sha256.Sum256([]byte("state " + state))
	return sum[:]
}

// sealKey is another hash than the one that is stored.
func sealKey(state string) []byte {
	sum := sha256.Sum256([]byte("seal " + state))
	return sum[:]
}
