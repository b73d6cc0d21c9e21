package team

import (
	"context"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/ratelimit"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/logkey"
	"skerry.dev/skerry/internal/kernel/page"
)

// lookups is how often one user may look for others by their addresses: fast
// typing passes, going through a list of customers does not.
var lookups = ratelimit.Rate{Burst: 60, Per: time.Minute}

const (
	limiterKeys = 50_000
	minSearch   = 3
	maxMatches  = 10
	slugTries   = 5
)

// Service is the use cases of teams.
type Service struct {
	store     Store
	sandboxes Sandboxes
	// normalize brings an address into the form accounts have it in.
	normalize func(email string) (string, error)
	url       string
	lookups   *ratelimit.Limiter
	log       *slog.Logger
}

// NewService makes the room. url is where people reach Skerry: invitations are
// links to it.
func NewService(store Store, sandboxes Sandboxes, normalize func(string) (string, error), url string, clock clock.Clock, log *slog.Logger) *Service {
	return &Service{
		store: store, sandboxes: sandboxes, normalize: normalize, url: strings.TrimRight(url, "/"),
		lookups: ratelimit.New(clock, lookups, limiterKeys), log: log,
	}
}

var (
	errPeopleOnly  = errs.Forbidden("session_required", "Teams are managed by people: log in instead of using a key.")
	errTooManyLook = errs.Exhausted("rate_limited", "Too many searches. Wait as Retry-After says.")
)

// change is a change that a person asks for.
func change(by principal.Principal, team id.Team, allow Guard) (Change, error) {
	if by.Kind != principal.KindUser {
		return Change{}, errPeopleOnly
	}
	return Change{Team: team, Actor: by.UserID, Allow: allow}, nil
}

// List returns the caller's teams in the order of joining.
func (s *Service) List(ctx context.Context, by principal.Principal) ([]Team, error) {
	if by.Kind != principal.KindUser {
		return nil, errPeopleOnly
	}
	return s.store.ListTeams(ctx, by.UserID)
}

// GetBYOCTeams returns the living teams that may bring hosts of their own.
func (s *Service) GetBYOCTeams(ctx context.Context) ([]Team, error) { return s.store.GetBYOCTeams(ctx) }

// Create makes a team that the caller owns. The active team stays what it was.
func (s *Service) Create(ctx context.Context, by principal.Principal, name string) (Team, error) {
	if by.Kind != principal.KindUser {
		return Team{}, errPeopleOnly
	}
	name, err := cleanName(name)
	if err != nil {
		return Team{}, err
	}
	for try := 1; ; try++ {
		t := New(name)
		made, err := s.store.Create(ctx, by.UserID, t, audit.By(by).TeamCreated(t.ID, t.Name))
		if try == slugTries || !errs.Is(err, ErrSlugTaken.Reason) {
			return made, err
		}
	}
}

// Get returns one of the caller's teams with its first members.
func (s *Service) Get(ctx context.Context, by principal.Principal, team id.Team) (Team, []Member, error) {
	t, err := s.store.Get(ctx, by.UserID, team)
	if err != nil {
		return Team{}, nil, err
	}
	members, err := s.store.ListMembers(ctx, by.UserID, team, page.Request{Limit: MaxShown})
	return t, members.Items, err
}

// Rename gives a team another name; owner and admins may.
func (s *Service) Rename(ctx context.Context, by principal.Principal, team id.Team, name string) (Team, error) {
	c, err := change(by, team, manages)
	if err != nil {
		return Team{}, err
	}
	if name, err = cleanName(name); err != nil {
		return Team{}, err
	}
	return s.store.Rename(ctx, c, name, func(before Team) audit.Entry {
		return audit.By(by).TeamRenamed(team, before.Name, name)
	})
}

// Delete ends a team for good; its owner may. From the commit on nobody acts
// for it. Its sandboxes are ended then, those on hosts out of reach when the
// hosts are back; if this server dies in between, any other goes on with it.
func (s *Service) Delete(ctx context.Context, by principal.Principal, team id.Team) error {
	c, err := change(by, team, owns)
	if err != nil {
		return err
	}
	err = s.store.Delete(ctx, c, func(t Team, keys, invitations int64) audit.Entry {
		return audit.By(by).TeamDeleted(team, t.Name, keys, invitations)
	})
	if err != nil {
		return err
	}
	if err := s.endLeft(ctx, &team); err != nil {
		s.log.WarnContext(ctx, "the sweep has to end a deleted team's sandboxes", logkey.TeamID, team.String(), logkey.Error, err)
	}
	return nil
}

// Transfer hands a team over to another member; its owner may, and is an admin
// afterwards.
func (s *Service) Transfer(ctx context.Context, by principal.Principal, team id.Team, to id.User) (Team, error) {
	c, err := change(by, team, handsOver)
	if err != nil {
		return Team{}, err
	}
	return s.store.Transfer(ctx, c, to, func(target Member) audit.Entry {
		return audit.By(by).TeamTransferred(team, to, target.Email)
	})
}

