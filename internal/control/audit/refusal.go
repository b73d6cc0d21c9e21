package audit

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/ratelimit"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/logkey"
	"skerry.dev/skerry/internal/kernel/observe"
)

// RefusalCount is how often an address was refused in one minute.
type RefusalCount struct {
	RefusalKey
	Count int64
}

// RefusalKey is what refusals are counted by.
type RefusalKey struct {
	IP     netip.Addr // IPv6 by its /64; :: for none, and for those beyond the bound
	Minute time.Time
	Reason string
}

// Bounds of what is remembered of refusals.
const (
	// refusedPerCaller are recorded one by one; a caller that is refused more
	// often is counted like one that nobody knows.
	refusedBurst   = 300
	refusedPer     = time.Minute
	refusedCallers = 10_000
	maxCounted     = 4096 // addresses, minutes and reasons between two writes
	countEvery     = 5 * time.Second
	recordWithin   = 5 * time.Second
)

// Refusals keeps what was refused: those of a known caller as entries of its
// team's trail, those of anybody else as counts.
type Refusals struct {
	store Store
	clock clock.Clock
	log   *slog.Logger
	each  *ratelimit.Limiter

	mu     sync.Mutex
	counts map[RefusalKey]int64
}

// NewRefusals returns the keeper. Run writes the counts.
func NewRefusals(store Store, clock clock.Clock, log *slog.Logger) *Refusals {
	return &Refusals{
		store: store, clock: clock, log: log, counts: map[RefusalKey]int64{},
		each: ratelimit.New(clock, ratelimit.Rate{Burst: refusedBurst, Per: refusedPer}, refusedCallers),
	}
}

// Refused records that a known caller may not do what it tried. Nothing
// changed, so a failure to record is logged, and also counted.
func (r *Refusals) Refused(ctx context.Context, by principal.Principal, operation, reason string) {
	if r.each.Take(by.Caller()) > 0 {
		r.Counted(by.IP, reason)
		return
	}
	team := id.PlatformTeamID
	if by.HasTeam {
		team = by.TeamID
	}
	// The client may be gone; the attempt was made all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
	defer cancel()
	if err := r.store.Record(ctx, By(by).Refused(team, operation, reason)); err != nil {
		r.log.ErrorContext(ctx, "a refusal is not recorded", logkey.Op, operation, logkey.Actor, by.Caller(), "reason", reason, logkey.Error, err)
		r.Counted(by.IP, reason)
	}
}

// Counted counts a refusal of a caller that nobody knows.
func (r *Refusals) Counted(ip netip.Addr, reason string) {
	key := RefusalKey{IP: network(ip), Minute: r.clock.Now().UTC().Truncate(time.Minute), Reason: reason}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.counts[key]; !ok && len(r.counts) >= maxCounted {
		key.IP = netip.IPv6Unspecified()
	}
	r.counts[key]++
}

func network(ip netip.Addr) netip.Addr {
	switch ip = ip.Unmap(); {
	case !ip.IsValid():
		return netip.IPv6Unspecified()
	case ip.Is6():
		prefix, err := ip.WithZone("").Prefix(64)
		if err == nil {
			return prefix.Addr()
		}
	}
	return ip
}

// Run writes the counts every few seconds until ctx ends, and then once more.
func (r *Refusals) Run(ctx context.Context) error {
	ticker := time.NewTicker(countEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWithin)
			defer cancel()
			r.Flush(last)
			return nil
		case <-ticker.C:
			r.Flush(ctx)
		}
	}
}

// Flush writes what was counted. What cannot be written is kept for the next
// time, within the bound.
func (r *Refusals) Flush(ctx context.Context) {
	r.mu.Lock()
	counted := r.counts
	r.counts = map[RefusalKey]int64{}
	r.mu.Unlock()
	if len(counted) == 0 {
		return
	}
	rows := make([]RefusalCount, 0, len(counted))
	for key, n := range counted {
		rows = append(rows, RefusalCount{RefusalKey: key, Count: n})
	}
	err := observe.Round(ctx, "refusal_counts", func(ctx context.Context) error { return r.store.AddRefusals(ctx, rows) })
	if err == nil {
		return
	}
	r.log.WarnContext(ctx, "counts of refusals are not written yet", logkey.Error, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, n := range counted {
		if _, ok := r.counts[key]; ok || len(r.counts) < maxCounted {
			r.counts[key] += n
		}
	}
}
