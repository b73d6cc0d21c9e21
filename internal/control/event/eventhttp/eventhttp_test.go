package eventhttp_test

import (
	"bufio"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/event"
	"skerry.dev/skerry/internal/control/event/eventhttp"
	"skerry.dev/skerry/internal/control/event/eventpg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// world is the stream on a real database and a real server. Who calls is said
// by the test.
type world struct {
	pool *pgxpool.Pool
	url  string
	team id.Team

	mu     sync.Mutex
	callAs principal.Principal
	cut    context.CancelCauseFunc // of the newest stream
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{pool: pgtest.New(t), team: id.NewTeam()}
	w.callAs = principal.Principal{Kind: principal.KindUser, SessionID: id.NewSession(), UserID: id.NewUser(), HasTeam: true, TeamID: w.team, Role: principal.RoleMember}
	store := eventpg.New(w.pool)
	log := slog.New(slog.DiscardHandler)
	feed := event.NewFeed(store, log)
	h := eventhttp.New(feed, store, event.NewTickets(store.Tickets(), nil), eventhttp.Options{
		Log: log, Keepalive: 100 * time.Millisecond, AllowedOrigins: []string{"https://friend.example"},
		WriteError: func(rw http.ResponseWriter, _ *http.Request, err error) {
			http.Error(rw, errs.As(err).Reason, http.StatusTeapot)
		},
	})
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		ctx, cut := context.WithCancelCause(principal.With(r.Context(), w.callAs))
		w.cut = cut
		w.mu.Unlock()
		defer cut(nil)
		if r.URL.Path == "/admin" {
			h.AdminStream(rw, r.WithContext(ctx))
			return
		}
		h.Stream(rw, r.WithContext(ctx))
	}))
	t.Cleanup(server.Close)
	w.url = server.URL
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = feed.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	return w
}

func (w *world) add(t *testing.T, team id.Team, kind, scope string) {
	t.Helper()
	if _, err := w.pool.Exec(t.Context(), `INSERT INTO outbox (team_id, kind, resource, scope) VALUES ($1, $2, 'sb-1', $3)`, team, kind, scope); err != nil {
		t.Fatal(err)
	}
}

// client reads one stream.
type client struct {
	t     *testing.T
	res   *http.Response
	lines *bufio.Scanner
	last  string // id of the event read last
}

func (w *world) open(t *testing.T, headers ...string) *client { return w.openAt(t, "/", headers...) }

func (w *world) openAt(t *testing.T, path string, headers ...string) *client {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return &client{t: t, res: res, lines: bufio.NewScanner(res.Body)}
}

// next is the name of the next event, or "" at the end.
func (c *client) next() (name, data string) {
	for c.lines.Scan() {
		line := c.lines.Text()
		if v, ok := strings.CutPrefix(line, "id: "); ok {
			c.last = v
		}
		if v, ok := strings.CutPrefix(line, "event: "); ok {
			name = v
		}
		if v, ok := strings.CutPrefix(line, "data: "); ok {
			data = v
		}
		if line == "" && name != "" {
			return name, data
		}
	}
	return "", ""
}

func (c *client) want(names ...string) {
	c.t.Helper()
	for _, name := range names {
		if got, data := c.next(); got != name {
			c.t.Fatalf("next is %q %s, want %q", got, data, name)
		}
	}
}

func TestC10_TheStreamTellsWhatTheCallerMayKnow(t *testing.T) {
	w := newWorld(t)
	member := w.open(t)
	if got := member.res.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Fatal(got)
	}
	member.want("ready")
	w.callAs.Role, w.callAs.SessionID = principal.RoleAdmin, id.NewSession()
	admin := w.open(t)
	admin.want("ready")
	w.callAs = principal.Principal{Kind: principal.KindAPIKey, APIKeyID: id.NewAPIKey(), HasTeam: true, TeamID: w.team, Scopes: []principal.Scope{principal.ScopeSandboxes}}
	key := w.open(t)
	key.want("ready")
	w.callAs.APIKeyID, w.callAs.Scopes = id.NewAPIKey(), []principal.Scope{principal.ScopeTemplates}
	builder := w.open(t)
	builder.want("ready")

	w.add(t, id.NewTeam(), "sandbox.other", "team")
	w.add(t, w.team, "sandbox.created", "team")
	w.add(t, w.team, "session.login", "admin")
	w.add(t, w.team, "member.add", "team")
	w.add(t, w.team, "snapshot.create", "team")
	w.add(t, w.team, "template.build", "team")
	w.add(t, w.team, "sandbox.stopped", "team")
	member.want("sandbox.created", "member.add", "snapshot.create", "template.build", "sandbox.stopped")
	admin.want("sandbox.created", "session.login", "member.add", "snapshot.create", "template.build", "sandbox.stopped")
	key.want("sandbox.created", "snapshot.create", "template.build", "sandbox.stopped")
	w.add(t, w.team, "template.build", "team")
	builder.want("template.build", "template.build")
}

