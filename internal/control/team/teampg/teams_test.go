package teampg_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/control/apikey"
	"skerry.dev/skerry/internal/control/apikey/apikeypg"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/host/hostpg"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/testkit"
)

func entryOf(of id.Team) audit.Entry { return audit.By(principal.System("test")).TeamCreated(of, "x") }

func TestT2_MineInTheOrderOfJoining(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	made, err := w.teams.Create(ctx, w.member, "Mine")
	if err != nil {
		t.Fatal(err)
	}
	gone, err := w.teams.Create(ctx, w.member, "Gone")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.teams.Delete(ctx, w.member, gone.ID); err != nil {
		t.Fatal(err)
	}
	got, err := w.teams.List(ctx, w.member)
	if err != nil || len(got) != 2 || got[0].ID != w.team || got[0].Role != principal.RoleMember || got[1].ID != made.ID || got[1].Role != principal.RoleOwner {
		t.Errorf("%+v (%v)", got, err)
	}
	if got := w.actions(t, made.ID); !cmp.Equal(got, []string{"team.create"}) {
		t.Errorf("audited %v", got)
	}
	shown, members, err := w.teams.Get(ctx, w.member, w.team)
	if err != nil || shown.ID != w.team || len(members) != 3 || members[0].User != w.owner.UserID || members[0].Role != principal.RoleOwner || members[0].Email != w.owner.Email {
		t.Errorf("%+v %+v (%v)", shown, members, err)
	}
}

func TestT2_CreateOnceAndNotWithoutEnd(t *testing.T) {
	w := newWorld(t)
	secret, _ := keyring.NewSecret()
	replays := idempotency.NewService(idempotencypg.New(w.pool))
	ctx := idempotency.With(t.Context(), idempotency.NewRequest(secret, w.member.Caller(), "k", "createTeam", nil))
	var first team.Team
	for i := range 3 {
		got, err := idempotency.Do(ctx, replays, func(ctx context.Context) (team.Team, error) { return w.teams.Create(ctx, w.member, "Once") })
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = got
		} else if got.ID != first.ID || got.Slug != first.Slug {
			t.Errorf("again: %+v, first %+v", got, first)
		}
	}
	w.exec(t, `WITH t AS (INSERT INTO teams (id, name, slug) SELECT gen_random_uuid(), 'x', substr(md5(n::text), 1, 6) || '-' || substr(md5(n::text), 7, 6)
		FROM generate_series(1, $2::int) n RETURNING id) INSERT INTO users_teams (user_id, team_id, role) SELECT $1, id, 'owner' FROM t`,
		w.member.UserID, team.MaxOwned-2)
	var made, refused int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			_, err := w.teams.Create(t.Context(), w.member, "More")
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if errs.Is(err, "too_many_teams") {
				refused++
			}
		})
	}
	wg.Wait()
	if made != 1 || refused != 9 {
		t.Errorf("one below the bound %d were made and %d refused", made, refused)
	}
	_, err := w.teams.Transfer(t.Context(), w.owner, w.team, w.member.UserID)
	want(t, "handed to one who owns the most", err, "member_owns_most_teams")
	if w.role(t, w.team, w.owner) != principal.RoleOwner {
		t.Error("it was handed over")
	}
	w.exec(t, `UPDATE teams SET deleted_at = now() WHERE id = (SELECT team_id FROM users_teams WHERE user_id = $1 AND role = 'owner' LIMIT 1)`, w.member.UserID)
	_, err = w.teams.Transfer(t.Context(), w.owner, w.team, w.member.UserID)
	want(t, "once there is room", err, "")
}

