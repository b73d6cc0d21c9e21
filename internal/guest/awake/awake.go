// Package awake measures the time during which the sandbox ran. A sandbox may
// stand still for days between two instructions; every clock of its kernel then
// jumps by that time, and a timer of the standard library fires at once. Here
// such a jump counts as no more than one look at the clock.
package awake

import (
	"sync"
	"time"
)

// Clock runs timers. The zero value is not usable; New makes one.
type Clock struct {
	now func() time.Time

	mu     sync.Mutex
	timers map[*Timer]struct{}
	looked time.Time     // when the clock was looked at last
	step   time.Duration // when it should be looked at next, counted from then
	tick   *time.Timer   // nil while there are no timers: nobody is woken for nothing
}

// New returns a clock; now is time.Now outside tests.
func New(now func() time.Time) *Clock {
	return &Clock{now: now, timers: make(map[*Timer]struct{})}
}

// Timer calls a function once.
type Timer struct {
	clock *Clock
	left  time.Duration
	grain time.Duration
	f     func()
}

// AfterFunc calls f in a goroutine of its own when d has passed while the
// sandbox ran. The sandbox is woken each grain for it, and each standstill may
// cost the timer as much; it is never late by more than the timers of the
// standard library are.
func (c *Clock) AfterFunc(d, grain time.Duration, f func()) *Timer {
	t := &Timer{clock: c, left: d, grain: max(grain, time.Millisecond), f: f}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.timers) == 0 {
		c.looked, c.step = c.now(), 0
	} else {
		c.advance()
	}
	c.timers[t] = struct{}{}
	c.arm()
	return t
}

// Stop keeps the function from being called. It reports false when it was
// called already, or stopped.
func (t *Timer) Stop() bool {
	c := t.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.timers[t]
	delete(c.timers, t)
	if len(c.timers) == 0 && c.tick != nil {
		c.tick.Stop()
		c.tick = nil
	}
	return ok
}

// look lets time pass and calls what is due.
func (c *Clock) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.timers) == 0 {
		return
	}
	c.advance()
	for t := range c.timers {
		if t.left <= 0 {
			delete(c.timers, t)
			go t.f()
		}
	}
	c.arm()
}

// advance counts what passed since the last look. Whoever looks much later than
// was planned has stood still in between.
func (c *Clock) advance() {
	now := c.now()
	passed := max(now.Sub(c.looked), 0)
	if passed > c.step+c.step/2+late {
		passed = c.step
	}
	c.looked = now
	for t := range c.timers {
		t.left -= passed
	}
}

// late is how much later than planned a busy machine may look.
const late = 250 * time.Millisecond

func (c *Clock) arm() {
	if len(c.timers) == 0 {
		c.tick = nil
		return
	}
	c.step = time.Hour
	for t := range c.timers {
		c.step = min(c.step, max(t.left, 0), t.grain)
	}
	if c.tick == nil {
		c.tick = time.AfterFunc(c.step, c.look)
	} else {
		c.tick.Reset(c.step)
	}
}
