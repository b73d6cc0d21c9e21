package app

import (
	"bufio"
	"net/http"
	"testing"
)

type ticketAnswer struct {
	Ticket string `json:"ticket"`
}

// A browser opens its streams without headers: with a ticket that works once,
// for what it was issued for.
func TestC10_TicketsOpenStreamsWithoutHeaders(t *testing.T) {
	g := newGround(t)
	var ticket ticketAnswer
	g.do(t, http.MethodPost, "/v1/events/stream-ticket", g.annKey, nil, http.StatusCreated, &ticket)
	open := func() *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, g.url+"/v1/events?ticket="+ticket.Ticket, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = res.Body.Close() })
		return res
	}
	first := open()
	lines := bufio.NewScanner(first.Body)
	for lines.Scan() && lines.Text() != "event: ready" {
	}
	if first.StatusCode != http.StatusOK || lines.Text() != "event: ready" {
		t.Fatalf("the ticket opens %d, %q", first.StatusCode, lines.Text())
	}
	if again := open(); again.StatusCode != http.StatusUnauthorized {
		t.Errorf("the same ticket again: %d", again.StatusCode)
	}

	file := "/v1/sandboxes/" + g.annSandbox + "/files?path=/etc/hostname"
	tickets := "/v1/sandboxes/" + g.annSandbox + "/stream-ticket"
	issue := func(operation string) string {
		var ticket ticketAnswer
		g.do(t, http.MethodPost, tickets, g.ann, map[string]string{"operation": operation}, http.StatusCreated, &ticket)
		return ticket.Ticket
	}
	if status, body := g.raw(t, http.MethodGet, file+"&ticket="+issue("openPTY"), "", ""); status != http.StatusUnauthorized {
		t.Errorf("a ticket for a terminal reads a file: %d %s", status, body)
	}
	if status, body := g.raw(t, http.MethodGet, file+"&ticket="+issue("downloadFile"), g.bob, ""); status != http.StatusBadRequest {
		t.Errorf("a ticket beside a token: %d %s", status, body)
	}
	if status, body := g.raw(t, http.MethodPost, tickets, g.bob, `{"operation":"downloadFile"}`); status != http.StatusNotFound {
		t.Errorf("a ticket for another team's sandbox: %d %s", status, body)
	}
	// The fake guest refuses everything: that it was asked at all is what counts.
	allowed := issue("downloadFile")
	status, body := g.raw(t, http.MethodGet, file+"&ticket="+allowed, "", "")
	if status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusNotFound {
		t.Errorf("a ticket for the file: %d %s", status, body)
	}
	// Access that ended takes the tickets with it.
	late := issue("downloadFile")
	g.do(t, http.MethodPost, "/v1/auth/logout", g.ann, nil, http.StatusNoContent, nil)
	if status, body := g.raw(t, http.MethodGet, file+"&ticket="+late, "", ""); status != http.StatusUnauthorized {
		t.Errorf("a ticket of a session that ended: %d %s", status, body)
	}
	var n int
	if err := g.pool.QueryRow(t.Context(), "SELECT count(*) FROM stream_tickets WHERE ticket_hash = sha256($1::bytea)", []byte(allowed)).Scan(&n); err != nil || n != 0 {
		t.Errorf("a spent ticket is still there: %d, %v", n, err)
	}
}

func TestA10_TheTrailNamesTheKeyThatActed(t *testing.T) {
	g := newGround(t)
	var actor, name string
	err := g.pool.QueryRow(t.Context(), "SELECT actor_id, actor_name FROM audit_logs WHERE resource_id = $1 AND action = 'create' AND actor_type = 'api_key'", g.annSandbox).
		Scan(&actor, &name)
	if err != nil || actor != g.annKeyID || name != "k" {
		t.Errorf("the sandbox was made by %s %q, want %s: %v", actor, name, g.annKeyID, err)
	}
}
