package rpcserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
)

const (
	// DefaultMaxTunnels bounds the tunnels into one sandbox. Of these an eighth is
	// for its daemon alone: whoever opens many to its ports keeps nobody from it.
	DefaultMaxTunnels = 1024

	dialTimeout = 10 * time.Second
)

// Dialer opens connections into sandboxes. They are cut when the sandbox ends.
type Dialer interface {
	Dial(ctx context.Context, sandbox id.Sandbox, incarnation uint64, port int) (net.Conn, error)
}

// tunnels turns CONNECT requests into raw bytes. It owns the hijacked
// connections, which the HTTP server no longer knows.
type tunnels struct {
	dial   Dialer
	most   int
	logger *slog.Logger

	mu     sync.Mutex
	closed bool
	count  map[id.Sandbox]int
	open   map[net.Conn]struct{}
	wg     sync.WaitGroup
}

func newTunnels(d Dialer, most int, logger *slog.Logger) *tunnels {
	if most <= 0 {
		most = DefaultMaxTunnels
	}
	return &tunnels{dial: d, most: most, logger: logger, count: make(map[id.Sandbox]int), open: make(map[net.Conn]struct{})}
}

// target is "<sandbox uuid>.<incarnation>:<port>".
func target(authority string) (sandbox id.Sandbox, incarnation uint64, port int, err error) {
	bad := errs.Invalid("invalid_target", "The target of CONNECT is <sandbox uuid>.<incarnation>:<port>.")
	host, p, err := net.SplitHostPort(authority)
	if err != nil {
		return sandbox, 0, 0, bad
	}
	name, inc, ok := strings.Cut(host, ".")
	if !ok {
		return sandbox, 0, 0, bad
	}
	if sandbox, err = (id.Sandbox{}).ParseBare(name); err != nil {
		return sandbox, 0, 0, bad
	}
	if incarnation, err = strconv.ParseUint(inc, 10, 64); err != nil || incarnation == 0 {
		return sandbox, 0, 0, bad
	}
	if port, err = strconv.Atoi(p); err != nil || port < 1 || port > 65535 {
		return sandbox, 0, 0, bad
	}
	return sandbox, incarnation, port, nil
}

// ServeHTTP implements http.Handler for CONNECT over HTTP/1.1.
func (t *tunnels) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 1 {
		refuse(w, http.StatusHTTPVersionNotSupported, errs.Invalid("http1_required", "CONNECT is served over HTTP/1.1 only."))
		return
	}
	sandbox, incarnation, port, err := target(r.Host)
	if err != nil {
		refuse(w, 0, err)
		return
	}
	if err := t.enter(sandbox, port); err != nil {
		refuse(w, 0, err)
		return
	}
	defer t.leave(sandbox)
	ctx, cancel := context.WithTimeout(r.Context(), dialTimeout)
	inner, err := t.dial.Dial(ctx, sandbox, incarnation, port)
	cancel()
	if err != nil {
		status := 0
		if errs.Is(err, "port_closed") {
			status = http.StatusBadGateway
		}
		refuse(w, status, err)
		return
	}
	defer inner.Close()
	outer, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(w, 0, err)
		return
	}
	defer outer.Close()
	if !t.keep(outer) {
		return
	}
	defer t.drop(outer)
	_ = outer.SetDeadline(time.Time{})
	if _, err := io.WriteString(outer, "HTTP/1.1 200 Connection Established\r\n\r\n"); err != nil {
		return
	}
	splice(outer, buffered.Reader, inner)
}

// splice copies both ways until both are done. The end of one direction is
// passed on as a half-close; a break of either is the end of both, and reaches
// the caller as a break, not as an orderly end.
//
// A caller's half-close is TLS's close_notify on a connection that stays open.
// One that also closes the connection wants no answer any more, and a port
// inside that stays silent must not keep the tunnel for it.
func splice(outer net.Conn, early *bufio.Reader, inner net.Conn) {
	// What came behind the request is already in the server's buffer.
	head := io.LimitReader(early, int64(early.Buffered()))
	var wg sync.WaitGroup
	up := make(chan error, 1)
	wg.Go(func() {
		_, err := io.Copy(inner, io.MultiReader(head, outer))
		if err == nil {
			err = closeWrite(inner)
		}
		up <- err
		if err == nil {
			awaitClosed(outer)
		}
		_ = inner.Close()
	})
	_, err := io.Copy(outer, inner)
	if err == nil {
		err = closeWrite(outer)
	}
	if err == nil {
		err = <-up
	}
	if err != nil {
		abort(outer)
	}
	_ = outer.Close()
	wg.Wait()
}

// awaitClosed returns when the connection below TLS has ended, from either
// side.
func awaitClosed(c net.Conn) {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		_, _ = t.NetConn().Read(make([]byte, 1))
	}
}

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// abort resets the connection below TLS, so that the peer does not take it for
// an orderly end: Go's TLS accepts a bare FIN between two records as one.
func abort(c net.Conn) {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		raw := t.NetConn()
		if tcp, ok := raw.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = raw.Close()
	}
	_ = c.Close()
}

func (t *tunnels) enter(sandbox id.Sandbox, port int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errs.Unavailable("agent_stopping", "This host's agent stops. Try again.")
	}
	most := t.most
	if port != guestapi.DefaultPort {
		most -= most / 8
	}
	if t.count[sandbox] >= most {
		return errs.Exhausted("too_many_connections", "The sandbox has as many open connections as it may. Close some and try again.")
	}
	t.count[sandbox]++
	t.wg.Add(1)
	return nil
}

func (t *tunnels) leave(sandbox id.Sandbox) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count[sandbox]--; t.count[sandbox] == 0 {
		delete(t.count, sandbox)
	}
	t.wg.Done()
}

func (t *tunnels) keep(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.open[c] = struct{}{}
	return true
}

func (t *tunnels) drop(c net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
}

// close cuts all tunnels and waits for them.
func (t *tunnels) close() {
	t.mu.Lock()
	t.closed = true
	for c := range t.open {
		abort(c)
	}
	t.mu.Unlock()
	t.wg.Wait()
}

// refuse answers with the error; status 0 is that of its class.
func refuse(w http.ResponseWriter, status int, err error) {
	e := errs.As(err)
	if errors.Is(err, context.DeadlineExceeded) {
		e = errs.Unavailable("port_unresponsive", "The port inside the sandbox did not answer in time.")
		status = http.StatusBadGateway
	}
	if status == 0 {
		status = rpcerr.HTTPStatus(e.Code)
	}
	w.Header().Set(rpcerr.HeaderReason, e.Reason)
	w.Header().Set(rpcerr.HeaderCode, string(e.Code))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": e.Reason, "message": e.Message})
}
