package scheduler

import (
	"cmp"
	"fmt"
	"strings"
)

// The policies' names.
const (
	RoundRobin  = "round-robin"
	LeastLoaded = "least-loaded"
	BinPack     = "bin-pack"
)

// New returns the policy of a name.
func New(name string, over Overcommit) (Scheduler, error) {
	switch name {
	case RoundRobin:
		return RoundRobinScheduler{Overcommit: over}, nil
	case LeastLoaded:
		return LeastLoadedScheduler{Overcommit: over}, nil
	case BinPack:
		return BinPackScheduler{Overcommit: over}, nil
	}
	return nil, fmt.Errorf("must be one of %s, not %q", strings.Join([]string{RoundRobin, LeastLoaded, BinPack}, ", "), name)
}

// RoundRobinScheduler takes, of the hosts that fit, the one that was given a
// sandbox the longest ago. Where what it starts from lies decides between hosts
// that never got one: anything more would keep all on the first.
type RoundRobinScheduler struct{ Overcommit Overcommit }

// Pick implements Scheduler.
func (s RoundRobinScheduler) Pick(req Request, hosts []HostView) Decision {
	return pick(req, hosts, s.Overcommit, func(a, b candidate) int {
		return cmp.Or(a.LastPlacedAt.Compare(b.LastPlacedAt), havingFirst(a, b), compareID(a.ID, b.ID))
	})
}

// worthOfImage is how much fuller a host may be and still be taken, because it
// need not fetch what the sandbox starts from.
const worthOfImage = 0.1

// LeastLoadedScheduler takes the host of whose CPU or memory, whichever is
// scarcer, the smallest share would be promised.
type LeastLoadedScheduler struct{ Overcommit Overcommit }

// Pick implements Scheduler.
func (s LeastLoadedScheduler) Pick(req Request, hosts []HostView) Decision {
	weight := func(c candidate) float64 {
		if c.has {
			return c.load - worthOfImage
		}
		return c.load
	}
	return pick(req, hosts, s.Overcommit, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(weight(a), weight(b)), a.LastPlacedAt.Compare(b.LastPlacedAt), compareID(a.ID, b.ID))
	})
}

// BinPackScheduler fills hosts one after the other, so that others stay empty
// and can be given back. Those that have what the sandbox starts from come
// first.
type BinPackScheduler struct{ Overcommit Overcommit }

// Pick implements Scheduler.
func (s BinPackScheduler) Pick(req Request, hosts []HostView) Decision {
	return pick(req, hosts, s.Overcommit, func(a, b candidate) int {
		return cmp.Or(havingFirst(a, b), cmp.Compare(b.load, a.load), compareID(a.ID, b.ID))
	})
}
