package sandbox

import (
	"slices"
	"time"
)

// Status is where a sandbox is in its life.
type Status string

// The statuses. The table below says everything else about them.
const (
	StatusPending      Status = "pending"
	StatusStarting     Status = "starting"
	StatusRunning      Status = "running"
	StatusPausing      Status = "pausing"
	StatusPaused       Status = "paused"
	StatusResuming     Status = "resuming"
	StatusSnapshotting Status = "snapshotting"
	StatusStopping     Status = "stopping"
	StatusStopped      Status = "stopped"
	StatusMissing      Status = "missing"
	StatusError        Status = "error"
)

// Action is what a caller may do with a sandbox in a status.
type Action string

// The actions.
const (
	ActionExec     Action = "exec"
	ActionFiles    Action = "files"
	ActionPause    Action = "pause"
	ActionResume   Action = "resume"
	ActionSnapshot Action = "snapshot"
	ActionFork     Action = "fork"
	ActionDelete   Action = "delete"
	ActionRecover  Action = "recover"
)

// The limits of each status' automatic exit.
const (
	CreateLimit     = 15 * time.Minute    // pending and starting, together
	TransitionLimit = 30 * time.Minute    // pausing, resuming, snapshotting
	DeleteLimit     = 24 * time.Hour      // stopping: a host out of reach is not waited for longer
	MissingLimit    = 7 * 24 * time.Hour  // missing
	PausedLimit     = 30 * 24 * time.Hour // paused
	MaxTimeout      = 30 * 24 * time.Hour // running: the largest timeout_sec
	Retention       = 30 * 24 * time.Hour // ended rows
)

// Exit is how a status ends when nobody does anything. An empty To is the
// removal of the row.
type Exit struct {
	To    Status
	After time.Duration
	How   string
}

// State is what holds for a status.
type State struct {
	Status Status
	// To are the statuses that may follow.
	To []Status
	// Actions are those a caller may ask for.
	Actions []Action
	// HoldsCompute: its CPU and memory count against the host.
	HoldsCompute bool
	// HoldsDisk: its disk counts against the host.
	HoldsDisk bool
	// Live: it has not ended.
	Live bool
	// Final: it never leaves this status by itself.
	Final bool
	// Exit is absent (zero) for none; final statuses only lose their row.
	Exit Exit
}

