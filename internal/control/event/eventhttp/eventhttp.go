// Package eventhttp serves the stream of changes and the tickets for streams.
package eventhttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/event"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/logkey"
)

const (
	// keepalive is the longest silence on a stream.
	keepalive = 15 * time.Second
	// writeWithin is how long a reader may take for one write.
	writeWithin = 10 * time.Second
	// catchUp bounds what a returning watcher is told of what it missed; one that
	// missed more reads everything again.
	catchUp = 1000
	// perCaller bounds the streams of one session or key on this server.
	perCaller = 32
)

// Options of the handlers.
type Options struct {
	WriteError func(http.ResponseWriter, *http.Request, error)
	// Permit decides whether a caller may call an operation at all.
	Permit func(operation string, by principal.Principal) error
	// Sandbox reads one of the caller's team.
	Sandbox func(ctx context.Context, by principal.Principal, x id.Sandbox) (sandbox.Sandbox, error)
	// AllowedOrigins may open streams besides the server's own.
	AllowedOrigins []string
	Log            *slog.Logger
	// Keepalive is the longest silence; 0 is 15 s.
	Keepalive time.Duration
}

// Handlers is the room's slice of the REST handler.
type Handlers struct {
	feed    *event.Feed
	store   event.Store
	tickets *event.Tickets
	opt     Options

	mu   sync.Mutex
	open map[string]int // streams by caller; no zeros
}

// New returns the slice.
func New(feed *event.Feed, store event.Store, tickets *event.Tickets, opt Options) *Handlers {
	if opt.Keepalive == 0 {
		opt.Keepalive = keepalive
	}
	return &Handlers{feed: feed, store: store, tickets: tickets, opt: opt, open: map[string]int{}}
}

// CreateEventTicket implements restapi.Handler.
func (h *Handlers) CreateEventTicket(ctx context.Context) (*restapi.StreamTicket, error) {
	by := principal.From(ctx)
	if _, err := by.Team(); err != nil {
		return nil, err
	}
	return h.ticket(ctx, by, "streamEvents", "")
}

// CreateSandboxTicket implements restapi.Handler.
func (h *Handlers) CreateSandboxTicket(ctx context.Context, req *restapi.StreamTicketRequest, params restapi.CreateSandboxTicketParams) (*restapi.StreamTicket, error) {
	by := principal.From(ctx)
	x, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	operation := string(req.Operation)
	if err := h.opt.Permit(operation, by); err != nil {
		return nil, err
	}
	if _, err := h.opt.Sandbox(ctx, by, x); err != nil {
		return nil, err
	}
	return h.ticket(ctx, by, operation, x.String())
}

func (h *Handlers) ticket(ctx context.Context, by principal.Principal, operation, resource string) (*restapi.StreamTicket, error) {
	t, err := h.tickets.Issue(ctx, by, operation, resource)
	if err != nil {
		return nil, err
	}
	return &restapi.StreamTicket{Ticket: t.Secret, ExpiresAt: t.ExpiresAt.UTC()}, nil
}

var (
	errForeignOrigin = errs.Forbidden("foreign_origin", "This page may not open streams here.")
	errTooMany       = errs.New(errs.CodeExhausted, "too_many_streams", fmt.Sprintf("This session or key has %d event streams open here, as many as it may. Close one.", perCaller))
)

// Stream serves GET /v1/events until the client leaves, the server stops or the
// caller's access ends.
func (h *Handlers) Stream(w http.ResponseWriter, r *http.Request) { h.serve(w, r, false) }

// AdminStream serves GET /v1/admin/events, which tells of all teams, in the same
// way. That the caller is an admin of the platform is for the one who routes to it.
func (h *Handlers) AdminStream(w http.ResponseWriter, r *http.Request) { h.serve(w, r, true) }

func (h *Handlers) serve(w http.ResponseWriter, r *http.Request, all bool) {
	s, err := h.accept(w, r, all)
	if err != nil {
		h.opt.WriteError(w, r, err)
		return
	}
	defer s.close()
	if err := s.run(r.Context()); err != nil && r.Context().Err() == nil {
		h.opt.Log.DebugContext(r.Context(), "event stream ended", logkey.Error, err)
	}
}

// stream is one open connection.
type stream struct {
	h       *Handlers
	w       http.ResponseWriter
	control *http.ResponseController
	by      principal.Principal
	team    id.Team
	all     bool // of all teams; then team is none
	watcher *event.Watcher
	after   *event.Position // what the client has seen last
}

func (h *Handlers) accept(w http.ResponseWriter, r *http.Request, all bool) (*stream, error) {
	if origin := r.Header.Get("Origin"); origin != "" && !h.ours(r, origin) {
		return nil, errForeignOrigin
	}
	by := principal.From(r.Context())
	s := &stream{h: h, w: w, control: http.NewResponseController(w), by: by, all: all}
	if !all {
		var err error
		if s.team, err = by.Team(); err != nil {
			return nil, err
		}
	}
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		p, err := event.ParsePosition(last)
		if err != nil {
			return nil, err
		}
		s.after = &p
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open[by.Caller()] >= perCaller {
		return nil, errTooMany.After(time.Second)
	}
	h.open[by.Caller()]++
	if all {
		s.watcher = h.feed.WatchAll()
	} else {
		s.watcher = h.feed.Watch(s.team)
	}
	return s, nil
}

