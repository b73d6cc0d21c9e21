package sandbox

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/kernel/id"
)

// Phase is what an agent says of an instance.
type Phase string

// The phases.
const (
	PhaseCreating   Phase = "creating"
	PhaseRunning    Phase = "running"
	PhaseDestroying Phase = "destroying"
	PhaseExited     Phase = "exited"
	PhasePausing    Phase = "pausing" // it runs until that is done
	PhasePaused     Phase = "paused"
)

// Instance is something that really exists on a host.
type Instance struct {
	Sandbox     id.Sandbox
	Incarnation int64
	Phase       Phase
	EndReason   string // of an exited one
	// State is its newest complete state there; of a paused one always set.
	State id.Snapshot
	// PausedReason is why the agent paused it by itself; empty when told to.
	PausedReason string
	// Unknown to the agent's own journal.
	Unknown bool
}

// Inventory is all that exists on a host.
type Inventory struct {
	Generation int64
	Instances  []Instance
	// States are all complete ones, of paused sandboxes too.
	States []Held
}

// Reports that mean something here; all others are stored as events only.
const ReportExited = "exited"

// Report is one thing an agent tells.
type Report struct {
	Seq         int64
	Kind        string
	Sandbox     id.Sandbox
	Incarnation int64
	At          time.Time
	Data        map[string]any
}

// EndReason is why an exited sandbox ended, as far as the agent is believed.
func (r Report) EndReason() string {
	reason, _ := r.Data["reason"].(string)
	return endReason(reason)
}

// endReason lets through only the words an agent may say.
func endReason(said string) string {
	switch said {
	case "killed", "out_of_memory", "engine_crashed", "exited", "host_restarted":
		return said
	}
	return "exited"
}

// orphanGrace is how long something that should not exist is left alone, in case
// it is we who look wrongly.
const orphanGrace = time.Minute

// lostGraces is how many graces a sandbox that ran and that its host knows
// nothing of stays missing before it counts as lost. An inventory that lacks it
// may be a false view too, and what has ended never comes back.
const lostGraces = 60

// Reconciler compares what a host holds with what the rows say. It is called by
// the host monitor, one call a host at a time, and remembers between calls what
// it saw only once: no verdict rests on one look.
type Reconciler struct {
	service *Service
	store   Store
	agents  Agents
	watch   *Watch
	log     *slog.Logger
	grace   time.Duration
	now     func() time.Time

	mu    sync.Mutex
	hosts map[id.Host]*suspicions
}

// suspicions of one host; cleared by its new generation and by a pass that saw
// nothing.
type suspicions struct {
	pass       sync.Mutex // held for a whole pass: each verdict rests on two looks, one after the other
	generation int64
	absent     map[Key]bool
	orphans    map[Key]time.Time // first seen
	unknown    map[Key]time.Time
	states     map[id.Snapshot]time.Time
	copies     map[id.Snapshot]bool // written down, and not there
	left       map[Key]bool         // left behind, and not there
	deadlines  map[Key]time.Time    // as the host was told
}

// Key names one incarnation.
type Key struct {
	Sandbox     id.Sandbox
	Incarnation int64
}

// NewReconciler makes a reconciler. A zero grace is the default of one minute.
func NewReconciler(service *Service, grace time.Duration, log *slog.Logger) *Reconciler {
	if grace == 0 {
		grace = orphanGrace
	}
	return &Reconciler{
		service: service, store: service.store, agents: service.agents, watch: service.watch, log: log, grace: grace, now: time.Now,
		hosts: map[id.Host]*suspicions{},
	}
}

// ReconcileHost is one pass over one host; passes over the same host follow one
// another. What an error leaves unjudged is judged by a later pass.
func (r *Reconciler) ReconcileHost(ctx context.Context, h host.Ref) error {
	s := r.suspicions(h.ID)
	s.pass.Lock()
	defer s.pass.Unlock()
	// A row counts as running during the inventory only when it was the same
	// before and after: clocks of hosts are not compared with the database's.
	before, err := r.store.MarksOnHost(ctx, h.ID)
	if err != nil {
		return err
	}
	inv, err := r.agents.Inventory(ctx, h)
	if err != nil {
		s.clear(s.generation) // the next look is a first one again
		return err
	}
	named := make([]id.Sandbox, len(inv.Instances))
	for i, in := range inv.Instances {
		named[i] = in.Sandbox
	}
	after, err := r.store.OnHost(ctx, h.ID, named)
	if err != nil {
		return err
	}
	if s.generation != inv.Generation {
		s.clear(inv.Generation)
	}
	rows := make(map[id.Sandbox]Sandbox, len(after))
	for _, x := range after {
		rows[x.ID] = x
	}
	left, err := r.judgeDepartures(ctx, h, s, inv)
	if err != nil {
		return err
	}
	if err := r.bringForward(ctx, h, rows, inv); err != nil {
		return err
	}
	still := unchanged(before, rows, h.ID)
	if err := r.judgeRows(ctx, h, s, still, left, inv); err != nil {
		return err
	}
	if err := r.judgeInstances(ctx, h, s, rows, left, inv); err != nil {
		return err
	}
	if err := r.judgeStates(ctx, h, s, inv); err != nil {
		return err
	}
	if err := r.tellDeadlines(ctx, h, s, rows); err != nil {
		return err
	}
	return r.judgeStrays(ctx, h, s, rows, left, inv)
}

