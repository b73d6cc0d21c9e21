package guard

import (
	"sync"
	"time"

	"skerry.dev/skerry/internal/guest/guestapi"
)

// kept is how many events are held for those who come late.
const kept = 256

// Events numbers what happened and holds the last of it. Safe for concurrent
// use.
type Events struct {
	mu      sync.Mutex
	seq     int64
	ring    []guestapi.Event
	changed chan struct{}
}

// NewEvents begins to number after first. A daemon that was restarted passes
// something larger than before, such as the time in microseconds.
func NewEvents(first int64) *Events { return &Events{seq: first, changed: make(chan struct{})} }

// Emit numbers and dates the event and tells all who wait.
func (e *Events) Emit(ev guestapi.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seq++
	ev.Seq, ev.Time = e.seq, time.Now().UTC()
	if len(e.ring) >= kept {
		e.ring = append(e.ring[:0], e.ring[1:]...)
	}
	e.ring = append(e.ring, ev)
	close(e.changed)
	e.changed = make(chan struct{})
}

// Since returns the held events after a number, and a channel that is closed
// when there are more.
func (e *Events) Since(after int64) ([]guestapi.Event, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, ev := range e.ring {
		if ev.Seq > after {
			return append([]guestapi.Event(nil), e.ring[i:]...), e.changed
		}
	}
	return nil, e.changed
}

// Forget drops what is held: it happened to somebody else, or to an earlier
// life. The numbers go on.
func (e *Events) Forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ring = nil
}
