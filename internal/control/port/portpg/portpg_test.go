package portpg_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/port"
	"skerry.dev/skerry/internal/control/port/portpg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// ground is a running sandbox and the room of its ports.
type ground struct {
	*sandboxtest.World
	ports *port.Service
	by    principal.Principal
	box   id.Sandbox
	end   func()
}

func newGround(t *testing.T) *ground {
	t.Helper()
	w := sandboxtest.NewWorld(t, pgtest.New(t), 16, 1<<16)
	server := w.Serve(sandbox.Config{})
	receipt, err := server.Service.Create(t.Context(), w.User(), sandbox.CreateRequest{Template: "base"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.Service.Await(t.Context(), receipt); err != nil {
		t.Fatal(err)
	}
	return &ground{
		World: w, ports: port.NewService(portpg.New(w.Pool), server.Service), by: w.User(), box: receipt.Sandbox,
		end: func() {
			if err := server.Service.Delete(t.Context(), w.User(), receipt.Sandbox); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func (g *ground) open(t *testing.T, r port.OpenRequest) port.Opened {
	t.Helper()
	opened, err := g.ports.Open(t.Context(), g.by, g.box, r)
	if err != nil {
		t.Fatal(err)
	}
	return opened
}

func (g *ground) admits(t *testing.T, number int, token string) bool {
	t.Helper()
	_, found, err := g.ports.Admit(t.Context(), g.box, number, token)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func p[T any](v T) *T { return &v }

// TestNW06_AnAccessIsForOnePortUntilItEnds: nothing else is opened by a token,
// and it is not what is stored.
func TestNW06_AnAccessIsForOnePortUntilItEnds(t *testing.T) {
	g := newGround(t)
	private := g.open(t, port.OpenRequest{Port: 3000, Name: " preview ", ExpiresInSec: p(int64(3600))})
	if private.Access.Name != "preview" || !strings.HasPrefix(private.Token, "skp_") || private.Access.ExpiresAt == nil || private.Access.ExpiresAt.Sub(private.Access.CreatedAt) != time.Hour {
		t.Errorf("%+v", private)
	}
	public := g.open(t, port.OpenRequest{Port: 80, Public: true})
	if public.Token != "" {
		t.Errorf("a token for everybody: %s", public.Token)
	}
	other := g.open(t, port.OpenRequest{Port: 3001})
	for name, c := range map[string]struct {
		port  int
		token string
		want  bool
	}{
		"its token": {3000, private.Token, true}, "none": {3000, "", false}, "another's": {3000, other.Token, false}, "junk": {3000, "skp_x", false},
		"in capitals": {3000, strings.ToUpper(private.Token), false}, "elsewhere": {3001, private.Token, false}, "everybody's": {80, "", true}, "with junk": {80, "junk", true},
		"a port of nobody": {81, private.Token, false}, "the daemon's": {port.Control, private.Token, false},
	} {
		if got := g.admits(t, c.port, c.token); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	var stored int
	if err := g.Pool.QueryRow(t.Context(), `SELECT count(*) FROM port_access WHERE port_access::text LIKE '%' || $1 || '%'`, private.Token[4:]).Scan(&stored); err != nil || stored != 0 {
		t.Errorf("the token is stored in %d rows, %v", stored, err)
	}
	if err := g.Pool.QueryRow(t.Context(), `SELECT count(*) FROM audit_logs WHERE audit_logs::text LIKE '%' || $1 || '%'`, private.Token[4:]).Scan(&stored); err != nil || stored != 0 {
		t.Errorf("the token is in %d entries of the trail, %v", stored, err)
	}
	all := []id.PortAccess{private.Access.ID, public.Access.ID, other.Access.ID}
	if _, err := g.Pool.Exec(t.Context(), `UPDATE port_access SET expires_at = now() WHERE id = $1`, private.Access.ID.UUID()); err != nil {
		t.Fatal(err)
	}
	if err := g.ports.Close(t.Context(), g.by, g.box, other.Access.ID); err != nil {
		t.Fatal(err)
	}
	if g.admits(t, 3000, private.Token) || g.admits(t, 3001, other.Token) {
		t.Error("what has ended still opens")
	}
	if living, err := g.ports.Living(t.Context(), all); err != nil || len(living) != 1 || living[0] != public.Access.ID {
		t.Errorf("%v, %v", living, err)
	}
	if list, err := g.ports.List(t.Context(), g.by, g.box, page.Request{Limit: 10}); err != nil || len(list.Items) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	if err := g.ports.Close(t.Context(), g.by, g.box, other.Access.ID); !errs.Is(err, "port_access_not_found") {
		t.Errorf("a second time: %v", err)
	}
	var actions []string
	if err := g.Pool.QueryRow(t.Context(), `SELECT array_agg(action ORDER BY seq) FROM audit_logs WHERE resource_type = 'port'`).Scan(&actions); err != nil || strings.Join(actions, " ") != "open open open close" {
		t.Errorf("the trail has %v, %v", actions, err)
	}
}

func TestC8_PortsOfAnotherTeamAreNotFound(t *testing.T) {
	g := newGround(t)
	mine := g.open(t, port.OpenRequest{Port: 3000})
	stranger := g.UserOf(g.NewTeam())
	_, err := g.ports.Open(t.Context(), stranger, g.box, port.OpenRequest{Port: 3000})
	if !errs.Is(err, "sandbox_not_found") {
		t.Errorf("open: %v", err)
	}
	if _, err := g.ports.List(t.Context(), stranger, g.box, page.Request{Limit: 10}); !errs.Is(err, "sandbox_not_found") {
		t.Errorf("list: %v", err)
	}
	if err := g.ports.Close(t.Context(), stranger, g.box, mine.Access.ID); !errs.Is(err, "sandbox_not_found") {
		t.Errorf("close: %v", err)
	}
	if !g.admits(t, 3000, mine.Token) {
		t.Error("it was closed all the same")
	}
}

func TestS11_WhatIsAskedForIsChecked(t *testing.T) {
	g := newGround(t)
	for field, r := range map[string]port.OpenRequest{
		"port": {}, "port ": {Port: 65536}, "port  ": {Port: port.Control}, "name": {Port: 1, Name: strings.Repeat("x", 101)}, "name ": {Port: 1, Name: "a\x00"},
		"expires_in_sec": {Port: 1, ExpiresInSec: p(int64(0))}, "expires_in_sec ": {Port: 1, ExpiresInSec: p(int64(1 << 40))},
	} {
		_, err := g.ports.Open(t.Context(), g.by, g.box, r)
		if e := errs.As(err); e == nil || e.Details["field"] != strings.TrimSpace(field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	g.end()
	if _, err := g.ports.Open(t.Context(), g.by, g.box, port.OpenRequest{Port: 1}); !errs.Is(err, "invalid_state") {
		t.Errorf("of one that has ended: %v", err)
	}
	if _, found, err := g.ports.TeamOf(t.Context(), g.box); found || err != nil {
		t.Errorf("whose it is: %v, %v", found, err)
	}
}

// However many ask at once, no more are open than may be; those that have
// expired do not count.
func TestS11_SoManyAndNoMore(t *testing.T) {
	g := newGround(t)
	var mu sync.Mutex
	made, refused := 0, 0
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 15 {
				_, err := g.ports.Open(context.WithoutCancel(t.Context()), g.by, g.box, port.OpenRequest{Port: 3000})
				mu.Lock()
				switch {
				case err == nil:
					made++
				case errs.Is(err, "too_many_ports"):
					refused++
				default:
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if made != port.MaxPerSandbox || refused != 20 {
		t.Errorf("%d made, %d refused", made, refused)
	}
	if _, err := g.Pool.Exec(t.Context(), `UPDATE port_access SET expires_at = now() WHERE id IN (SELECT id FROM port_access LIMIT 1)`); err != nil {
		t.Fatal(err)
	}
	g.open(t, port.OpenRequest{Port: 3000})
}

func TestC4_PortsArePagedExactly(t *testing.T) {
	g := newGround(t)
	want := map[id.PortAccess]bool{}
	for n := range 25 {
		want[g.open(t, port.OpenRequest{Port: 3000 + n, Public: true}).Access.ID] = true
	}
	if _, err := g.Pool.Exec(t.Context(), `UPDATE port_access SET created_at = now()`); err != nil { // all in one microsecond
		t.Fatal(err)
	}
	seen := map[id.PortAccess]int{}
	for r := (page.Request{Limit: 4}); ; {
		got, err := g.ports.List(t.Context(), g.by, g.box, r)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range got.Items {
			seen[a.ID]++
			if !want[a.ID] {
				t.Errorf("%s is nobody's", a.ID)
			}
		}
		if r.Cursor = got.NextCursor; r.Cursor == "" {
			break
		}
	}
	if len(seen) != len(want) {
		t.Errorf("%d of %d", len(seen), len(want))
	}
	for a, n := range seen {
		if n != 1 {
			t.Errorf("%s %d times", a, n)
		}
	}
	if _, err := g.ports.List(t.Context(), g.by, g.box, page.Request{Limit: 4, Cursor: "e30"}); !errs.Is(err, "invalid_cursor") {
		t.Errorf("a cursor that is none: %v", err)
	}
}

// A repeated request gets the token of the first.
func TestC6_ARepeatedOpenMakesOne(t *testing.T) {
	g := newGround(t)
	ctx := idempotency.With(t.Context(), idempotency.NewRequest(g.Secret, "user:1", "key", "openPort", []byte("{}")))
	first, err := g.ports.Open(ctx, g.by, g.box, port.OpenRequest{Port: 3000})
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.ports.Open(ctx, g.by, g.box, port.OpenRequest{Port: 3000})
	var replay *idempotency.Replay
	if !errors.As(err, &replay) || !strings.Contains(string(replay.Receipt), first.Token) {
		t.Errorf("the second says %v", err)
	}
	list, err := g.ports.List(t.Context(), g.by, g.box, page.Request{Limit: 10})
	if err != nil || len(list.Items) != 1 || list.Items[0].ID != first.Access.ID {
		t.Errorf("%+v, %v", list, err)
	}
}
