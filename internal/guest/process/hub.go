package process

import (
	"context"
	"errors"
	"sort"
	"sync"
	"time"
)

const (
	// window is how much output one process may have in memory: what replay
	// keeps, and how far the readers may fall behind.
	window = 1 << 20
	// overhead is what one stored piece costs beside its bytes, so that a
	// process that writes single bytes cannot hold many times the window.
	overhead = 96
	// stallLook is how often somebody who waits for readers looks at the clock, to
	// see that the sandbox stood still.
	stallLook = 2 * time.Second
	// pieceMax bounds one event; a terminal's are smaller because its reads are.
	pieceMax = 32 << 10
)

// stream says where output came from.
type stream uint8

const (
	stdout stream = iota
	stderr
	terminal
)

// errLagging ends the subscription of a reader that stopped reading.
var errLagging = errors.New("the reader fell too far behind; connect again to go on")

// piece is a run of output of one stream. Its bytes are only ever appended to
// within spare capacity, so a slice once handed out stays valid.
type piece struct {
	offset uint64
	from   stream
	data   []byte
}

func (p piece) end() uint64 { return p.offset + uint64(len(p.data)) }
func (p piece) cost() int   { return len(p.data) + overhead }

// hub passes the output of one process to any number of readers. All of them
// read from one bounded store, so memory does not depend on their number.
//
// While readers are attached nothing they have not read is thrown away: the
// process waits. A reader that holds up the others for stall is ended with
// errLagging; one that is alone may hold up the process for stallAlone. With no
// reader the process never waits: output is dropped, or, with keep, the oldest
// is overwritten.
type hub struct {
	keep              bool
	stall, stallAlone time.Duration

	publishing sync.Mutex // one publisher at a time, so that one waits on space
	space      chan struct{}

	mu     sync.Mutex
	limit  int
	pieces []piece
	held   int
	head   uint64 // offset of the next byte
	subs   map[*subscriber]struct{}
	end    *exit
}

func newHub(keep bool, limit int) *hub {
	return &hub{
		keep: keep, limit: limit, stall: 10 * time.Second, stallAlone: 5 * time.Minute,
		space: make(chan struct{}, 1), subs: make(map[*subscriber]struct{}),
	}
}

// subscriber is one reader's place in the output.
type subscriber struct {
	hub   *hub
	next  uint64
	moved time.Time
	err   error
	wake  chan struct{}
}

// subscribe adds a reader that begins at offset after, or at the present end
// when after is nil.
func (h *hub) subscribe(after *uint64) *subscriber {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &subscriber{hub: h, next: h.head, moved: time.Now(), wake: make(chan struct{}, 1)}
	if after != nil {
		s.next = min(*after, h.head)
	}
	h.subs[s] = struct{}{}
	return s
}

// close removes the reader; safe to repeat.
func (s *subscriber) close() {
	s.hub.mu.Lock()
	delete(s.hub.subs, s)
	s.hub.release()
	s.hub.mu.Unlock()
}

// what is the next thing a reader gets: exactly one of its fields is set.
type what struct {
	piece *piece
	gap   uint64
	end   *exit
	idle  bool // nothing happened for the time given
}

// read returns what comes next, waiting for at most idle.
func (s *subscriber) read(ctx context.Context, idle time.Duration) (what, error) {
	if err := ctx.Err(); err != nil {
		return what{}, err // also for a process that is never silent
	}
	if w, err, ok := s.poll(); ok {
		return w, err
	}
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		select {
		case <-s.wake:
		case <-timer.C:
			return what{idle: true}, nil
		case <-ctx.Done():
			return what{}, ctx.Err()
		}
		if w, err, ok := s.poll(); ok {
			return w, err
		}
	}
}

func (s *subscriber) poll() (what, error, bool) {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.err != nil {
		return what{}, s.err, true
	}
	first := h.head
	if len(h.pieces) > 0 {
		first = h.pieces[0].offset
	}
	if s.next < first {
		lost := first - s.next
		s.next, s.moved = first, time.Now()
		return what{gap: lost}, nil, true
	}
	if s.next < h.head {
		i := sort.Search(len(h.pieces), func(i int) bool { return h.pieces[i].end() > s.next })
		p := h.pieces[i]
		p.data = p.data[s.next-p.offset:]
		p.offset = s.next
		s.next, s.moved = p.end(), time.Now()
		h.release()
		return what{piece: &p}, nil, true
	}
	if h.end != nil {
		return what{end: h.end}, nil, true
	}
	return what{}, nil, false
}

