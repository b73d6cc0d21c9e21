package web_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/errs"
)

// A stream that is open ends within a second or so of its caller's session, key,
// membership or team; those of others go on.
func TestA9_OpenStreamsEndWithTheAccessOfTheirCallers(t *testing.T) {
	type began struct {
		who   string
		ended chan error
	}
	open := make(chan began)
	s := newStack(t, options{routes: []web.Route{{
		Method: "GET", Path: "/v1/sandboxes/{id}/pty", Operation: "openPTY", Handler: func(w http.ResponseWriter, r *http.Request) {
			b := began{r.PathValue("id"), make(chan error, 1)}
			if p := principal.From(r.Context()); p.Kind == principal.KindAnonymous {
				t.Error("nobody streams")
			}
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			open <- b
			<-r.Context().Done()
			b.ended <- context.Cause(r.Context())
		},
	}}})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { _ = s.web.Recheck(ctx) })
	streams := map[string]chan error{}
	begin := func(who string, header ...string) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/v1/sandboxes/"+who+"/pty", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(header[0], header[1])
		wg.Go(func() {
			if res, err := http.DefaultClient.Do(req); err == nil {
				defer res.Body.Close()
				_, _ = res.Body.Read(make([]byte, 1))
			}
		})
		b := <-open
		streams[b.who] = b.ended
	}
	ann, bob, eve, joe, zoe := s.signup(t, "ann@x.org"), s.signup(t, "bob@x.org"), s.signup(t, "eve@x.org"), s.signup(t, "joe@x.org"), s.signup(t, "zoe@x.org")
	revoked, revokedID := s.apiKey(t, zoe.Token, map[string]any{"name": "a"})
	kept, _ := s.apiKey(t, zoe.Token, map[string]any{"name": "b"})
	s.demote(t, "eve@x.org")
	begin("logged-out", bearer(ann.Token)...)
	begin("disabled", bearer(bob.Token)...)
	begin("removed", bearer(eve.Token)...)
	begin("deleted", bearer(joe.Token)...)
	begin("revoked", "X-API-Key", revoked)
	begin("kept", "X-API-Key", kept)
	begin("stays", bearer(zoe.Token)...)

	s.call(t, "POST", "/v1/auth/logout", nil, bearer(ann.Token)...)
	s.exec(t, "UPDATE users SET is_active = false WHERE email = 'bob@x.org'")
	s.exec(t, "DELETE FROM users_teams WHERE user_id = (SELECT id FROM users WHERE email = 'eve@x.org')")
	s.exec(t, "UPDATE teams SET deleted_at = now() WHERE id = (SELECT team_id FROM users_teams m JOIN users u ON u.id = m.user_id WHERE u.email = 'joe@x.org')")
	s.call(t, "DELETE", "/v1/api-keys/"+revokedID, nil, bearer(zoe.Token)...)
	for _, who := range []string{"logged-out", "disabled", "removed", "deleted", "revoked"} {
		select {
		case err := <-streams[who]:
			if !errs.Is(err, "access_ended") || errs.CodeOf(err) != errs.CodeUnauthenticated {
				t.Errorf("%s: %v", who, err)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("the stream of %s goes on", who)
		}
	}
	for _, who := range []string{"kept", "stays"} {
		select {
		case err := <-streams[who]:
			t.Errorf("the stream of %s ended: %v", who, err)
		default:
		}
	}
}

// A command that somebody waits for is worth as much as a stream.
func TestID02_AWaitingCommandEndsWithTheAccessOfItsCaller(t *testing.T) {
	began := make(chan struct{}, 1)
	s := newStack(t, options{exec: func(ctx context.Context) (*restapi.ExecResult, error) {
		began <- struct{}{}
		<-ctx.Done()
		return &restapi.ExecResult{Stdout: "secret"}, nil
	}})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { _ = s.web.Recheck(ctx) })
	a := s.signup(t, "ada@example.com")
	key, keyID := s.apiKey(t, a.Token, map[string]any{"name": "ci"})
	answer := make(chan reply, 1)
	wg.Go(func() {
		answer <- s.call(t, "POST", "/v1/sandboxes/x/exec", map[string]any{"cmd": "true"}, "X-API-Key", key)
	})
	select {
	case <-began:
	case r := <-answer:
		t.Fatalf("%d %s", r.status, r.body)
	}
	if r := s.call(t, "DELETE", "/v1/api-keys/"+keyID, nil, bearer(a.Token)...); r.status != 204 {
		t.Fatal(r.body)
	}
	select {
	case r := <-answer:
		r.fault(t, 401, "access_ended")
	case <-time.After(30 * time.Second):
		t.Fatal("it goes on")
	}
}
