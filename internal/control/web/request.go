package web

import (
	"bufio"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/logkey"
	"skerry.dev/skerry/internal/kernel/observe"
)

// requestState is what the plumbing remembers of one request. It is used by
// that request's goroutine alone.
type requestState struct {
	requestID  string
	ip         netip.Addr
	userAgent  string
	operation  string
	caller     principal.Principal
	sentAPIKey bool
	peer       *x509.Certificate // of a client that proved to have it
	started    bool              // the answer's header is on its way
	failure    *errs.Error
	sent       http.Header // the request's header
	answer     http.Header // the answer's
}

type stateKey struct{}

func stateOf(ctx context.Context) *requestState {
	if st, ok := ctx.Value(stateKey{}).(*requestState); ok {
		return st
	}
	return &requestState{}
}

// RequestID returns the id under which this request is logged and answered.
func RequestID(ctx context.Context) string { return stateOf(ctx).requestID }

const maxUserAgent = 256

var saneRequestID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)

// outermost gives every request its id and its line in the log, and turns a
// panic into an answer.
func (s *Server) outermost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		st := &requestState{requestID: r.Header.Get("X-Request-Id"), ip: s.proxies.clientIP(r), sentAPIKey: r.Header.Get("X-API-Key") != ""}
		if !saneRequestID.MatchString(st.requestID) {
			st.requestID = uuid.Must(uuid.NewV7()).String()
		}
		if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
			st.peer = r.TLS.VerifiedChains[0][0]
		}
		st.userAgent = strings.ToValidUTF8(r.UserAgent(), "")
		if len(st.userAgent) > maxUserAgent {
			st.userAgent = strings.ToValidUTF8(st.userAgent[:maxUserAgent], "")
		}
		ctx := r.Context()
		span := observe.Span(nil)
		if !polled(r.URL.Path) {
			ctx, span = observe.From(ctx).Serve(ctx, "request", r.Header.Get("Traceparent"))
			span.Set("request_id", st.requestID)
		}
		st.caller = principal.Principal{Kind: principal.KindAnonymous, RequestID: st.requestID, IP: st.ip, UserAgent: st.userAgent}
		ctx = principal.With(context.WithValue(ctx, stateKey{}, st), st.caller)
		r = r.WithContext(ctx)
		rec := &recorder{ResponseWriter: w, st: st}
		h := w.Header()
		st.sent, st.answer = r.Header, h
		h.Set("X-Request-Id", st.requestID)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")

		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { //nolint:errorlint // compared as net/http does
					panic(p)
				}
				s.log.ErrorContext(ctx, "panic in a request", logkey.RequestID, st.requestID, logkey.Op, st.operation,
					logkey.Error, fmt.Sprintf("%v", p), "stack", string(debug.Stack()))
				if rec.status == 0 {
					WriteError(rec, r, errs.Internal(fmt.Errorf("panic: %v", p)))
				} else {
					s.logRequest(r, rec, st, start)
					told(r, rec, st, start, span)
					panic(http.ErrAbortHandler) // an answer cut short must not look whole
				}
			}
			s.noteRefusal(r, rec.status, st)
			s.logRequest(r, rec, st, start)
			told(r, rec, st, start, span)
		}()
		next.ServeHTTP(rec, r)
	})
}

// polled are the paths asked so often that a trace of each would hide all
// others.
func polled(path string) bool {
	return path == "/healthz" || path == "/readyz" ||
		strings.HasPrefix(path, "/v1/hosts/") && (strings.HasSuffix(path, "/heartbeat") || strings.HasSuffix(path, "/events") || strings.HasSuffix(path, "/samples"))
}

// told counts the request and ends its span, which is nil for none.
func told(r *http.Request, rec *recorder, st *requestState, start time.Time, span observe.Span) {
	observe.From(r.Context()).Answered(st.operation, rec.status, time.Since(start))
	if span == nil {
		return
	}
	if st.operation != "" {
		span.Rename(st.operation)
	}
	span.Set("status", strconv.Itoa(rec.status))
	var failed error
	if st.failure != nil && rec.status >= http.StatusInternalServerError {
		failed = st.failure
	}
	span.End(failed)
}

// logRequest writes the one line of a request. Query strings are left out:
// they hold file names and more.
func (s *Server) logRequest(r *http.Request, rec *recorder, st *requestState, start time.Time) {
	level := slog.LevelInfo
	attrs := []any{
		logkey.RequestID, st.requestID, logkey.Method, r.Method, logkey.Path, r.URL.Path, logkey.Op, st.operation, logkey.Status, rec.status,
		logkey.DurationMS, float64(time.Since(start).Microseconds()) / 1000, logkey.IP, st.ip.String(), logkey.Actor, st.caller.Caller(),
	}
	if st.caller.HasTeam {
		attrs = append(attrs, logkey.TeamID, st.caller.TeamID.String())
	}
	if st.failure != nil {
		attrs = append(attrs, "code", st.failure.Reason)
		if rec.status >= http.StatusInternalServerError {
			level = slog.LevelError
			attrs = append(attrs, logkey.Error, st.failure.Error())
		}
	}
	s.log.Log(r.Context(), level, "request", attrs...)
}

// recorder remembers the status and adds what every answer of its status has.
type recorder struct {
	http.ResponseWriter
	st     *requestState
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && status >= 200 || status == http.StatusSwitchingProtocols {
		r.status = status
		r.st.started = true
		if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
			wait := defaultRetryAfter
			if r.st.failure != nil && r.st.failure.RetryAfter > 0 {
				wait = r.st.failure.RetryAfter
			}
			r.Header().Set("Retry-After", retryAfterHeader(wait))
		}
		if status == http.StatusUnauthorized {
			r.Header().Set("WWW-Authenticate", `Bearer realm="skerry"`)
		}
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach what the server offers.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Flush implements http.Flusher.
func (r *recorder) Flush() { _ = http.NewResponseController(r.ResponseWriter).Flush() }

// Hijack implements http.Hijacker, for WebSockets.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(r.ResponseWriter).Hijack()
	if err == nil {
		r.st.started = true
		if r.status == 0 {
			r.status = http.StatusSwitchingProtocols
		}
	}
	return conn, rw, err
}

// Proxies are the networks whose X-Forwarded-For is believed.
type Proxies []netip.Prefix

// ParseProxies reads SKERRY_TRUSTED_PROXIES: addresses and networks, comma
// separated.
func ParseProxies(list string) (Proxies, error) {
	var proxies Proxies
	for part := range strings.SplitSeq(list, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		if prefix, err := netip.ParsePrefix(part); err == nil {
			proxies = append(proxies, prefix.Masked())
			continue
		}
		addr, err := netip.ParseAddr(part)
		if err != nil {
			return nil, errs.Invalid("invalid_trusted_proxies", fmt.Sprintf("%q in SKERRY_TRUSTED_PROXIES is neither an address nor a network.", part))
		}
		proxies = append(proxies, netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()))
	}
	return proxies, nil
}

func (p Proxies) trust(ip netip.Addr) bool {
	for _, prefix := range p {
		if prefix.Contains(ip.Unmap()) {
			return true
		}
	}
	return false
}

// clientIP is the nearest address that is not a trusted proxy: forwarding
// headers are read from the right, because everything further left may be
// made up by the client.
func (p Proxies) clientIP(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{} // a unix socket, or a test
	}
	ip := peer.Addr().Unmap().WithZone("")
	if !p.trust(ip) {
		return ip
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			return ip
		}
		ip = hop.Unmap().WithZone("")
		if !p.trust(ip) {
			return ip
		}
	}
	return ip
}
