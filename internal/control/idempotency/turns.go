package idempotency

import (
	"context"
	"sync"

	"skerry.dev/skerry/internal/kernel/errs"
)

// turns lets duplicates on one server wait in memory, so that fifty of them do
// not hold fifty connections to the database. It holds one entry for each key
// in flight, no more than there are requests.
type turns struct {
	mu   sync.Mutex
	busy map[string]*turn
}

type turn struct {
	token   chan struct{} // holds one token while nobody has the turn
	waiting int           // who holds or wants it; the last one removes it
}

// take waits for the turn of a key; the caller gives it back by calling done.
func (t *turns) take(ctx context.Context, key string) (done func(), err error) {
	t.mu.Lock()
	mine, ok := t.busy[key]
	if !ok {
		mine = &turn{token: make(chan struct{}, 1)}
		mine.token <- struct{}{}
		t.busy[key] = mine
	}
	mine.waiting++
	t.mu.Unlock()

	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if mine.waiting--; mine.waiting == 0 {
			delete(t.busy, key)
		}
	}
	select {
	case <-mine.token:
		return func() {
			mine.token <- struct{}{}
			leave()
		}, nil
	case <-ctx.Done():
		leave()
		return nil, errs.New(errs.CodeCanceled, "canceled", "The request was canceled while an identical one was running.").Because(ctx.Err())
	}
}