// Leave ends the caller's membership; not the owner's.
func (s *Service) Leave(ctx context.Context, by principal.Principal, team id.Team) error {
	c, err := change(by, team, leaves)
	if err != nil {
		return err
	}
	return s.store.Leave(ctx, c, func(actor Member, invitations int64) audit.Entry {
		return audit.By(by).MemberLeft(team, actor.User, actor.Email, invitations)
	})
}

// Members pages through who is in one of the caller's teams.
func (s *Service) Members(ctx context.Context, by principal.Principal, team id.Team, p page.Request) (page.Page[Member], error) {
	return s.store.ListMembers(ctx, by.UserID, team, p)
}

// AddMember adds a user by email, who has access at once; owner and admins may.
func (s *Service) AddMember(ctx context.Context, by principal.Principal, team id.Team, email string, role principal.Role) (Member, error) {
	c, err := change(by, team, manages)
	if err != nil {
		return Member{}, err
	}
	if role, err = assignable(role); err != nil {
		return Member{}, err
	}
	if email, err = s.normalize(email); err != nil {
		return Member{}, err
	}
	if wait := s.lookups.Take(by.UserID.String()); wait > 0 {
		return Member{}, errTooManyLook.After(wait)
	}
	return s.store.AddMember(ctx, c, email, role, func(added Member) audit.Entry {
		return audit.By(by).MemberAdded(team, added.User, added.Email, role)
	})
}

// UpdateMember changes a role; owner and admins may, of all but the owner.
func (s *Service) UpdateMember(ctx context.Context, by principal.Principal, team id.Team, user id.User, role principal.Role) (Member, error) {
	c, err := change(by, team, managesBut(errOwnerDemoted))
	if err != nil {
		return Member{}, err
	}
	if role, err = assignable(role); err != nil {
		return Member{}, err
	}
	return s.store.UpdateMember(ctx, c, user, role, func(before Member) audit.Entry {
		return audit.By(by).MemberRoleChanged(team, user, before.Email, before.Role, role)
	})
}

// RemoveMember puts somebody out of a team; owner and admins may, all but the
// owner. Access ends at once. The keys they made are the team's: they are
// returned, and revoked if asked.
func (s *Service) RemoveMember(ctx context.Context, by principal.Principal, team id.Team, user id.User, revokeKeys bool) (Removed, error) {
	c, err := change(by, team, managesBut(errOwnerRemoved))
	if err != nil {
		return Removed{}, err
	}
	return s.store.RemoveMember(ctx, c, user, revokeKeys, func(target Member, r Removed, invitations int64) []audit.Entry {
		log, revoked := audit.By(by), 0
		var entries []audit.Entry
		if r.Revoked {
			revoked = len(r.Keys)
			for _, key := range r.Keys {
				entries = append(entries, log.APIKeyRevoked(team, key.ID, key.Name))
			}
		}
		return append(entries, log.MemberRemoved(team, user, target.Email, revoked, invitations))
	})
}

// SearchUsers finds users by the beginning of their email, for those who manage
// a team.
func (s *Service) SearchUsers(ctx context.Context, by principal.Principal, prefix string) ([]Match, error) {
	prefix = strings.ToLower(strings.TrimSpace(prefix))
	if utf8.RuneCountInString(prefix) < minSearch || !strings.Contains(prefix, "@") || strings.ContainsRune(prefix, 0) || !utf8.ValidString(prefix) {
		return nil, errs.Field("email", "email must be the beginning of an address: 3 characters at least, with an @.")
	}
	if by.Kind != principal.KindUser {
		return nil, errPeopleOnly
	}
	if wait := s.lookups.Take(by.UserID.String()); wait > 0 {
		return nil, errTooManyLook.After(wait)
	}
	may, err := s.store.ManagesATeam(ctx, by.UserID)
	if err != nil {
		return nil, err
	}
	if !may {
		return nil, errManagers
	}
	return s.store.SearchUsers(ctx, prefix, maxMatches)
}

// Overviews pages through all teams, for platform admins.
func (s *Service) Overviews(ctx context.Context, search string, p page.Request) (page.Page[Overview], error) {
	if strings.ContainsRune(search, 0) || !utf8.ValidString(search) {
		return page.Page[Overview]{}, errs.Field("search", "search must be part of a name or slug.")
	}
	return s.store.Overviews(ctx, strings.TrimSpace(search), p)
}

// SetBYOC lets a team bring hosts of its own, or no longer; platform admins
// may.
func (s *Service) SetBYOC(ctx context.Context, by principal.Principal, team id.Team, enabled bool) (Overview, error) {
	if team == id.PlatformTeamID {
		return Overview{}, ErrNotFound
	}
	return s.store.SetBYOC(ctx, team, enabled, audit.By(by).BYOCSwitched(team, enabled))
}
