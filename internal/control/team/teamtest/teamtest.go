// Package teamtest makes teams for the tests of rooms that only need one.
package teamtest

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/kernel/id"
)

// New makes a team with its owner, an active user, and returns both.
func New(t testing.TB, pool *pgxpool.Pool) (id.Team, principal.Principal) {
	t.Helper()
	made, owner := team.New("A team"), id.NewUser()
	email := owner.UUID().String() + "@example.org"
	_, err := pool.Exec(context.Background(), `
		WITH u AS (INSERT INTO users (id, email, name) VALUES ($1, $2, 'Ann')),
		     t AS (INSERT INTO teams (id, name, slug) VALUES ($3, $4, $5))
		INSERT INTO users_teams (user_id, team_id, role, is_default) VALUES ($1, $3, 'owner', true)`,
		owner, email, made.ID, made.Name, made.Slug)
	if err != nil {
		t.Fatalf("make a team: %v", err)
	}
	return made.ID, principal.Principal{
		Kind: principal.KindUser, UserID: owner, UserName: "Ann", Email: email, HasTeam: true, TeamID: made.ID, Role: principal.RoleOwner,
	}
}

// Join makes one more user, a member of the team.
func Join(t testing.TB, pool *pgxpool.Pool, to id.Team, role principal.Role) principal.Principal {
	t.Helper()
	p := User(t, pool)
	if _, err := pool.Exec(context.Background(), `INSERT INTO users_teams (user_id, team_id, role) VALUES ($1, $2, $3)`, p.UserID, to, string(role)); err != nil {
		t.Fatalf("join a team: %v", err)
	}
	p.HasTeam, p.TeamID, p.Role = true, to, role
	return p
}

// User makes an active user without a team.
func User(t testing.TB, pool *pgxpool.Pool) principal.Principal {
	t.Helper()
	user := id.NewUser()
	p := principal.Principal{Kind: principal.KindUser, UserID: user, UserName: "Bob", Email: user.UUID().String() + "@example.org"}
	if _, err := pool.Exec(context.Background(), `INSERT INTO users (id, email, name) VALUES ($1, $2, $3)`, user, p.Email, p.UserName); err != nil {
		t.Fatalf("make a user: %v", err)
	}
	return p
}
