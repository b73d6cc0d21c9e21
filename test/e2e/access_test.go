package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"skerry.dev/skerry/internal/testkit"
)

// person is somebody with an account, and a team of their own unless they are
// in another's.
type person struct {
	email string
	token string
	id    string
	team  string
}

// as calls the API with a session, or with an API key.
func (in *machine) as(t testing.TB, credential, method, path string, body, out any) int {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, in.URL+path, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	authorize(req.Header, credential)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if out != nil {
		if res.StatusCode >= 300 {
			t.Fatalf("%s %s: %d %s", method, path, res.StatusCode, answer)
		}
		if err := json.Unmarshal(answer, out); err != nil {
			t.Fatal(err)
		}
	}
	return res.StatusCode
}

func authorize(h http.Header, credential string) {
	if strings.HasPrefix(credential, "skerry_") {
		h.Set("X-API-Key", credential)
		return
	}
	h.Set("Authorization", "Bearer "+credential)
}

// people counts accounts, whose addresses must differ. The tests of this package
// run one after the other.
var people int

const everybodysPassword = "a long password"

func (in *machine) signUp(t testing.TB) person {
	t.Helper()
	people++
	email := fmt.Sprintf("person-%d@example.com", people)
	var made struct {
		Token string
		User  struct{ ID string }
		Team  struct{ ID string }
	}
	in.as(t, "", "POST", "/v1/auth/signup", map[string]string{"email": email, "password": everybodysPassword, "name": "P"}, &made)
	return person{email, made.Token, made.User.ID, made.Team.ID}
}

// watched is an exec stream and an event stream of one caller, both open. ended
// yields when both have.
type watched struct {
	ended chan error
}

func (in *machine) watch(t *testing.T, credential, box string) watched {
	t.Helper()
	header := http.Header{}
	authorize(header, credential)
	conn, _, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(in.URL, "http")+"/v1/sandboxes/"+box+"/exec/stream",
		&websocket.DialOptions{HTTPHeader: header, Subprotocols: []string{"skerry.exec.v1"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Write(t.Context(), websocket.MessageText, []byte(`{"cmd":"while :; do echo on; sleep 0.1; done"}`)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // that it began, and a first output
		if _, _, err := conn.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, in.URL+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	events, err := http.DefaultClient.Do(req)
	if err != nil || events.StatusCode != http.StatusOK {
		t.Fatalf("events: %v %v", events, err)
	}
	lines := bufio.NewScanner(events.Body)
	for lines.Scan() && lines.Text() != "event: ready" {
	}
	w := watched{ended: make(chan error, 2)}
	go func() {
		for {
			if _, _, err := conn.Read(context.WithoutCancel(t.Context())); err != nil {
				w.ended <- nil
				return
			}
		}
	}()
	go func() {
		defer events.Body.Close()
		for lines.Scan() {
		}
		w.ended <- nil
	}()
	t.Cleanup(func() { _ = conn.CloseNow(); _ = events.Body.Close() })
	return w
}

// until waits for both ends.
func (w watched) until(t *testing.T) {
	t.Helper()
	for range 2 {
		select {
		case <-w.ended:
		case <-time.After(30 * time.Second):
			t.Error("a stream goes on")
			return
		}
	}
}

// Whoever loses access is refused at the next request, and what they have open
// ends within a second. Nothing tells the streams' server but its own looks at
// the database: there are no notifications that could be lost.
func TestA9_RevocationIsFeltAtOnce(t *testing.T) {
	in := skerry(t)
	small := map[string]any{"template": "base", "vcpus": 0.2, "memory_mb": 128, "disk_mb": 128}
	ways := map[string]func(t *testing.T, owner person) (credential string, revoke func()){
		"the key is revoked": func(t *testing.T, owner person) (string, func()) {
			var made struct {
				Key    string
				APIKey struct{ ID string } `json:"api_key"`
			}
			in.as(t, owner.token, "POST", "/v1/api-keys", map[string]string{"name": "k"}, &made)
			return made.Key, func() { in.as(t, owner.token, "DELETE", "/v1/api-keys/"+made.APIKey.ID, nil, nil) }
		},
		"the session is ended": func(t *testing.T, owner person) (string, func()) {
			var login struct{ Token string }
			in.as(t, "", "POST", "/v1/auth/login", map[string]string{"email": owner.email, "password": everybodysPassword}, &login)
			var sessions struct {
				Items []struct {
					ID      string
					Current bool
				}
			}
			in.as(t, login.Token, "GET", "/v1/me/sessions", nil, &sessions)
			for _, s := range sessions.Items {
				if s.Current {
					return login.Token, func() { in.as(t, owner.token, "DELETE", "/v1/me/sessions/"+s.ID, nil, nil) }
				}
			}
			t.Fatal("no session is the current one")
			return "", nil
		},
		"the member is removed": func(t *testing.T, owner person) (string, func()) {
			member := in.signUp(t)
			in.as(t, owner.token, "POST", "/v1/teams/"+owner.team+"/members", map[string]string{"email": member.email, "role": "member"}, &struct{}{})
			var auth struct{ Token string }
			in.as(t, member.token, "POST", "/v1/auth/switch-team", map[string]string{"team_id": owner.team}, &auth)
			return auth.Token, func() { in.as(t, owner.token, "DELETE", "/v1/teams/"+owner.team+"/members/"+member.id, nil, nil) }
		},
		"the user is disabled": func(t *testing.T, owner person) (string, func()) {
			return owner.token, func() {
				in.as(t, in.Token, "PUT", "/v1/admin/users/"+owner.id+"/active", map[string]bool{"enabled": false}, &struct{}{})
			}
		},
		"the team is deleted": func(t *testing.T, owner person) (string, func()) {
			return owner.token, func() { in.as(t, owner.token, "DELETE", "/v1/teams/"+owner.team, nil, nil) }
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			var slowest time.Duration
			testkit.Promise(t, time.Second, name+": both streams end", func() time.Duration {
				owner := in.signUp(t)
				credential, revoke := way(t, owner)
				var box sandbox
				in.as(t, owner.token, "POST", "/v1/sandboxes", small, &box)
				defer in.end(t, owner, box.ID)
				w := in.watch(t, credential, box.ID)
				revoke()
				start := time.Now()
				if status := in.as(t, credential, "GET", "/v1/sandboxes", nil, nil); status != http.StatusUnauthorized && status != http.StatusForbidden {
					t.Errorf("the next request is answered %d", status)
				}
				w.until(t)
				took := time.Since(start)
				slowest = max(slowest, took)
				return took
			})
			t.Logf("both streams ended after at most %s", slowest)
		})
	}
}

// end removes a sandbox whoever may still do it.
func (in *machine) end(t *testing.T, owner person, box string) {
	t.Helper()
	if status := in.as(t, owner.token, "DELETE", "/v1/sandboxes/"+box, nil, nil); status == http.StatusNoContent {
		return
	}
	// Of a disabled user: let in again for that.
	in.as(t, in.Token, "PUT", "/v1/admin/users/"+owner.id+"/active", map[string]bool{"enabled": true}, nil)
	var login struct{ Token string }
	if in.as(t, "", "POST", "/v1/auth/login", map[string]string{"email": owner.email, "password": everybodysPassword}, &login); login.Token != "" {
		in.as(t, login.Token, "DELETE", "/v1/sandboxes/"+box, nil, nil)
	}
}
