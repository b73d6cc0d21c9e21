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
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Inventory is what exists on the host.
type Inventory struct {
	// TakenAt is when the manager began to look. A sandbox commanded later may
	// be missing here and is not lost.
	TakenAt   time.Time
	Sandboxes []Report
	// States are all complete saved states.
	States []state.State
	// Warm are the instances that wait for a sandbox.
	Warm []WarmReport
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
	// Before the sandboxes: a state is complete before a sandbox is paused with it.
	newest := m.cfg.States.Newest()
	m.mu.Lock()
	for _, s := range m.sandboxes {
		if s.rec.Instance == "" {
			continue
		}
		r := report(s.rec)
		if st, ok := newest[r.Sandbox]; ok && r.State.IsZero() {
			r.State = st.ID
		}
		inv.Sandboxes = append(inv.Sandboxes, r)
	}
	inv.Warm = m.warmReports()
	m.mu.Unlock()
	inv.States = m.cfg.States.List()
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
	m.warmInstances(out)
	return out
}

// Stats are live figures of a running sandbox beside its limits.
type Stats struct {
	engine.Stats
	Limits journal.Resources
	// Idle is how long nothing has gone on inside; negative when the daemon does
	// not say.
	Idle time.Duration
}

// Stats reads live figures. Reasons: unknown_sandbox, stale_incarnation,
// sandbox_not_running.
func (m *Manager) Stats(ctx context.Context, sandbox id.Sandbox, incarnation uint64) (Stats, error) {
	rec, link, err := m.find(sandbox, incarnation)
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
	idle := time.Duration(-1)
	if link != nil {
		if d, err := m.idle(ctx, link); err == nil {
			idle = d
		}
	}
	return Stats{Stats: got, Limits: rec.Spec.Resources, Idle: idle}, nil
}

// idleTimeout bounds the question how long a guest has been idle.
const idleTimeout = 2 * time.Second

func (m *Manager) idle(ctx context.Context, link Guest) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, idleTimeout)
	defer cancel()
	return link.Idle(ctx)
}

// Dial opens a connection to a port inside exactly that incarnation. It is cut
// when the sandbox ends or is paused. While a pause is under way it waits: the
// pause may yet fail. Reasons: unknown_sandbox, stale_incarnation,
// sandbox_not_running, port_closed, too_many_connections.
func (m *Manager) Dial(ctx context.Context, sandbox id.Sandbox, incarnation uint64, port int) (net.Conn, error) {
	for {
		if op := m.pauseOf(sandbox); op != nil {
			if err := op.answer(ctx); err != nil {
				return nil, err
			}
			if op.err != nil { // it runs on, as soon as the operation is over
				if err := op.wait(ctx); err != nil {
					return nil, err
				}
			}
		}
		_, link, err := m.find(sandbox, incarnation)
		if err != nil {
			return nil, err
		}
		if link == nil {
			if m.pauseOf(sandbox) != nil {
				continue
			}
			return nil, recovering()
		}
		conn, err := link.Dial(ctx, port)
		switch {
		case err == nil:
			return conn, nil
		case ctx.Err() == nil && m.pauseOf(sandbox) != nil:
			continue // it cut the connection that was being made
		}
		return nil, gone(err, "port_closed", "Nothing listens on that port inside the sandbox.")
	}
}

// pauseOf is the pause under way of a sandbox, nil when there is none.
func (m *Manager) pauseOf(sandbox id.Sandbox) *operation {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.sandboxes[sandbox]; s != nil && s.op != nil && s.op.kind == opPause && s.rec.Phase != journal.PhasePaused {
		return s.op
	}
	return nil
}

func recovering() error {
	return errs.Unavailable("sandbox_recovering", "The host is still finding this sandbox again. Try again.").After(time.Second)
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

// find returns a running sandbox in exactly that incarnation. One that is being
// paused runs, and may have no link.
func (m *Manager) find(sandbox id.Sandbox, incarnation uint64) (journal.Record, Guest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.lookup(sandbox, incarnation)
	if err != nil {
		return journal.Record{}, nil, err
	}
	if s.rec.Phase != journal.PhaseRunning && s.rec.Phase != journal.PhasePausing {
		return journal.Record{}, nil, notRunning().With("phase", string(s.rec.Phase))
	}
	return s.rec, s.link, nil
}

// lookup returns a sandbox in exactly that incarnation, whatever it does.
// Called with m.mu held.
func (m *Manager) lookup(sandbox id.Sandbox, incarnation uint64) (*entry, error) {
	s := m.sandboxes[sandbox]
	if s == nil || s.rec.Instance == "" {
		buried, err := m.cfg.Journal.Buried(sandbox)
		switch {
		case err != nil:
			return nil, err
		case incarnation <= buried:
			return nil, stale(sandbox, buried)
		}
		return nil, unknown()
	}
	switch have := s.rec.Spec.Incarnation; {
	case incarnation < have:
		return nil, stale(sandbox, have)
	case incarnation > have:
		return nil, unknown()
	}
	return s, nil
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

// Load sums up all sandboxes that are neither ended nor paused.
func (m *Manager) Load() Load {
	m.mu.Lock()
	defer m.mu.Unlock()
	var l Load
	for _, s := range m.sandboxes {
		if s.rec.Instance == "" || s.rec.Phase == journal.PhaseExited || s.rec.Phase == journal.PhasePaused {
			continue
		}
		l.Sandboxes++
		l.CPUMillis += int64(s.rec.Spec.Resources.CPUMillis)
		l.MemoryBytes += s.rec.Spec.Resources.MemoryBytes
	}
	return l
}

// Phases counts the sandboxes by phase.
func (m *Manager) Phases() map[journal.Phase]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[journal.Phase]int)
	for _, s := range m.sandboxes {
		if s.rec.Phase != "" {
			out[s.rec.Phase]++
		}
	}
	return out
}