func TestT3_MembersComeChangeAndGo(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	bob := teamtest.User(t, w.pool)
	added, err := w.teams.AddMember(ctx, w.admin, w.team, "  "+bob.Email+" ", principal.RoleAdmin)
	if err != nil || added.User != bob.UserID || added.Role != principal.RoleAdmin || added.JoinedAt.IsZero() {
		t.Fatalf("%+v (%v)", added, err)
	}
	_, err = w.teams.AddMember(ctx, w.admin, w.team, bob.Email, "")
	want(t, "again", err, "already_member")
	_, err = w.teams.AddMember(ctx, w.admin, w.team, "nobody@example.org", "")
	want(t, "nobody", err, "user_not_found")
	_, err = w.teams.AddMember(ctx, w.admin, w.team, "nonsense", "")
	want(t, "no address", err, "invalid_request")
	for range 2 { // the second time nothing changes, and nothing is recorded
		if got, err := w.teams.UpdateMember(ctx, w.owner, w.team, bob.UserID, principal.RoleMember); err != nil || got.Role != principal.RoleMember {
			t.Errorf("%+v (%v)", got, err)
		}
	}
	_, err = w.teams.UpdateMember(ctx, w.owner, w.team, w.outside.UserID, principal.RoleMember)
	want(t, "change somebody outside", err, "member_not_found")
	if _, err := w.teams.RemoveMember(ctx, w.admin, w.team, bob.UserID, false); err != nil {
		t.Fatal(err)
	}
	_, err = w.teams.RemoveMember(ctx, w.admin, w.team, bob.UserID, false)
	want(t, "remove again", err, "member_not_found")
	want(t, "leave", w.teams.Leave(ctx, w.member, w.team), "")
	if w.role(t, w.team, bob) != "" || w.role(t, w.team, w.member) != "" {
		t.Error("they are still in the team")
	}
	if got := w.actions(t, w.team); !cmp.Equal(got, []string{"member.add", "member.role_update", "member.remove", "member.leave"}) {
		t.Errorf("audited %v", got)
	}
}

func TestT3_MembersArePagedExactly(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	const more = 40
	for range more {
		teamtest.Join(t, w.pool, w.team, principal.RoleMember)
	}
	w.exec(t, `UPDATE users_teams SET created_at = '2026-01-01' WHERE team_id = $1`, w.team)
	seen := map[id.User]int{}
	request := page.Request{Limit: 7}
	for {
		got, err := w.teams.Members(ctx, w.member, w.team, request)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range got.Items {
			seen[m.User]++
		}
		if len(seen) == 7 { // somebody joins between two pages
			teamtest.Join(t, w.pool, w.team, principal.RoleMember)
		}
		if got.NextCursor == "" {
			break
		}
		request.Cursor = got.NextCursor
	}
	if len(seen) != more+4 {
		t.Errorf("saw %d members", len(seen))
	}
	for user, n := range seen {
		if n != 1 {
			t.Errorf("%s seen %d times", user, n)
		}
	}
}

