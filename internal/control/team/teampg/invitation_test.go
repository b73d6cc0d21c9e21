package teampg_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

const longToken = len("sinv_") + 64

// invite makes a link and returns its token.
func (w *world) invite(t *testing.T, by principal.Principal, r team.InviteRequest) (team.Invitation, string) {
	t.Helper()
	made, err := w.teams.Invite(t.Context(), by, w.team, r)
	if err != nil {
		t.Fatalf("invite: %v", err)
	}
	token, ok := strings.CutPrefix(made.URL, "https://skerry.example/signup#invitation=")
	if !ok || len(token) != longToken {
		t.Fatalf("link %q", made.URL)
	}
	return made.Invitation, token
}

func TestA13_ALinkLetsOnePersonIn(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	made, token := w.invite(t, w.admin, team.InviteRequest{Role: principal.RoleAdmin})
	if d := made.ExpiresAt.Sub(made.CreatedAt); d != 7*24*time.Hour || made.Creator != w.admin.UserName || made.Email != "" {
		t.Errorf("%+v", made)
	}
	for table, column := range map[string]string{"team_invitations": "token_hash", "audit_logs": "hash"} {
		if n := w.count(t, `SELECT count(*) FROM `+table+` x WHERE strpos(to_jsonb(x)::text, $1) > 0`, strings.TrimPrefix(token, "sinv_")); n != 0 {
			t.Errorf("the token lies open in %s beside %s", table, column)
		}
	}
	seen, err := w.teams.Preview(ctx, token)
	if err != nil || seen.TeamName != "A team" || seen.Role != principal.RoleAdmin {
		t.Errorf("%+v (%v)", seen, err)
	}
	if w.role(t, w.team, w.outside) != "" {
		t.Error("an invitation gives access before it is accepted")
	}
	_, err = w.teams.Accept(ctx, w.member, token)
	want(t, "by a member", err, "already_member")
	joined, err := w.teams.Accept(ctx, w.outside, token)
	if err != nil || joined.ID != w.team || joined.Role != principal.RoleAdmin {
		t.Fatalf("%+v (%v)", joined, err)
	}
	if w.role(t, w.team, w.outside) != principal.RoleAdmin {
		t.Error("not in the team")
	}
	for _, by := range []principal.Principal{w.outside, teamtest.User(t, w.pool)} {
		_, err = w.teams.Accept(ctx, by, token)
		want(t, "a spent link", err, "invitation_not_found")
	}
	_, err = w.teams.Preview(ctx, token)
	want(t, "preview of a spent link", err, "invitation_not_found")
	if got := w.actions(t, w.team); !cmp.Equal(got, []string{"invitation.create", "invitation.accept", "member.add"}) {
		t.Errorf("audited %v", got)
	}
}

func TestA13_TwentyUseOneLink(t *testing.T) {
	w := newWorld(t)
	_, token := w.invite(t, w.owner, team.InviteRequest{})
	var in, out atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		by := teamtest.User(t, w.pool)
		wg.Go(func() {
			if _, err := w.teams.Accept(t.Context(), by, token); err == nil {
				in.Add(1)
			} else if errs.Is(err, "invitation_not_found") {
				out.Add(1)
			}
		})
	}
	wg.Wait()
	if in.Load() != 1 || out.Load() != 19 {
		t.Errorf("%d came in, %d were refused", in.Load(), out.Load())
	}
}

