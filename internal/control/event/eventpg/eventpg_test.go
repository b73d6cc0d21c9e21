package eventpg_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/event"
	"skerry.dev/skerry/internal/control/event/eventpg"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
)

type db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func add(t *testing.T, db db, team id.Team, kind string) {
	t.Helper()
	var row int64
	err := db.QueryRow(t.Context(), `INSERT INTO outbox (team_id, kind, resource, scope) VALUES ($1, $2, 'sb-1', 'team') RETURNING id`, team, kind).Scan(&row)
	if err != nil {
		t.Fatal(err)
	}
}

func kinds(events []event.Event) (out []string) {
	for _, e := range events {
		out = append(out, e.Kind)
	}
	return out
}

// A transaction that took its row early and commits late is read in its place:
// nothing is read beyond it before.
func TestC10_ALateCommitIsNotPassedOver(t *testing.T) {
	pool := pgtest.New(t)
	store, team := eventpg.New(pool), id.NewTeam()
	start, err := store.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slow, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Rollback(context.WithoutCancel(t.Context())) }()
	add(t, slow, team, "first")
	add(t, pool, team, "second")
	before, err := store.After(t.Context(), start, 10)
	if err != nil || len(before) != 0 {
		t.Fatalf("read %v, %v while an older transaction is open", kinds(before), err)
	}
	if err := slow.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, err := store.After(t.Context(), start, 10)
	if err != nil || !slices.Equal(kinds(after), []string{"first", "second"}) {
		t.Fatalf("read %v, %v", kinds(after), err)
	}
	rest, err := store.After(t.Context(), after[0].At, 10)
	if err != nil || !slices.Equal(kinds(rest), []string{"second"}) {
		t.Fatalf("after the first: %v, %v", kinds(rest), err)
	}
	between, err := store.Between(t.Context(), team, start, after[0].At, 10)
	if err != nil || !slices.Equal(kinds(between), []string{"first"}) {
		t.Fatalf("between: %v, %v", kinds(between), err)
	}
	if others, err := store.Between(t.Context(), id.NewTeam(), start, after[1].At, 10); err != nil || len(others) != 0 {
		t.Errorf("another team reads %v, %v", kinds(others), err)
	}
}

// Many writers, one reader that always goes on from where it was: each row is
// seen once.
func TestC10_AReaderAmongWritersSeesEachRowOnce(t *testing.T) {
	pool := pgtest.New(t)
	store, team := eventpg.New(pool), id.NewTeam()
	at, err := store.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const writers, each = 8, 25
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for i := range each {
				err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					_, err := tx.Exec(t.Context(), `INSERT INTO outbox (team_id, kind, resource, scope) VALUES ($1, $2, '', 'team')`, team, fmt.Sprint(w, " ", i))
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writing.Wait(); close(done) }()
	seen := map[string]int{}
	for last := false; !last; {
		select {
		case <-done:
			last = true
		default:
		}
		for {
			events, err := store.After(t.Context(), at, 7)
			if err != nil {
				t.Fatal(err)
			}
			if len(events) == 0 {
				break
			}
			for _, e := range events {
				seen[e.Kind]++
			}
			at = events[len(events)-1].At
		}
	}
	if len(seen) != writers*each {
		t.Errorf("saw %d of %d", len(seen), writers*each)
	}
	for kind, n := range seen {
		if n != 1 {
			t.Errorf("%s was seen %d times", kind, n)
		}
	}
}

func TestC10_WhatWasPrunedIsNotTakenForNothing(t *testing.T) {
	pool := pgtest.New(t)
	store, team := eventpg.New(pool), id.NewTeam()
	start, err := store.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	add(t, pool, team, "old")
	add(t, pool, team, "new")
	events, err := store.After(t.Context(), start, 10)
	if err != nil || len(events) != 2 {
		t.Fatal(events, err)
	}
	if _, err := pool.Exec(t.Context(), "UPDATE outbox SET at = now() - interval '2 days' WHERE kind = 'old'"); err != nil {
		t.Fatal(err)
	}
	if kept, err := store.Kept(t.Context(), events[0].At); err != nil || !kept {
		t.Errorf("before pruning: %v, %v", kept, err)
	}
	if n, err := store.Prune(t.Context(), event.Retention); err != nil || n != 1 {
		t.Errorf("pruned %d, %v", n, err)
	}
	if kept, err := store.Kept(t.Context(), events[0].At); err != nil || kept {
		t.Errorf("a position among what is gone: %v, %v", kept, err)
	}
	if kept, err := store.Kept(t.Context(), events[1].At); err != nil || !kept {
		t.Errorf("a position that is there: %v, %v", kept, err)
	}
}

func TestC10_ATicketWorksOnceForItsStream(t *testing.T) {
	pool := pgtest.New(t)
	tickets := eventpg.New(pool).Tickets()
	session := id.NewSession()
	hash := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
	for b := range byte(3) {
		if _, err := tickets.Insert(t.Context(), hash(b), "openPTY", "sb-1", &session, nil, 30*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	spend := func(b byte, operation, resource string) bool {
		got, _, found, err := tickets.Spend(t.Context(), hash(b), operation, resource)
		if err != nil || found && *got != session {
			t.Fatal(got, err)
		}
		return found
	}
	if spend(0, "streamExec", "sb-1") || spend(0, "openPTY", "sb-2") || spend(9, "openPTY", "sb-1") {
		t.Error("a ticket for something else was taken")
	}
	if !spend(0, "openPTY", "sb-1") || spend(0, "openPTY", "sb-1") {
		t.Error("a ticket works exactly once")
	}
	if _, err := pool.Exec(t.Context(), "UPDATE stream_tickets SET expires_at = now() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	if spend(1, "openPTY", "sb-1") {
		t.Error("an expired ticket was taken")
	}
	var wins atomicCount
	if _, err := pool.Exec(t.Context(), "UPDATE stream_tickets SET expires_at = now() + interval '1 hour'"); err != nil {
		t.Fatal(err)
	}
	var racing sync.WaitGroup
	for range 8 {
		racing.Go(func() {
			if _, _, found, err := tickets.Spend(t.Context(), hash(2), "openPTY", "sb-1"); err != nil {
				t.Error(err)
			} else if found {
				wins.add()
			}
		})
	}
	racing.Wait()
	if wins.n != 1 {
		t.Errorf("%d of 8 spent one ticket", wins.n)
	}
}

type atomicCount struct {
	mu sync.Mutex
	n  int
}

func (c *atomicCount) add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
}
