package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/ogen-go/ogen/middleware"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/ratelimit"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Config is what the plumbing needs of the rest.
type Config struct {
	Log     *slog.Logger
	Clock   clock.Clock
	Secret  keyring.Secret // for the identities of idempotent requests
	Tokens  Tokens
	Users   UserAuthenticator
	Keys    KeyAuthenticator
	Hosts   HostAuthenticator
	Tickets Tickets
	Proxies Proxies
	Limits  Limits
	// Refusals is told of every refusal; nil keeps none.
	Refusals Refusals
	// Checks decide readiness.
	Checks []Check
	// Dashboard is the built app, its index.html at the root; nil or without one:
	// there is none.
	Dashboard fs.FS
}

// Limits guard the server. A zero Rate is no limit.
type Limits struct {
	// Auth counts calls of the routes that authenticate, by address.
	Auth ratelimit.Rate
	// Caller counts all calls of one user, key or host.
	Caller ratelimit.Rate
	// Unknown counts API keys and tickets that do not work, by address.
	Unknown ratelimit.Rate
}

// DefaultLimits are far above what people and programs do in earnest.
func DefaultLimits() Limits {
	return Limits{
		Auth:   ratelimit.Rate{Burst: 30, Per: time.Minute},
		Caller: ratelimit.Rate{Burst: 2000, Per: 4 * time.Second},
		// Like wrong passwords.
		Unknown: ratelimit.Rate{Burst: 10, Per: time.Minute},
	}
}

// limiterKeys bounds each generation of the limiters' memory: about 10 MB.
const limiterKeys = 50_000

// Check is one part that must work for the server to be of use.
type Check struct {
	Name string
	// Probe returns nil when the part works. It is called with a deadline.
	Probe func(ctx context.Context) error
}

// Server is the HTTP side of a control plane. Mount everything first, then ask
// for the Handler.
type Server struct {
	log       *slog.Logger
	secret    keyring.Secret
	tokens    Tokens
	users     UserAuthenticator
	keys      KeyAuthenticator
	hosts     HostAuthenticator
	tickets   Tickets
	proxies   Proxies
	perIP     *ratelimit.Limiter
	perCaller *ratelimit.Limiter
	guesses   *guesses
	refusals  Refusals
	checks    []Check
	open      openRequests
	raw       *http.ServeMux
	routes    []Route
	dashboard *dashboard
}

// New returns a server that has the system's own routes.
func New(c Config) (*Server, error) {
	s := &Server{
		log: c.Log, secret: c.Secret, tokens: c.Tokens, users: c.Users, keys: c.Keys, hosts: c.Hosts, tickets: c.Tickets, proxies: c.Proxies, refusals: c.Refusals, checks: c.Checks,
		perIP:     ratelimit.New(c.Clock, c.Limits.Auth, limiterKeys),
		perCaller: ratelimit.New(c.Clock, c.Limits.Caller, limiterKeys),
		guesses:   newGuesses(c.Clock, c.Limits.Unknown),
		raw:       http.NewServeMux(),
	}
	var err error
	if s.dashboard, err = newDashboard(c.Dashboard); err != nil {
		return nil, err
	}
	return s, s.mountSystem()
}

// Route stands beside the generated ones: a WebSocket, an upload, a page. Its
// operation must be in the document, marked x-skerry-raw.
type Route struct {
	Method    string
	Path      string // as in the document: /v1/sandboxes/{id}/files
	Operation string // operationId
	// AnyBody lifts the limit of the body's size and time: an upload.
	AnyBody bool
	// Handler is called with an authenticated, permitted principal in the
	// context, which ends when the server stops, and when the principal may no
	// longer call: then its cause is errs.CodeUnauthenticated. Path values are in
	// r.PathValue. It answers errors with WriteError.
	Handler http.HandlerFunc
}

// Mount adds a route.
func (s *Server) Mount(route Route) {
	s.routes = append(s.routes, route)
	s.raw.HandleFunc(route.Method+" "+route.Path, func(w http.ResponseWriter, r *http.Request) {
		stateOf(r.Context()).operation = route.Operation
		ctx, err := s.authenticate(r, route.Operation)
		if err != nil {
			WriteError(w, r, err)
			return
		}
		if !route.AnyBody {
			limitBody(w, r)
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer s.open.enter(principal.From(ctx), cancel)()
		if stopping, ok := ctx.Value(stoppingKey{}).(context.Context); ok {
			defer context.AfterFunc(stopping, func() { cancel(errStopping) })()
		}
		route.Handler(w, r.WithContext(ctx))
	})
}

// stoppingKey finds, in a request's context, the one that ends when the server
// begins to stop; the request's own goes on until the grace is over.
type stoppingKey struct{}

var errStopping = errs.Unavailable("stopping", "The server is being restarted. Connect again.")

// Handler returns the whole of the API: the mounted routes and the generated
// ones, which api implements.
func (s *Server) Handler(api restapi.Handler) (http.Handler, error) {
	generated, err := restapi.NewServer(api, security{s},
		restapi.WithErrorHandler(decodingFailed),
		restapi.WithMiddleware(s.aroundOperation),
		restapi.WithNotFound(func(w http.ResponseWriter, r *http.Request) { s.noRoute(w, r, "") }),
		restapi.WithMethodNotAllowed(s.noRoute),
	)
	if err != nil {
		return nil, fmt.Errorf("make the REST server: %w", err)
	}
	return s.outermost(s.route(generated)), nil
}

// route finds who serves a request. Paths are taken as they are: one that is
// not clean names nothing.
func (s *Server) route(generated http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if authenticates(r.URL.Path) {
			if wait := s.perIP.Take(ratelimit.IPKey(stateOf(r.Context()).ip)); wait > 0 {
				WriteError(w, r, errRateLimited.After(wait))
				return
			}
		}
		if path.Clean(r.URL.Path) != r.URL.Path {
			WriteError(w, r, errNoRoute)
			return
		}
		if _, pattern := s.raw.Handler(r); pattern != "" {
			s.raw.ServeHTTP(w, r) // which sets the path's values
			return
		}
		if s.dashboard.serve(w, r) {
			return
		}
		if r.ContentLength > maxBody {
			WriteError(w, r, &http.MaxBytesError{Limit: maxBody})
			return
		}
		limitBody(w, r)
		generated.ServeHTTP(w, r)
	})
}

