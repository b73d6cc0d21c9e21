// Package guestlink is the host's end of one sandbox's daemon: it waits for
// its first answer, configures it, follows its events and opens connections to
// ports inside. It holds every connection it opened, so that all are cut the
// moment the sandbox ends: the host's kernel does not notice that the other
// end's whole network stack is gone.
//
// Whatever a guest sends is hostile: sizes, rates and counts are bounded here,
// and nothing of it is believed but for the sandbox's own events.
package guestlink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	// DefaultMaxConns bounds the connections into one sandbox: more than its host
	// opens for others, so that its own are never too many.
	DefaultMaxConns = 1280
	// DefaultEventsPerMinute bounds what one sandbox may report.
	DefaultEventsPerMinute = 60

	maxAnswer    = 64 << 10
	maxIdle      = 10 * 365 * 24 * time.Hour // what a guest may claim
	maxEventLine = 64 << 10

	aheadFor = 2 * time.Second

	firstPause, lastPause = time.Millisecond, 5 * time.Millisecond
	// The guest's network may not be up when the first packet comes; a packet
	// lost then is sent again after a second, a new attempt at once.
	firstAttempt, lastAttempt = 100 * time.Millisecond, 2 * time.Second
)

// Options wire a Link.
type Options struct {
	// Dial opens a connection to a port inside. Required.
	Dial func(ctx context.Context, port int) (net.Conn, error)
	// InitSecret proves us to the daemon, until an Init replaces it.
	InitSecret string
	// AccessToken opens what the daemon's other callers may see.
	AccessToken string
	// Port of the daemon; 0 is guestapi.DefaultPort.
	Port int
	// After is the last event already taken.
	After int64
	// OnEvent takes an event; after an error it is offered again. Required for
	// Follow.
	OnEvent func(guestapi.Event) error
	// MaxConns and EventsPerMinute: 0 is the default.
	MaxConns        int
	EventsPerMinute int
	Logger          *slog.Logger
}

// Link is safe for concurrent use.
type Link struct {
	opts   Options
	http   *http.Client
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool
	secret string
	conns  map[*conn]struct{}
	ahead  *conn     // opened before it was asked for
	others int       // open connections to ports that are not the daemon's
	spoken time.Time // when the last of those ended
}

// ErrClosed: the sandbox ended, or the agent no longer looks after it.
var ErrClosed = errors.New("guestlink: closed")

// New returns a link that has opened nothing yet.
func New(opts Options) *Link {
	if opts.Port == 0 {
		opts.Port = guestapi.DefaultPort
	}
	if opts.MaxConns <= 0 {
		opts.MaxConns = DefaultMaxConns
	}
	if opts.EventsPerMinute <= 0 {
		opts.EventsPerMinute = DefaultEventsPerMinute
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Link{opts: opts, secret: opts.InitSecret, conns: make(map[*conn]struct{}), spoken: time.Now()}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.http = &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return l.Dial(ctx, l.opts.Port)
			},
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxAnswer,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        5 * time.Second, // an idle sandbox is left alone
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return l
}

// Await asks the daemon until it answers, every few milliseconds.
func (l *Link) Await(ctx context.Context) error {
	var last error
	attempt := firstAttempt
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		last = l.health(ctx, attempt)
		if last == nil {
			return nil
		}
		if errors.Is(last, context.DeadlineExceeded) {
			attempt = min(2*attempt, lastAttempt)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("guestlink: no answer from the daemon: %w (last: %v)", ctx.Err(), last)
		case <-l.ctx.Done():
			timer.Stop()
			return ErrClosed
		}
	}
}

func (l *Link) health(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	_, err := l.call(ctx, http.MethodGet, guestapi.PathHealth, nil)
	return err
}

// Init configures the daemon. Where it gives the daemon a new init secret, that
// is what the link uses from then on.
func (l *Link) Init(ctx context.Context, in guestapi.Init) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("guestlink: %w", err)
	}
	_, err = l.call(ctx, http.MethodPost, guestapi.PathInit, body)
	var said *answerError
	if err != nil && (errors.As(err, &said) || in.NewInitSecret == "") {
		return err
	}
	l.mu.Lock()
	old := l.secret
	if in.NewInitSecret != "" {
		l.secret = in.NewInitSecret
	}
	l.mu.Unlock()
	if err != nil { // the answer was lost, so the daemon knows one of the two
		if _, err = l.call(ctx, http.MethodPost, guestapi.PathInit, body); err != nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.secret = old
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opts.AccessToken = in.AccessToken
	return nil
}

// answerError is an answer that is no success.
type answerError struct {
	path   string
	status int
	body   []byte
}