func (h *Handlers) ours(r *http.Request, origin string) bool {
	for _, allowed := range append([]string{"http://" + r.Host, "https://" + r.Host}, h.opt.AllowedOrigins...) {
		if strings.EqualFold(allowed, origin) {
			return true
		}
	}
	return false
}

func (s *stream) close() {
	s.watcher.Close()
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if s.h.open[s.by.Caller()]--; s.h.open[s.by.Caller()] == 0 {
		delete(s.h.open, s.by.Caller())
	}
}

func (s *stream) run(ctx context.Context) error {
	header := s.w.Header()
	header.Set("Content-Type", "text/event-stream")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Accel-Buffering", "no") // proxies pass each event on at once
	s.w.WriteHeader(http.StatusOK)
	if err := s.write(": watching\n\n"); err != nil {
		return err
	}
	from, err := s.watcher.From(ctx)
	if err != nil {
		return s.end(err)
	}
	if err := s.missed(ctx, from); err != nil {
		return err
	}
	silence := time.NewTicker(s.h.opt.Keepalive)
	defer silence.Stop()
	for {
		select {
		case e, ok := <-s.watcher.Events:
			if !ok {
				return s.write("event: behind\ndata: {}\n\n") // the client comes back with its last id
			}
			if err := s.tell(e); err != nil {
				return err
			}
		case <-silence.C:
			if err := s.write(": still here\n\n"); err != nil {
				return err
			}
		case <-ctx.Done():
			return s.end(context.Cause(ctx))
		}
	}
}

// missed tells what came since the client was here last, or that it has to read
// everything again.
func (s *stream) missed(ctx context.Context, from event.Position) error {
	if s.after == nil {
		return s.write(fmt.Sprintf("id: %s\nevent: ready\ndata: {}\n\n", from))
	}
	kept, err := s.h.store.Kept(ctx, *s.after)
	if err != nil {
		return err
	}
	var events []event.Event
	if kept {
		if events, err = s.between(ctx, *s.after, from, catchUp+1); err != nil {
			return err
		}
	}
	if !kept || len(events) > catchUp {
		return s.write(fmt.Sprintf("id: %s\nevent: reset\ndata: {}\n\n", from))
	}
	for _, e := range events {
		if err := s.tell(e); err != nil {
			return err
		}
	}
	return s.write(fmt.Sprintf("id: %s\nevent: ready\ndata: {}\n\n", from))
}

func (s *stream) between(ctx context.Context, after, to event.Position, limit int) ([]event.Event, error) {
	if s.all {
		return s.h.store.BetweenAll(ctx, after, to, limit)
	}
	return s.h.store.Between(ctx, s.team, after, to, limit)
}

// keyReads are the kinds of things that keys know of, and the scopes with which
// they may read them.
var keyReads = map[string][]principal.Scope{
	"sandbox":  {principal.ScopeSandboxes, principal.ScopeRead},
	"snapshot": {principal.ScopeSnapshots, principal.ScopeSandboxes, principal.ScopeRead},
	"template": {principal.ScopeTemplates, principal.ScopeSandboxes, principal.ScopeRead},
}

// told is what is said of an event.
type told struct {
	Kind     string    `json:"kind"`
	Resource string    `json:"resource"`
	Team     string    `json:"team,omitempty"` // where all teams are told of
	At       time.Time `json:"at"`
}

// mayKnow reports whether the caller may know of e. A role that changed ends the
// stream, so the caller's own is what holds.
func (s *stream) mayKnow(e event.Event) bool {
	kind, _, _ := strings.Cut(e.Kind, ".")
	switch {
	case s.all:
		return true
	case s.by.Kind == principal.KindAPIKey:
		readers, ok := keyReads[kind]
		return ok && e.Scope == audit.ScopeTeam && s.by.Can(readers...)
	case e.Scope == audit.ScopeTeam:
		return true
	default:
		return s.by.Role == principal.RoleOwner || s.by.Role == principal.RoleAdmin
	}
}

func (s *stream) tell(e event.Event) error {
	if !s.mayKnow(e) {
		return nil
	}
	said := told{Kind: e.Kind, Resource: e.Resource, At: e.Time.UTC()}
	if s.all && e.Team != (id.Team{}) {
		said.Team = e.Team.String()
	}
	data, err := json.Marshal(said)
	if err != nil {
		return err
	}
	return s.write(fmt.Sprintf("id: %s\nevent: %s\ndata: %s\n\n", e.At, e.Kind, data))
}

// end says why a stream is cut, as far as the client can use it.
func (s *stream) end(cause error) error {
	var typed *errs.Error
	if !errors.As(cause, &typed) {
		return cause // the client is gone
	}
	data, err := json.Marshal(map[string]string{"code": typed.Reason, "message": typed.Message})
	if err != nil {
		return err
	}
	return errors.Join(s.write("event: end\ndata: "+string(data)+"\n\n"), cause)
}

func (s *stream) write(text string) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(writeWithin)) // in-memory transports have none
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.control.Flush()
}