// The rule for keys of somebody who goes: they are the team's, and are shown,
// with a way to end them.
func TestA9_KeysOutliveTheirCreatorUnlessRevoked(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	keys := apikey.NewService(apikeypg.New(w.pool), clock.System{}, discard())
	make := func(by principal.Principal, name string, expires *time.Time) apikey.Created {
		t.Helper()
		k, err := keys.Create(ctx, by, apikey.CreateRequest{Name: name, ExpiresAt: expires})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	kept, others := make(w.member, "kept", nil), make(w.admin, "another's", nil)
	elsewhere := w.member
	own, err := w.teams.Create(ctx, w.member, "Elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere.TeamID = own.ID
	make(elsewhere, "of another team", nil)
	removed, err := w.teams.RemoveMember(ctx, w.owner, w.team, w.member.UserID, false)
	if err != nil || removed.Revoked || len(removed.Keys) != 1 || removed.Keys[0].ID != kept.Key.ID || removed.Keys[0].Prefix != kept.Key.Prefix {
		t.Fatalf("%+v (%v)", removed, err)
	}
	if _, err := keys.AuthenticateKey(ctx, kept.Secret); err != nil {
		t.Errorf("the team's key went with its maker: %v", err)
	}
	_, err = keys.Create(ctx, w.member, apikey.CreateRequest{Name: "late"})
	want(t, "a key of somebody removed, with a role remembered", err, "no_team")
	want(t, "revoking by somebody removed", keys.Revoke(ctx, w.member, kept.Key.ID), "no_team")

	removed, err = w.teams.RemoveMember(ctx, w.owner, w.team, w.admin.UserID, true)
	if err != nil || !removed.Revoked || len(removed.Keys) != 1 || removed.Keys[0].ID != others.Key.ID {
		t.Fatalf("%+v (%v)", removed, err)
	}
	_, err = keys.AuthenticateKey(ctx, others.Secret)
	want(t, "a revoked key", err, "invalid_api_key")
	if got := w.actions(t, w.team); !cmp.Equal(got[2:], []string{"member.remove", "api_key.revoke", "member.remove"}) {
		t.Errorf("audited %v", got)
	}
}

// A member who is demoted or removed at the same moment makes no key later than
// that.
func TestID01_NoKeyIsMadeAfterTheRemoval(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	keys := apikey.NewService(apikeypg.New(w.pool), clock.System{}, discard())
	for round := range testkit.Scaled(100, 10) {
		bob := teamtest.Join(t, w.pool, w.team, principal.RoleMember)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { _, _ = keys.Create(ctx, bob, apikey.CreateRequest{Name: "k"}) })
		}
		wg.Go(func() {
			if _, err := w.teams.RemoveMember(ctx, w.owner, w.team, bob.UserID, true); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		if n := w.count(t, `SELECT count(*) FROM team_api_keys WHERE created_by = $1 AND revoked_at IS NULL`, bob.UserID); n != 0 {
			t.Fatalf("round %d: %d keys are left", round, n)
		}
	}
}

func TestT4_SearchIsForManagersAndExact(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for i := range 15 {
		w.exec(t, `INSERT INTO users (id, email, name) VALUES ($1, $2, 'X')`, id.NewUser(), fmt.Sprintf("ann@x%02d.example", i))
	}
	w.exec(t, `INSERT INTO users (id, email, name) VALUES ($1, 'a_n%@y.example', 'Odd'), ($2, 'axn1@y.example', 'Even')`, id.NewUser(), id.NewUser())
	w.exec(t, `INSERT INTO users (id, email, name, is_active) VALUES ($1, 'ann@x00.example.org', 'Off', false)`, id.NewUser())
	got, err := w.teams.SearchUsers(ctx, w.admin, " ANN@x")
	if err != nil || len(got) != 10 || !slices.IsSortedFunc(got, func(a, b team.Match) int { return len(a.Email) - len(b.Email) }) {
		t.Errorf("%d found (%v)", len(got), err)
	}
	if got, err = w.teams.SearchUsers(ctx, w.admin, "ann@x00.example"); err != nil || len(got) != 1 {
		t.Errorf("%+v (%v): the disabled one counts", got, err)
	}
	if got, err = w.teams.SearchUsers(ctx, w.owner, "a_n%@"); err != nil || len(got) != 1 || got[0].Name != "Odd" {
		t.Errorf("wildcards mean something: %+v (%v)", got, err)
	}
	for _, bad := range []string{"", "a@", "ann", "%%%", "an\x00@"} {
		_, err := w.teams.SearchUsers(ctx, w.owner, bad)
		want(t, fmt.Sprintf("search for %q", bad), err, "invalid_request")
	}
	_, err = w.teams.SearchUsers(ctx, w.member, "ann@")
	want(t, "search as a member", err, "role_required")
	limited := 0
	for range 70 {
		if _, err := w.teams.SearchUsers(ctx, w.owner, "ann@"); errs.Is(err, "rate_limited") && errs.As(err).RetryAfter > 0 {
			limited++
		}
	}
	if limited == 0 {
		t.Error("search has no limit")
	}
}

func TestT6_TheSwitchIsIdempotentAndGuarded(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	root := principal.Principal{Kind: principal.KindUser, UserID: id.NewUser(), UserName: "root", IsAdmin: true}
	for range 2 {
		if got, err := w.teams.SetBYOC(ctx, root, w.team, true); err != nil || !got.IsBYOC || got.Owner != w.owner.Email || got.Members != 3 {
			t.Fatalf("%+v (%v)", got, err)
		}
	}
	byoc, err := w.teams.GetBYOCTeams(ctx)
	if err != nil || len(byoc) != 1 || byoc[0].ID != w.team || !byoc[0].IsBYOC {
		t.Errorf("%+v (%v)", byoc, err)
	}
	h := id.NewHost()
	w.exec(t, `INSERT INTO hosts (id, team_id, type, name, status) VALUES ($1, $2, 'byoc', 'h', 'pending')`, h, w.team)
	_, err = w.teams.SetBYOC(ctx, root, w.team, false)
	want(t, "disable with a host", err, "team_has_hosts")
	w.exec(t, `UPDATE hosts SET status = 'deleted', deleted_at = now() WHERE id = $1`, h)
	if got, err := w.teams.SetBYOC(ctx, root, w.team, false); err != nil || got.IsBYOC {
		t.Errorf("%+v (%v)", got, err)
	}
	if got := w.actions(t, w.team); !cmp.Equal(got, []string{"team.byoc_enable", "team.byoc_disable"}) {
		t.Errorf("audited %v", got)
	}
	for _, of := range []id.Team{id.PlatformTeamID, id.NewTeam()} {
		_, err := w.teams.SetBYOC(ctx, root, of, true)
		want(t, "no team", err, "team_not_found")
	}
	if _, err := w.teams.SetBYOC(ctx, root, w.team, true); err != nil {
		t.Fatal(err)
	}
	if err := w.teams.Delete(ctx, w.owner, w.team); err != nil {
		t.Fatal(err)
	}
	if byoc, err = w.teams.GetBYOCTeams(ctx); err != nil || len(byoc) != 0 {
		t.Errorf("a deleted team is among %+v (%v)", byoc, err)
	}
}

// makeHost announces a host of the team's own.
func (w *world) makeHost(ctx context.Context) error {
	h := id.NewHost()
	_, err := hostpg.New(w.pool).Create(ctx, host.Host{ID: h, TeamID: w.team, Type: host.TypeBYOC, Name: "h"}, &w.owner.UserID,
		host.NewToken{ID: id.NewHostToken(), Hash: hashOf(h.String())}, audit.By(w.owner).HostCreated(w.team, h, "h"),
		func(host.Host, time.Time) host.Created { return host.Created{} })
	return err
}

// A host that is announced while the switch is being turned off waits for that,
// and is refused.
func TestT6_AHostWaitsForTheSwitch(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.exec(t, `UPDATE teams SET is_byoc = true WHERE id = $1`, w.team)
	tx, err := w.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if _, err := tx.Exec(ctx, `UPDATE teams SET is_byoc = false WHERE id = $1`, w.team); err != nil {
		t.Fatal(err)
	}
	made := make(chan error, 1)
	go func() { made <- w.makeHost(ctx) }()
	testkit.Eventually(t, 20*time.Second, "the host waits", func() bool {
		return w.count(t, `SELECT count(*) FROM pg_locks WHERE NOT granted`) > 0
	})
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	want(t, "the host", <-made, "not_byoc")
}

// Of a host that is being made and the switch that is turned off one comes
// first.
func TestT6_NoHostIsLeftInATeamThatMayHaveNone(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	root := principal.Principal{Kind: principal.KindUser, UserID: id.NewUser(), UserName: "root", IsAdmin: true}
	for round := range testkit.Scaled(200, 20) {
		if _, err := w.teams.SetBYOC(ctx, root, w.team, true); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			err := w.makeHost(ctx)
			if err != nil && !errs.Is(err, "not_byoc") {
				t.Error(err)
			}
		})
		wg.Go(func() { _, _ = w.teams.SetBYOC(ctx, root, w.team, false) })
		wg.Wait()
		if n := w.count(t, `SELECT count(*) FROM hosts h JOIN teams t ON t.id = h.team_id WHERE h.deleted_at IS NULL AND h.type = 'byoc' AND NOT t.is_byoc`); n != 0 {
			t.Fatalf("round %d: a host in a team that may have none", round)
		}
		w.exec(t, `UPDATE hosts SET deleted_at = now(), status = 'deleted' WHERE team_id = $1 AND deleted_at IS NULL`, w.team)
	}
}

