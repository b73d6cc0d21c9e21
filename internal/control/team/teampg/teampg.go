// Package teampg keeps teams, memberships and invitations.
package teampg

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/control/team/teampg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

// Store implements team.Store.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// New returns the store on a pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

// standing is what a change finds once everything it decides on is locked.
type standing struct {
	team   team.Team
	actor  team.Member
	target team.Member
}

// enter locks the team and then the memberships of those involved, and asks
// whether the change may be. The order is the same for all changes, so no two
// wait for each other.
func (s *Store) enter(ctx context.Context, tx pgx.Tx, c team.Change, target *id.User) (standing, error) {
	row, err := s.q.LockTeam(ctx, tx, c.Team)
	if errors.Is(err, pgx.ErrNoRows) || c.Team == id.PlatformTeamID {
		return standing{}, team.ErrNotFound
	}
	if err != nil {
		return standing{}, err
	}
	users := []uuid.UUID{c.Actor.UUID()}
	if target != nil {
		users = append(users, target.UUID())
	}
	rows, err := s.q.LockMembers(ctx, tx, sqlcgen.LockMembersParams{TeamID: c.Team, Users: users})
	if err != nil {
		return standing{}, err
	}
	members := make(map[id.User]team.Member, len(rows))
	for _, m := range rows {
		members[m.UserID] = team.Member{
			User: m.UserID, Name: m.Name, Email: m.Email, Role: principal.Role(m.Role), Active: m.IsActive, JoinedAt: m.CreatedAt,
		}
	}
	actor, in := members[c.Actor]
	if !in || !actor.Active {
		return standing{}, team.ErrNotFound
	}
	found := standing{
		team:  team.Team{ID: row.ID, Name: row.Name, Slug: row.Slug, IsBYOC: row.IsByoc, Role: actor.Role, CreatedAt: row.CreatedAt},
		actor: actor,
	}
	if target == nil {
		return found, c.Allow(actor, team.Member{})
	}
	if found.target, in = members[*target]; !in {
		// Whether the actor may ask at all comes first.
		if err := c.Allow(actor, team.Member{User: *target, Active: true}); err != nil {
			return standing{}, err
		}
		return standing{}, team.ErrMemberNotFound
	}
	return found, c.Allow(actor, found.target)
}

// ListTeams implements team.Store.
func (s *Store) ListTeams(ctx context.Context, user id.User) ([]team.Team, error) {
	rows, err := s.q.ListTeams(ctx, s.pool, sqlcgen.ListTeamsParams{UserID: user, MaxRows: team.MaxListed})
	if err != nil {
		return nil, pg.Map(err)
	}
	teams := make([]team.Team, len(rows))
	for i, r := range rows {
		teams[i] = team.Team{ID: r.ID, Name: r.Name, Slug: r.Slug, IsBYOC: r.IsByoc, Role: principal.Role(r.Role), CreatedAt: r.CreatedAt}
	}
	return teams, nil
}

// GetBYOCTeams implements team.Store.
func (s *Store) GetBYOCTeams(ctx context.Context) ([]team.Team, error) {
	rows, err := s.q.GetBYOCTeams(ctx, s.pool, team.MaxListed)
	if err != nil {
		return nil, pg.Map(err)
	}
	teams := make([]team.Team, len(rows))
	for i, r := range rows {
		teams[i] = team.Team{ID: r.ID, Name: r.Name, Slug: r.Slug, IsBYOC: r.IsByoc, CreatedAt: r.CreatedAt}
	}
	return teams, nil
}

// Get implements team.Store.
func (s *Store) Get(ctx context.Context, user id.User, of id.Team) (team.Team, error) {
	r, err := s.q.GetTeam(ctx, s.pool, sqlcgen.GetTeamParams{UserID: user, TeamID: of})
	if errors.Is(err, pgx.ErrNoRows) {
		return team.Team{}, team.ErrNotFound
	}
	if err != nil {
		return team.Team{}, pg.Map(err)
	}
	return team.Team{ID: r.ID, Name: r.Name, Slug: r.Slug, IsBYOC: r.IsByoc, Role: principal.Role(r.Role), CreatedAt: r.CreatedAt}, nil
}

// errJunkCursor is a cursor that decodes and names no position.
var errJunkCursor = errs.Invalid("invalid_cursor", "Use the next_cursor of the previous page as it was given, or leave cursor out.")

// position is where a page ends.
type position struct {
	At time.Time `json:"at"`
	ID uuid.UUID `json:"id"`
}

// after reads a cursor; nils are the beginning.
func after(cursor string) (*time.Time, *uuid.UUID, error) {
	if cursor == "" {
		return nil, nil, nil
	}
	var p position
	if err := page.Decode(cursor, &p); err != nil {
		return nil, nil, err
	}
	if p.At.IsZero() || p.At.Year() > 9999 {
		return nil, nil, errJunkCursor
	}
	return &p.At, &p.ID, nil
}

