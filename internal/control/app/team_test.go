package app

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

type teamAnswer struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Slug   string `json:"slug"`
	Role   string `json:"role"`
	IsBYOC *bool  `json:"is_byoc"`
}

// me returns the user's id and active team; an empty team for none.
func (g *ground) me(t *testing.T, token string) (userID, teamID string) {
	t.Helper()
	var me struct {
		User struct {
			ID string `json:"id"`
		} `json:"user"`
		Team *teamAnswer `json:"team"`
	}
	g.do(t, http.MethodGet, "/v1/me", token, nil, http.StatusOK, &me)
	if me.Team != nil {
		teamID = me.Team.ID
	}
	return me.User.ID, teamID
}

// refused calls and checks status and code.
func (g *ground) refused(t *testing.T, method, path, auth string, body any, status int, code string) failure {
	t.Helper()
	var f failure
	g.do(t, method, path, auth, body, status, &f)
	if f.Error.Code != code || f.Error.Message == "" {
		t.Errorf("%s %s: %+v, want %s", method, path, f.Error, code)
	}
	return f
}

// openStream opens a stream of events and says when it ended.
func (g *ground) openStream(t *testing.T, auth string) (ended <-chan time.Time) {
	t.Helper()
	header := http.Header{}
	if strings.HasPrefix(auth, "skerry_") {
		header.Set("X-API-Key", auth)
	} else {
		header.Set("Authorization", "Bearer "+auth)
	}
	done := make(chan time.Time, 1)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.url+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("stream: %s", answer.Status)
	}
	go func() {
		defer answer.Body.Close()
		buf := make([]byte, 1024)
		for {
			if _, err := answer.Body.Read(buf); err != nil {
				done <- time.Now()
				return
			}
		}
	}()
	return done
}

func within(t *testing.T, what string, start time.Time, ended <-chan time.Time) {
	t.Helper()
	patience, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	select {
	case at := <-ended:
		t.Logf("%s ended after %s", what, at.Sub(start).Round(time.Millisecond))
	case <-patience.Done():
		t.Errorf("%s goes on", what)
	}
}

func TestID01_ARemovedMemberHasNothingAtOnce(t *testing.T) {
	g := newGround(t)
	_, annTeam := g.me(t, g.ann)
	bob, bobTeam := g.me(t, g.bob)
	var added struct{ Role, Email string }
	g.do(t, http.MethodPost, "/v1/teams/"+annTeam+"/members", g.ann, map[string]string{"email": "bob@example.org", "role": "admin"}, http.StatusCreated, &added)
	if added.Role != "admin" || added.Email != "bob@example.org" {
		t.Errorf("%+v", added)
	}
	// The active team is still his own: nothing happens behind his back.
	if _, active := g.me(t, g.bob); active != bobTeam {
		t.Errorf("his active team became %s", active)
	}
	if _, err := g.pool.Exec(t.Context(), `UPDATE sessions s SET team_id = (SELECT id FROM teams WHERE id = $1) FROM users u WHERE u.id = s.user_id AND u.email = 'bob@example.org'`, idOf(t, annTeam)); err != nil {
		t.Fatal(err)
	}
	var key struct {
		Key    string `json:"key"`
		APIKey struct{ ID string }
	}
	g.do(t, http.MethodPost, "/v1/api-keys", g.bob, map[string]string{"name": "bob's"}, http.StatusCreated, &key)
	g.do(t, http.MethodGet, "/v1/sandboxes/"+g.annSandbox, g.bob, nil, http.StatusOK, nil)
	userStream, keyStream, annStream := g.openStream(t, g.bob), g.openStream(t, key.Key), g.openStream(t, g.annKey)

	start := time.Now()
	var removed struct {
		APIKeys []struct {
			ID        string `json:"id"`
			Name      string `json:"name"`
			CreatedBy string `json:"created_by"`
		} `json:"api_keys"`
		Revoked bool `json:"revoked"`
	}
	g.do(t, http.MethodDelete, "/v1/teams/"+annTeam+"/members/"+bob+"?revoke_keys=true", g.ann, nil, http.StatusOK, &removed)
	if len(removed.APIKeys) != 1 || removed.APIKeys[0].Name != "bob's" || removed.APIKeys[0].CreatedBy != "bob" || !removed.Revoked {
		t.Errorf("%+v", removed)
	}
	g.refused(t, http.MethodGet, "/v1/sandboxes/"+g.annSandbox, g.bob, nil, http.StatusForbidden, "no_team")
	g.refused(t, http.MethodPost, "/v1/api-keys", g.bob, map[string]string{"name": "late"}, http.StatusForbidden, "no_team")
	g.refused(t, http.MethodPost, "/v1/sandboxes", g.bob, map[string]string{"template": "base"}, http.StatusForbidden, "no_team")
	g.refused(t, http.MethodGet, "/v1/teams/"+annTeam, g.bob, nil, http.StatusNotFound, "team_not_found")
	g.refused(t, http.MethodGet, "/v1/sandboxes/"+g.annSandbox, key.Key, nil, http.StatusUnauthorized, "invalid_api_key")
	within(t, "the session's stream", start, userStream)
	within(t, "the key's stream", start, keyStream)
	g.do(t, http.MethodGet, "/v1/sandboxes/"+g.annSandbox, g.annKey, nil, http.StatusOK, nil)
	select {
	case <-annStream:
		t.Error("another key's stream ended too")
	default:
	}
}

