package manager

import (
	"context"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/kernel/id"
)

// Sample is what a sandbox used.
type Sample struct {
	Sandbox     id.Sandbox
	Incarnation uint64
	At          time.Time
	// CPUMillis are thousandths of a CPU, on average since the sample before or
	// the start.
	CPUMillis   int
	MemoryBytes int64
	DiskBytes   int64
	Processes   int
}

// measured is what the sample before said.
type measured struct {
	instance engine.InstanceID
	cpu      time.Duration
	at       time.Time
}

// Samples reads what every running sandbox uses. Guests do not notice.
func (m *Manager) Samples(ctx context.Context) []Sample {
	m.mu.Lock()
	var recs []journal.Record
	for _, s := range m.sandboxes {
		if s.rec.Phase == journal.PhaseRunning {
			recs = append(recs, s.rec)
		}
	}
	m.mu.Unlock()
	out := make([]Sample, 0, len(recs))
	for _, rec := range recs {
		eng, err := m.engine(rec.Spec.Engine)
		if err != nil {
			continue
		}
		st, err := eng.Stats(ctx, rec.Handle)
		if err != nil {
			continue // it ended meanwhile; its exit is told elsewhere
		}
		out = append(out, m.sample(rec, st))
	}
	return out
}

func (m *Manager) sample(rec journal.Record, st engine.Stats) Sample {
	now := m.cfg.Clock.Now()
	m.mu.Lock()
	before := measured{at: rec.StartedAt}
	if s := m.sandboxes[rec.Spec.Sandbox]; s != nil {
		if s.measured.instance == rec.Instance {
			before = s.measured
		}
		s.measured = measured{instance: rec.Instance, cpu: st.CPUTime, at: now}
	}
	m.mu.Unlock()
	out := Sample{
		Sandbox: rec.Spec.Sandbox, Incarnation: rec.Spec.Incarnation, At: now,
		MemoryBytes: st.MemoryBytes, DiskBytes: st.DiskBytes, Processes: st.Processes,
	}
	if span := now.Sub(before.at); span > 0 {
		out.CPUMillis = int(1000 * max(st.CPUTime-before.cpu, 0).Seconds() / span.Seconds())
	}
	return out
}