func TestA13_ALinkEndsWithWhatItStandsOn(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	refused := func(what, token string) {
		t.Helper()
		_, err := w.teams.Accept(ctx, teamtest.User(t, w.pool), token)
		want(t, what, err, "invitation_not_found")
		_, err = w.teams.Preview(ctx, token)
		want(t, "preview: "+what, err, "invitation_not_found")
	}
	for _, junk := range []string{"", "x", "sinv_" + strings.Repeat("0", 64), strings.Repeat("a", 256), "\x00"} {
		refused("junk", junk)
	}

	made, token := w.invite(t, w.owner, team.InviteRequest{})
	want(t, "withdraw as a member", w.teams.RevokeInvitation(ctx, w.member, w.team, made.ID), "role_required")
	want(t, "withdraw in another team", w.teams.RevokeInvitation(ctx, w.outside, w.outside.TeamID, made.ID), "invitation_not_found")
	want(t, "withdraw", w.teams.RevokeInvitation(ctx, w.admin, w.team, made.ID), "")
	want(t, "withdraw again", w.teams.RevokeInvitation(ctx, w.admin, w.team, made.ID), "invitation_not_found")
	refused("withdrawn", token)

	made, token = w.invite(t, w.owner, team.InviteRequest{})
	w.exec(t, `UPDATE team_invitations SET expires_at = now() - interval '1 second' WHERE id = $1`, made.ID)
	refused("expired", token)

	// Who was put out, or demoted, comes back by no link of their own.
	_, token = w.invite(t, w.admin, team.InviteRequest{Role: principal.RoleAdmin})
	if _, err := w.teams.UpdateMember(ctx, w.owner, w.team, w.admin.UserID, principal.RoleMember); err != nil {
		t.Fatal(err)
	}
	refused("made by somebody demoted since", token)
	if _, err := w.teams.UpdateMember(ctx, w.owner, w.team, w.admin.UserID, principal.RoleAdmin); err != nil {
		t.Fatal(err)
	}
	refused("made by somebody demoted in between", token)
	_, token = w.invite(t, w.admin, team.InviteRequest{Role: principal.RoleAdmin})
	if _, err := w.teams.RemoveMember(ctx, w.owner, w.team, w.admin.UserID, false); err != nil {
		t.Fatal(err)
	}
	refused("made by somebody removed since", token)
	_, err := w.teams.Accept(ctx, w.admin, token)
	want(t, "by the one who was removed", err, "invitation_not_found")

	// Also when something else than this room ended the membership.
	gone := teamtest.Join(t, w.pool, w.team, principal.RoleAdmin)
	_, token = w.invite(t, gone, team.InviteRequest{})
	w.exec(t, `DELETE FROM users_teams WHERE user_id = $1`, gone.UserID)
	refused("made by somebody who is gone", token)

	other := teamtest.Join(t, w.pool, w.team, principal.RoleAdmin)
	_, token = w.invite(t, other, team.InviteRequest{})
	w.exec(t, `UPDATE users SET is_active = false WHERE id = $1`, other.UserID)
	refused("made by a disabled account", token)
	if open, err := w.teams.Invitations(ctx, w.owner, w.team, page.Request{Limit: 10}); err != nil || len(open.Items) != 0 {
		t.Errorf("open: %+v (%v)", open.Items, err)
	}

	_, token = w.invite(t, w.owner, team.InviteRequest{})
	if err := w.teams.Delete(ctx, w.owner, w.team); err != nil {
		t.Fatal(err)
	}
	refused("of a deleted team", token)
}

func TestA13_ALinkForOneAddressIsForNobodyElse(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	made, token := w.invite(t, w.owner, team.InviteRequest{Email: " " + strings.ToUpper(w.outside.Email)})
	if made.Email != w.outside.Email || made.Role != principal.RoleMember {
		t.Errorf("%+v", made)
	}
	_, err := w.teams.Accept(ctx, teamtest.User(t, w.pool), token)
	want(t, "another account", err, "invitation_for_another")
	lying := teamtest.User(t, w.pool)
	lying.Email = w.outside.Email
	_, err = w.teams.Accept(ctx, lying, token)
	want(t, "another account that says otherwise", err, "invitation_for_another")
	if _, err := w.teams.Accept(ctx, w.outside, token); err != nil {
		t.Errorf("the right one: %v", err)
	}
}

func TestA13_InvitationsAreCheckedListedAndBounded(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for _, d := range []time.Duration{0, -1, time.Hour - 1, 30*24*time.Hour + 1} {
		_, err := w.teams.Invite(ctx, w.owner, w.team, team.InviteRequest{ExpiresIn: &d})
		want(t, "for "+d.String(), err, "invalid_request")
	}
	_, err := w.teams.Invite(ctx, w.owner, w.team, team.InviteRequest{Email: "nonsense"})
	want(t, "for nonsense", err, "invalid_request")

	secret, _ := keyring.NewSecret()
	replays := idempotency.NewService(idempotencypg.New(w.pool))
	once := idempotency.With(ctx, idempotency.NewRequest(secret, w.owner.Caller(), "k", "createInvitation", nil))
	var links []string
	for range 2 {
		got, err := idempotency.Do(once, replays, func(ctx context.Context) (team.CreatedInvitation, error) {
			return w.teams.Invite(ctx, w.owner, w.team, team.InviteRequest{})
		})
		if err != nil || got.Invitation.ID.IsZero() {
			t.Fatal(err)
		}
		links = append(links, got.URL)
	}
	if links[0] != links[1] {
		t.Error("a repeated create answers another link")
	}

	w.exec(t, `INSERT INTO team_invitations (id, team_id, role, token_hash, created_by, created_at, expires_at)
		SELECT gen_random_uuid(), $1, 'member', sha256(n::text::bytea), $2, '2026-01-01', now() + interval '1 hour' FROM generate_series(1, $3::int) n`,
		w.team, w.owner.UserID, team.MaxOpen-2)
	seen := map[id.Invitation]bool{}
	request := page.Request{Limit: 7}
	for {
		got, err := w.teams.Invitations(ctx, w.admin, w.team, request)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range got.Items {
			if seen[i.ID] {
				t.Error("one is listed twice")
			}
			seen[i.ID] = true
		}
		if got.NextCursor == "" {
			break
		}
		request.Cursor = got.NextCursor
	}
	if len(seen) != team.MaxOpen-1 {
		t.Errorf("listed %d", len(seen))
	}
	var made atomic.Int64
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			_, err := w.teams.Invite(ctx, w.owner, w.team, team.InviteRequest{})
			if err == nil {
				made.Add(1)
			} else if !errs.Is(err, "too_many_invitations") {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 1 {
		t.Errorf("%d were made one below the bound", made.Load())
	}
}
