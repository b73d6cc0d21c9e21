package web

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"
)

func app(t *testing.T) *dashboard {
	t.Helper()
	d, err := newDashboard(fstest.MapFS{
		"index.html":                 {Data: []byte(`<meta http-equiv="content-security-policy" content="script-src 'self' 'sha256-abc='"><p>Skerry`)},
		"theme.js":                   {Data: []byte("theme")},
		"_app/immutable/start.js":    {Data: []byte("plain")},
		"_app/immutable/start.js.br": {Data: []byte("brotli")},
		".gitkeep":                   {},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestC1_D1_TheAppOwnsItsOwnAddressesAndNoOthers(t *testing.T) {
	d := app(t)
	for path, want := range map[string]bool{
		"/": true, "/dashboard": true, "/dashboard/sandboxes/sb-1": true, "/admin/hosts": true, "/login": true, "/signup": true, "/reset": true,
		"/theme.js": true, "/_app/immutable/start.js": true,
		"/v1/sandboxes": false, "/v2": false, "/dashboards": false, "/index.html": false, "/.gitkeep": false, "/_app": false, "/../etc/passwd": false, "/nothing.js": false,
	} {
		r := &http.Request{Method: http.MethodGet, URL: httptest.NewRequest(http.MethodGet, "http://skerry"+path, nil).URL, Header: http.Header{}}
		if got := d.serve(httptest.NewRecorder(), r); got != want {
			t.Errorf("%s: the app's own is %v, want %v", path, got, want)
		}
	}
	if d.serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/dashboard", nil)) {
		t.Error("it takes a POST")
	}
}

func TestD1_ThePageMayLoadOnlyFromItsOwnOrigin(t *testing.T) {
	w := httptest.NewRecorder()
	app(t).serve(w, httptest.NewRequest(http.MethodGet, "/dashboard", nil))
	policy := w.Header().Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "script-src 'self' 'sha256-abc='", "style-src 'self';", "connect-src 'self'", "frame-ancestors 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy %q has no %q", policy, want)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") {
		t.Errorf("the policy is too wide: %q", policy)
	}
	again := httptest.NewRequest(http.MethodGet, "/dashboard", nil)
	again.Header.Set("If-None-Match", w.Header().Get("ETag"))
	second := httptest.NewRecorder()
	app(t).serve(second, again)
	if second.Code != http.StatusNotModified {
		t.Errorf("asked again for the same page: %d, want 304", second.Code)
	}
}

func TestD1_FilesComeCompressedAndOnce(t *testing.T) {
	for accepts, want := range map[string]string{"": "plain", "gzip": "plain", "gzip, br": "brotli"} {
		r := httptest.NewRequest(http.MethodGet, "/_app/immutable/start.js", nil)
		r.Header.Set("Accept-Encoding", accepts)
		w := httptest.NewRecorder()
		app(t).serve(w, r)
		if w.Body.String() != want || (w.Header().Get("Content-Encoding") == "br") != (want == "brotli") {
			t.Errorf("to one who takes %q: %q, %v", accepts, w.Body, w.Header())
		}
		if !strings.Contains(w.Header().Get("Cache-Control"), "immutable") || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/javascript") {
			t.Errorf("to one who takes %q: %v", accepts, w.Header())
		}
	}
}

func TestD1_AProgramWithoutTheAppHasNone(t *testing.T) {
	d, err := newDashboard(fstest.MapFS{".gitkeep": {}})
	if err != nil || d.serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/dashboard", nil)) {
		t.Errorf("it serves something, %v", err)
	}
}
