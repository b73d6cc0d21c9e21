package host

import (
	"context"
	"fmt"
	"log/slog"
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
	StaleAfter     = 90 * time.Second
	reconcileEvery = 30 * time.Second
	lookEvery      = 5 * time.Second
	// reconcileLimit is each host's own deadline.
	reconcileLimit = 20 * time.Second
	// parallel bounds how many hosts are looked at at once.
	parallel = 32
)

// Reconciler compares one host with the rows.
type Reconciler interface {
	ReconcileHost(ctx context.Context, h Ref) error
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

	// watchedSince is since when this monitor has seen the database without a
	// gap; it judges nobody before a full window.
	watchedSince time.Time

	mu     sync.Mutex
	last   map[id.Host]time.Time
	active map[id.Host]bool
}

// NewHostMonitor makes a monitor.
func NewHostMonitor(store Store, reconciler Reconciler, log *slog.Logger) *HostMonitor {
	return &HostMonitor{
		store: store, reconciler: reconciler, log: log, hints: make(chan id.Host, 64), now: time.Now, staleAfter: StaleAfter,
		last: map[id.Host]time.Time{}, active: map[id.Host]bool{},
	}
}

// SetStaleAfter changes how old the last heartbeat may be. Call it before Run.
func (m *HostMonitor) SetStaleAfter(d time.Duration) { m.staleAfter = d }

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
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		if err := observe.Round(ctx, "host_monitor", m.judge); err != nil && ctx.Err() == nil {
			m.log.WarnContext(ctx, "cannot look at hosts", "error", err)
		}
		m.reconcileDue(ctx, slots, &passes)
		select {
		case <-ctx.Done():
			return nil
		case h := <-m.hints:
			m.mu.Lock()
			delete(m.last, h)
			m.mu.Unlock()
		case <-ticker.C:
		}
	}
}

// judge marks hosts that have been silent for the whole window.
func (m *HostMonitor) judge(ctx context.Context) error {
	if m.watchedSince.IsZero() {
		if _, err := m.store.ListActiveHosts(ctx); err != nil {
			return err
		}
		m.watchedSince = m.now()
	}
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
	return nil
}

// reconcileDue starts a pass over each host whose turn it is. A host whose last
// pass has not ended is left out, and holds up nobody.
func (m *HostMonitor) reconcileDue(ctx context.Context, slots chan struct{}, passes *sync.WaitGroup) {
	hosts, err := m.store.ListActiveHosts(ctx)
	if err != nil {
		return // judge has logged it
	}
	for _, h := range hosts {
		if !m.begin(h.ID) {
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			m.finish(h.ID, false)
			return // all hands are busy; the next look goes on
		}
		passes.Go(func() {
			defer func() { <-slots }()
			pctx, cancel := context.WithTimeout(ctx, reconcileLimit)
			defer cancel()
			err := observe.Round(ctx, "host_reconciler", func(context.Context) error { return m.reconciler.ReconcileHost(pctx, h) })
			if err != nil && ctx.Err() == nil {
				m.log.WarnContext(ctx, "cannot reconcile a host", "host_id", h.ID.String(), "error", err)
			}
			m.finish(h.ID, true)
		})
	}
}

func (m *HostMonitor) begin(h id.Host) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.active[h] || m.now().Sub(m.last[h]) < reconcileEvery {
		return false
	}
	m.active[h] = true
	return true
}

func (m *HostMonitor) finish(h id.Host, looked bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.active, h)
	if looked {
		m.last[h] = m.now()
	}
}
