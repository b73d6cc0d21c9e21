package edge

import (
	"context"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/port"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/id"
)

// Where a token may be.
const (
	// HeaderToken carries the token of a private port.
	HeaderToken = "X-Skerry-Token"
	// QueryToken does so once, in a link.
	QueryToken = "skerry_token"
	// HeaderTraffic carries the token of all of a sandbox's ports but the
	// daemon's.
	HeaderTraffic = "E2b-Traffic-Access-Token"
)

const control = port.Control

// Accesses decide what opens a port; port.Service does.
type Accesses interface {
	Admit(ctx context.Context, x id.Sandbox, port int, token string) (port.Admission, bool, error)
	TeamOf(ctx context.Context, x id.Sandbox) (id.Team, bool, error)
	Living(ctx context.Context, accesses []id.PortAccess) ([]id.PortAccess, error)
}

// TrafficToken opens every port of a sandbox but the daemon's. It is the same
// for as long as the sandbox exists.
func TrafficToken(secret keyring.Secret, x id.Sandbox) string {
	u := x.UUID()
	return hex.EncodeToString(secret.Derive("sandbox-traffic", u[:]))
}

// credentials are what a request shows. At most one token is looked at, in the
// order of the fields.
type credentials struct {
	header, query, cookie string
	traffic, access       string
}

func (c credentials) token() string {
	switch {
	case c.header != "":
		return c.header
	case c.query != "":
		return c.query
	default:
		return c.cookie
	}
}

// fromCookie: a browser shows it by itself, whoever made it send the request.
func (c credentials) fromCookie() bool { return c.header == "" && c.query == "" && c.cookie != "" }

// credentialsOf reads what a request shows; query is its raw query. A cookie
// belongs to the host, so it counts only where that names the port.
func credentialsOf(r *http.Request, t Target, cookie, query string) credentials {
	c := credentials{
		header: r.Header.Get(HeaderToken), traffic: r.Header.Get(HeaderTraffic), access: r.Header.Get(guestapi.HeaderAccessToken),
	}
	c.query, _ = takeQuery(query)
	if t.ByHost {
		if found := r.CookiesNamed(cookie); len(found) == 1 {
			c.cookie = found[0].Value
		}
	}
	return c
}

// takeQuery takes the token out of a raw query and leaves all other bytes as
// they are.
func takeQuery(raw string) (token, rest string) {
	if !strings.Contains(raw, QueryToken+"=") {
		return "", raw
	}
	kept := make([]string, 0, strings.Count(raw, "&")+1)
	for pair := range strings.SplitSeq(raw, "&") {
		value, ours := strings.CutPrefix(pair, QueryToken+"=")
		if !ours {
			kept = append(kept, pair)
			continue
		}
		if plain, err := url.QueryUnescape(value); err == nil && token == "" {
			token = plain
		}
	}
	return token, strings.Join(kept, "&")
}

// grant is an access that was found.
type grant struct {
	team id.Team
	port.Admission
	// token is set when it was by one that a browser may keep.
	token string
	// proven: not only the sandbox's daemon will decide. What is not resumes
	// nothing.
	proven bool
}

// admit decides whether a request may reach its target. There is no other
// place that does.
func (e *Edge) admit(r *http.Request, t Target, c credentials) (grant, *refusal) {
	if strings.EqualFold(r.Header.Get("Service-Worker"), "script") {
		return grant{}, errNoWorker
	}
	if t.Port == control {
		return e.admitDaemon(r, t, c)
	}
	if c.traffic != "" && same(c.traffic, TrafficToken(e.cfg.Secret, t.Sandbox)) {
		return e.owned(r.Context(), t, true)
	}
	done, refused := e.ask(r.Context())
	if refused != nil {
		return grant{}, refused
	}
	a, found, err := e.cfg.Accesses.Admit(r.Context(), t.Sandbox, t.Port, c.token())
	done()
	switch {
	case err != nil:
		return grant{}, errOurs.because(err)
	case found && !a.Public && c.fromCookie() && !ownPage(r):
		return grant{}, errForeign
	case found:
		g := grant{team: a.TeamID, Admission: a, proven: true}
		if !a.Public {
			g.token = c.token()
		}
		return g, nil
	}
	// Whoever may not know learns only that there is nothing that runs.
	if _, refused := e.owned(r.Context(), t, false); refused != nil {
		return grant{}, refused
	}
	return grant{}, errPrivate
}

// ask waits for its turn to ask the database: anybody may send requests here,
// and the API needs it, too.
func (e *Edge) ask(ctx context.Context) (done func(), refused *refusal) {
	select {
	case e.asking <- struct{}{}:
		return func() { <-e.asking }, nil
	default:
	}
	timer := time.NewTimer(askWithin)
	defer timer.Stop()
	select {
	case e.asking <- struct{}{}:
		return func() { <-e.asking }, nil
	case <-timer.C:
		return nil, errBusy
	case <-ctx.Done():
		return nil, errBusy
	}
}

// owned finds whose the sandbox is, for those who hold a token of all of it.
func (e *Edge) owned(ctx context.Context, t Target, proven bool) (grant, *refusal) {
	done, refused := e.ask(ctx)
	if refused != nil {
		return grant{}, refused
	}
	team, found, err := e.cfg.Accesses.TeamOf(ctx, t.Sandbox)
	done()
	switch {
	case err != nil:
		return grant{}, errOurs.because(err)
	case !found:
		return grant{}, errNoSandbox
	}
	return grant{team: team, proven: proven}, nil
}

// admitDaemon lets through what the daemon serves to the outside, with the
// sandbox's access token. A signed link is the daemon's own to check.
func (e *Edge) admitDaemon(r *http.Request, t Target, c credentials) (grant, *refusal) {
	if !daemonServes(r.URL.Path) {
		return grant{}, errNoPath
	}
	open := r.URL.Path == guestapi.PathHealth || r.Method == http.MethodOptions ||
		r.URL.Path == guestapi.PathFiles && c.access == "" && strings.Contains(r.URL.RawQuery, "signature=")
	proven := same(c.access, sandbox.AccessToken(e.cfg.Secret, t.Sandbox)) && r.URL.Path != guestapi.PathHealth
	g, refused := e.owned(r.Context(), t, proven)
	if refused == nil && !open && !proven {
		refused = errNoToken
	}
	return g, refused
}

// daemonServes lists what of the daemon may be reached from outside, by the
// path as it will read it. All else, what it may ever serve included, is not.
func daemonServes(p string) bool {
	switch p {
	case guestapi.PathHealth, guestapi.PathMetrics, guestapi.PathEnvs, guestapi.PathFiles, guestapi.PathCompose:
		return true
	}
	for _, service := range []string{"/process.Process/", "/filesystem.Filesystem/"} {
		if method, ok := strings.CutPrefix(p, service); ok {
			return method != "" && !strings.Contains(method, "/") && path.Clean(p) == p
		}
	}
	return false
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// ownPage reports whether a request that carries a browser's cookie was made by
// a page of this very host, or by a person who followed a link. A page of
// another sandbox is of the same site and its requests carry the cookie, too.
func ownPage(r *http.Request) bool {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" {
		switch site {
		case "same-origin", "none":
			return true
		}
		return (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
	}
	origin := r.Header.Get("Origin")
	if origin == "" { // an old browser's plain GET, or no browser
		return r.Method == http.MethodGet || r.Method == http.MethodHead
	}
	u, err := url.Parse(origin)
	return err == nil && strings.EqualFold(u.Host, r.Host)
}