func TestID01_ADeletedTeamIsGoneAtOnce(t *testing.T) {
	g := newGround(t)
	_, annTeam := g.me(t, g.ann)
	userStream, keyStream := g.openStream(t, g.ann), g.openStream(t, g.annKey)
	start := time.Now()
	g.do(t, http.MethodDelete, "/v1/teams/"+annTeam, g.ann, nil, http.StatusNoContent, nil)
	g.refused(t, http.MethodGet, "/v1/sandboxes", g.annKey, nil, http.StatusUnauthorized, "invalid_api_key")
	for _, path := range []string{"/v1/sandboxes", "/v1/api-keys", "/v1/limits"} {
		g.refused(t, http.MethodGet, path, g.ann, nil, http.StatusForbidden, "no_team")
	}
	g.refused(t, http.MethodDelete, "/v1/teams/"+annTeam, g.ann, nil, http.StatusNotFound, "team_not_found")
	within(t, "the session's stream", start, userStream)
	within(t, "the key's stream", start, keyStream)
	testkit.Eventually(t, 30*time.Second, "its sandboxes have ended", func() bool {
		var living int
		if err := g.pool.QueryRow(t.Context(), `SELECT count(*) FROM sandboxes WHERE team_id = $1 AND ended_at IS NULL`, idOf(t, annTeam)).Scan(&living); err != nil {
			t.Fatal(err)
		}
		return living == 0
	})
}

// A12: without a team one can log in and see why, make one, and nothing else.
func TestA12_LifeWithoutATeam(t *testing.T) {
	g := newGround(t)
	_, annTeam := g.me(t, g.ann)
	g.do(t, http.MethodDelete, "/v1/teams/"+annTeam, g.ann, nil, http.StatusNoContent, nil)
	var login struct {
		Token string      `json:"token"`
		Team  *teamAnswer `json:"team"`
	}
	g.do(t, http.MethodPost, "/v1/auth/login", "", map[string]string{"email": "ann@example.org", "password": "a long password"}, http.StatusOK, &login)
	if login.Team != nil {
		t.Errorf("logged in to %+v", login.Team)
	}
	var mine struct{ Items []teamAnswer }
	if g.do(t, http.MethodGet, "/v1/teams", login.Token, nil, http.StatusOK, &mine); len(mine.Items) != 0 {
		t.Errorf("%+v", mine)
	}
	why := g.refused(t, http.MethodPost, "/v1/sandboxes", login.Token, map[string]string{"template": "base"}, http.StatusForbidden, "no_team")
	if !strings.Contains(why.Error.Message, "no active team") {
		t.Errorf("it does not say why: %q", why.Error.Message)
	}
	g.refused(t, http.MethodGet, "/v1/limits", login.Token, nil, http.StatusForbidden, "no_team")
	var made teamAnswer
	g.do(t, http.MethodPost, "/v1/teams", login.Token, map[string]string{"name": "Anew"}, http.StatusCreated, &made)
	if made.Role != "owner" || made.IsBYOC == nil || *made.IsBYOC || made.Slug == "" {
		t.Errorf("%+v", made)
	}
	g.do(t, http.MethodPost, "/v1/auth/login", "", map[string]string{"email": "ann@example.org", "password": "a long password"}, http.StatusOK, &login)
	if login.Team == nil || login.Team.ID != made.ID {
		t.Fatalf("the next login is to %+v", login.Team)
	}
	g.do(t, http.MethodPost, "/v1/sandboxes", login.Token, map[string]string{"template": "base"}, http.StatusCreated, nil)
}

