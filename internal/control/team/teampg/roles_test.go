package teampg_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/testkit"
)

// verbs are all that name a team; each is given a member it is not about.
func (w *world) verbs(t *testing.T, of id.Team) map[string]func(by principal.Principal) error {
	other := teamtest.Join(t, w.pool, w.team, principal.RoleMember)
	return map[string]func(by principal.Principal) error{
		"get": func(by principal.Principal) error { _, _, err := w.teams.Get(t.Context(), by, of); return err },
		"members": func(by principal.Principal) error {
			_, err := w.teams.Members(t.Context(), by, of, page.Request{Limit: 10})
			return err
		},
		"rename": func(by principal.Principal) error {
			_, err := w.teams.Rename(t.Context(), by, of, "Renamed by "+by.Email[:8])
			return err
		},
		"add": func(by principal.Principal) error {
			_, err := w.teams.AddMember(t.Context(), by, of, teamtest.User(t, w.pool).Email, "")
			return err
		},
		"update": func(by principal.Principal) error {
			_, err := w.teams.UpdateMember(t.Context(), by, of, other.UserID, principal.RoleMember)
			return err
		},
		"remove": func(by principal.Principal) error {
			_, err := w.teams.RemoveMember(t.Context(), by, of, teamtest.Join(t, w.pool, w.team, principal.RoleMember).UserID, true)
			return err
		},
		"invite": func(by principal.Principal) error {
			_, err := w.teams.Invite(t.Context(), by, of, team.InviteRequest{})
			return err
		},
		"invitations": func(by principal.Principal) error {
			_, err := w.teams.Invitations(t.Context(), by, of, page.Request{Limit: 10})
			return err
		},
		"transfer": func(by principal.Principal) error {
			_, err := w.teams.Transfer(t.Context(), by, of, by.UserID)
			return err
		},
		"revoke invitation": func(by principal.Principal) error {
			return w.teams.RevokeInvitation(t.Context(), by, of, id.NewInvitation())
		},
		"leave":  func(by principal.Principal) error { return w.teams.Leave(t.Context(), by, of) },
		"delete": func(by principal.Principal) error { return w.teams.Delete(t.Context(), by, of) },
	}
}

// The caller's own words about the role count for nothing: everybody here
// claims to be the owner.
func TestT7_EveryDecisionReadsTheDatabase(t *testing.T) {
	w := newWorld(t)
	claim := func(p principal.Principal) principal.Principal {
		p.HasTeam, p.TeamID, p.Role = true, w.team, principal.RoleOwner
		return p
	}
	const role, none = "role_required", "team_not_found"
	expected := map[string][3]string{ // owner, admin, member
		"get": {"", "", ""}, "members": {"", "", ""},
		"rename": {"", "", role}, "add": {"", "", role}, "update": {"", "", role}, "remove": {"", "", role},
		"invite": {"", "", role}, "invitations": {"", "", role},
		"revoke invitation": {"invitation_not_found", "invitation_not_found", role},
		"transfer":          {"already_owner", role, role},
		"leave":             {"owner_cannot_leave", "", ""},
		"delete":            {"", role, role},
	}
	verbs := w.verbs(t, w.team)
	if len(verbs) != len(expected) {
		t.Fatalf("%d verbs, %d expected", len(verbs), len(expected))
	}
	for verb, call := range verbs {
		for i, by := range []principal.Principal{w.owner, w.admin, w.member} {
			if verb == "leave" && i > 0 || verb == "delete" && i == 0 {
				continue // last, below
			}
			want(t, verb+" as "+name(by), call(claim(by)), expected[verb][i])
		}
		want(t, verb+" from outside", call(claim(w.outside)), none)
	}
	for verb, call := range w.verbs(t, id.PlatformTeamID) {
		want(t, verb+" of the platform", call(claim(w.owner)), none)
	}
	for verb, call := range w.verbs(t, id.NewTeam()) {
		want(t, verb+" of no team", call(claim(w.owner)), none)
	}
	// A disabled user and a key decide nothing.
	w.exec(t, `UPDATE users SET is_active = false WHERE id = $1`, w.admin.UserID)
	want(t, "rename as a disabled admin", verbs["rename"](w.admin), none)
	w.exec(t, `UPDATE users SET is_active = true WHERE id = $1`, w.admin.UserID)
	key := principal.Principal{Kind: principal.KindAPIKey, HasTeam: true, TeamID: w.team, UserID: w.owner.UserID, Email: w.owner.Email}
	for _, verb := range []string{"rename", "add", "update", "remove", "invite", "invitations", "transfer", "leave", "delete"} {
		want(t, verb+" as a key", verbs[verb](key), "session_required")
	}

	want(t, "leave as a member", verbs["leave"](w.member), "")
	want(t, "leave again", verbs["leave"](w.member), none)
	want(t, "delete", verbs["delete"](w.owner), "")
	for verb, call := range verbs {
		want(t, verb+" of a deleted team", call(w.owner), none)
	}
}

