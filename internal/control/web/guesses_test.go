package web_test

import (
	"fmt"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/ratelimit"
	"skerry.dev/skerry/internal/control/web"
)

func TestID08_UnknownKeysAreLimitedByAddressAndKeepNobodyOut(t *testing.T) {
	later := &laterClock{}
	s := newStack(t, options{
		clock: later, routes: []web.Route{whoami()},
		limits: web.Limits{Unknown: ratelimit.Rate{Burst: 10, Per: time.Hour}},
	})
	a := s.signup(t, "ada@example.com")
	known, knownID := s.apiKey(t, a.Token, map[string]any{"name": "known"})
	fresh, _ := s.apiKey(t, a.Token, map[string]any{"name": "fresh"})
	call := func(key string) reply { return s.call(t, "GET", "/v1/sandboxes/x/exec/stream", nil, "X-API-Key", key) }
	generated := func(key string) reply { return s.call(t, "DELETE", "/v1/api-keys/x", nil, "X-API-Key", key) }
	if r := call(known); r.status != 200 {
		t.Fatal(r.body)
	}
	// A program that goes on with one wrong key is stopped, and nobody else.
	stale := "skerry_" + fmt.Sprintf("%040x", 1)
	for range 11 {
		call(stale).fault(t, 401, "invalid_api_key")
	}
	if r := call(stale); r.header.Get("Retry-After") == "" {
		t.Errorf("no Retry-After: %v", r.header)
	} else {
		r.fault(t, 429, "too_many_failures")
	}
	if r := call(fresh); r.status != 200 {
		t.Errorf("a neighbour of a wrong key: %d %s", r.status, r.body)
	}
	// Guessing is stopped, whatever the key; those that work go on.
	limited := 0
	for i := range 30 {
		if r := call("skerry_" + fmt.Sprintf("%040x", 100+i)); r.status == 429 {
			limited++
		}
	}
	if limited != 21 {
		t.Errorf("%d of 30 guesses were limited, after one before", limited)
	}
	for _, key := range []string{known, fresh} {
		if r := call(key); r.status != 200 {
			t.Errorf("a key that worked: %d %s", r.status, r.body)
		}
	}
	generated("skerry_"+fmt.Sprintf("%040x", 7)).fault(t, 403, "api_key_not_allowed")
	// What worked is asked of the database all the same.
	if r := s.call(t, "DELETE", "/v1/api-keys/"+knownID, nil, bearer(a.Token)...); r.status != 204 {
		t.Fatal(r.body)
	}
	call(known).fault(t, 401, "invalid_api_key")
	later.by = 30 * time.Minute
	call("skerry_"+fmt.Sprintf("%040x", 8)).fault(t, 401, "invalid_api_key")
	// Nothing is held against a key for ever, such as what a database said that
	// was restored meanwhile.
	later.by = 2 * time.Hour
	s.exec(t, "UPDATE team_api_keys SET revoked_at = NULL")
	if r := call(known); r.status != 200 {
		t.Errorf("a key that works again: %d %s", r.status, r.body)
	}
}