func TestC8_AnotherTeamsTeamIsLikeNothing(t *testing.T) {
	g := newGround(t)
	ann, annTeam := g.me(t, g.ann)
	bob, _ := g.me(t, g.bob)
	var invited struct {
		Invitation struct{ ID string }
	}
	g.do(t, http.MethodPost, "/v1/teams/"+annTeam+"/invitations", g.ann, map[string]string{}, http.StatusCreated, &invited)
	none := id.NewTeam().String()
	for _, c := range []struct{ method, path, body string }{
		{"GET", "/v1/teams/T", ""},
		{"PATCH", "/v1/teams/T", `{"name":"x"}`},
		{"DELETE", "/v1/teams/T", ""},
		{"POST", "/v1/teams/T/transfer", `{"user_id":"` + bob + `"}`},
		{"POST", "/v1/teams/T/leave", ""},
		{"GET", "/v1/teams/T/members", ""},
		{"POST", "/v1/teams/T/members", `{"email":"bob@example.org"}`},
		{"PATCH", "/v1/teams/T/members/" + ann, `{"role":"member"}`},
		{"DELETE", "/v1/teams/T/members/" + ann, ""},
		{"GET", "/v1/teams/T/invitations", ""},
		{"POST", "/v1/teams/T/invitations", `{}`},
		{"DELETE", "/v1/teams/T/invitations/" + invited.Invitation.ID, ""},
	} {
		var answers [2]string
		for i, of := range []string{annTeam, none} {
			status, body := g.raw(t, c.method, strings.Replace(c.path, "/T", "/"+of, 1), g.bob, c.body)
			answers[i] = fmt.Sprint(status, requestID.ReplaceAllString(body, ""))
			if status != http.StatusNotFound {
				t.Errorf("%s %s: %d %s", c.method, c.path, status, body)
			}
		}
		if answers[0] != answers[1] {
			t.Errorf("%s %s tells them apart: %s and %s", c.method, c.path, answers[0], answers[1])
		}
		for _, bad := range []string{"x", "sb-" + strings.TrimPrefix(annTeam, "team-"), strings.ToUpper(annTeam)} {
			if status, body := g.raw(t, c.method, strings.Replace(c.path, "/T", "/"+bad, 1), g.bob, c.body); status != http.StatusBadRequest || !strings.Contains(body, "invalid_id") {
				t.Errorf("%s %s with %q: %d %s", c.method, c.path, bad, status, body)
			}
		}
		// A key manages no team, whatever its scopes.
		if status, body := g.raw(t, c.method, strings.Replace(c.path, "/T", "/"+annTeam, 1), "", c.body, "X-API-Key", g.annKey); status != http.StatusForbidden {
			t.Errorf("%s %s by a key: %d %s", c.method, c.path, status, body)
		}
	}
	var seen struct {
		Team    teamAnswer
		Members []struct{ Email, Role string }
	}
	g.do(t, http.MethodGet, "/v1/teams/"+annTeam, g.ann, nil, http.StatusOK, &seen)
	if len(seen.Members) != 1 || seen.Members[0].Role != "owner" || seen.Team.Name != "ann’s Team" {
		t.Errorf("something happened: %+v", seen)
	}
}

