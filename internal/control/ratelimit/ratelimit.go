// Package ratelimit is token buckets by key, in bounded memory. Each server
// counts for itself: the limits guard a server against floods and accounts
// against guessing, they are no quota.
package ratelimit

import (
	"net/netip"
	"sync"
	"time"

	"skerry.dev/skerry/internal/kernel/clock"
)

// Rate allows Burst at once and refills to that within Per.
type Rate struct {
	Burst int
	Per   time.Duration
}

// Limiter holds the buckets of one rate. Memory is bounded by two generations
// of maxKeys each: what was not seen for a generation is forgotten, that is,
// full again.
type Limiter struct {
	clock   clock.Clock
	rate    Rate
	maxKeys int

	mu    sync.Mutex
	young map[string]bucket
	old   map[string]bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

// New returns a limiter. A zero burst means no limit.
func New(clock clock.Clock, rate Rate, maxKeys int) *Limiter {
	return &Limiter{clock: clock, rate: rate, maxKeys: maxKeys, young: map[string]bucket{}}
}

// Take takes one token of key and returns zero, or takes none and returns how
// long to wait for the next.
func (l *Limiter) Take(key string) time.Duration { return l.look(key, 1) }

// Wait returns zero when a token is there, else how long to wait; it takes
// none.
func (l *Limiter) Wait(key string) time.Duration { return l.look(key, 0) }

// Give puts back a token that was taken for something that does not count
// after all.
func (l *Limiter) Give(key string) { l.look(key, -1) }

func (l *Limiter) look(key string, take float64) time.Duration {
	if l.rate.Burst == 0 {
		return 0
	}
	now := l.clock.Now()
	perSecond := float64(l.rate.Burst) / l.rate.Per.Seconds()
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.young[key]
	if !ok {
		if b, ok = l.old[key]; !ok {
			b = bucket{tokens: float64(l.rate.Burst), at: now}
		}
		if len(l.young) >= l.maxKeys {
			l.old, l.young = l.young, map[string]bucket{}
		}
	}
	if passed := now.Sub(b.at).Seconds(); passed > 0 {
		b.tokens = min(float64(l.rate.Burst), b.tokens+passed*perSecond)
		b.at = now
	}
	var wait time.Duration
	if take >= 0 && b.tokens < 1 {
		wait = time.Duration((1 - b.tokens) / perSecond * float64(time.Second))
	} else {
		b.tokens = min(float64(l.rate.Burst), b.tokens-take)
	}
	l.young[key] = b
	return max(wait, 0)
}

// IPKey is the key of an address: itself for IPv4, its /64 for IPv6, which is
// what one customer has.
func IPKey(ip netip.Addr) string {
	ip = ip.Unmap()
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
