package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Rhythm of the monitor.
const (
	// StaleAfter is how old the last heartbeat of a host in service may be, unless
	// it is set otherwise.
	StaleAfter = 90 * time.Second
	// ReconcileEvery is how often each host in service is reconciled, unless it is
	// set otherwise.
	ReconcileEvery = 30 * time.Second
	lookEvery      = 5 * time.Second
	turnEvery      = time.Second
	// reconcileLimit is each host's own deadline.
	reconcileLimit = 20 * time.Second
	// parallel bounds how many hosts are looked at at once: most of those hands are
	// idle, so that many slow hosts leave some for the others.
	parallel = 256
	// leastTurns is how many looks begin at once at least. Of a large fleet so many
	// begin each second that all have their turn in two thirds of the interval.
	leastTurns = 8
)

// Reconciler compares hosts with the rows.
type Reconciler interface {
	ReconcileHost(ctx context.Context, h Ref) error
	// MarkMissing is told when hosts out of service that have been silent for so
	// long can be judged. It is told again and again.
	MarkMissing(ctx context.Context, silence time.Duration) error
	// Forget lets go of a host that is in service no more.
	Forget(h id.Host)
}

// HostMonitor takes hosts out of service that fell silent, and has each host in
// service reconciled, all at once and each under its own deadline. Several
// servers may each run one.
type HostMonitor struct {
	store      Store
	reconciler Reconciler
	log        *slog.Logger
	hints      chan id.Host
	now        func() time.Time
	staleAfter time.Duration
	every      time.Duration

	// watchedSince is since when this monitor has seen the database without a
	// gap; it judges nobody before a full window.
	watchedSince time.Time
	// looked is when it last saw the database.
	looked time.Time

	hosts []Ref // in service, as they were when last listed

	mu sync.Mutex
	// last and active are of hosts in service alone.
	last   map[id.Host]time.Time
	active map[id.Host]bool
}

// NewHostMonitor makes a monitor.
func NewHostMonitor(store Store, reconciler Reconciler, log *slog.Logger) *HostMonitor {
	return &HostMonitor{
		store: store, reconciler: reconciler, log: log, hints: make(chan id.Host, 64), now: time.Now, staleAfter: StaleAfter, every: ReconcileEvery,
		last: map[id.Host]time.Time{}, active: map[id.Host]bool{},
	}
}

// SetStaleAfter changes how old the last heartbeat may be. Call it before Run.
func (m *HostMonitor) SetStaleAfter(d time.Duration) { m.staleAfter = d }

// SetReconcileEvery changes how often each host is reconciled. Call it before Run.
func (m *HostMonitor) SetReconcileEvery(d time.Duration) { m.every = d }

// Hint asks for a look at a host soon. It may be lost.
func (m *HostMonitor) Hint(h id.Host) {
	select {
	case m.hints <- h:
	default:
	}
}

// Run monitors until ctx ends, then waits for the passes under way.
func (m *HostMonitor) Run(ctx context.Context) error {
	var passes sync.WaitGroup
	defer passes.Wait()
	slots := make(chan struct{}, parallel)
	looks, turns := time.NewTicker(lookEvery), time.NewTicker(turnEvery)
	defer looks.Stop()
	defer turns.Stop()
	for look := true; ; {
		if look {
			if err := observe.Round(ctx, "host_monitor", m.look); err != nil && ctx.Err() == nil {
				m.log.WarnContext(ctx, "cannot look at hosts", "error", err)
			}
		}
		m.reconcileDue(ctx, slots, &passes)
		look = true
		select {
		case <-ctx.Done():
			return nil
		case h := <-m.hints:
			m.mu.Lock()
			if _, known := m.last[h]; known {
				m.last[h] = time.Time{}
			}
			m.mu.Unlock()
		case <-turns.C:
			look = false
		case <-looks.C:
		}
	}
}

// look judges, and lists who is in service.
func (m *HostMonitor) look(ctx context.Context) error {
	judged := m.judge(ctx)
	hosts, err := m.store.ListActiveHosts(ctx)
	if err == nil {
		m.hosts = hosts
	}
	return errors.Join(judged, err)
}

// judge marks hosts that have been silent for the whole window, and what runs
// there.
func (m *HostMonitor) judge(ctx context.Context) error {
	if m.now().Sub(m.looked) > 3*lookEvery {
		m.watchedSince = time.Time{} // it slept itself: nobody has been watched
	}
	if m.watchedSince.IsZero() {
		if _, err := m.store.ListActiveHosts(ctx); err != nil {
			return err
		}
		m.watchedSince = m.now()
	}
	m.looked = m.now()
	if m.now().Sub(m.watchedSince) < m.staleAfter {
		return nil
	}
	reason := fmt.Sprintf("No heartbeat for %g s. See that the agent runs and reaches the control plane.", m.staleAfter.Seconds())
	by := audit.By(principal.System("host_monitor"))
	down, err := m.store.MarkStale(ctx, m.staleAfter, reason, func(h Host) audit.Entry { return by.HostMarkedDown(h.TeamID, h.ID, "no_heartbeat") })
	if err != nil {
		m.watchedSince = time.Time{} // a gap: nobody could have reported either
		return err
	}
	for _, h := range down {
		observe.From(ctx).Moved("host", string(StatusUnreachable), -1)
		m.log.WarnContext(ctx, "host fell silent", "host_id", h.ID.String())
	}
	if err := m.reconciler.MarkMissing(ctx, m.staleAfter); err != nil {
		m.watchedSince = time.Time{}
		return err
	}
	return nil
}

// reconcileDue starts a pass over each host whose turn it is, those first that
// waited the longest. A host whose last pass has not ended is left out, and holds
// up nobody.
func (m *HostMonitor) reconcileDue(ctx context.Context, slots chan struct{}, passes *sync.WaitGroup) {
	for _, h := range m.due() {
		select {
		case slots <- struct{}{}:
		default:
			return // all hands are busy; those who are left come first the next time
		}
		m.mu.Lock()
		m.active[h.ID] = true
		m.mu.Unlock()
		passes.Go(func() {
			defer func() { <-slots }()
			pctx, cancel := context.WithTimeout(ctx, reconcileLimit)
			defer cancel()
			err := observe.Round(ctx, "host_reconciler", func(context.Context) error { return m.reconciler.ReconcileHost(pctx, h) })
			if err != nil && ctx.Err() == nil {
				m.log.WarnContext(ctx, "cannot reconcile a host", "host_id", h.ID.String(), "error", err)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			delete(m.active, h.ID)
			m.last[h.ID] = m.now()
		})
	}
}

// due are the hosts whose turn it is, the longest unseen first, and no more than
// may begin at once. Hosts in service no more are forgotten.
func (m *HostMonitor) due() []Ref {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	there := make(map[id.Host]bool, len(m.hosts))
	var out []Ref
	for _, h := range m.hosts {
		there[h.ID] = true
		if !m.active[h.ID] && now.Sub(m.last[h.ID]) >= m.every {
			out = append(out, h)
		}
	}
	for h := range m.last {
		if !there[h] && !m.active[h] {
			delete(m.last, h)
			m.reconciler.Forget(h)
		}
	}
	slices.SortStableFunc(out, func(a, b Ref) int { return m.last[a.ID].Compare(m.last[b.ID]) })
	return out[:min(len(out), max(leastTurns, len(m.hosts)*int(turnEvery)*3/(int(m.every)*2)))]
}
