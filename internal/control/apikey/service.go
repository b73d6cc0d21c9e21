package apikey

import (
	"context"
	"log/slog"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/logkey"
	"skerry.dev/skerry/internal/kernel/observe"
	"skerry.dev/skerry/internal/kernel/page"
)

// Store keeps keys. Each verb is one transaction.
type Store interface {
	// Create stores a key by its hash and returns it with the database's time,
	// within the team's quota and while its creator is in the team. It takes part
	// in idempotency with Created{key, secret} as receipt.
	Create(ctx context.Context, key Key, hash []byte, secret string, entry audit.Entry) (Key, error)
	// List returns a page of a team's keys that are not revoked, newest first.
	List(ctx context.Context, team id.Team, p page.Request) (page.Page[Key], error)
	// Revoke ends a key of the team; ErrNotFound when there is none. It asks may
	// with the role that the user has in the team at that moment, and with the
	// key.
	Revoke(ctx context.Context, team id.Team, by id.User, key id.APIKey, may func(role principal.Role, key Key) error, entry func(Key) audit.Entry) error
	// Authenticate finds a living key of a living team by its hash. Stale tells
	// that its last use should be stored.
	Authenticate(ctx context.Context, hash []byte) (key Key, stale, found bool, err error)
	// Living finds a key that Authenticate would find, by its id.
	Living(ctx context.Context, key id.APIKey) (k Key, found bool, err error)
	// LivingKeys are those of the given keys that Authenticate would find.
	LivingKeys(ctx context.Context, keys []id.APIKey) ([]id.APIKey, error)
	// Touch stores that a key is in use, at most once a minute.
	Touch(ctx context.Context, key id.APIKey) error
}

// What callers match on.
var (
	ErrNotFound   = errs.NotFound("api_key_not_found", "There is no such API key in your team.")
	errInvalidKey = errs.Unauthenticated("invalid_api_key", "This API key is unknown, revoked or expired. Make a new one.")
	errNotYours   = errs.Forbidden("role_required", "Only the key's creator, an admin or the owner of the team may revoke it.")
)

// touchQueue bounds how many uses wait to be stored; more are dropped, and the
// next use tries again.
const touchQueue = 256

// Service is the use cases of API keys.
type Service struct {
	store   Store
	clock   clock.Clock
	log     *slog.Logger
	touches chan id.APIKey
}

// NewService returns the service. Run must run for last uses to be stored.
func NewService(store Store, clock clock.Clock, log *slog.Logger) *Service {
	return &Service{store: store, clock: clock, log: log, touches: make(chan id.APIKey, touchQueue)}
}

// Create makes a key for the caller's team.
func (s *Service) Create(ctx context.Context, by principal.Principal, r CreateRequest) (Created, error) {
	team, err := by.Team()
	if err != nil {
		return Created{}, err
	}
	r, scopes, err := r.normalize(s.clock.Now())
	if err != nil {
		return Created{}, err
	}
	digits := newSecret()
	key := Key{
		ID: id.NewAPIKey(), TeamID: team, Name: r.Name, Prefix: prefix + digits[:shownDigits], Scopes: scopes,
		CreatedBy: by.UserID, Creator: by.UserName,
	}
	if r.ExpiresAt != nil {
		at := r.ExpiresAt.UTC().Truncate(time.Microsecond)
		key.ExpiresAt = &at
	}
	secret := prefix + digits
	key, err = s.store.Create(ctx, key, hashOf(digits), secret, audit.By(by).APIKeyCreated(team, key.ID, key.Name))
	if err != nil {
		return Created{}, err
	}
	return Created{Key: key, Secret: secret}, nil
}

// List returns a page of the keys of the caller's team.
func (s *Service) List(ctx context.Context, by principal.Principal, p page.Request) (page.Page[Key], error) {
	team, err := by.Team()
	if err != nil {
		return page.Page[Key]{}, err
	}
	return s.store.List(ctx, team, p)
}

// Revoke ends a key: the next request with it is refused.
func (s *Service) Revoke(ctx context.Context, by principal.Principal, key id.APIKey) error {
	team, err := by.Team()
	if err != nil {
		return err
	}
	may := func(role principal.Role, k Key) error {
		if role == principal.RoleMember && k.CreatedBy != by.UserID {
			return errNotYours
		}
		return nil
	}
	return s.store.Revoke(ctx, team, by.UserID, key, may, func(k Key) audit.Entry { return audit.By(by).APIKeyRevoked(team, key, k.Name) })
}

// AuthenticateKey finds who a presented key stands for, by what the database
// says now.
func (s *Service) AuthenticateKey(ctx context.Context, presented string) (principal.Principal, error) {
	digits, ok := digitsOf(presented)
	if !ok {
		return principal.Principal{}, errInvalidKey
	}
	key, stale, found, err := s.store.Authenticate(ctx, hashOf(digits))
	if err != nil {
		return principal.Principal{}, err
	}
	if !found {
		return principal.Principal{}, errInvalidKey
	}
	if stale {
		select {
		case s.touches <- key.ID:
		default:
		}
	}
	return key.principal(), nil
}

// ByKey finds who a key stands for, by what the database says now.
func (s *Service) ByKey(ctx context.Context, key id.APIKey) (principal.Principal, error) {
	k, found, err := s.store.Living(ctx, key)
	if err == nil && !found {
		err = errInvalidKey
	}
	return k.principal(), err
}

func (k Key) principal() principal.Principal {
	return principal.Principal{
		Kind: principal.KindAPIKey, APIKeyID: k.ID, APIKeyName: k.Name, Scopes: k.Scopes, HasTeam: true, TeamID: k.TeamID,
	}
}

// LivingKeys are those of the given keys that still work.
func (s *Service) LivingKeys(ctx context.Context, keys []id.APIKey) ([]id.APIKey, error) {
	return s.store.LivingKeys(ctx, keys)
}

// Run stores last uses, beside the requests, until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	for {
		select {
		case key := <-s.touches:
			if err := observe.Round(ctx, "key_uses", func(ctx context.Context) error { return s.store.Touch(ctx, key) }); err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "store an API key's last use", logkey.APIKeyID, key.String(), logkey.Error, err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}