func TestC10_LastEventIDResumesWithoutGapOrDouble(t *testing.T) {
	w := newWorld(t)
	c := w.open(t)
	c.want("ready")
	w.add(t, w.team, "sandbox.one", "team")
	c.want("sandbox.one")
	_ = c.res.Body.Close()
	w.add(t, w.team, "sandbox.two", "team")
	w.add(t, w.team, "sandbox.three", "team")
	again := w.open(t, "Last-Event-ID", c.last)
	again.want("sandbox.two", "sandbox.three", "ready")
	w.add(t, w.team, "sandbox.four", "team")
	again.want("sandbox.four")
	fresh := w.open(t, "Last-Event-ID", again.last)
	fresh.want("ready")
	w.add(t, w.team, "sandbox.five", "team")
	fresh.want("sandbox.five")
	// From before all that is kept, there is no way back.
	lost := w.open(t, "Last-Event-ID", "1-1")
	lost.want("reset")
	w.add(t, w.team, "sandbox.six", "team")
	lost.want("sandbox.six")
}

// A platform admin, who may be in no team at all, hears of all of them, and goes
// on after a cut where it was.
func TestD6_TheAdminStreamTellsOfAllTeams(t *testing.T) {
	w := newWorld(t)
	w.callAs.IsAdmin, w.callAs.HasTeam, w.callAs.TeamID, w.callAs.Role = true, false, id.Team{}, ""
	c := w.openAt(t, "/admin")
	c.want("ready")
	other := id.NewTeam()
	w.add(t, w.team, "sandbox.created", "team")
	w.add(t, other, "session.login", "admin")
	w.add(t, id.Team{}, "host.register", "admin") // the platform's own
	c.want("sandbox.created")
	if name, data := c.next(); name != "session.login" || !strings.Contains(data, other.String()) {
		t.Errorf("of another team: %q %s", name, data)
	}
	if name, data := c.next(); name != "host.register" || strings.Contains(data, `"team"`) {
		t.Errorf("of the platform: %q %s", name, data)
	}
	_ = c.res.Body.Close()
	w.add(t, other, "team.update", "team")
	w.add(t, w.team, "team.delete", "team")
	again := w.openAt(t, "/admin", "Last-Event-ID", c.last)
	again.want("team.update", "team.delete", "ready")
	lost := w.openAt(t, "/admin", "Last-Event-ID", "1-1")
	lost.want("reset")
	for range 1001 {
		w.add(t, w.team, "sandbox.checked", "team")
	}
	w.openAt(t, "/admin", "Last-Event-ID", again.last).want("reset")
}

func TestC10_BadRequestsAreRefused(t *testing.T) {
	w := newWorld(t)
	for name, headers := range map[string][]string{
		"invalid_event_id": {"Last-Event-ID", "0x1-2"},
		"foreign_origin":   {"Origin", "https://evil.example"},
	} {
		if c := w.open(t, headers...); c.res.StatusCode != http.StatusTeapot || !c.lines.Scan() || c.lines.Text() != name {
			t.Errorf("%v: %d %q", headers, c.res.StatusCode, c.lines.Text())
		}
	}
	w.open(t, "Origin", "https://friend.example").want("ready")
	for range 31 {
		w.open(t)
	}
	if c := w.open(t); c.res.StatusCode != http.StatusTeapot || !c.lines.Scan() || c.lines.Text() != "too_many_streams" {
		t.Errorf("the 33rd stream of one session: %d %q", c.res.StatusCode, c.lines.Text())
	}
	w.callAs.HasTeam, w.callAs.SessionID = false, id.NewSession()
	if c := w.open(t); c.res.StatusCode != http.StatusTeapot || !c.lines.Scan() || c.lines.Text() != "no_team" {
		t.Errorf("without a team: %d %q", c.res.StatusCode, c.lines.Text())
	}
}

func TestC10_AStreamSaysWhyItEnds(t *testing.T) {
	w := newWorld(t)
	c := w.open(t)
	c.want("ready")
	w.mu.Lock()
	w.cut(errs.Unauthenticated("access_ended", "Over."))
	w.mu.Unlock()
	if name, data := c.next(); name != "end" || !strings.Contains(data, "access_ended") {
		t.Errorf("the last word is %q %s", name, data)
	}
	c.want("")
}

// One that falls too far behind is cut off, instead of being waited for.
func TestC10_ASlowWatcherIsSentBack(t *testing.T) {
	pool := pgtest.New(t)
	store, team := eventpg.New(pool), id.NewTeam()
	feed := event.NewFeed(store, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = feed.Run(ctx) })
	defer func() { stop(); running.Wait() }()
	slow := feed.Watch(team)
	defer slow.Close()
	from, err := slow.From(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const many = 3000
	if _, err := pool.Exec(t.Context(), `INSERT INTO outbox (team_id, kind, resource, scope) SELECT $1, 'k', '', 'team' FROM generate_series(1, $2)`, team, many); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "the watcher is full", func() bool { return len(slow.Events) == cap(slow.Events) })
	var last event.Position
	left := 0
	for e := range slow.Events { // ends, because it was closed
		left, last = left+1, e.At
	}
	missed, err := store.Between(t.Context(), team, last, event.Position{Tx: last.Tx + 1}, many)
	if err != nil || left+len(missed) != many {
		t.Errorf("%d were told and %d are left to be read after %v and %v: %v", left, len(missed), from, last, err)
	}
}