func TestT1_TheDatabaseKeepsExactlyOneOwner(t *testing.T) {
	w := newWorld(t)
	for what, sql := range map[string]string{
		"the owner's membership goes":  `DELETE FROM users_teams WHERE team_id = $1 AND role = 'owner'`,
		"the owner is demoted":         `UPDATE users_teams SET role = 'admin' WHERE team_id = $1 AND role = 'owner'`,
		"there is a second owner":      `UPDATE users_teams SET role = 'owner' WHERE team_id = $1`,
		"a team is made without owner": `INSERT INTO teams (id, name, slug) SELECT gen_random_uuid(), id::text, 'abcdef-abcdef' FROM teams WHERE id = $1`,
	} {
		if _, err := w.pool.Exec(t.Context(), sql, w.team); err == nil {
			t.Errorf("%s, and the database allows it", what)
		}
	}
	if n := w.owners(t, w.team); n != 1 {
		t.Errorf("%d owners", n)
	}
}

func TestT1_TheOwnerIsNeitherDemotedNorRemovedNorLeaves(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for _, by := range []principal.Principal{w.owner, w.admin} {
		_, err := w.teams.UpdateMember(ctx, by, w.team, w.owner.UserID, principal.RoleMember)
		want(t, "demote as "+name(by), err, "owner_cannot_be_demoted")
		_, err = w.teams.RemoveMember(ctx, by, w.team, w.owner.UserID, false)
		want(t, "remove as "+name(by), err, "owner_cannot_be_removed")
	}
	want(t, "leave", w.teams.Leave(ctx, w.owner, w.team), "owner_cannot_leave")
	_, err := w.teams.UpdateMember(ctx, w.member, w.team, w.owner.UserID, principal.RoleMember)
	want(t, "demote as a member", err, "role_required")

	for _, role := range []principal.Role{principal.RoleOwner, "root"} {
		_, err := w.teams.UpdateMember(ctx, w.owner, w.team, w.member.UserID, role)
		want(t, "assign "+string(role), err, "invalid_request")
		_, err = w.teams.AddMember(ctx, w.owner, w.team, w.outside.Email, role)
		want(t, "add as "+string(role), err, "invalid_request")
		_, err = w.teams.Invite(ctx, w.owner, w.team, team.InviteRequest{Role: role})
		want(t, "invite as "+string(role), err, "invalid_request")
	}
	// Admins manage admins, themselves included.
	_, err = w.teams.UpdateMember(ctx, w.admin, w.team, w.member.UserID, principal.RoleAdmin)
	want(t, "an admin makes an admin", err, "")
	_, err = w.teams.UpdateMember(ctx, w.member, w.team, w.admin.UserID, principal.RoleMember)
	want(t, "who unmakes the first", err, "")
	if w.role(t, w.team, w.admin) != principal.RoleMember || w.role(t, w.team, w.member) != principal.RoleAdmin || w.owners(t, w.team) != 1 {
		t.Error("the roles are not as they were set")
	}
	if got := w.actions(t, w.team); !cmp.Equal(got, []string{"member.role_update", "member.role_update"}) {
		t.Errorf("audited %v", got)
	}
}

func TestT1_OwnershipIsHandedToAMember(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	_, err := w.teams.Transfer(ctx, w.owner, w.team, w.outside.UserID)
	want(t, "to somebody outside", err, "member_not_found")
	_, err = w.teams.Transfer(ctx, w.admin, w.team, w.outside.UserID)
	want(t, "by an admin, to somebody outside", err, "role_required")
	w.exec(t, `UPDATE users SET is_active = false WHERE id = $1`, w.admin.UserID)
	_, err = w.teams.Transfer(ctx, w.owner, w.team, w.admin.UserID)
	want(t, "to a disabled account", err, "account_disabled")
	got, err := w.teams.Transfer(ctx, w.owner, w.team, w.member.UserID)
	if err != nil || got.Role != principal.RoleAdmin || got.ID != w.team {
		t.Fatalf("transfer: %+v, %v", got, err)
	}
	if w.role(t, w.team, w.member) != principal.RoleOwner || w.role(t, w.team, w.owner) != principal.RoleAdmin {
		t.Error("roles after the transfer are wrong")
	}
	want(t, "the former owner deletes", w.teams.Delete(ctx, w.owner, w.team), "role_required")
	want(t, "and leaves", w.teams.Leave(ctx, w.owner, w.team), "")
	if got := w.actions(t, w.team); !cmp.Equal(got, []string{"team.transfer", "member.leave"}) {
		t.Errorf("audited %v", got)
	}
}