// Forget lets go of what was seen of a host that is in service no more. When it
// is back, the first look at it is a first one.
func (r *Reconciler) Forget(h id.Host) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.hosts, h)
}

// missingBatch bounds one statement of MarkMissing.
const missingBatch = 500

// MarkMissing makes missing what runs on hosts that fell silent so long ago.
// What is in transition is moved on by its operation; what is paused stays so.
func (r *Reconciler) MarkMissing(ctx context.Context, silence time.Duration) error {
	for {
		gone, err := r.store.MarkMissing(ctx, silence, missingBatch)
		if err != nil {
			return err
		}
		for _, x := range gone {
			r.watch.Publish(x)
			r.agents.Forget(x.Host, x.ID, x.Incarnation)
		}
		if len(gone) < missingBatch {
			return nil
		}
	}
}

func (r *Reconciler) suspicions(h id.Host) *suspicions {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.hosts[h]
	if s == nil {
		s = &suspicions{}
		r.hosts[h] = s
	}
	return s
}

func (s *suspicions) clear(generation int64) {
	s.generation, s.absent, s.orphans, s.unknown, s.states, s.copies, s.left, s.deadlines = generation, nil, nil, nil, nil, nil, nil, nil
}

// unchanged are the rows of the host that no operation moves and nothing touched
// while the inventory was taken.
func unchanged(before []Mark, after map[id.Sandbox]Sandbox, h id.Host) []Sandbox {
	var out []Sandbox
	for _, b := range before {
		a, ok := after[b.ID]
		if ok && a.Host.ID == h && a.Status == b.Status && rests(a.Status) && a.Incarnation == b.Incarnation && a.UpdatedAt.Equal(b.UpdatedAt) {
			out = append(out, a)
		}
	}
	return out
}

// Mark is how a row was at a time.
type Mark struct {
	ID          id.Sandbox
	Status      Status
	Incarnation int64
	UpdatedAt   time.Time
}

// judgeInstances destroys what belongs to a row that has ended, whichever host
// the row names: a machine may have joined anew as another one. What the
// database never knew, or in an earlier life, is no orphan, nor is what was given
// up as lost.
func (r *Reconciler) judgeInstances(ctx context.Context, h host.Ref, s *suspicions, rows map[id.Sandbox]Sandbox, left map[id.Sandbox]Departure, inv Inventory) error {
	orphans := map[Key]time.Time{}
	held := heldByID(inv)
	for _, in := range inv.Instances {
		x, known := rows[in.Sandbox]
		if in.Unknown || !known || in.Incarnation > x.Incarnation {
			continue
		}
		if _, is := departed(in, left); is && x.Status.Live() {
			continue // cleared away, or set aside
		}
		if x.Status.Live() {
			continue // its operation or its next transition decides
		}
		if recoverable(in, x, h.ID) {
			continue
		}
		if lost(x) && in.Phase != PhaseExited {
			if err := r.recover(ctx, h, x, in, held); err != nil {
				return err
			}
			continue
		}
		key := Key{in.Sandbox, in.Incarnation}
		since, again := s.orphans[key]
		if !again {
			since = r.now()
		}
		// What has exited already only leaves its remains.
		if in.Phase != PhaseExited && (!again || r.now().Sub(since) < r.grace) {
			orphans[key] = since
			continue
		}
		if err := r.destroy(ctx, h, x, in); err != nil {
			orphans[key] = since
			r.log.WarnContext(ctx, "cannot destroy an orphan; the next pass will", "sandbox_id", x.ID.String(), "error", err)
		}
	}
	s.orphans = orphans
	return nil
}