// authenticates tells the routes whose calls are counted by address: those that
// take credentials, and what has the database asked for anybody.
func authenticates(path string) bool {
	return strings.HasPrefix(path, "/v1/auth/") || strings.HasPrefix(path, "/v1/invitations/") ||
		path == "/v1/hosts/register" || path == "/v1/hosts/auth/refresh" || path == "/v1/audit-logs/keys"
}

var errNoRoute = errs.NotFound("route_not_found", "There is nothing at this path. /openapi.yaml lists what there is.")

// noRoute answers for paths and methods that do not exist.
func (s *Server) noRoute(w http.ResponseWriter, r *http.Request, allowed string) {
	methods := strings.FieldsFunc(allowed, func(c rune) bool { return c == ',' || c == ' ' })
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete} {
		probe := &http.Request{Method: method, URL: &url.URL{Path: r.URL.Path}, Host: r.Host}
		if _, pattern := s.raw.Handler(probe); pattern != "" {
			methods = append(methods, method)
		}
	}
	if len(methods) == 0 {
		WriteError(w, r, errNoRoute)
		return
	}
	w.Header().Set("Allow", strings.Join(methods, ", "))
	WriteError(w, r, errs.Invalid("method_not_allowed", "This path knows only "+strings.Join(methods, ", ")+"."))
}

// aroundOperation runs between decoding and the handler of every generated
// operation.
func (s *Server) aroundOperation(req middleware.Request, next middleware.Next) (middleware.Response, error) {
	st := stateOf(req.Context)
	st.operation = req.OperationID
	if permission := permissions[req.OperationID]; !permission.Anonymous && st.caller.Kind == principal.KindAnonymous {
		// The document and the table disagree: the stricter one holds.
		return middleware.Response{}, errUnauthenticated
	}
	if key := req.Raw.Header.Get("Idempotency-Key"); key != "" && req.Raw.Method == http.MethodPost {
		// What a caller was answered in one team, or in one role, it is not answered
		// again in another.
		in := st.caller.Standing()
		target := fmt.Sprintf("%s %s %t %s %s %t", req.OperationID, req.Raw.URL.RequestURI(), in.HasTeam, in.TeamID, in.Role, in.IsAdmin)
		caller := st.caller.Caller()
		if st.caller.Kind == principal.KindAnonymous {
			// Whoever chose the same weak key elsewhere is somebody else.
			caller += ":" + ratelimit.IPKey(st.ip)
		}
		req.SetContext(idempotency.With(req.Context, idempotency.NewRequest(s.secret, caller, key, target, req.RawBody)))
	}
	if !lasting[req.OperationID] {
		return next(req)
	}
	ctx, cancel := context.WithCancelCause(req.Context)
	defer cancel(nil)
	defer s.open.enter(st.caller, cancel)()
	req.SetContext(ctx)
	answer, err := next(req)
	if errors.Is(context.Cause(ctx), errRevoked) {
		return middleware.Response{}, errRevoked // whatever came of it by then
	}
	return answer, err
}

// lasting are the generated operations that run for as long as a stream may, and
// end with their caller's access as one does.
var lasting = map[string]bool{"execSandbox": true}

// bodyWithin is how long a JSON body may take to arrive.
const bodyWithin = 30 * time.Second

// limitBody bounds a body in size and time.
func limitBody(w http.ResponseWriter, r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	r.Body = &timedBody{ReadCloser: http.MaxBytesReader(w, r.Body, maxBody), control: http.NewResponseController(w)}
}

// timedBody sets a deadline from the first read to the end of the body, and
// lifts it then: the connection goes on being watched for the client leaving.
// A body that was not read to its end keeps it, because the server reads on
// before it answers.
type timedBody struct {
	io.ReadCloser
	control *http.ResponseController
	armed   bool
}

func (b *timedBody) Read(p []byte) (int, error) {
	if !b.armed {
		b.armed = true
		_ = b.control.SetReadDeadline(time.Now().Add(bodyWithin)) // in-memory transports have none
	}
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// peerHost returns the host that the client's verified certificate names.
func peerHost(ctx context.Context) (id.Host, bool) {
	if chain := stateOf(ctx).peer; chain != nil {
		return keyring.HostOf(chain)
	}
	return id.Host{}, false
}

// Serve answers on a listener until ctx ends; then streams are told to end,
// requests in flight get grace to finish, and what is left is cut. It returns
// nil after an orderly end. TLS, if any, is the listener's.
func (s *Server) Serve(ctx context.Context, listener net.Listener, handler http.Handler, grace time.Duration) error {
	base, cut := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), stoppingKey{}, ctx))
	defer cut()
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // handshakes and scanners
		BaseContext:       func(net.Listener) context.Context { return base },
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	waiting, cancel := context.WithTimeout(base, grace)
	defer cancel()
	err := server.Shutdown(waiting)
	cut()
	if err != nil {
		err = server.Close()
	}
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}
