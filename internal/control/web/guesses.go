package web

import (
	"crypto/sha256"
	"net/netip"
	"sync"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/ratelimit"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
)

// guesses bounds what may be tried as an API key or a ticket. An address may
// try some that nobody knows; one and the same is not looked up again, and
// counts for itself alone. So neither a program that goes on with a revoked key
// nor somebody who guesses keeps out the neighbours behind the same address,
// whose keys have worked: those are looked up always.
type guesses struct {
	limit *ratelimit.Limiter // by address, and by the wrong text itself

	mu         sync.Mutex
	young, old map[[sha256.Size]byte]error // why it did not work when it was looked up last; nil: it did
}

func newGuesses(clock clock.Clock, rate ratelimit.Rate) *guesses {
	if rate.Burst == 0 {
		return nil
	}
	return &guesses{limit: ratelimit.New(clock, rate, limiterKeys), young: map[[sha256.Size]byte]error{}}
}

// find looks up whose text is, unless that was tried too often. A nil one
// always does.
func (g *guesses) find(ip netip.Addr, text string, look func() (principal.Principal, error)) (principal.Principal, error) {
	if g == nil {
		return look()
	}
	sum := sha256.Sum256([]byte(text))
	before, seen := g.recall(sum)
	bucket := ratelimit.IPKey(ip)
	switch {
	case seen && before != nil:
		// What does not work never will: it was revoked, has expired or never was.
		if wait := g.limit.Take("wrong " + string(sum[:])); wait > 0 {
			return principal.Principal{}, errTooManyGuesses.After(wait)
		}
		return principal.Principal{}, before
	case !seen:
		// Before the look, so that guesses side by side count like those one after
		// the other.
		if wait := g.limit.Take(bucket); wait > 0 {
			return principal.Principal{}, errTooManyGuesses.After(wait)
		}
	}
	caller, err := look()
	wrong := err != nil && errs.CodeOf(err) == errs.CodeUnauthenticated
	if !seen && !wrong {
		g.limit.Give(bucket)
	}
	if err == nil || wrong {
		g.note(sum, err)
	}
	return caller, err
}

func (g *guesses) recall(sum [sha256.Size]byte) (before error, seen bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if before, seen = g.young[sum]; !seen {
		before, seen = g.old[sum]
	}
	return before, seen
}

// note remembers, for two generations of limiterKeys each at most.
func (g *guesses) note(sum [sha256.Size]byte, verdict error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.young[sum]; !ok && len(g.young) >= limiterKeys {
		g.old, g.young = g.young, map[[sha256.Size]byte]error{}
	}
	g.young[sum] = verdict
}

var errTooManyGuesses = errs.New(errs.CodeExhausted, "too_many_failures", "Too many API keys or tickets that do not work came from here. Wait as Retry-After says.")
