package app

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

// theirs is an answer of the facade, a list's items apart.
type theirs struct {
	Code      int    `json:"code"`
	Message   string `json:"message"`
	SandboxID string `json:"sandboxID"`
	Template  string `json:"templateID"`
	Access    string `json:"envdAccessToken"`
	Traffic   string `json:"trafficAccessToken"`
	Domain    string `json:"domain"`
	State     string `json:"state"`
	EndAt     time.Time
}

// e2b calls the facade and checks the status, which an error's body repeats.
func (g *ground) e2b(t *testing.T, key, call, body string, want int) theirs {
	t.Helper()
	method, path, _ := strings.Cut(call, " ")
	header := []string{"X-API-KEY", key}
	if key == "" {
		header = nil
	}
	status, raw := g.raw(t, method, path, "", body, header...)
	if status != want {
		t.Fatalf("%s %s: %d %s, want %d", call, body, status, raw, want)
	}
	var out theirs
	if raw != "" && raw[0] == '{' {
		if err := json.Unmarshal([]byte(raw), &out); err != nil {
			t.Fatal(err)
		}
	}
	if want >= 400 && (out.Code != want || out.Message == "") {
		t.Errorf("%s: the body is %s", call, raw)
	}
	return out
}

// key makes one of ann's team with the given scopes, in the form of E2B's.
func (g *ground) key(t *testing.T, session string, scopes ...string) string {
	t.Helper()
	body := map[string]any{"name": "k"}
	if scopes != nil {
		body["scopes"] = scopes
	}
	var made struct {
		Key string `json:"key"`
	}
	g.do(t, http.MethodPost, "/v1/api-keys", session, body, http.StatusCreated, &made)
	return "e2b_" + strings.TrimPrefix(made.Key, "skerry_")
}

func TestS11_TheFacadeIsOurOwnOperationsInOtherWords(t *testing.T) {
	g := newGround(t)
	key := g.key(t, g.ann)
	x := g.e2b(t, key, "POST /v2/sandboxes", `{"templateID":"base","metadata":{"a":"b"},"unknown":{"x":[1]}}`, http.StatusCreated)
	if x.Access == "" || x.Traffic == "" || x.Domain == "" || !strings.HasPrefix(x.Template, "tpl-") {
		t.Errorf("created: %+v", x)
	}
	at := "/sandboxes/" + x.SandboxID

	// The deadline: shortened by one, put off by the others, never brought forward.
	end := func() time.Duration { return time.Until(g.e2b(t, key, "GET "+at, "", http.StatusOK).EndAt) }
	near := func(what string, want time.Duration) {
		t.Helper()
		if got := end(); got > want || got < want-30*time.Second {
			t.Errorf("%s: ends in %s, want %s", what, got, want)
		}
	}
	near("created", 300*time.Second)
	g.e2b(t, key, "POST "+at+"/timeout", `{"timeout":100}`, http.StatusNoContent)
	near("set", 100*time.Second)
	g.e2b(t, key, "POST "+at+"/refreshes", "", http.StatusNoContent)
	near("refreshed by less", 100*time.Second)
	g.e2b(t, key, "POST "+at+"/refreshes", `{"duration":200}`, http.StatusNoContent)
	near("refreshed", 200*time.Second)
	g.e2b(t, key, "POST "+at+"/connect", `{"timeout":50}`, http.StatusOK)
	near("connected to with less", 200*time.Second)
	if again := g.e2b(t, key, "POST /v2"+at+"/connect", "", http.StatusOK); again.Access != x.Access || again.SandboxID != x.SandboxID {
		t.Errorf("connected: %+v", again)
	}
	near("connected to", 300*time.Second)

	// The old form, with the id of old.
	old := g.e2b(t, key, "POST /sandboxes", `{"templateID":"base:default","secure":false}`, http.StatusCreated)
	if got := time.Until(g.e2b(t, key, "GET /sandboxes/"+old.SandboxID+"-skerry", "", http.StatusOK).EndAt); got > 15*time.Second {
		t.Errorf("without a timeout it ends in %s", got)
	}

	for call, want := range map[string]struct {
		body   string
		status int
	}{
		"POST /v2/sandboxes":                  {`{"templateID":"none"}`, http.StatusNotFound},
		"POST /sandboxes":                     {`{"templateID":7}`, http.StatusBadRequest},
		"POST " + at + "/resume":              {`{}`, http.StatusConflict},
		"POST " + at + "/connect":             {`{}`, http.StatusBadRequest},
		"POST " + at + "/timeout":             {`{}`, http.StatusBadRequest},
		"POST " + at + "/refreshes":           {`{"duration":3601}`, http.StatusBadRequest},
		"GET /v2/sandboxes?limit=0":           {"", http.StatusBadRequest},
		"GET /v2/sandboxes?order=up":          {"", http.StatusBadRequest},
		"GET /v2/sandboxes?state=dead":        {"", http.StatusBadRequest},
		"GET /v2/sandboxes?template=base:1":   {"", http.StatusBadRequest},
		"GET /v2/sandboxes?startedAfter=now":  {"", http.StatusBadRequest},
		"GET /sandboxes/none":                 {"", http.StatusNotFound},
		"DELETE /sandboxes/none":              {"", http.StatusNotFound},
		"DELETE /templates/none":              {"", http.StatusNotFound},
		"DELETE /templates/base":              {"", http.StatusForbidden},
		"DELETE /templates/snap-none:default": {"", http.StatusNotFound},
		"GET /templates/aliases/none":         {"", http.StatusNotFound},
		"GET /v2/nothing":                     {"", http.StatusNotFound},
		"PATCH /sandboxes":                    {`{}`, http.StatusNotFound},
		"GET /volumes":                        {"", http.StatusNotFound},
	} {
		g.e2b(t, key, call, want.body, want.status)
	}
	g.e2b(t, key, "DELETE "+at, "", http.StatusNoContent)
	for _, call := range []string{"GET " + at, "DELETE " + at, "POST " + at + "/pause", "POST /v2" + at + "/connect", "POST " + at + "/fork"} {
		g.e2b(t, key, call, "", http.StatusNotFound)
	}
	g.e2b(t, key, "POST "+at+"/timeout", `{"timeout":9}`, http.StatusNotFound)

	// Each change has its line in the trail, as if our own API had been called.
	var trail struct {
		Items []struct {
			Action   string `json:"action"`
			Resource string `json:"resource_type"`
		} `json:"items"`
	}
	g.do(t, http.MethodGet, "/v1/audit-logs?limit=200", g.ann, nil, http.StatusOK, &trail)
	count := map[string]int{}
	for _, e := range trail.Items {
		count[e.Resource+" "+e.Action]++
	}
	if count["sandbox create"] < 3 || count["sandbox destroy"] < 1 {
		t.Errorf("the trail has %v", count)
	}
}