// judgeStates has what was removed and is there all the same removed again, and
// what a host saved by itself of a sandbox that has ended since. What else the
// database never knew is left alone.
func (r *Reconciler) judgeStates(ctx context.Context, h host.Ref, s *suspicions, inv Inventory) error {
	if err := r.judgeCopies(ctx, h, s, inv); err != nil {
		return err
	}
	if len(inv.States) == 0 {
		return nil
	}
	if err := r.store.Redrop(ctx, h.ID, inv.States); err != nil {
		return err
	}
	stray, err := r.store.StrayStates(ctx, h.ID, inv.States)
	if err != nil {
		return err
	}
	// Of a sandbox that is there itself, states are judged when it is not.
	there := map[id.Sandbox]bool{}
	for _, in := range inv.Instances {
		there[in.Sandbox] = true
	}
	kept := map[id.Snapshot]bool{}
	for _, st := range inv.States {
		kept[st.ID] = there[st.Sandbox]
	}
	seen := make(map[id.Snapshot]time.Time, len(stray))
	for _, state := range stray {
		if kept[state] {
			continue
		}
		since, again := s.states[state]
		if !again {
			since = r.now()
		}
		seen[state] = since
		if !again || r.now().Sub(since) < r.grace {
			continue
		}
		if err := r.agents.DeleteState(ctx, h, state); err != nil {
			r.log.InfoContext(ctx, "cannot remove a stray state now; the next pass will", "snapshot_id", state.String(), "error", err)
		}
	}
	s.states = seen
	return nil
}

// judgeCopies forgets copies that a host does not have, after a second look.
func (r *Reconciler) judgeCopies(ctx context.Context, h host.Ref, s *suspicions, inv Inventory) error {
	said, err := r.store.CopiesOnHost(ctx, h.ID, r.grace)
	if err != nil {
		return err
	}
	held := heldByID(inv)
	gone := map[id.Snapshot]bool{}
	var sure []id.Snapshot
	for _, state := range said {
		if _, has := held[state]; has {
			continue
		}
		if gone[state] = true; s.copies[state] {
			sure = append(sure, state)
		}
	}
	s.copies = gone
	if len(sure) == 0 {
		return nil
	}
	return r.store.LostCopies(ctx, h.ID, sure)
}

// deadlineBatch bounds one message to a host.
const deadlineBatch = 1000

// tellDeadlines repeats until when sandboxes may run, as the rows say, where the
// host was told otherwise or not at all since it started.
func (r *Reconciler) tellDeadlines(ctx context.Context, h host.Ref, s *suspicions, rows map[id.Sandbox]Sandbox) error {
	told := make(map[Key]time.Time, len(rows))
	var due []Deadline
	for _, x := range rows {
		if x.DeadlineAt == nil || x.Host.ID != h.ID || !lasts(x.Status) {
			continue
		}
		key := Key{x.ID, x.Incarnation}
		if at, known := s.deadlines[key]; !known || !at.Equal(*x.DeadlineAt) {
			due = append(due, Deadline{Key: key, At: *x.DeadlineAt})
		}
		told[key] = *x.DeadlineAt
	}
	for batch := range slices.Chunk(due, deadlineBatch) {
		if err := r.agents.SetDeadlines(ctx, h, batch); err != nil {
			return err
		}
	}
	s.deadlines = told
	return nil
}

func (r *Reconciler) destroy(ctx context.Context, h host.Ref, x Sandbox, in Instance) error {
	if err := r.agents.DestroySandbox(ctx, h, x.ID, max(in.Incarnation, x.Incarnation), "orphan"); err != nil {
		return err
	}
	if in.Phase == PhaseExited {
		return nil
	}
	r.log.WarnContext(ctx, "destroyed an orphan", "sandbox_id", x.ID.String(), "incarnation", in.Incarnation, "host_id", h.ID.String())
	if x.Host.ID != h.ID {
		return nil // a host has no say in the events of another's
	}
	return r.store.Note(ctx, x.ID, "orphan_destroyed", map[string]any{"incarnation": in.Incarnation, "host": h.ID.String()})
}

// Report takes what an agent tells of its sandboxes. Repeats change nothing, and
// only sandboxes of that host are touched.
func (s *Service) Report(ctx context.Context, from id.Host, generation int64, reports []Report) error {
	ended, err := s.store.Report(ctx, from, generation, reports)
	if err != nil {
		return err
	}
	for _, x := range ended {
		s.watch.Publish(x)
		s.agents.Forget(host.Ref{ID: from}, x.ID, x.Incarnation)
	}
	return nil
}
