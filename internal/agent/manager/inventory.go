package manager

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Inventory is what exists on the host.
type Inventory struct {
	// TakenAt is when the manager began to look. A sandbox commanded later may
	// be missing here and is not lost.
	TakenAt   time.Time
	Sandboxes []Report
}

// Inventory looks at the journal and at every engine. It is complete or an
// error: half a list would look like lost sandboxes.
func (m *Manager) Inventory(ctx context.Context) (Inventory, error) {
	inv := Inventory{TakenAt: m.cfg.Clock.Now()}
	strange, err := m.strangers(ctx)
	if err != nil {
		return Inventory{}, err
	}
	if len(strange) > 0 {
		// What was made or removed between the looks is in one of them only.
		again, err := m.strangers(ctx)
		if err != nil {
			return Inventory{}, err
		}
		maps.DeleteFunc(strange, func(i engine.InstanceID, _ Report) bool {
			_, still := again[i]
			return !still
		})
	}
	m.mu.Lock()
	for _, s := range m.sandboxes {
		if s.rec.Instance != "" {
			inv.Sandboxes = append(inv.Sandboxes, report(s.rec))
		}
	}
	m.mu.Unlock()
	inv.Sandboxes = slices.AppendSeq(inv.Sandboxes, maps.Values(strange))
	slices.SortFunc(inv.Sandboxes, func(a, b Report) int { return strings.Compare(string(a.Instance), string(b.Instance)) })
	return inv, nil
}

// strangers are the instances engines have and the manager knows neither
// before nor after it asked them.
func (m *Manager) strangers(ctx context.Context) (map[engine.InstanceID]Report, error) {
	known := m.instances()
	found := make(map[engine.InstanceID]Report)
	for name, eng := range m.cfg.Engines {
		list, err := eng.Inventory(ctx)
		if err != nil {
			return nil, errs.Unavailable("inventory_failed", "The engine could not list its instances. Try again.").Because(err)
		}
		for _, f := range list {
			phase := journal.PhaseExited
			if f.Running {
				phase = journal.PhaseRunning
			}
			found[f.ID] = Report{Instance: f.ID, Engine: name, Phase: phase, Unknown: true}
		}
	}
	maps.Copy(known, m.instances())
	maps.DeleteFunc(found, func(i engine.InstanceID, _ Report) bool { return known[i] })
	return found, nil
}

func (m *Manager) instances() map[engine.InstanceID]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[engine.InstanceID]bool, len(m.sandboxes))
	for _, s := range m.sandboxes {
		out[s.rec.Instance] = true
	}
	return out
}

// Stats are live figures of a running sandbox beside its limits.
type Stats struct {
	engine.Stats
	Limits journal.Resources
}

// Stats reads live figures. Reasons: unknown_sandbox, stale_incarnation,
// sandbox_not_running.
func (m *Manager) Stats(ctx context.Context, sandbox id.Sandbox, incarnation uint64) (Stats, error) {
	rec, _, err := m.find(sandbox, incarnation)
	if err != nil {
		return Stats{}, err
	}
	eng, err := m.engine(rec.Spec.Engine)
	if err != nil {
		return Stats{}, err
	}
	got, err := eng.Stats(ctx, rec.Handle)
	if err != nil {
		return Stats{}, gone(err, "stats_failed", "The engine gave no figures. Try again.")
	}
	return Stats{Stats: got, Limits: rec.Spec.Resources}, nil
}

// Dial opens a connection to a port inside exactly that incarnation. It is cut
// when the sandbox ends. Reasons: unknown_sandbox, stale_incarnation,
// sandbox_not_running, port_closed, too_many_connections.
func (m *Manager) Dial(ctx context.Context, sandbox id.Sandbox, incarnation uint64, port int) (net.Conn, error) {
	_, link, err := m.find(sandbox, incarnation)
	if err != nil {
		return nil, err
	}
	if link == nil {
		return nil, errs.Unavailable("sandbox_recovering", "The host is still finding this sandbox again after a restart. Try again.").After(time.Second)
	}
	conn, err := link.Dial(ctx, port)
	if err != nil {
		return nil, gone(err, "port_closed", "Nothing listens on that port inside the sandbox.")
	}
	return conn, nil
}

// gone names an instance that has ended as such, and blames all else.
func gone(err error, reason, message string) error {
	if errors.Is(err, engine.ErrExited) || errors.Is(err, engine.ErrNotFound) {
		return notRunning()
	}
	return blame(err, reason, message)
}

func notRunning() *errs.Error {
	return errs.FailedPrecondition("sandbox_not_running", "The sandbox is not running.")
}

// find returns a running sandbox in exactly that incarnation.
func (m *Manager) find(sandbox id.Sandbox, incarnation uint64) (journal.Record, Guest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sandboxes[sandbox]
	if s == nil || s.rec.Instance == "" {
		buried, err := m.cfg.Journal.Buried(sandbox)
		switch {
		case err != nil:
			return journal.Record{}, nil, err
		case incarnation <= buried:
			return journal.Record{}, nil, stale(sandbox, buried)
		}
		return journal.Record{}, nil, unknown()
	}
	switch have := s.rec.Spec.Incarnation; {
	case incarnation < have:
		return journal.Record{}, nil, stale(sandbox, have)
	case incarnation > have:
		return journal.Record{}, nil, unknown()
	case s.rec.Phase != journal.PhaseRunning:
		return journal.Record{}, nil, notRunning().With("phase", string(s.rec.Phase))
	}
	return s.rec, s.link, nil
}

func unknown() error {
	return errs.NotFound("unknown_sandbox", "This host has no such sandbox.")
}

// Load is what the host's sandboxes were promised.
type Load struct {
	Sandboxes   int
	CPUMillis   int64
	MemoryBytes int64
}

// Load sums up all sandboxes that are not ended.
func (m *Manager) Load() Load {
	m.mu.Lock()
	defer m.mu.Unlock()
	var l Load
	for _, s := range m.sandboxes {
		if s.rec.Instance == "" || s.rec.Phase == journal.PhaseExited {
			continue
		}
		l.Sandboxes++
		l.CPUMillis += int64(s.rec.Spec.Resources.CPUMillis)
		l.MemoryBytes += s.rec.Spec.Resources.MemoryBytes
	}
	return l
}
