package web

import (
	"crypto/sha256"
	"net/netip"
	"sync"
	"time"

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
	limit  *ratelimit.Limiter // by address, and by the wrong text itself
	clock  clock.Clock
	recall time.Duration // how long what does not work is not looked up again

	mu         sync.Mutex
	young, old map[[sha256.Size]byte]verdict
}

// verdict is what was found when a text was looked up last.
type verdict struct {
	wrong error // nil: it worked
	at    time.Time
}

func newGuesses(clock clock.Clock, rate ratelimit.Rate) *guesses {
	if rate.Burst == 0 {
		return nil
	}
	return &guesses{
		limit: ratelimit.New(clock, rate, limiterKeys), clock: clock, recall: rate.Per, young: map[[sha256.Size]byte]verdict{},
	}
}

// find looks up whose text is, unless that was tried too often. A nil one
// always does.
func (g *guesses) find(ip netip.Addr, text string, look func() (principal.Principal, error)) (principal.Principal, error) {
	if g == nil {
		return look()
	}
	sum := sha256.Sum256([]byte(text))
	before, seen := g.known(sum)
	bucket := ratelimit.IPKey(ip)
	switch {
	case seen && before != nil:
		// What does not work will not soon: it was revoked, has expired or never was.
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

func (g *guesses) known(sum [sha256.Size]byte) (wrong error, seen bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v, seen := g.young[sum]
	if !seen {
		v, seen = g.old[sum]
	}
	if v.wrong != nil && g.clock.Now().Sub(v.at) > g.recall {
		return nil, false
	}
	return v.wrong, seen
}

// note remembers, for two generations of limiterKeys each at most.
func (g *guesses) note(sum [sha256.Size]byte, wrong error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.young[sum]; !ok && len(g.young) >= limiterKeys {
		g.old, g.young = g.young, map[[sha256.Size]byte]verdict{}
	}
	g.young[sum] = verdict{wrong, g.clock.Now()}
}

var errTooManyGuesses = errs.New(errs.CodeExhausted, "too_many_failures", "Too many API keys or tickets that do not work came from here. Wait as Retry-After says.")