// ListMembers implements team.Store.
func (s *Store) ListMembers(ctx context.Context, user id.User, of id.Team, p page.Request) (page.Page[team.Member], error) {
	at, last, err := after(p.Cursor)
	if err != nil {
		return page.Page[team.Member]{}, err
	}
	if _, err := s.Get(ctx, user, of); err != nil {
		return page.Page[team.Member]{}, err
	}
	rows, err := s.q.ListMembers(ctx, s.pool, sqlcgen.ListMembersParams{TeamID: of, AfterAt: at, AfterID: last, MaxRows: int32(p.Limit + 1)})
	if err != nil {
		return page.Page[team.Member]{}, pg.Map(err)
	}
	members := make([]team.Member, len(rows))
	for i, r := range rows {
		members[i] = team.Member{User: r.UserID, Name: r.Name, Email: r.Email, Role: principal.Role(r.Role), JoinedAt: r.CreatedAt}
	}
	return page.Of(members, p.Limit, func(m team.Member) any { return position{m.JoinedAt, m.User.UUID()} })
}

// ManagesATeam implements team.Store.
func (s *Store) ManagesATeam(ctx context.Context, user id.User) (bool, error) {
	may, err := s.q.ManagesATeam(ctx, s.pool, user)
	return may, pg.Map(err)
}

// LeftSandboxes implements team.Store.
func (s *Store) LeftSandboxes(ctx context.Context, only *id.Team, after id.Sandbox, limit int) ([]id.Sandbox, error) {
	params := sqlcgen.LeftSandboxesParams{After: after.UUID(), MaxRows: int32(limit)}
	if only != nil {
		u := only.UUID()
		params.OnlyTeam = &u
	}
	left, err := s.q.LeftSandboxes(ctx, s.pool, params)
	return left, pg.Map(err)
}

// literally makes a pattern of LIKE that means the text, letter by letter.
func literally(text string) string {
	return strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(text)
}

// SearchUsers implements team.Store.
func (s *Store) SearchUsers(ctx context.Context, prefix string, limit int) ([]team.Match, error) {
	rows, err := s.q.SearchUsers(ctx, s.pool, sqlcgen.SearchUsersParams{Pattern: literally(prefix) + "%", MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	found := make([]team.Match, len(rows))
	for i, r := range rows {
		found[i] = team.Match{ID: r.ID, Name: r.Name, Email: r.Email}
	}
	return found, nil
}

// Overviews implements team.Store.
func (s *Store) Overviews(ctx context.Context, search string, p page.Request) (page.Page[team.Overview], error) {
	at, last, err := after(p.Cursor)
	if err != nil {
		return page.Page[team.Overview]{}, err
	}
	params := sqlcgen.AdminTeamsParams{AfterAt: at, AfterID: last, MaxRows: int32(p.Limit + 1)}
	if search != "" {
		params.Pattern = "%" + literally(search) + "%"
	}
	rows, err := s.q.AdminTeams(ctx, s.pool, params)
	if err != nil {
		return page.Page[team.Overview]{}, pg.Map(err)
	}
	teams := make([]team.Overview, len(rows))
	for i, r := range rows {
		teams[i] = overview(r)
	}
	return page.Of(teams, p.Limit, func(t team.Overview) any { return position{t.CreatedAt, t.ID.UUID()} })
}

// SetBYOC implements team.Store.
func (s *Store) SetBYOC(ctx context.Context, of id.Team, enabled bool, entry audit.Entry) (team.Overview, error) {
	var out team.Overview
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		known, err := s.q.LockTeam(ctx, tx, of) // which the making of a host waits for
		if errors.Is(err, pgx.ErrNoRows) {
			return team.ErrNotFound
		}
		if err != nil {
			return err
		}
		if known.IsByoc && !enabled {
			hosts, err := s.q.CountHosts(ctx, tx, of)
			if err != nil {
				return err
			}
			if hosts > 0 {
				return team.ErrHasHosts.With("hosts", hosts)
			}
		}
		if err := s.q.SetBYOC(ctx, tx, sqlcgen.SetBYOCParams{ID: of, IsByoc: enabled}); err != nil {
			return err
		}
		only := of.UUID()
		rows, err := s.q.AdminTeams(ctx, tx, sqlcgen.AdminTeamsParams{OnlyID: &only, MaxRows: 1})
		if err != nil {
			return err
		}
		out = overview(rows[0])
		if known.IsByoc == enabled {
			return nil
		}
		return auditpg.Append(ctx, tx, entry)
	})
	return out, err
}

func overview(r sqlcgen.AdminTeamsRow) team.Overview {
	return team.Overview{
		ID: r.ID, Name: r.Name, Slug: r.Slug, IsBYOC: r.IsByoc, Owner: r.Owner, Members: int(r.Members), Sandboxes: int(r.Sandboxes),
		CreatedAt: r.CreatedAt, DeletedAt: r.DeletedAt,
	}
}