// What a key may not do by our API it may not do by the facade, and another
// team's sandbox is none.
func TestC8_TheFacadeKnowsWhoMayDoWhat(t *testing.T) {
	g := newGround(t)
	full := g.key(t, g.ann)
	x := g.e2b(t, full, "POST /v2/sandboxes", `{"templateID":"base"}`, http.StatusCreated)
	at := "/sandboxes/" + x.SandboxID
	reading, saving, stranger := g.key(t, g.ann, "read"), g.key(t, g.ann, "snapshots"), g.key(t, g.bob)
	calls := []struct {
		call, body             string
		reads, saves, stranger int
	}{
		{"POST /v2/sandboxes", `{"templateID":"base"}`, 403, 403, 201},
		{"POST /sandboxes", `{"templateID":"base"}`, 403, 403, 201},
		{"GET /v2/sandboxes", "", 200, 403, 200},
		{"GET /sandboxes", "", 200, 403, 200},
		{"GET " + at, "", 200, 403, 404},
		{"GET " + at + "/metrics", "", 200, 403, 404},
		{"POST " + at + "/timeout", `{"timeout":60}`, 403, 403, 404},
		{"POST " + at + "/refreshes", `{}`, 403, 403, 404},
		{"POST " + at + "/connect", `{"timeout":60}`, 403, 403, 404},
		{"POST /v2" + at + "/connect", ``, 403, 403, 404},
		{"POST " + at + "/resume", ``, 403, 403, 404},
		{"POST " + at + "/pause", ``, 403, 403, 404},
		{"POST " + at + "/fork", ``, 403, 403, 404},
		{"POST " + at + "/snapshots", `{}`, 403, 0, 404},
		{"GET /snapshots", ``, 200, 200, 200},
		{"GET /templates", ``, 200, 403, 200},
		{"GET /v2/templates", ``, 200, 403, 200},
		{"GET /templates/aliases/base", ``, 200, 403, 200},
		{"DELETE /templates/base", ``, 403, 403, 403},
		{"DELETE /templates/snap-00000000-0000-0000-0000-000000000000", ``, 403, 404, 404},
		{"DELETE " + at, ``, 403, 403, 404},
	}
	for _, c := range calls {
		g.e2b(t, "", c.call, c.body, http.StatusUnauthorized)
		g.e2b(t, "e2b_"+strings.Repeat("0", 40), c.call, c.body, http.StatusUnauthorized)
		g.e2b(t, reading, c.call, c.body, c.reads)
		if c.saves != 0 {
			g.e2b(t, saving, c.call, c.body, c.saves)
		}
		g.e2b(t, stranger, c.call, c.body, c.stranger)
	}
	if seen := g.e2b(t, reading, "GET "+at, "", http.StatusOK); seen.Access != "" {
		t.Error("a key that may only read is told the token with which to do more")
	}
	if seen := g.e2b(t, full, "GET "+at, "", http.StatusOK); seen.Access != x.Access {
		t.Error("the token is another")
	}
}