func TestLL05_LimitsInOneCallAndInTheError(t *testing.T) {
	g := newGround(t)
	_, annTeam := g.me(t, g.ann)
	type limit struct{ Limit, Used float64 }
	var all map[string]limit
	g.do(t, http.MethodGet, "/v1/limits", g.annKey, nil, http.StatusOK, &all)
	if len(all) != 8 || all["sandboxes"].Used != 1 || all["vcpus"].Used != 1 || all["api_keys"].Used != 1 || all["sandboxes"].Limit < 2 {
		t.Errorf("%+v", all)
	}
	path := "/v1/admin/teams/" + annTeam + "/limits"
	g.refused(t, http.MethodPut, path, g.ann, map[string]any{"sandboxes": 1000}, http.StatusForbidden, "admin_required")
	g.refused(t, http.MethodGet, path, g.ann, nil, http.StatusForbidden, "admin_required")
	g.do(t, http.MethodPut, path, g.admin, map[string]any{"sandboxes": 1, "vcpus": 2.5}, http.StatusOK, &all)
	if all["sandboxes"].Limit != 1 || all["sandboxes"].Used != 1 || all["vcpus"].Limit != 2.5 {
		t.Errorf("%+v", all)
	}
	status, body := g.raw(t, http.MethodPost, "/v1/sandboxes", "", `{"template":"base"}`, "X-API-Key", g.annKey)
	var f failure
	if err := json.Unmarshal([]byte(body), &f); err != nil || status != http.StatusTooManyRequests || f.Error.Code != "quota_exceeded" {
		t.Fatalf("%d %s", status, body)
	}
	if d := f.Error.Details; d["limit"] != "sandboxes" || d["value"] != 1.0 || d["used"] != 1.0 || d["setting"] != "PUT "+path+" sandboxes" {
		t.Errorf("%+v", d)
	}
	for _, bad := range []string{`{"sandboxes":-1}`, `{"sandboxes":2147483648}`, `{"vcpus":1e300}`, `{"memory_mb":9223372036854775807}`, `{"cpus":1}`} {
		if status, body := g.raw(t, http.MethodPut, path, g.admin, bad); status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", bad, status, body)
		}
	}
}

// idOf is the bare UUID of a team's wire id.
func idOf(t *testing.T, wire string) id.Team {
	t.Helper()
	of, err := id.ParseTeam(wire)
	if err != nil {
		t.Fatal(err)
	}
	return of
}

// Where sign-up is closed, an invitation that names an address lets that address
// in, and no other.
func TestA13_AnInvitationByNameOpensAClosedDoor(t *testing.T) {
	url := pgtest.Empty(t)
	_, secret := keyring.NewSecret()
	s := startWith(t, Config{DatabaseURL: url, Secret: secret, Store: t.TempDir(), Signup: "closed"})
	const password = "a long password"
	if err := EnsureAdmin(t.Context(), url, secret, "root@example.org", password); err != nil {
		t.Fatal(err)
	}
	var login struct {
		Token string `json:"token"`
		Team  struct {
			ID string `json:"id"`
		} `json:"team"`
	}
	s.do(t, http.MethodPost, "/v1/auth/login", "", map[string]string{"email": "root@example.org", "password": password}, http.StatusOK, &login)
	invite := func(body map[string]string) string {
		var made struct {
			URL string `json:"url"`
		}
		s.do(t, http.MethodPost, "/v1/teams/"+login.Team.ID+"/invitations", login.Token, body, http.StatusCreated, &made)
		return made.URL[strings.LastIndexAny(made.URL, "=")+1:]
	}
	named, open := invite(map[string]string{"email": "new@example.org"}), invite(map[string]string{})
	signUp := func(email, invitation string, want int) {
		t.Helper()
		s.do(t, http.MethodPost, "/v1/auth/signup", "", map[string]string{"email": email, "password": password, "name": "N", "invitation": invitation}, want, nil)
	}
	signUp("new@example.org", "", http.StatusForbidden)
	signUp("new@example.org", "sinv_nonsense", http.StatusForbidden)
	signUp("new@example.org", open, http.StatusForbidden)
	signUp("other@example.org", named, http.StatusForbidden)
	signUp("New@Example.org", named, http.StatusCreated)
	var auth struct {
		Token string `json:"token"`
	}
	s.do(t, http.MethodPost, "/v1/auth/login", "", map[string]string{"email": "new@example.org", "password": password}, http.StatusOK, &auth)
	s.do(t, http.MethodPost, "/v1/invitations/accept", auth.Token, map[string]string{"token": named}, http.StatusOK, nil)
	signUp("late@example.org", named, http.StatusForbidden)
}