// Whatever runs at once, there is one owner, and exactly one transfer of the
// two came to pass.
func TestID03_TransfersOfOneTeamRace(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	third := teamtest.Join(t, w.pool, w.team, principal.RoleMember)
	team3 := []principal.Principal{w.owner, w.admin, third}
	rounds := testkit.Scaled(200, 25)
	for round := range rounds {
		var owner principal.Principal
		var others []principal.Principal
		for _, p := range team3 {
			if w.role(t, w.team, p) == principal.RoleOwner {
				owner = p
			} else {
				others = append(others, p)
			}
		}
		errors := make([]error, 2)
		var wg sync.WaitGroup
		for i, to := range others {
			wg.Go(func() { _, errors[i] = w.teams.Transfer(ctx, owner, w.team, to.UserID) })
		}
		// And meanwhile all that could leave it without one.
		wg.Go(func() { _, _ = w.teams.UpdateMember(ctx, others[0], w.team, owner.UserID, principal.RoleMember) })
		wg.Go(func() { _, _ = w.teams.RemoveMember(ctx, others[1], w.team, others[0].UserID, false) })
		wg.Go(func() { _ = w.teams.Leave(ctx, others[1], w.team) })
		wg.Wait()
		if n := w.owners(t, w.team); n != 1 {
			t.Fatalf("round %d: %d owners", round, n)
		}
		succeeded := 0
		for _, err := range errors {
			switch {
			case err == nil:
				succeeded++
			case !errs.Is(err, "role_required") && !errs.Is(err, "member_not_found") && !errs.Is(err, "team_not_found"):
				t.Fatalf("round %d: %v", round, err)
			}
		}
		if succeeded > 1 {
			t.Fatalf("round %d: both transfers succeeded", round)
		}
		for _, p := range team3 { // whoever is gone comes back
			w.exec(t, `INSERT INTO users_teams (user_id, team_id, role) VALUES ($1, $2, 'member') ON CONFLICT DO NOTHING`, p.UserID, w.team)
		}
	}
	t.Logf("%d rounds", rounds)
}

// Two transfers and nothing else: one succeeds, always.
func TestID03_OneOfTwoTransfersSucceeds(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	owner, a, b := w.owner, w.admin, w.member
	rounds := testkit.Scaled(200, 25)
	for round := range rounds {
		var errA, errB error
		var wg sync.WaitGroup
		wg.Go(func() { _, errA = w.teams.Transfer(ctx, owner, w.team, a.UserID) })
		wg.Go(func() { _, errB = w.teams.Transfer(ctx, owner, w.team, b.UserID) })
		wg.Wait()
		if (errA == nil) == (errB == nil) || w.owners(t, w.team) != 1 {
			t.Fatalf("round %d: %v and %v, %d owners", round, errA, errB, w.owners(t, w.team))
		}
		if errA == nil {
			owner, a = a, owner
		} else {
			owner, b = b, owner
		}
		if w.role(t, w.team, owner) != principal.RoleOwner {
			t.Fatalf("round %d: the answer and the database disagree", round)
		}
	}
	t.Logf("%d rounds", rounds)
}

func TestT2_NamesArePrintable(t *testing.T) {
	w := newWorld(t)
	for given, kept := range map[string]string{
		"  Ada’s Team ": "Ada’s Team", "工房 👩‍👧": "工房 👩‍👧", strings.Repeat("é", 128): strings.Repeat("é", 128),
		"": "", "   ": "", strings.Repeat("é", 129): "", "a\x00b": "", "a\nb": "", "a\u202eb": "", "\xff": "", "a\u2028b": "",
	} {
		made, err := w.teams.Create(t.Context(), w.outside, given)
		if kept == "" {
			want(t, "name "+given, err, "invalid_request")
			_, err = w.teams.Rename(t.Context(), w.owner, w.team, given)
			want(t, "rename to "+given, err, "invalid_request")
		} else if err != nil || made.Name != kept {
			t.Errorf("%q became %q (%v)", given, made.Name, err)
		}
	}
}

func TestT5_ASlugIsUniqueForEver(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	made, err := w.teams.Create(ctx, w.member, "First")
	if err != nil {
		t.Fatal(err)
	}
	if len(made.Slug) != 13 || made.Slug[6] != '-' || strings.Trim(made.Slug, "0123456789abcdef-") != "" {
		t.Errorf("slug %q", made.Slug)
	}
	renamed, err := w.teams.Rename(ctx, w.member, made.ID, "Second")
	if err != nil || renamed.Slug != made.Slug {
		t.Errorf("after a rename %+v (%v)", renamed, err)
	}
	if err := w.teams.Delete(ctx, w.member, made.ID); err != nil {
		t.Fatal(err)
	}
	again := team.New("Third")
	again.Slug = made.Slug
	_, err = w.store.Create(ctx, w.member.UserID, again, entryOf(again.ID))
	want(t, "the slug of a deleted team", err, "slug_taken")
	if _, err := w.pool.Exec(ctx, `DELETE FROM teams WHERE id = $1`, made.ID); err == nil || pg.Violates(err) == "" {
		t.Errorf("a deleted team's row, and with it its slug, can go: %v", err)
	}
}
