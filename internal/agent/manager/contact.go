package manager

import (
	"context"
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	contactTick = time.Second
	// A pause the agent chose and that failed is tried again after a time that
	// doubles.
	autoRetryMin = 5 * time.Second
	autoRetryMax = 5 * time.Minute
)

// retry spaces the tries of what the agent does by itself.
type retry struct {
	running bool
	pause   time.Duration
	next    time.Time
}

// SetDeadlines says until when sandboxes may run; the zero time is for ever.
// Unknown sandboxes and other incarnations are skipped. It returns when the
// deadlines are on disk.
func (m *Manager) SetDeadlines(_ context.Context, list []journal.Deadline) error {
	if err := m.cfg.Journal.SetDeadlines(list); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range list {
		if s := m.sandboxes[d.Sandbox]; s != nil && s.rec.Spec.Incarnation == d.Incarnation {
			s.deadline = d.At
		}
	}
	return nil
}

// keepDeadlines pauses what is due while the control plane cannot be heard. It
// looks at the world each time and remembers nothing but failures.
func (m *Manager) keepDeadlines(ctx context.Context) {
	ticker := time.NewTicker(contactTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, req := range m.due() {
			m.wg.Go(func() { m.autoPause(ctx, req) })
		}
	}
}

// due are the sandboxes to pause now, marked as being taken care of. How long
// there was no contact goes by the monotonic clock: a step of the machine's
// clock is no outage.
func (m *Manager) due() (out []PauseRequest) {
	last := m.cfg.Contact()
	if last.Before(m.began) {
		last = m.began
	}
	silence := time.Since(last)
	all := m.cfg.LostContactPause > 0 && silence >= m.cfg.LostContactPause || m.cfg.Refused != nil && m.cfg.Refused()
	if !all && silence < m.cfg.LostContact {
		return nil
	}
	now := m.cfg.Clock.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	for sandbox, s := range m.sandboxes {
		late := !s.deadline.IsZero() && !now.Before(s.deadline)
		if !all && !late || s.op != nil || s.rec.Phase != journal.PhaseRunning || s.link == nil ||
			s.auto.running || time.Now().Before(s.auto.next) {
			continue
		}
		s.auto.running = true
		out = append(out, own(sandbox, s.rec.Spec.Incarnation, ReasonLostContact))
	}
	return out
}

func own(sandbox id.Sandbox, incarnation uint64, reason string) PauseRequest {
	return PauseRequest{Sandbox: sandbox, Incarnation: incarnation, State: id.NewSnapshot(), Memory: true, Reason: reason, own: true}
}

func (m *Manager) autoPause(ctx context.Context, req PauseRequest) {
	err := m.inTurn(ctx, func() error {
		_, err := m.Pause(ctx, req)
		return err
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sandboxes[req.Sandbox]
	if s == nil {
		return
	}
	s.auto.running = false
	if err == nil {
		s.auto = retry{}
		return
	}
	s.auto.pause = min(max(2*s.auto.pause, autoRetryMin), autoRetryMax)
	s.auto.next = time.Now().Add(s.auto.pause)
}

// inTurn runs f when fewer than PauseWidth others run.
func (m *Manager) inTurn(ctx context.Context, f func() error) error {
	select {
	case m.width <- struct{}{}:
		defer func() { <-m.width }()
		return f()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Outcome is what became of one sandbox in PauseAll.
type Outcome struct {
	Sandbox     id.Sandbox
	Incarnation uint64
	State       state.State
	Err         error // why it runs on
}

// PauseAll pauses every running sandbox, several at once, and reports each
// outcome. Those that another command pauses meanwhile count as paused.
func (m *Manager) PauseAll(ctx context.Context, reason string) []Outcome {
	return m.pauseAll(ctx, reason, false)
}

// PauseForShutdown is PauseAll by the agent's own decision, before the machine
// goes down. From then on nothing is started here, and what is being started is
// undone, so that nothing runs that was not looked at.
func (m *Manager) PauseForShutdown(ctx context.Context) []Outcome {
	m.mu.Lock()
	m.leaving = true
	var starting []*operation
	for _, s := range m.sandboxes {
		if s.op != nil && s.op.kind == opCreate {
			s.op.cancel(errClosing)
			starting = append(starting, s.op)
		}
	}
	m.mu.Unlock()
	for _, op := range starting {
		if op.wait(ctx) != nil {
			break
		}
	}
	return m.pauseAll(ctx, ReasonHostShutdown, true)
}

func (m *Manager) pauseAll(ctx context.Context, reason string, byItself bool) []Outcome {
	m.mu.Lock()
	var out []Outcome
	for sandbox, s := range m.sandboxes {
		if s.rec.Phase == journal.PhaseRunning || s.rec.Phase == journal.PhasePausing {
			out = append(out, Outcome{Sandbox: sandbox, Incarnation: s.rec.Spec.Incarnation})
		}
	}
	m.mu.Unlock()
	slices.SortFunc(out, func(a, b Outcome) int { return strings.Compare(a.Sandbox.String(), b.Sandbox.String()) })
	w := newWide(m.cfg.PauseWidth)
	for i := range out {
		w.do(func() error {
			req := own(out[i].Sandbox, out[i].Incarnation, reason)
			req.own = byItself
			out[i].Err = m.inTurn(ctx, func() (err error) {
				out[i].State, err = m.Pause(ctx, req)
				return err
			})
			if errs.Is(out[i].Err, "already_paused") {
				out[i].State, out[i].Err = m.stateOf(out[i].Sandbox, out[i].Err)
			}
			return out[i].Err
		})
	}
	_ = w.wait() // each outcome has its own
	return out
}

// stateOf is the state a paused sandbox consists of, or otherwise err.
func (m *Manager) stateOf(sandbox id.Sandbox, err error) (state.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.sandboxes[sandbox]; s != nil && s.rec.Phase == journal.PhasePaused {
		return m.pausedState(s.rec, s.rec.Pause.State)
	}
	return state.State{}, err
}
