package edge

import (
	"mime"
	"net/http"
	"strings"

	"skerry.dev/skerry/internal/guest/guestapi"
)

// ours are request headers that are the edge's and never the sandbox's.
var ours = []string{HeaderSandbox, HeaderPort, HeaderToken, HeaderTraffic, guestapi.HeaderInit}

// cookieName is the cookie that holds a port's token. Over TLS no other host
// can set it, whatever it tries.
func cookieName(scheme string) string {
	if scheme == "https" {
		return "__Host-skerry_port"
	}
	return "skerry_port"
}

// withoutCookie takes one cookie out of the Cookie headers and leaves all other
// bytes as they are.
func withoutCookie(h http.Header, name string) {
	lines := h["Cookie"]
	if len(lines) == 0 {
		return
	}
	var kept []string
	for _, line := range lines {
		if !strings.Contains(line, name) {
			kept = append(kept, line)
			continue
		}
		var pairs []string
		for pair := range strings.SplitSeq(line, ";") {
			if n, _, _ := strings.Cut(pair, "="); strings.TrimSpace(n) != name {
				pairs = append(pairs, pair)
			}
		}
		if line = strings.TrimSpace(strings.Join(pairs, ";")); line != "" {
			kept = append(kept, line)
		}
	}
	if h.Del("Cookie"); len(kept) > 0 {
		h["Cookie"] = kept
	}
}

// tooFar are headers of an answer that would have effect beyond the host that
// the answer is from, or after the sandbox has ended.
var tooFar = []string{
	"Strict-Transport-Security", "Public-Key-Pins", "Public-Key-Pins-Report-Only", "Expect-Ct", "Alt-Svc", "Clear-Site-Data", "Service-Worker-Allowed", "Origin-Agent-Cluster",
}

// confine keeps what a sandbox answers within its own host.
func confine(h http.Header, cookie string) {
	for _, name := range tooFar {
		h.Del(name)
	}
	lines := h["Set-Cookie"]
	if len(lines) == 0 {
		return
	}
	kept := make([]string, 0, len(lines))
	for _, line := range lines {
		first, attributes, _ := strings.Cut(line, ";")
		if n, _, _ := strings.Cut(first, "="); strings.TrimSpace(n) == cookie {
			continue
		}
		if !strings.Contains(strings.ToLower(attributes), "domain") {
			kept = append(kept, line)
			continue
		}
		parts := []string{first}
		for a := range strings.SplitSeq(attributes, ";") {
			if n, _, _ := strings.Cut(a, "="); !strings.EqualFold(strings.TrimSpace(n), "domain") {
				parts = append(parts, a)
			}
		}
		kept = append(kept, strings.Join(parts, ";"))
	}
	h["Set-Cookie"] = kept
}

// allowAnyOrigin: the daemon asks for a token in a header, which no page has by
// accident.
func allowAnyOrigin(h http.Header) {
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", "*")
}

// preflight answers a browser that asks before it calls the daemon.
func preflight(w http.ResponseWriter) {
	h := w.Header()
	allowAnyOrigin(h)
	h.Set("Access-Control-Allow-Methods", "HEAD, GET, POST, PUT, PATCH, DELETE")
	h.Set("Access-Control-Allow-Headers", "*")
	h.Set("Access-Control-Max-Age", "7200")
	w.WriteHeader(http.StatusNoContent)
}

// disarm has a browser save a file of a sandbox instead of running it.
func disarm(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	switch {
	case err != nil, strings.HasSuffix(kind, "html"), strings.HasSuffix(kind, "xml"), strings.Contains(kind, "javascript"), strings.Contains(kind, "ecmascript"), kind == "application/pdf":
	default:
		return
	}
	if disposition := h.Get("Content-Disposition"); strings.HasPrefix(disposition, "inline") {
		h.Set("Content-Disposition", "attachment"+strings.TrimPrefix(disposition, "inline"))
	} else {
		h.Set("Content-Disposition", "attachment")
	}
}
