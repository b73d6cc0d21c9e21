package edge

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/logkey"
)

// passage is one request on its way.
type passage struct {
	target Target
	uri    string // as it is sent on, byte for byte
	cookie string // the name of the edge's own
	out    http.Header
}

type passageKey struct{}

func passageOf(ctx context.Context) passage {
	p, _ := ctx.Value(passageKey{}).(passage)
	return p
}

// ServeHTTP implements http.Handler.
func (e *Edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t, refused := target(e.cfg.Origin, r)
	if refused != nil {
		refused.write(w, r, t)
		return
	}
	if n := e.count.Add(1); n > int64(e.cfg.MaxOpen) {
		e.count.Add(-1)
		errFull.write(w, r, t)
		return
	}
	defer e.count.Add(-1)
	if t.Port == control && r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
		preflight(w)
		return
	}
	uri := requestURI(r)
	before, query, asked := strings.Cut(uri, "?")
	p := passage{target: t, uri: uri, cookie: cookieName(e.cfg.Origin.Scheme), out: w.Header()}
	c := credentialsOf(r, t, p.cookie, query)
	if c.query != "" && t.Port != control {
		if _, rest := takeQuery(query); asked && rest != "" {
			p.uri = before + "?" + rest
		} else {
			p.uri = before
		}
	}
	g, refused := e.admit(r, t, c)
	if refused != nil {
		e.note(r.Context(), t, refused)
		refused.write(w, r, t)
		return
	}
	if g.token != "" && g.token == c.query && t.ByHost && navigates(r) {
		e.settle(w, r, g, p)
		return
	}
	e.carry(w, r, g, p)
}

// requestURI is the target as it was sent, without the host that a client of a
// proxy puts before it.
func requestURI(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") {
		return r.RequestURI
	}
	return r.URL.RequestURI()
}

// navigates tells a person at a browser, for whom a link is opened.
func navigates(r *http.Request) bool {
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" {
		return r.Method == http.MethodGet && mode == "navigate"
	}
	return r.Method == http.MethodGet && wantsPage(r)
}

// settle leaves the link's token with the browser, for this host alone, and has
// it ask again without.
func (e *Edge) settle(w http.ResponseWriter, r *http.Request, g grant, p passage) {
	secure := e.cfg.Origin.Scheme == "https"
	cookie := &http.Cookie{Name: p.cookie, Value: g.token, Path: "/", HttpOnly: true, Secure: secure, SameSite: http.SameSiteLaxMode}
	if g.ExpiresAt != nil {
		cookie.Expires = *g.ExpiresAt
	}
	http.SetCookie(w, cookie)
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	// Whole, so that a path of //elsewhere stays one.
	h.Set("Location", e.cfg.Origin.Scheme+"://"+r.Host+p.uri)
	w.WriteHeader(http.StatusSeeOther)
}

// carry takes the request into the sandbox and the answer back.
func (e *Edge) carry(w http.ResponseWriter, r *http.Request, g grant, p passage) {
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), passageKey{}, p))
	defer cancel(nil)
	defer e.open.enter(g.Admission, cancel)()
	way, leave, err := e.routes.take(ctx, g.team, p.target.Sandbox, g.proven)
	if err != nil {
		e.fail(w, r.WithContext(ctx), err)
		return
	}
	defer leave()
	defer context.AfterFunc(way.ctx, func() { cancel(context.Cause(way.ctx)) })()
	transport, err := way.port(p.target.Port, speaksGRPC(r))
	if err != nil {
		e.fail(w, r.WithContext(ctx), err)
		return
	}
	defer severed(ctx, w)()
	// An application may answer while it still reads.
	_ = http.NewResponseController(w).EnableFullDuplex()
	proxy := httputil.ReverseProxy{
		Rewrite: e.rewrite, Transport: transport, FlushInterval: -1, BufferPool: &e.buffers,
		ModifyResponse: e.answer, ErrorHandler: e.fail,
		ErrorLog: slog.NewLogLogger(e.cfg.Log.Handler(), slog.LevelDebug),
	}
	proxy.ServeHTTP(w, r.WithContext(ctx))
}

// speaksGRPC: such a server understands nothing but HTTP/2.
func speaksGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") && !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc-web")
}

// rewrite makes the request that goes inside: the same, but for what is between
// the client and the edge.
func (e *Edge) rewrite(pr *httputil.ProxyRequest) {
	p := passageOf(pr.In.Context())
	out := pr.Out
	out.URL = &url.URL{Scheme: "http", Host: "sandbox", Opaque: p.uri}
	if strings.HasPrefix(p.uri, "//") { // which would be read as a host
		path, query, asked := strings.Cut(p.uri, "?")
		plain, err := url.PathUnescape(path)
		if err != nil {
			plain = path
		}
		out.URL = &url.URL{Scheme: "http", Host: "sandbox", Path: plain, RawPath: path, RawQuery: query, ForceQuery: asked}
	}
	out.Host = pr.In.Host
	out.Trailer = pr.In.Trailer // filled in once the body was read
	for _, name := range ours {
		out.Header.Del(name)
	}
	withoutCookie(out.Header, p.cookie)
	if e.cfg.Trusted(pr.In.RemoteAddr) {
		out.Header["X-Forwarded-For"] = pr.In.Header["X-Forwarded-For"]
	}
	pr.SetXForwarded()
	out.Header.Set("X-Forwarded-Proto", e.cfg.Origin.Scheme)
	if _, named := pr.In.Header["User-Agent"]; !named {
		out.Header["User-Agent"] = nil // not ours either
	}
}

// answer looks at what comes back before its first byte goes out.
func (e *Edge) answer(res *http.Response) error {
	p := passageOf(res.Request.Context())
	for _, name := range []string{"Content-Type", "Date"} {
		if _, said := res.Header[name]; !said {
			p.out[name] = nil // nobody makes one up
		}
	}
	confine(res.Header, p.cookie)
	if p.target.Port == control {
		allowAnyOrigin(res.Header)
		if path, _, _ := strings.Cut(p.uri, "?"); res.Request.Method == http.MethodGet && path != guestapi.PathHealth {
			disarm(res.Header)
		}
	}
	return nil
}

// fail answers for a request of which no answer came.
func (e *Edge) fail(w http.ResponseWriter, r *http.Request, err error) {
	ctx := r.Context()
	p := passageOf(ctx)
	if cause := context.Cause(ctx); cause != nil {
		var refused *refusal
		if !errors.As(cause, &refused) {
			panic(http.ErrAbortHandler) // the client left; an answer without a word would be a success
		}
		err = cause
	}
	var refused *refusal
	if !errors.As(err, &refused) {
		refused = refusalOf(err)
	}
	e.note(ctx, p.target, refused)
	refused.write(w, r, p.target)
}

func (e *Edge) note(ctx context.Context, t Target, r *refusal) {
	if r.status == http.StatusInternalServerError {
		e.cfg.Log.ErrorContext(ctx, "cannot decide about a request to a sandbox", logkey.SandboxID, t.Sandbox.String(), logkey.Error, r.cause)
		return
	}
	e.cfg.Log.DebugContext(ctx, "refused a request to a sandbox", logkey.SandboxID, t.Sandbox.String(), "port", t.Port, "status", r.status, logkey.Error, r.cause)
}

// buffers are lent to copies.
type buffers struct{ pool sync.Pool }

const bufferBytes = 32 << 10

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[bufferBytes]byte); ok {
		return p[:]
	}
	return make([]byte, bufferBytes)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(p []byte) {
	if len(p) == bufferBytes {
		b.pool.Put((*[bufferBytes]byte)(p))
	}
}