// Machine is the state table, in the order of a life.
func Machine() []State {
	return []State{
		{
			Status: StatusPending, Live: true, HoldsCompute: true, HoldsDisk: true,
			// stopped: here and below, its host was deleted.
			To:      []Status{StatusStarting, StatusStopping, StatusStopped, StatusError},
			Actions: []Action{ActionExec, ActionFiles, ActionDelete}, // they wait for running
			Exit:    Exit{To: StatusError, After: CreateLimit, How: "the create operation reaches its deadline"},
		},
		{
			Status: StatusStarting, Live: true, HoldsCompute: true, HoldsDisk: true,
			To:      []Status{StatusRunning, StatusStopping, StatusStopped, StatusError},
			Actions: []Action{ActionExec, ActionFiles, ActionDelete},
			Exit:    Exit{To: StatusError, After: CreateLimit, How: "the create operation reaches its deadline"},
		},
		{
			Status: StatusRunning, Live: true, HoldsCompute: true, HoldsDisk: true,
			// paused: its host paused it without contact.
			To:      []Status{StatusPausing, StatusPaused, StatusSnapshotting, StatusStopping, StatusStopped, StatusMissing},
			Actions: []Action{ActionExec, ActionFiles, ActionPause, ActionSnapshot, ActionFork, ActionDelete},
			Exit:    Exit{To: StatusStopping, After: MaxTimeout, How: "timeout_sec runs out; on_timeout says pause or kill"},
		},
		{
			Status: StatusPausing, Live: true, HoldsCompute: true, HoldsDisk: true,
			To:      []Status{StatusPaused, StatusRunning, StatusStopping, StatusStopped, StatusMissing},
			Actions: []Action{ActionDelete},
			Exit:    Exit{To: StatusMissing, After: TransitionLimit, How: "the pause operation reaches its deadline, and its host decides what became of it"},
		},
		{
			Status: StatusPaused, Live: true, HoldsDisk: true,
			To:      []Status{StatusResuming, StatusStopping, StatusStopped, StatusMissing},
			Actions: []Action{ActionResume, ActionFork, ActionDelete},
			Exit:    Exit{To: StatusStopping, After: PausedLimit, How: "the paused state outlives its time"},
		},
		{
			Status: StatusResuming, Live: true, HoldsCompute: true, HoldsDisk: true,
			To:      []Status{StatusRunning, StatusPaused, StatusStopping, StatusStopped, StatusMissing},
			Actions: []Action{ActionExec, ActionFiles, ActionDelete},
			Exit:    Exit{To: StatusMissing, After: TransitionLimit, How: "the resume operation reaches its deadline, and its host decides what became of it"},
		},
		{
			Status: StatusSnapshotting, Live: true, HoldsCompute: true, HoldsDisk: true,
			To:      []Status{StatusRunning, StatusStopping, StatusStopped, StatusMissing},
			Actions: []Action{ActionExec, ActionFiles, ActionDelete},
			Exit:    Exit{To: StatusMissing, After: TransitionLimit, How: "the snapshot operation reaches its deadline, and its host decides what became of it"},
		},
		{
			Status: StatusStopping, Live: true, HoldsCompute: true, HoldsDisk: true,
			To:      []Status{StatusStopped},
			Actions: []Action{ActionDelete},
			Exit:    Exit{To: StatusStopped, After: DeleteLimit, How: "the host confirms, or the delete operation reaches its deadline"},
		},
		{
			Status: StatusMissing, Live: true, HoldsCompute: true, HoldsDisk: true,
			To:      []Status{StatusRunning, StatusPaused, StatusStopping, StatusStopped},
			Actions: []Action{ActionRecover, ActionDelete},
			Exit:    Exit{To: StatusStopped, After: MissingLimit, How: "its host stays away, or does not know it"},
		},
		{
			Status: StatusError, To: []Status{StatusStopped}, Actions: []Action{ActionDelete},
			Exit: Exit{After: Retention, How: "the row is removed"},
		},
		{
			// paused: it ended by itself and was saved before.
			Status: StatusStopped, Final: true, To: []Status{StatusPaused}, Actions: []Action{ActionRecover},
			Exit: Exit{After: Retention, How: "the row is removed"},
		},
	}
}

// Statuses are all of them, in the order of the table.
func Statuses() []Status { return where(func(State) bool { return true }) }

// LiveStatuses are those of a sandbox that has not ended.
func LiveStatuses() []Status { return where(func(s State) bool { return s.Live }) }

// ComputeStatuses are those that hold CPU and memory.
func ComputeStatuses() []Status { return where(func(s State) bool { return s.HoldsCompute }) }

func where(keep func(State) bool) []Status {
	var out []Status
	for _, s := range Machine() {
		if keep(s) {
			out = append(out, s.Status)
		}
	}
	return out
}

// State returns the table's line for s; ok is false for a word that is no
// status.
func (s Status) State() (State, bool) {
	for _, st := range Machine() {
		if st.Status == s {
			return st, true
		}
	}
	return State{}, false
}

// May reports whether a sandbox in s may become to.
func (s Status) May(to Status) bool {
	st, ok := s.State()
	return ok && slices.Contains(st.To, to)
}

// Live reports whether a sandbox in s has not ended.
func (s Status) Live() bool {
	st, ok := s.State()
	return ok && st.Live
}

// Offered are the actions a caller may ask for in s.
func (s Status) Offered() []Action {
	st, _ := s.State()
	return st.Actions
}

// Transient reports whether an operation is under way that leads out of s by
// itself, so that a request may wait for it.
func (s Status) Transient() bool {
	switch s {
	case StatusPending, StatusStarting, StatusPausing, StatusResuming, StatusSnapshotting:
		return true
	}
	return false
}

// WithInstance are the statuses in which an instance may exist on the host whose
// end by itself is the sandbox's.
func WithInstance() []Status {
	return []Status{StatusRunning, StatusPausing, StatusSnapshotting, StatusResuming, StatusMissing}
}
