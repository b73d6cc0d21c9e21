package app

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// TestA9_ID02_ABuildsLogEndsWithTheAccess: whoever follows a build hears no more of
// it once the key is revoked, and hears why; a build goes on for hours.
func TestA9_ID02_ABuildsLogEndsWithTheAccess(t *testing.T) {
	databaseURL := pgtest.Empty(t)
	_, secret := keyring.NewSecret()
	s := start(t, databaseURL, secret, t.TempDir())
	const email, password = "root@example.org", "a long password"
	if err := EnsureAdmin(t.Context(), databaseURL, secret, email, password); err != nil {
		t.Fatal(err)
	}
	var login struct {
		Token string `json:"token"`
		Team  struct {
			ID string `json:"id"`
		} `json:"team"`
	}
	s.do(t, http.MethodPost, "/v1/auth/login", "", map[string]string{"email": email, "password": password}, http.StatusOK, &login)
	var key struct {
		Key    string `json:"key"`
		APIKey struct {
			ID string `json:"id"`
		} `json:"api_key"`
	}
	s.do(t, http.MethodPost, "/v1/api-keys", login.Token, map[string]any{"name": "k"}, http.StatusCreated, &key)
	pool, err := pg.Open(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	made := id.NewBuild()
	// Another server drives it.
	if _, err := pool.Exec(t.Context(), `INSERT INTO builds (id, team_id, name, status, recipe, created_by_type, created_by_id, created_by_name, lease_owner, lease_until, started_at)
		VALUES ($1, $2, 'slow', 'running', '{}', 'user', '', '', gen_random_uuid(), now() + interval '1 hour', now())`, made, strings.TrimPrefix(login.Team.ID, "team-")); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `INSERT INTO build_logs (build_id, seq, step, stream, line) VALUES ($1, 1, 1, 'stdout', 'said')`, made); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/v1/builds/"+made.String()+"/logs?follow=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", key.Key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	var last map[string]json.RawMessage
	revoked := false
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue // it lives
		}
		last = nil
		if err := json.Unmarshal(lines.Bytes(), &last); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		if !revoked && string(last["line"]) == `"said"` {
			s.do(t, http.MethodDelete, "/v1/api-keys/"+key.APIKey.ID, login.Token, nil, http.StatusNoContent, nil)
			revoked = true
		}
	}
	if !revoked || !strings.Contains(string(last["error"]), `"access_ended"`) {
		t.Errorf("revoked %t, and the last line is %s, %v", revoked, last, lines.Err())
	}
}
