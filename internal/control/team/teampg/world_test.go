package teampg_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/control/team/teampg"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// world is a database with a team of three and somebody outside.
type world struct {
	pool    *pgxpool.Pool
	store   *teampg.Store
	teams   *team.Service
	ended   *ended
	team    id.Team
	owner   principal.Principal
	admin   principal.Principal
	member  principal.Principal
	outside principal.Principal // owns a team of its own
}

// ended stands for the sandboxes' room.
type ended struct {
	mu  sync.Mutex
	ids []id.Sandbox
}

func (e *ended) EndOfTeam(_ context.Context, x id.Sandbox) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ids = append(e.ids, x)
	return nil
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{pool: pgtest.New(t), ended: &ended{}}
	w.store = teampg.New(w.pool)
	w.teams = team.NewService(w.store, w.ended, account.NormalizeEmail, "https://skerry.example", clock.System{}, slog.New(slog.DiscardHandler))
	w.team, w.owner = teamtest.New(t, w.pool)
	w.admin = teamtest.Join(t, w.pool, w.team, principal.RoleAdmin)
	w.member = teamtest.Join(t, w.pool, w.team, principal.RoleMember)
	_, w.outside = teamtest.New(t, w.pool)
	return w
}

func (w *world) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := w.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (w *world) count(t *testing.T, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := w.pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// role is what the database says; empty for none.
func (w *world) role(t *testing.T, of id.Team, p principal.Principal) principal.Role {
	t.Helper()
	var role string
	if err := w.pool.QueryRow(t.Context(), `SELECT coalesce((SELECT role FROM users_teams WHERE team_id = $1 AND user_id = $2), '')`, of, p.UserID).Scan(&role); err != nil {
		t.Fatal(err)
	}
	return principal.Role(role)
}

// actions are the team's entries in their order, as resource.action.
func (w *world) actions(t *testing.T, of id.Team) []string {
	t.Helper()
	rows, err := w.pool.Query(t.Context(), `SELECT resource_type || '.' || action FROM audit_logs WHERE team_id = $1 ORDER BY seq`, of)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var a string
		if err := rows.Scan(&a); err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	return all
}

// want fails unless err carries the reason; an empty one is success.
func want(t *testing.T, what string, err error, reason string) {
	t.Helper()
	if reason == "" && err != nil || reason != "" && !errs.Is(err, reason) {
		t.Errorf("%s: %v, want %q", what, err, reason)
	}
}

func (w *world) owners(t *testing.T, of id.Team) int {
	t.Helper()
	return w.count(t, `SELECT count(*) FROM users_teams WHERE team_id = $1 AND role = 'owner'`, of)
}

func name(p principal.Principal) string { return fmt.Sprintf("%s %s", p.Role, p.Email[:8]) }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func hashOf(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}
