package web

import (
	"context"
	"embed"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"skerry.dev/skerry/api"
)

//go:embed docs
var docsFiles embed.FS

// docsPolicy lets the page load its own files and call its own origin; nothing
// inline runs.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// mountSystem adds the routes that belong to no room.
func (s *Server) mountSystem() error {
	document, err := documentAsJSON()
	if err != nil {
		return err
	}
	assets := map[string]asset{
		"docs.js":      {"text/javascript; charset=utf-8", mustRead("docs/docs.js")},
		"device.js":    {"text/javascript; charset=utf-8", mustRead("docs/device.js")},
		"docs.css":     {"text/css; charset=utf-8", mustRead("docs/docs.css")},
		"openapi.json": {"application/json; charset=utf-8", document},
	}
	page := asset{"text/html; charset=utf-8", mustRead("docs/index.html")}
	devicePage := asset{"text/html; charset=utf-8", mustRead("docs/device.html")}

	s.Mount(Route{Method: http.MethodGet, Path: "/healthz", Operation: "getHealth", Handler: func(w http.ResponseWriter, _ *http.Request) {
		asset{"application/json; charset=utf-8", []byte("{\"status\":\"ok\"}\n")}.serve(w)
	}})
	s.Mount(Route{Method: http.MethodGet, Path: "/readyz", Operation: "getReadiness", Handler: s.ready})
	s.Mount(Route{Method: http.MethodGet, Path: "/openapi.yaml", Operation: "getOpenAPI", Handler: func(w http.ResponseWriter, _ *http.Request) {
		asset{"application/yaml; charset=utf-8", api.OpenAPI}.serve(w)
	}})
	s.Mount(Route{Method: http.MethodGet, Path: "/docs", Operation: "getDocs", Handler: func(w http.ResponseWriter, _ *http.Request) {
		page.serve(w)
	}})
	s.Mount(Route{Method: http.MethodGet, Path: "/login/device", Operation: "getDeviceLoginPage", Handler: func(w http.ResponseWriter, r *http.Request) {
		if !s.dashboard.serve(w, r) { // the app has a page of its own; a program without it has this one
			devicePage.serve(w)
		}
	}})
	s.Mount(Route{Method: http.MethodGet, Path: "/docs/{asset}", Operation: "getDocsAsset", Handler: func(w http.ResponseWriter, r *http.Request) {
		found, ok := assets[r.PathValue("asset")]
		if !ok {
			WriteError(w, r, errNoRoute)
			return
		}
		found.serve(w)
	}})
	return nil
}

type asset struct {
	contentType string
	body        []byte
}

func (a asset) serve(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", a.contentType)
	h.Set("Content-Security-Policy", docsPolicy)
	_, _ = w.Write(a.body) // the client may leave
}

func mustRead(name string) []byte {
	raw, err := docsFiles.ReadFile(name)
	if err != nil {
		panic("web: " + err.Error()) // embedded at build time
	}
	return raw
}

// checkWithin bounds the answer of each part.
const checkWithin = 5 * time.Second

// ready answers 200 when every part works, else 503 with the names of those
// that do not. Their errors are for the log.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkWithin)
	defer cancel()
	failures := make([]error, len(s.checks))
	var wg sync.WaitGroup
	for i, check := range s.checks {
		wg.Go(func() { failures[i] = check.Probe(ctx) })
	}
	wg.Wait()
	parts := make(map[string]string, len(s.checks))
	status, word := http.StatusOK, "ok"
	for i, check := range s.checks {
		parts[check.Name] = "ok"
		if failures[i] != nil {
			status, word, parts[check.Name] = http.StatusServiceUnavailable, "unavailable", "failing"
			s.log.WarnContext(ctx, "not ready", "part", check.Name, "error", failures[i])
		}
	}
	body, _ := json.Marshal(map[string]any{"status": word, "parts": parts}) // strings only
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