// release drops what nobody needs any more and tells a waiting publisher.
// Called with mu held.
func (h *hub) release() {
	if !h.keep {
		h.evict(h.slowest(), 0)
	}
	select {
	case h.space <- struct{}{}:
	default:
	}
}

// slowest is the offset that every reader has passed.
func (h *hub) slowest() uint64 {
	low := h.head
	for s := range h.subs {
		low = min(low, s.next)
	}
	return low
}

// evict drops pieces from the front that end at or before the offset, while
// more than want bytes are held.
func (h *hub) evict(before uint64, want int) {
	n := 0
	for n < len(h.pieces) && h.held > want && h.pieces[n].end() <= before {
		h.held -= h.pieces[n].cost()
		h.pieces[n] = piece{}
		n++
	}
	if h.pieces = h.pieces[n:]; len(h.pieces) == 0 {
		h.pieces = nil
	}
}

// publish hands out a copy of data, which came from one read. It waits while
// the store is full of what readers have not taken yet.
func (h *hub) publish(from stream, data []byte) {
	h.publishing.Lock()
	defer h.publishing.Unlock()
	for len(data) > 0 {
		n := min(len(data), pieceMax)
		h.publishPiece(from, data[:n])
		data = data[n:]
	}
}

func (h *hub) publishPiece(from stream, data []byte) {
	var since time.Time
	for {
		h.mu.Lock()
		if h.end != nil || (!h.keep && len(h.subs) == 0) {
			h.head += uint64(len(data))
			h.mu.Unlock()
			return
		}
		h.evict(h.slowest(), h.limit-len(data)-overhead)
		if h.held == 0 || h.held+len(data)+overhead <= h.limit {
			h.store(from, data)
			h.mu.Unlock()
			return
		}
		now := time.Now()
		if since.IsZero() {
			since = now
		}
		wait := min(h.dropStalled(since, now), stallLook)
		h.mu.Unlock()
		if wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-h.space:
			case <-timer.C:
			}
			timer.Stop()
			if stood := time.Since(now) - wait; stood > wait {
				since = since.Add(stood)
				h.excuse(stood)
			}
		}
	}
}

// dropStalled ends the readers that have not moved for too long since the
// publisher began to wait, and returns how long to wait for the others; zero
// means look again at once.
func (h *hub) dropStalled(since, now time.Time) time.Duration {
	limit := h.stall
	if len(h.subs) == 1 {
		limit = h.stallAlone
	}
	next := limit
	low := h.slowest()
	for s := range h.subs {
		if s.next != low {
			continue
		}
		from := since
		if s.moved.After(from) {
			from = s.moved
		}
		left := limit - now.Sub(from)
		if left > 0 {
			next = min(next, left)
			continue
		}
		s.err = errLagging
		delete(h.subs, s)
		s.signal()
		next = 0
	}
	return next
}

// excuse takes from every reader's delay the time in which the sandbox stood
// still.
func (h *hub) excuse(stood time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		s.moved = s.moved.Add(stood)
	}
}

func (h *hub) store(from stream, data []byte) {
	last := len(h.pieces) - 1
	if last >= 0 && h.pieces[last].from == from && len(h.pieces[last].data)+len(data) <= pieceMax {
		h.pieces[last].data = append(h.pieces[last].data, data...)
		h.held += len(data)
	} else {
		h.pieces = append(h.pieces, piece{offset: h.head, from: from, data: append([]byte(nil), data...)})
		h.held += len(data) + overhead
	}
	h.head += uint64(len(data))
	for s := range h.subs {
		s.signal()
	}
}

func (s *subscriber) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// finish makes e the last thing every reader gets. What is published later is
// dropped: nothing comes after the end.
func (h *hub) finish(e *exit) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.end = e
	for s := range h.subs {
		s.signal()
	}
}

// shrink lowers what may be held from now on, and forgets what is over it when
// no reader needs it. It returns the bytes still held.
func (h *hub) shrink(limit int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.limit = limit
	h.evict(h.slowest(), limit)
	return h.held
}