func (e *answerError) Error() string {
	return fmt.Sprintf("guestlink: %s answered %d: %.200q", e.path, e.status, e.body)
}

// Idle is how long nothing has gone on in the sandbox: by the daemon's word for
// what goes through it, by our own for connections to other ports, which count
// for as long as they are open.
func (l *Link) Idle(ctx context.Context) (time.Duration, error) {
	answer, err := l.call(ctx, http.MethodGet, guestapi.PathMetrics, nil)
	if err != nil {
		return 0, err
	}
	var m guestapi.Metrics
	if err := json.Unmarshal(answer, &m); err != nil {
		return 0, fmt.Errorf("guestlink: %s: %w", guestapi.PathMetrics, err)
	}
	idle := time.Duration(min(max(m.IdleMS, 0), maxIdle.Milliseconds())) * time.Millisecond
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.others > 0 {
		return 0, nil
	}
	return min(idle, time.Since(l.spoken)), nil
}

func (l *Link) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	resp, err := l.do(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("guestlink: %s: %w", path, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, &answerError{path, resp.StatusCode, answer}
	}
	return answer, nil
}

func (l *Link) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("guestlink: %w", err)
	}
	l.mu.Lock()
	secret, token := l.secret, l.opts.AccessToken
	l.mu.Unlock()
	req.Header.Set(guestapi.HeaderInit, secret)
	if token != "" {
		req.Header.Set(guestapi.HeaderAccessToken, token)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("guestlink: %w", err)
	}
	return resp, nil
}

// Ahead opens a connection to the daemon for whoever dials it next; nobody has to
// wait for it then. It is closed when nobody did within two seconds. A failure is
// for the next one to meet.
func (l *Link) Ahead(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, aheadFor)
	defer cancel()
	c, err := l.open(ctx, l.opts.Port)
	if err != nil {
		return
	}
	l.mu.Lock()
	if l.ahead == nil && !l.closed {
		l.ahead = c
		l.mu.Unlock()
		time.AfterFunc(aheadFor, func() {
			if l.takeAhead(c) != nil {
				_ = c.Close()
			}
		})
		return
	}
	l.mu.Unlock()
	_ = c.Close()
}

// takeAhead hands out what Ahead opened, or only that very connection when one is
// named; nil when it is gone.
func (l *Link) takeAhead(only *conn) *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.ahead
	if c == nil || only != nil && c != only {
		return nil
	}
	l.ahead = nil
	return c
}

// Dial opens a connection to a port inside the sandbox, on its network or else
// on its loopback. Close cuts it.
func (l *Link) Dial(ctx context.Context, port int) (net.Conn, error) {
	if port == l.opts.Port {
		if c := l.takeAhead(nil); c != nil {
			return c, nil
		}
	}
	c, err := l.open(ctx, port)
	if err != nil {
		return l.inward(ctx, port, err)
	}
	return c, nil
}

func (l *Link) open(ctx context.Context, port int) (*conn, error) {
	l.mu.Lock()
	open, closed := len(l.conns), l.closed
	l.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	if open >= l.opts.MaxConns {
		return nil, tooMany()
	}
	raw, err := l.opts.Dial(ctx, port)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, link: l, other: port != l.opts.Port}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		_ = raw.Close()
		return nil, ErrClosed
	case len(l.conns) >= l.opts.MaxConns:
		_ = raw.Close()
		return nil, tooMany()
	}
	l.conns[c] = struct{}{}
	if c.other {
		l.others++
	}
	return c, nil
}

func tooMany() error {
	return errs.Exhausted("too_many_connections", "The sandbox has as many open connections as it may. Close some and try again.")
}

// Close cuts every connection at once and waits for what Follow began. It may
// be repeated.
func (l *Link) Close() {
	l.mu.Lock()
	l.closed, l.ahead = true, nil // which is among those that are cut
	open := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		open = append(open, c)
	}
	l.mu.Unlock()
	l.cancel()
	for _, c := range open {
		c.cut()
	}
	l.wg.Wait()
	l.http.CloseIdleConnections()
}

// conn is a connection the link can cut.
type conn struct {
	net.Conn
	link  *Link
	other bool // not to the daemon
	once  sync.Once
	err   error
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.err = c.Conn.Close()
		c.link.mu.Lock()
		delete(c.link.conns, c)
		if c.other {
			c.link.others--
			c.link.spoken = time.Now()
		}
		c.link.mu.Unlock()
	})
	return c.err
}

// CloseWrite passes a half-close on where the connection can.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// cut closes without waiting for data to be delivered: the other end is gone.
func (c *conn) cut() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}