func TestA11_AllTeamsAtOneMicrosecond(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.exec(t, `WITH t AS (INSERT INTO teams (id, name, slug, deleted_at) SELECT gen_random_uuid(), 'Bulk%_' || n, substr(md5(n::text), 1, 6) || '-' || substr(md5(n::text), 7, 6), now()
		FROM generate_series(1, 60) n RETURNING id) SELECT count(*) FROM t`)
	w.exec(t, `UPDATE teams SET created_at = '2026-01-01'`)
	seen := map[id.Team]team.Overview{}
	request := page.Request{Limit: 7}
	for {
		got, err := w.teams.Overviews(ctx, "", request)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range got.Items {
			if _, twice := seen[o.ID]; twice {
				t.Errorf("%s twice", o.ID)
			}
			seen[o.ID] = o
		}
		if got.NextCursor == "" {
			break
		}
		request.Cursor = got.NextCursor
	}
	if len(seen) != 62 {
		t.Errorf("saw %d teams", len(seen))
	}
	if mine := seen[w.team]; mine.Owner != w.owner.Email || mine.Members != 3 || mine.DeletedAt != nil || mine.Sandboxes != 0 {
		t.Errorf("%+v", mine)
	}
	for search, n := range map[string]int{"bulk%_1": 11, "%": 60, "bulk%x": 0, "a team": 2, "\\": 0} {
		got, err := w.teams.Overviews(ctx, search, page.Request{Limit: 100})
		if err != nil || len(got.Items) != n {
			t.Errorf("search for %q found %d, want %d (%v)", search, len(got.Items), n, err)
		}
	}
	var slug string
	if err := w.pool.QueryRow(ctx, `SELECT slug FROM teams WHERE id = $1`, w.team).Scan(&slug); err != nil {
		t.Fatal(err)
	}
	if got, err := w.teams.Overviews(ctx, slug[2:], page.Request{Limit: 10}); err != nil || len(got.Items) != 1 || got.Items[0].ID != w.team {
		t.Errorf("by slug: %+v (%v)", got, err)
	}
}
