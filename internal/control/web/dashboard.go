package web

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// dashboard serves the single-page app: its files, and its one page for every
// address that the app itself knows. It asks nobody who calls: there is nothing
// in it but the program.
type dashboard struct {
	files  fs.FS
	page   []byte
	etag   string
	policy string
}

// pages are the addresses that belong to the app, with all below them.
var pages = []string{"/dashboard", "/admin", "/login", "/signup", "/reset"}

// inlineScript finds the hashes of the scripts that stand in the page itself.
var inlineScript = regexp.MustCompile(`'sha256-[A-Za-z0-9+/=]+'`)

// newDashboard reads the app's page. Without one it is nil, and there is no
// dashboard.
func newDashboard(files fs.FS) (*dashboard, error) {
	if files == nil {
		return nil, nil //nolint:nilnil // none is a valid answer
	}
	page, err := fs.ReadFile(files, "index.html")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // as above
	}
	if err != nil {
		return nil, fmt.Errorf("read the dashboard: %w", err)
	}
	sum := sha256.Sum256(page)
	scripts := append([]string{"'self'"}, slices.Compact(inlineScript.FindAllString(string(page), -1))...)
	return &dashboard{
		files: files, page: page, etag: `"` + hex.EncodeToString(sum[:8]) + `"`,
		policy: "default-src 'none'; script-src " + strings.Join(scripts, " ") +
			"; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; manifest-src 'self'" +
			"; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
	}, nil
}

// serve answers for the app's own addresses, and tells whether r was one.
func (d *dashboard) serve(w http.ResponseWriter, r *http.Request) bool {
	if d == nil || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	p := r.URL.Path
	if p == "/" || slices.ContainsFunc(pages, func(own string) bool { return p == own || strings.HasPrefix(p, own+"/") }) {
		w.Header().Set("Content-Security-Policy", d.policy)
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("ETag", d.etag)
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(d.page))
		return true
	}
	name := strings.TrimPrefix(p, "/")
	if name == "index.html" || strings.HasPrefix(path.Base(name), ".") {
		return false
	}
	content, encoding, err := d.file(name, r.Header.Get("Accept-Encoding"))
	if err != nil {
		return false
	}
	if encoding != "" {
		w.Header().Set("Content-Encoding", encoding)
	}
	w.Header().Add("Vary", "Accept-Encoding")
	if strings.HasPrefix(name, "_app/immutable/") {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	} else {
		w.Header().Set("Cache-Control", "no-cache")
	}
	kind := mime.TypeByExtension(path.Ext(name))
	if kind == "" {
		kind = "application/octet-stream"
	}
	w.Header().Set("Content-Type", kind)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	return true
}

// file reads one in the best encoding that the caller takes and that was made.
func (d *dashboard) file(name, accepts string) (content []byte, encoding string, err error) {
	for _, e := range []struct{ name, suffix string }{{"br", ".br"}, {"gzip", ".gz"}} {
		if !strings.Contains(accepts, e.name) {
			continue
		}
		if content, err := fs.ReadFile(d.files, name+e.suffix); err == nil {
			return content, e.name, nil
		}
	}
	content, err = fs.ReadFile(d.files, name)
	return content, "", err
}
