package edge

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNW07_WhatOfTheDaemonIsServed(t *testing.T) {
	for path, want := range map[string]bool{
		"/health": true, "/metrics": true, "/envs": true, "/files": true, "/files/compose": true,
		"/process.Process/Start": true, "/filesystem.Filesystem/WatchDir": true,
		"/init": false, "/events": false, "/tunnel": false, "/": false, "": false, "/freeze": false, "//init": false, "/health/../init": false, "/files/../init": false,
		"/process.Process/": false, "/process.Process/../init": false, "/process.Process/..": false, "/process.Process/.": false, "/process.Process/Start/x": false,
		"/process.Other/Start": false, "/Health": false, "/health/": false, "/files/": false, "/debug/pprof/": false,
	} {
		if got := daemonServes(path); got != want {
			t.Errorf("%q: %v", path, got)
		}
	}
}

func TestS11_TheTokenIsTakenOutOfTheQueryAndNothingElse(t *testing.T) {
	for raw, want := range map[string][2]string{
		"":                                   {"", ""},
		"a=1&b=%2F&&c":                       {"", "a=1&b=%2F&&c"},
		"skerry_token=t":                     {"t", ""},
		"a=%zz&skerry_token=t&b=+;x&":        {"t", "a=%zz&b=+;x&"},
		"skerry_token=t&skerry_token=u":      {"t", ""},
		"xskerry_token=t":                    {"", "xskerry_token=t"},
		"skerry_token=%74&q=skerry_token%3D": {"t", "q=skerry_token%3D"},
		"skerry_token=%zz&a":                 {"", "a"},
	} {
		token, rest := takeQuery(raw)
		if d := cmp.Diff(want, [2]string{token, rest}); d != "" {
			t.Errorf("%q: %s", raw, d)
		}
	}
}

// A page of another sandbox is of the same site: the browser adds the cookie to
// what it sends.
func TestNW06_WhoseRequestACookieIs(t *testing.T) {
	const host = "3000-x.localhost:7075"
	for name, c := range map[string]struct {
		method  string
		headers map[string]string
		want    bool
	}{
		"its own page":                {"POST", map[string]string{"Sec-Fetch-Site": "same-origin"}, true},
		"typed in":                    {"GET", map[string]string{"Sec-Fetch-Site": "none"}, true},
		"a link on another site":      {"GET", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, true},
		"a form on another site":      {"POST", map[string]string{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, false},
		"a frame on another site":     {"GET", map[string]string{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, false},
		"a fetch by a neighbour":      {"GET", map[string]string{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, false},
		"a socket of a neighbour":     {"GET", map[string]string{"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "websocket", "Sec-Fetch-Dest": "empty"}, false},
		"an old browser's socket":     {"GET", map[string]string{"Origin": "http://3000-y.localhost:7075"}, false},
		"its own":                     {"GET", map[string]string{"Origin": "http://" + host}, true},
		"an origin that is hidden":    {"POST", map[string]string{"Origin": "null"}, false},
		"a program":                   {"GET", nil, true},
		"a program that changes more": {"POST", nil, false},
	} {
		r := &http.Request{Method: c.method, Host: host, Header: http.Header{}}
		for k, v := range c.headers {
			r.Header.Set(k, v)
		}
		if got := ownPage(r); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestS11_AnswersStayWithinTheirHost(t *testing.T) {
	h := http.Header{
		"Set-Cookie": {
			"a=1", "b=2; Path=/; Domain=localhost; Secure", "c=3;domain=.example.com", "skerry_port=stolen; Path=/", "d=domain; HttpOnly", " skerry_port =x", "e=5; DOMAIN",
		},
		"Strict-Transport-Security": {"max-age=1; includeSubDomains"}, "Service-Worker-Allowed": {"/"}, "Clear-Site-Data": {`"*"`}, "Alt-Svc": {`h3=":443"`},
		"X-Other": {"1"},
	}
	confine(h, "skerry_port")
	want := http.Header{"X-Other": {"1"}, "Set-Cookie": {"a=1", "b=2; Path=/; Secure", "c=3", "d=domain; HttpOnly", "e=5"}}
	if d := cmp.Diff(want, h); d != "" {
		t.Error(d)
	}
}

func TestS11_TheCookieStaysOutside(t *testing.T) {
	h := http.Header{"Cookie": {"a=1; skerry_port=secret; b=\"x y\"", "skerry_port=secret", "c=3;d=skerry_port"}}
	withoutCookie(h, "skerry_port")
	want := http.Header{"Cookie": {`a=1; b="x y"`, "c=3;d=skerry_port"}}
	if d := cmp.Diff(want, h); d != "" {
		t.Error(d)
	}
}

func TestS11_FilesThatRunAreSaved(t *testing.T) {
	for kind, active := range map[string]bool{
		"text/html; charset=utf-8": true, "image/svg+xml": true, "application/xhtml+xml": true, "text/javascript": true, "": true, "application/pdf": true,
		"text/plain": false, "image/png": false, "application/octet-stream": false,
	} {
		h := http.Header{"Content-Type": {kind}, "Content-Disposition": {`inline; filename="x"`}}
		disarm(h)
		want := `inline; filename="x"`
		if active {
			want = `attachment; filename="x"`
		}
		if h.Get("Content-Disposition") != want || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", kind, h)
		}
	}
}
